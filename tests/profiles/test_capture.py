"""The commands that record, and the sampler's files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sgl.engine.base import env, sampler
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.base.sampler import sampling
from sgl.profiles import capture
from sgl.profiles.stacks import functions

WORDS = ["bench", "one-batch", "--model-path", "a b"]


def test_commands() -> None:
    torch = capture.with_torch(WORDS, Path("/t"), 3, 40)
    assert str(torch).startswith("SGL_PROFILE_STEPS=3:40 SGLANG_TORCH_PROFILER_DIR=/t ")
    assert str(torch).endswith("-m sgl bench one-batch --model-path 'a b'")
    nsys = capture.with_nsys(["sgl", *WORDS], Path("/t/sgl"), ["--delay", "60"])
    assert list(nsys.words[:2]) == ["nsys", "profile"] and nsys.variables == {"SGL_NVTX": "1"}
    flags = {"--cuda-graph-trace=node", "--trace-fork-before-exec=true", "--trace=cuda,nvtx,osrt", "--export=sqlite"}
    assert flags <= set(nsys.words)
    assert list(nsys.words[nsys.words.index("--delay") :]) == ["--delay", "60", *capture.own(WORDS)]
    with pytest.raises(ConfigError, match="behind --"):
        capture.own(["sgl"])


@pytest.mark.parametrize(("text", "steps"), [("5:20", (5, 20)), ("", None), ("5", None), ("a:b", None), ("-1:2", None)])
def test_steps_to_record(monkeypatch: pytest.MonkeyPatch, text: str, steps: tuple[int, int] | None) -> None:
    monkeypatch.setenv("SGL_PROFILE_STEPS", text)
    assert env.profile_steps() == steps


def busy(used_ns: list[int]) -> None:
    """Computes until the sampler has seen it use 0.15 s of a processor, however long that takes."""
    while not used_ns or used_ns[-1] - used_ns[0] < 150_000_000:
        sum(range(2000))


def test_the_sampler_sees_work_and_not_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGL_PROFILE_PY", str(tmp_path))
    clock, used_ns, me = sampler._processor_ns, [], threading.get_native_id()

    def watched(native_id: int) -> int | None:
        used = clock(native_id)
        if native_id == me and used is not None:
            used_ns.append(used)
        return used

    monkeypatch.setattr(sampler, "_processor_ns", watched)
    done = threading.Event()
    waiter = threading.Thread(target=done.wait, name="waiter")
    waiter.start()
    with sampling("test"):
        busy(used_ns)
    done.set()
    waiter.join()
    [file] = tmp_path.glob("*.speedscope.json")
    content = json.loads(file.read_text())
    assert content["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    for profile in content["profiles"]:
        assert profile["type"] == "sampled" and len(profile["samples"]) == len(profile["weights"])
        assert profile["endValue"] == pytest.approx(sum(profile["weights"]))
    found = functions([file])
    [mine] = [one for one in found if one.name == "busy"]
    assert 0.1 < mine.total_s <= (used_ns[-1] - used_ns[0]) / 1e9 + 1e-6
    assert sum(one.own_s for one in found if "wait" in one.name) < 0.1 * mine.total_s
    [collapsed] = tmp_path.glob("*.collapsed")
    weights = [int(line.rpartition(" ")[2]) for line in collapsed.read_text().splitlines() if ";busy" in line]
    assert sum(weights) / 1e6 == pytest.approx(mine.total_s, abs=0.01)


def test_without_being_asked_nothing_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGL_PROFILE_PY", raising=False)
    with sampling("test"):
        assert "sampler" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("content", ["{", '{"shared": {"frames": []}, "profiles": 3}'])
def test_other_files_are_no_stacks(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(SglError, match="no speedscope file"):
        functions([path])


def test_dry_runs_print_the_command(tmp_path: Path) -> None:
    for tool in (["torch"], ["nsys"], ["py", "--sampler", "own"], ["with", "nsys"], ["with", "torch"]):
        done = subprocess.run(
            [sys.executable, "-m", "sgl", "profile", *tool, "--dry-run", "-o", str(tmp_path / "out"), "--", *WORDS],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("-m sgl bench one-batch --model-path 'a b'")
        if "nsys" in tool and not capture.is_installed("nsys"):
            assert "apt install -y nsight-systems-cli" in done.stderr
