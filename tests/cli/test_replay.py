"""``sgl replay`` as a user calls it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from sgl.cli.main import main
from sgl.engine.api import Engine
from sgl.engine.api.exchange import Answer, Choice, Exchange
from sgl.engine.core.record import FileRecorder, RecordedStep, read_steps
from tests.server.live import live, until

PARAMS = {"temperature": 0, "max_new_tokens": 5}


class Done(NamedTuple):
    code: int
    out: str
    err: str


Replay = Callable[..., Done]


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Replay:
    """Runs ``sgl replay ...`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sgl", "replay", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return call


def write(path: Path, *texts: str, params: object = PARAMS, apart_s: float = 0.0) -> None:
    exchanges = [
        Exchange(
            rid=f"r{number}",
            path="/generate",
            at_s=1000.0 + number * apart_s,
            body={"text": text, "sampling_params": params},
            answer=Answer(200, "", [Choice(text=text, finish="length")], 3, 3, 0, None, 0.5),
        )
        for number, text in enumerate(texts)
    ]
    path.write_bytes(b"".join(msgspec.json.encode(exchange) + b"\n" for exchange in exchanges))


def test_requests_are_sent_and_compared(replay: Replay, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "hello", "world")
    with live() as server:
        done = replay("a.jsonl", "--url", server.url, "--speed", "2x", "-o", "b.jsonl")
        again = replay("run", "--url", server.url, "a.jsonl", "--output", "b.jsonl")
    assert done.code == 0, done.err
    assert "2 of 2 requests in" in done.out and "2 of 2 answers are the same; of 2 greedy ones 2." in done.out
    lines = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    assert sorted(line["answer"]["choices"][0]["text"] for line in lines) == ["hello", "world"]
    assert again.code == 2 and "--output b.jsonl exists" in again.err
    assert replay("diff", "a.jsonl", "b.jsonl").code == 0


def test_a_greedy_difference_is_an_exit_code(replay: Replay, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "hello", "world")
    write(tmp_path / "b.jsonl", "hello", "worse")
    done = replay("diff", "a.jsonl", "b.jsonl")
    assert done.code == 1
    assert "1 of 2 answers are the same; of 2 greedy ones 1." in done.out
    assert "r1 (greedy): text from 3 on\n    A: 'ld'\n    B: 'se'" in done.out
    told = json.loads(replay("diff", "a.jsonl", "b.jsonl", "--json").out)
    assert told["num_greedy_different"] == 1 and told["differences"][0]["position"] == 3
    for name, text in (("a", "world"), ("b", "worse")):
        write(tmp_path / f"{name}.jsonl", text, params={"temperature": 0.7})
    assert replay("diff", "a.jsonl", "b.jsonl").code == 0


def test_ctrl_c_keeps_what_was_answered(replay: Replay, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "first", "later", apart_s=60.0)
    with live() as server:
        output = tmp_path / "b.jsonl"

        def interrupt() -> None:
            until(lambda: output.exists() and output.read_bytes())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        done = replay("a.jsonl", "--url", server.url, "-o", "b.jsonl")
    assert done.code == 130 and "1 of 2 requests in" in done.out
    assert json.loads(output.read_text())["rid"] == "r0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jsonl", "--speed", "fast"], "--speed must be a factor from 0.001 to 1e6, like 2x, got 'fast'."),
        (["absent"], "absent cannot be read: No such file or directory."),
        (["a.jsonl", "--url", "http://127.0.0.1:9"], "No server answers at http://127.0.0.1:9;"),
        (["plans", "a.jsonl"], "a.jsonl has no steps; `sgl serve --record-plans FILE` writes some."),
        (["plans", "absent"], "absent cannot be read: No such file or directory."),
    ],
)
def test_mistakes_are_one_sentence(replay: Replay, tmp_path: Path, words: list[str], message: str) -> None:
    write(tmp_path / "a.jsonl", "hello")
    done = replay(*words)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_help_names_all_three(replay: Replay) -> None:
    done = replay("--help")
    assert done.code == 0 and all(name in done.out for name in ("run", "diff", "plans"))


def record(path: Path, steps: Sequence[RecordedStep]) -> None:
    recorder = FileRecorder(path)
    for step in steps:
        recorder.write(step)
    recorder.close()


def test_what_a_grammar_chose_among_several_is_chosen_again(replay: Replay, tmp_path: Path) -> None:
    own = {"device": "cpu", "cpu_threads": 1, "page_size": 8, "max_total_tokens": 4096}
    with Engine(record_plans=str(tmp_path / "plans"), **own) as engine:
        engine.generate("one", {"temperature": 0.0, "max_new_tokens": 20, "regex": "[0-9]{3} house"})
    steps = list(read_steps(tmp_path / "plans"))
    changed = next(step for step in steps if step.masks)
    mask, (chosen,) = int.from_bytes(changed.masks[0], "little"), changed.outputs[0].token_ids
    assert mask.bit_count() >= 10 and mask >> chosen & 1
    told = ("--device", "cpu", "--cpu-threads", "1", "--page-size", "8")
    assert replay("plans", "plans", *told).code == 0
    changed.masks[0] = (mask & ~(1 << chosen)).to_bytes(len(changed.masks[0]), "little")
    record(tmp_path / "other", steps)
    done = replay("plans", "other", *told)
    assert done.code == 1 and f"step {changed.plan.step_id} is not" in done.out


def test_plans_come_out_the_same_bit_for_bit(replay: Replay, tmp_path: Path) -> None:
    own = {"device": "cpu", "cpu_threads": 1, "page_size": 8, "max_total_tokens": 4096}
    free = {"temperature": 0.9, "max_new_tokens": 9, "ignore_eos": True}
    bound = {"temperature": 0.0, "max_new_tokens": 20, "regex": "(red|green) [0-9]{3} house"}
    with Engine(record_plans=str(tmp_path / "plans"), **own) as engine:
        params = [free, bound, bound | {"temperature": 0.9}]
        engine.generate(["one", "two " * 20, "three"], params, return_logprob=True, top_logprobs_num=2)
        engine.generate(["one", "two " * 15], free)
    steps = list(read_steps(tmp_path / "plans"))
    assert any(step.masks for step in steps) and any(step.forced for step in steps)
    told = ("--device", "cpu", "--cpu-threads", "1", "--page-size", "8")
    done = replay("plans", "plans", *told)
    assert done.code == 0, done.out + done.err
    assert done.out.startswith(f"{len(steps)} steps, 3 slots, ") and "the same bit for bit." in done.out

    token = steps[2].outputs[0].logprobs[0]
    assert token.logprob is not None
    steps[2].outputs[0].logprobs[0] = msgspec.structs.replace(token, logprob=math.nextafter(token.logprob, 0.0))
    record(tmp_path / "other", steps)
    done = replay("plans", "other", *told)
    assert done.code == 1 and f"2 steps are the same; step {steps[2].plan.step_id} is not" in done.out
    done = replay("plans", "plans", *told[:-1], "1")
    assert done.code == 2 and "--page-size 1 is smaller than it was" in done.err
