"""The engine on lesser machines: with every instruction set that this processor has, and without a compiler."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sgl
from sgl.engine.base.device import CPU_ISAS, CpuDevice, detect_isa
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.machine import cpus
from sgl.kernels.cpu import native
from tests.server.live import until

ROOT = Path(__file__).parents[2]
QUESTIONS = ("What is the capital of France?", "What is 17 + 25?", "What is your name?")


def answers(**options: Any) -> list[str]:
    """The demo model's: it is trained, so its greedy tokens do not hang on the last bits of a logit."""
    with sgl.Engine(device="cpu", max_total_tokens=2048, cpu_threads=1, **options) as engine:
        ask = engine.tokenizer_manager.template.render
        prompts = [ask([{"role": "user", "content": question}]) for question in QUESTIONS]
        outputs = engine.generate(prompts, {"temperature": 0, "max_new_tokens": 24})
    return [output["text"] for output in outputs]


@functools.cache
def expected(quantization: str | None = None) -> list[str]:
    """Plain torch's answers."""
    return answers(kernels="reference", attention_backend="torch_native", quantization=quantization)


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
def test_tiles_compile_also_where_they_cannot_run() -> None:
    assert native.build("amx").is_file()


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
def test_a_compiler_that_knows_no_tiles_makes_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    build = native.build

    def old(isa: str) -> Path:
        if isa == "amx":
            raise subprocess.CalledProcessError(1, ["c++"])
        return build(isa)

    monkeypatch.setattr(native, "build", old)
    assert "cpu-avx512_bf16-" in native._built("amx").name


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("quantization", [None, "int8", "int4-g32", "fp8"])
@pytest.mark.parametrize("isa", CPU_ISAS)
def test_answers_do_not_depend_on_the_instruction_set(
    isa: str, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CPU_ISAS.index(isa) > CPU_ISAS.index(detect_isa()):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("SGL_KERNEL_ISA", isa)
    assert CpuDevice().isa == isa
    assert f"cpu-{isa}-" in native.library()._name
    assert answers(attention_backend="cpu", quantization=quantization) == expected(quantization)


def test_processes_that_need_the_same_library_compile_it_once(tmp_path: Path) -> None:
    """The compiler waits until the second process has found that the library is missing."""
    compiler = tmp_path / "c++"
    script = f"""#!/bin/sh
[ "$1" = --version ] && exec echo 1
echo >> {tmp_path}/runs
while [ ! -e {tmp_path}/second ]; do sleep 0.05; done
while [ "$1" != -o ]; do shift; done
: > "$2"
"""
    compiler.write_text(script)
    compiler.chmod(0o700)
    begin = "import pathlib\nfrom sgl.kernels.cpu import native\n"
    build = "native.build('generic', 'made-up', ('decoder.cpp',), ())"
    environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}

    def process(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", begin + code], cwd=ROOT, env=environment)

    first = process(build)
    until(lambda: (tmp_path / "runs").exists())
    second = process(f"pathlib.Path.mkdir = lambda *_, **__: open({str(tmp_path / 'second')!r}, 'w')\n{build}")
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert len((tmp_path / "runs").read_text().splitlines()) == 2, "one source, one library"


def test_without_a_compiler_it_answers_and_says_so_in_one_line(tmp_path: Path) -> None:
    """In a process of its own: an empty PATH, and no kernels from before."""
    code = "import json\nfrom tests.kernels.test_machines import answers\nprint(json.dumps(answers()))"
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected()
    (line,) = done.stderr.splitlines()
    assert "Attention runs in plain torch" in line and "no C++ compiler was found (install g++, or set CXX)" in line


@pytest.mark.parametrize("asked", ["avx1024", "AVX2"])
def test_an_instruction_set_that_is_not_there_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGL_KERNEL_ISA", asked)
    with pytest.raises(ConfigError, match=f"SGL_KERNEL_ISA={asked} cannot be used on this processor; use generic"):
        detect_isa()


def test_pinned_threads_have_a_core_each() -> None:
    """In a process of its own: a pinned thread stays so."""
    code = """
import os, torch
from sgl.kernels.cpu import native
torch.set_num_threads(2)
native.pin(2)
tensor = torch.ones(1 << 20).add(1)  # torch computes with the same team
places = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
print(sorted(next(iter(cores)) for cores in places if len(cores) == 1), os.sched_getaffinity(0))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (cpus() * 2)[:2]
    assert done.stdout == f"{sorted([first, second])} {{{first}}}\n"
