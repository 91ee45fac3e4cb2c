"""The GPU check with a CPU in the GPU's place: its parts, what ends them, and what is told of them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sgl.bench import gpu_check, gpu_sections
from sgl.bench.gpu_check import PARTS, Part, check, main, table
from sgl.bench.gpu_engine import Answer
from sgl.bench.gpu_memory import memory
from sgl.bench.gpu_sections import TINY, Context, Figure, Model, _verdict, ceilings, tokens, waits
from sgl.engine.base.device import open_device
from sgl.engine.base.types import TokenLogprob

FOREVER = Context(TINY, float("inf"))


def test_ceilings_are_measured() -> None:
    assert ceilings(FOREVER)["figures"]["gpu_matmul_bf16"] > 0


def test_a_model_is_measured_from_start_to_end() -> None:
    known = {"ceilings": {"figures": {"gpu_read_bandwidth": 1e9, "gpu_matmul_bf16": 1e9}}}
    part = Model("qwen3-0.6b", "fp8", ("decode", 1, 2), has_prefill=True, has_steps=True, throughput=("all", 9, 8))
    result = part(Context(TINY, float("inf"), known))
    assert [figure.unit for figure in result["figures"]] == ["tok/s", "% of GEMM peak", "ms", "%", "s"]
    assert all(figure.value >= 0 for figure in result["figures"])
    assert {"weights", "KV cache"} <= set(result["start"])
    assert min(result["host_ms"], result["step_ms"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("section", [tokens, waits, memory])
def test_engines_agree_with_themselves(section: Any) -> None:
    result = section(FOREVER)
    assert result["is_ok"], result


def test_what_is_late_is_named() -> None:
    result = Model("qwen3-0.6b", decode=("decode", 1, 2))(Context(TINY, float("-inf")))
    assert result["figures"] == [] and result["failed"]["decode"].endswith("TimeoutError: not reached in time\n")


ENTRY = TokenLogprob(3, -0.5, ((3, -0.5), (4, -0.6)))


@pytest.mark.parametrize(
    ("got", "verdict"),
    [([3, 5], "same"), ([4, 9], "tie"), ([7, 5], "token 0 is 7 instead of 3, inf less likely")],
)
def test_answers_may_differ_behind_a_tie(got: list[int], verdict: str) -> None:
    wanted = Answer([3, 5], [ENTRY, ENTRY])
    assert _verdict(Answer(got), wanted, margin=0.2) == verdict
    assert _verdict(Answer([4, 9]), wanted, margin=0.01) != "tie"


@pytest.mark.parametrize(
    ("value", "is_latency", "verdict"),
    [(5, False, "missed"), (11, False, "reached"), (25, False, "stretch"), (25, True, "missed"), (5, True, "reached")],
)
def test_figures_are_held_against_what_they_are_to_reach(value: float, is_latency: bool, verdict: str) -> None:
    stretch = 1 if is_latency else 20
    figure = Figure("speed", value, "s", 10, stretch, is_latency)
    assert gpu_check._verdict(gpu_check._plain(figure)) == verdict  # type: ignore[arg-type]


class Process:
    """In place of a part's process."""

    outcomes: dict[str, Any]
    pid = 1 << 30  # of nobody

    def __init__(self, command: list[str], **options: Any) -> None:
        self.name = command[command.index("--part") + 1]
        self.result = Path(command[command.index("--result") + 1])
        self.is_killed = False

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        outcome = self.outcomes[self.name]
        if isinstance(outcome, list):  # one after the other
            outcome = outcome.pop(0)
        if outcome == "hangs" and timeout is not None:
            self.result.write_text('{"running": "the check that hangs"}')
            raise gpu_check.subprocess.TimeoutExpired("part", timeout)
        if isinstance(outcome, dict):
            self.result.write_text(json.dumps(outcome))
        self.returncode = 0 if isinstance(outcome, dict) else 1
        return "the last words", None


def test_no_part_takes_another_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = {"name": "speed", "value": 5.0, "unit": "tok/s", "least": 4, "stretch": 9, "is_latency": False}
    Process.outcomes = {
        "a": "breaks",
        "b": "hangs",
        "c": {"figures": [figure]},
        "d": {"is_ok": False, "num_run": 7, "num_failed": 1},
    }
    monkeypatch.setattr(gpu_check.subprocess, "Popen", Process)
    monkeypatch.setattr(gpu_check, "_commit", lambda: "0123456789abcdef")
    parts = [Part(name, f"part {name}", 60, lambda: dict) for name in Process.outcomes]  # type: ignore[arg-type,return-value]
    kept: list[str] = []
    report = check(parts, dry_run=True, keep=lambda report: kept.append(json.dumps(report)))
    assert len(kept) == 1 + len(parts) and json.loads(kept[-1]) == report
    assert [one["status"] for one in json.loads(kept[1])["parts"].values()] == ["failed", *["not reached"] * 3]
    assert report["parts"]["b"]["result"] == {"running": "the check that hangs"}
    assert [one["status"] for one in report["parts"].values()] == ["failed", "timeout", "ok", "failed"]
    assert report["parts"]["a"]["output"] == "the last words"
    text = table(report)
    assert "| part d | failed, 7 checks, 1 failed |" in text
    assert "| speed | 5 tok/s | 4 tok/s | 9 tok/s | reached |" in text


def test_a_part_goes_on_in_another_process_where_the_device_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Named("good"), Named("illegal access", RuntimeError("CUDA error")), Named("better"), Named("wrong", 7.0)]
    monkeypatch.setattr(gpu_sections, "_checks", lambda device: iter(checks))
    monkeypatch.setattr(gpu_sections, "_is_broken", lambda device: result["num_run"] == 2)
    kept: list[dict[str, Any]] = []
    result: dict[str, Any] = {}

    def keep(found: Any) -> None:
        result.update(found)
        kept.append(dict(found))

    context = Context(TINY, time.monotonic() + 100, {}, keep)
    first = gpu_sections.parity(context)
    assert first["goes_on"] and not first["is_ok"] and first["num_run"] == 2 and kept[-1]["running"] == "illegal access"
    second = gpu_sections.parity(replace(context, known={"parity": first}))
    assert not second["goes_on"] and second["num_run"] == 4 and list(second["failed"]) == ["illegal access", "wrong"]
    assert "CUDA error" in second["failed"]["illegal access"] and second["num_failed"] == 2

    Process.outcomes = {"parity": [first, second]}
    monkeypatch.setattr(gpu_check.subprocess, "Popen", Process)
    monkeypatch.setattr(gpu_check, "_commit", lambda: "")
    report = check([part for part in PARTS if part.name == "parity"], dry_run=True)
    assert report["parts"]["parity"]["result"] == second


def test_several_processes_may_share_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Named(f"op-{place}-x", 0.1 * place) for place in range(11)]
    monkeypatch.setattr(gpu_sections, "_checks", lambda device: iter(checks))
    shares = [
        gpu_sections.parity(Context(TINY, float("inf"), share=(number, 4))) | {"running": f"check {number}"}
        for number in range(4)
    ]
    shares[2]["is_ok"], shares[2]["failed"] = False, {"op-2-x": "illegal"}
    outcomes = [{"status": "ok", "seconds": 1.0 + place, "result": share} for place, share in enumerate(shares)]
    outcomes[2] |= {"status": "failed", "output": "the last words"}
    together = gpu_check.joined(outcomes)
    assert (together["status"], together["seconds"], together["output"]) == ("failed", 4.0, "the last words")
    result = together["result"]
    assert result["num_run"] == len(result["worst"]) == 11 and not result["is_ok"]
    assert result["failed"] == {"op-2-x": "illegal"} and result["running"] == [f"check {n}" for n in range(4)]
    assert gpu_check.joined(outcomes[:1]) is outcomes[0]


def test_checks_come_by_turns() -> None:
    names = [check.name for check in gpu_sections._checks(open_device("cpu"))]
    first = [name.rpartition("-")[0].partition(" ")[0] for name in names[:12]]
    assert len(names) == len(set(names)) > 500 and len(set(first)) >= 6
    is_flashinfer = ["flashinfer" in name for name in names]
    assert any(is_flashinfer) and is_flashinfer == sorted(is_flashinfer), "what takes longest to compile comes last"


@dataclass
class Named:
    """A check and what comes of it."""

    name: str
    outcome: float | Exception = 0.5

    def run(self) -> float:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_parts_without_time_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_commit", lambda: "")
    report = check(PARTS[:1], dry_run=False, total_s=5)
    assert report["parts"]["ceilings"]["status"] == "not reached"


def test_the_parts_fit_into_nine_minutes() -> None:
    assert gpu_check.TOTAL_S < 9 * 60
    assert sum(part.limit_s for part in PARTS) <= gpu_check.TOTAL_S + 20


@pytest.mark.slow
def test_the_whole_program_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--only", "ceilings,qwen3-0.6b", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "dry-run.json").read_text())
    assert report["is_dry_run"] and len(report["figures"]) == 1
    assert capsys.readouterr().out == (tmp_path / "dry-run.md").read_text()


def test_mistakes_end_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "everything", "--out", str(tmp_path)]) == 2
    assert "there is no part 'everything'; parts are ceilings," in capsys.readouterr().err
