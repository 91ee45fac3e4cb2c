"""lm-eval over our engine against lm-eval's own client of a server: the same requests give the same figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")

from sgl.bench.evals import harness  # noqa: E402
from sgl.bench.evals.journal import Journal  # noqa: E402
from sgl.bench.evals.local import Local  # noqa: E402
from sgl.bench.evals.remote import Remote  # noqa: E402
from sgl.engine.api import AsyncEngine  # noqa: E402
from sgl.engine.base.errors import ConfigError  # noqa: E402
from tests.server.live import Live  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
DEMO = Path(__file__).parents[3] / "assets" / "demo"
TASKS = ("sgl_choices", "sgl_sums", "sgl_text")
CAPITALS = {"Peru": "Lima", "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Cuba": "Havana"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks of the three kinds of requests, with their data."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    choices = list(CAPITALS.values())
    write(
        tmp_path,
        "sgl_choices",
        [{"q": f"capital of {c}:", "choices": choices, "answer": choices.index(a)} for c, a in CAPITALS.items()],
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
    )
    turn = "<|im_start|>user\nWhat is {} - {}?<|im_end|>\n<|im_start|>assistant\n"
    write(
        tmp_path,
        "sgl_sums",
        [{"q": turn.format(a, b), "answer": str(a - b)} for a, b in ((9, 4), (88, 19), (503, 77), (320, 199))],
        {
            "output_type": "generate_until",
            "doc_to_text": "{{q}}",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["<|im_end|>"], "max_gen_toks": 64, "do_sample": False},
            "filter_list": [
                {
                    "name": "last",
                    "filter": [
                        {"function": "regex", "regex_pattern": "= (-?\\d+)\\.$", "group_select": -1},
                        {"function": "take_first"},
                    ],
                }
            ],
            "metric_list": [{"metric": "exact_match"}],
        },
    )
    write(
        tmp_path,
        "sgl_text",
        [{"text": "The capital of Peru is Lima. " * 9}, {"text": "Hello there."}],
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    )
    return tmp_path


def write(folder: Path, name: str, rows: list[dict[str, Any]], task: dict[str, Any]) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **where, **task}))


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with Local.load(model_path=str(DEMO), device="cpu", cpu_threads=1, max_total_tokens=8192) as model:
        yield model


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_engine_the_url_and_lm_evals_own_client_agree(local: Local, folder: Path) -> None:
    plan = harness.Plan(TASKS, include_path=str(folder))
    with Journal(folder / "kept", {"task": plan.name}) as journal:
        ours, samples = harness.run(plan, local, parallel=8, journal=journal, watch=lambda run: lambda record: None)
    with Journal(folder / "kept", {"task": plan.name}) as journal:
        assert len(journal.answered) == 6 * 6 + 4 + 2
    config = local.engine.config
    live = Live(AsyncEngine.start(config, in_process=True), config)
    try:
        with Remote.connect(live.url, tokenizer=str(DEMO)) as model:
            theirs, _ = harness.run(plan, model, parallel=8, journal=None, watch=lambda run: lambda record: None)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        found = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "demo",
                "base_url": f"{live.url}/v1/completions",
                "tokenizer": str(DEMO),
                "tokenizer_backend": "huggingface",
            },
            tasks=list(TASKS),
            task_manager=lm_eval.tasks.TaskManager(include_path=str(folder)),
            bootstrap_iters=0,
        )
    finally:
        live.close()
    for task in TASKS:
        own = {name: value for name, value in found["results"][task].items() if name in ours[task]["metrics"]}
        assert own == pytest.approx(ours[task]["metrics"], rel=1e-9)
        assert theirs[task]["metrics"] == pytest.approx(ours[task]["metrics"], rel=1e-9)
    assert ours["sgl_sums"]["accuracy_metric"] == "exact_match,last" and ours["sgl_sums"]["num_items"] == 4
    assert ours["sgl_choices"]["low"] < ours["sgl_choices"]["accuracy"] < ours["sgl_choices"]["high"]
    assert len(samples["sgl_choices"]) == 6 and "accuracy" not in ours["sgl_text"]


def test_an_unknown_task_is_named(local: Local) -> None:
    with pytest.raises(ConfigError, match=r"has no task 'no_such_task'"):
        harness.run(harness.Plan(("no_such_task",)), local, parallel=1, journal=None, watch=lambda _: print)
