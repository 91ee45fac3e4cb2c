"""``sgl eval`` as a user calls it, on the demo model."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sgl.bench.evals.asks import Ask, Reply
from sgl.bench.evals.local import Local
from sgl.cli.eval import COMMANDS, respelled
from sgl.cli.main import Commands
from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from tests.cli.test_main import run
from tests.server.live import Live

DEMO = str(Path(__file__).parents[2] / "assets" / "demo")
ENGINE = ("--device", "cpu", "--cpu-threads", "1", "--max-total-tokens", "8192")


class Done(NamedTuple):
    code: int
    out: str
    err: str


Evaluate = Callable[..., Done]


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Evaluate:
    """Runs ``sgl eval ...`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Done:
        code = run(monkeypatch, "eval", *words)
        return Done(code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("demo-tool-call --seed 2", "demo --skills tool-call --seed 2"),
        ("--lm-eval hellaswag --model-path M", "lm-eval hellaswag --model-path M"),
        ("--model-path M --lm-eval=a,b --limit 5", "lm-eval a,b --model-path M --limit 5"),
        ("demo --seed 2", "demo --seed 2"),
        ("lm-eval arc_easy", "lm-eval arc_easy"),
        ("", ""),
    ],
)
def test_tasks_have_the_names_that_people_say(words: str, meant: str) -> None:
    assert respelled(words.split()) == meant.split()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_task_explains_itself(evaluate: Evaluate, name: str) -> None:
    assert isinstance(Commands.table, dict)
    done = evaluate(name, "--help")
    assert done.code == 0 and done.out.startswith(f"Usage: sgl eval {name}")


def test_a_run_is_shown_recorded_and_resumed(evaluate: Evaluate, tmp_path: Path) -> None:
    words = ("demo-capital", DEMO, *ENGINE, "--num-questions", "10")
    done = evaluate(*words, "--result-file", "result.jsonl")
    assert done.code == 0, done.err
    assert "demo-capital: 100.0% of 10 questions right (95%: 72.2% to 100.0%)" in done.out
    line = json.loads((tmp_path / "result.jsonl").read_text())
    assert line["accuracy"] == 1.0 and line["num_items"] == 10 and line["seed"] == 1
    [folder] = (tmp_path / "sgl-eval").iterdir()
    assert len((folder / "items.jsonl").read_text().splitlines()) == 11
    again = evaluate(*words)
    assert again.code == 0 and "10 answers are of an earlier run" in again.out
    more = evaluate("demo-capital", DEMO, *ENGINE, "--num-questions", "12", "--output", str(folder))
    assert more.code == 0 and "10 answers are of an earlier run" in more.out
    other = evaluate(*words, "--dtype", "float32", "--output", str(folder))
    assert other.code == 2 and "has answers of other settings (facts.dtype: 'bfloat16', now 'float32')" in other.err


def test_an_interrupt_keeps_what_was_answered(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    own, count = Local.answer, 0

    async def answer(self: Local, ask: Ask) -> Reply:
        nonlocal count
        count += 1
        if count == 4:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        return await own(self, ask)

    words = ("demo-capital", DEMO, *ENGINE, "--num-questions", "6", "--parallel", "1")
    monkeypatch.setattr(Local, "answer", answer)
    broken = evaluate(*words)
    assert broken.code == 130
    assert "Interrupted: 3 of 6 answers are kept" in broken.err and "of 3 questions right" in broken.out
    whole = evaluate(*words)
    assert whole.code == 0 and "3 answers are of an earlier run" in whole.out


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    options = {"device": "cpu", "cpu_threads": 1, "max_total_tokens": 8192, "drain_timeout_s": 1.0}
    config = sources.configure(sources.with_demo_model(sources.from_call(options)))
    live = Live(AsyncEngine.start(config, in_process=True), config)
    try:
        yield live
    finally:
        live.close()


def test_a_server_gets_the_figures_of_its_engine(evaluate: Evaluate, server: Live, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The capital of Peru is Lima. What is 2 + 3? 2 + 3 = 5.\n" * 30)
    for task in (("demo-counting", "--num-questions", "12"), ("perplexity", "--data", "text.txt", "--window", "64")):
        words = (*task, "--result-file", f"{task[0]}.jsonl")
        assert evaluate(*words, DEMO, *ENGINE).code == 0
        done = evaluate(*words, "--url", server.url)
        assert done.code == 0, done.err
        local, remote = map(json.loads, (tmp_path / f"{task[0]}.jsonl").read_text().splitlines())
        assert local["dataset_hash"] == remote["dataset_hash"]
        figure = "perplexity" if task[0] == "perplexity" else "accuracy"
        assert math.isclose(local[figure], remote[figure], rel_tol=1e-6)
    folders = sorted(map(str, (tmp_path / "sgl-eval").glob("demo-counting-*")))
    compared = evaluate("compare", *folders)
    assert compared.code == 0 and "no difference is certain" in compared.out


def test_engine_options_are_refused_with_a_server(evaluate: Evaluate) -> None:
    done = evaluate("demo", "--url", "http://127.0.0.1:9", "--dtype", "float32")
    assert done.code == 2 and "--dtype is an option of an engine here; leave it out with --url." in done.err
    assert evaluate("demo", "--url", "http://127.0.0.1:9").err.startswith("Error: No server answers")


def test_runs_are_compared(evaluate: Evaluate, tmp_path: Path) -> None:
    for skill, folder in (("sorting-numbers", "a"), ("sorting-numbers", "b")):
        words = ("--quantization", "int4-g32") if folder == "b" else ()
        done = evaluate(f"demo-{skill}", DEMO, *ENGINE, "--num-questions", "30", "--output", folder, *words)
        assert done.code == 0, done.err
    done = evaluate("compare", "a", "b")
    assert done.code == 0 and "B - A: " in done.out and "items only B got right" in done.out
    told = json.loads(evaluate("compare", "a", "b", "--json").out)
    assert told["num_items"] == 30 and len(told["gained"]) - len(told["lost"]) == round(30 * (told["b"] - told["a"]))
    if told["lost"]:
        assert "Only A got right:" in done.out and told["lost"][0]["a"]["id"] in done.out


def test_a_quantized_model_is_near_its_reference(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("What is the capital of Peru? The capital of Peru is Lima.\n" * 20)
    words = ("kl", DEMO, *ENGINE, "--data", "text.txt", "--window", "32", "--result-file", "kl.jsonl")
    done = evaluate(*words, "--quantization", "int8", "--reference", DEMO, "--save-reference", "kept")
    assert done.code == 0, done.err
    assert "KL(reference || model)" in done.out and "over the whole vocabulary" in done.err
    again = evaluate(*words, "--reference", "kept")
    assert again.code == 0, again.err
    int8, itself = map(json.loads, (tmp_path / "kl.jsonl").read_text().splitlines())
    assert itself["kl"]["value"] == 0.0 < int8["kl"]["value"] < 0.1
    assert evaluate("kl", DEMO, "--data", "text.txt").err.startswith("Error: kl needs --reference")


def test_what_is_missing_is_said_in_a_sentence(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "sgl.bench.evals.harness", raising=False)
    done = evaluate("--lm-eval", "hellaswag", DEMO)
    assert done.code == 2 and "pip install 'sgl[eval]'" in done.err
    assert "gsm8k cannot be read" in evaluate("gsm8k", DEMO, "--data", "gsm8k").err
    assert evaluate("tool-calls", DEMO).err.startswith("Error: tool-calls needs --data")
    assert "has no skill 'capitall'" in evaluate("demo-capitall").err
    assert evaluate("gsm8k", "--temperature", "-1").err.startswith("Error: --temperature must be from 0")
