from __future__ import annotations

import resource
from pathlib import Path

import pytest

from sgl.bench.doctor import environment
from sgl.bench.doctor.environment import Finding, packages

NEEDS = ("torch<2.15,>=2.11", "numpy>=2.0", 'lm-eval>=0.4.13; extra == "eval"', 'triton>=3.6; extra == "gpu"')


def found(versions: dict[str, str], *, has_gpu: bool = False) -> dict[str, Finding]:
    return {finding.told: finding for finding in packages(has_gpu, NEEDS, versions.get)}


def test_all_is_well() -> None:
    findings = found({"torch": "2.13.0+cpu", "numpy": "2.4.6", "lm-eval": "0.4.13"})
    assert {finding.state for finding in findings.values()} == {"ok"}
    assert not any(finding.fix for finding in findings.values())


def test_a_wrong_version_breaks_and_has_a_line_that_mends_it() -> None:
    [wrong] = [f for f in found({"torch": "2.9.1", "numpy": "2.4.6"}).values() if f.state == "broken"]
    assert wrong.told.startswith("torch 2.9.1 is not ") and wrong.fix.startswith("pip install 'torch")
    [missing] = [f for f in found({"torch": "2.13.0"}).values() if f.state == "broken"]
    assert (missing.told, missing.fix) == ("numpy is not installed", "pip install 'numpy>=2.0'")


def test_extras_are_told_where_they_matter() -> None:
    base = {"torch": "2.13.0", "numpy": "2.4.6"}
    weak = {f.topic: f for f in found(base).values() if f.state == "weak"}
    assert weak.keys() == {"extra eval"} and weak["extra eval"].fix == "pip install 'sgl[eval]'"
    assert "lm-eval missing" in weak["extra eval"].told
    assert {f.topic for f in found(base, has_gpu=True).values() if f.state == "weak"} == {"extra eval", "extra gpu"}


def test_the_installed_package_can_be_examined(tmp_path: Path) -> None:
    findings = environment.examine(has_gpu=False, cache=tmp_path / "not" / "yet", compiler_trouble="")
    topics = {finding.topic for finding in findings}
    assert {"sgl", "C++ kernels", "open files", "cache", "nsys"} <= topics


@pytest.mark.parametrize(("limit", "state"), [(1024, "weak"), (65536, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_few_open_files_are_few_connections(limit: int, state: str) -> None:
    assert environment.open_files(limit).state == state


def test_what_is_missing_is_weak() -> None:
    assert environment.compiler("there is no C++ compiler").fix == "apt-get install g++"
    assert environment.profiler(None, has_gpu=True).state == "weak"
    assert environment.profiler(None, has_gpu=False).state == "ok"
    assert environment.profiler("/usr/bin/nsys", has_gpu=True).told == "/usr/bin/nsys"
