"""The gate: what limits mean, which text it measures with, and that nothing is written when they are missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sgl.bench.evals.estimates import Estimate
from sgl.engine.base.errors import ConfigError
from sgl.quant.formats.packed import Packed
from sgl.quant.gate.criteria import Criterion, Verdict, parse
from sgl.quant.gate.data import Data, DataOptions
from sgl.quant.gate.documents import read_evidence
from sgl.quant.gate.job import Job, run
from sgl.quant.gate.measure import task_of
from sgl.quant.gate.sample import conversations
from sgl.quant.gate.search import fewest, search
from sgl.quant.recipes import methods
from tests.models.checkpoints import make_checkpoint
from tests.quant.test_recipes import Silent, tensors_of

DATA = DataOptions(num_gate=8, num_calibration=8, max_tokens=48)
ENGINE = {"max_total_tokens": 512, "context_length": 256}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_checkpoint("llama", folder, dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)


def test_limits_are_read() -> None:
    assert parse("kl<=0.02, top1 >= .97,PPL<=1.02x , eval:demo-arith>=0.85") == (
        Criterion("kl", "<=", 0.02),
        Criterion("top1", ">=", 0.97),
        Criterion("ppl", "<=", 1.02, is_ratio=True),
        Criterion("eval:demo-arith", ">=", 0.85),
    )


@pytest.mark.parametrize(
    "text", ["", "kl", "kl<0.1", "kl>=0.1", "top1<=0.9", "kl<=0.1x", "top1>=97", "foo<=1", "kl<=1e999x", "eval:>=0.5"]
)
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ConfigError):
        task_of("mmlu-of-my-own")
    with pytest.raises(ConfigError):
        task_of("demo-flying")
    assert {skill.split()[0].split("_")[0] for skill in task_of("demo-arith").skills} == {"addition", "subtraction"}


@pytest.mark.parametrize(
    ("text", "estimate", "passed", "reason"),
    [
        ("kl<=0.02", Estimate(0.015, 0.012, 0.018), True, ""),
        ("kl<=0.02", Estimate(0.015, 0.009, 0.021), False, "not certain"),
        ("kl<=0.02", Estimate(0.030, 0.019, 0.041), False, "beyond"),
        ("kl<=0.02", Estimate(0.001), False, "too few"),
        ("top1>=0.97", Estimate(0.98, 0.971, 0.99), True, ""),
        ("top1>=0.97", Estimate(0.98, 0.969, 0.99), False, "not certain"),
    ],
)
def test_the_whole_interval_must_keep_the_limit(text: str, estimate: Estimate, passed: bool, reason: str) -> None:
    verdict = Verdict(parse(text)[0], estimate)
    assert verdict.passed == passed and verdict.reason.startswith(reason)


def test_calibration_and_gate_never_share_a_text(model: Path, tmp_path: Path) -> None:
    lines = [{"text": f"Item number {i} of a list of many different items."} for i in range(200)]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for options in (DataOptions(str(file), num_gate=100), DataOptions(num_gate=1000, num_calibration=1000)):
        data = Data(options, model)
        calibration, held_out = data.calibration(), data.held_out()
        assert not set(calibration.ids) & set(held_out.ids)
        assert len(calibration.ids) > 2 * len(held_out.ids) > 0
    reordered = tmp_path / "again.jsonl"
    reordered.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    again = Data(DataOptions(str(reordered), num_gate=100), model)
    assert not set(again.calibration().ids) & set(Data(DataOptions(str(file), num_gate=100), model).held_out().ids)


def test_gate_text_that_was_calibrated_with_does_not_count(model: Path, tmp_path: Path) -> None:
    texts = [f"Sentence {i} has a few words in it." for i in range(12)]
    (tmp_path / "calibration.txt").write_text("\n\n".join(texts[:8]))
    (tmp_path / "gate.txt").write_text("\n\n".join(texts))
    data = Data(DataOptions(str(tmp_path / "calibration.txt"), str(tmp_path / "gate.txt")), model)
    assert len(data.calibration().ids) == 8 and len(data.held_out().ids) == 4


def test_conversations_go_through_the_template(model: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a test."}]},
        {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is a test!"}]},
        {"prompt": "What is it?", "response": "It is a test?"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(DataOptions(str(tmp_path / "rows.jsonl"), gate="x"), model)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = (".", "!", "?")
    expected = {
        tuple(
            tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": "What is it?"},
                    {"role": "assistant", "content": f"It is a test{end}"},
                ],
                return_dict=False,
            )
        )
        for end in ends
    }
    assert set(data.calibration().ids) == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty"),
        ("no json\n{}\n[1]\n", "1 not JSON; 1 without text.*; 1 not JSON objects"),
        ('{"text": " "}', "1 "),
    ],
    ids=["empty", "useless", "blank"],
)
def test_a_file_without_a_usable_line_is_one_error(model: Path, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    job = Job(
        str(model),
        tmp_path / "out",
        methods.fp8(),
        data=DataOptions(str(tmp_path / "bad.jsonl")),
        criteria=parse("kl<=1"),
    )
    with pytest.raises(ConfigError, match=f"no usable line.*{told}"):
        run(job, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_the_built_in_sample_is_large_enough_for_a_gate() -> None:
    items = conversations()
    assert len(items) > 300 and items == conversations()


def test_a_candidate_that_passes_says_why(model: Path, tmp_path: Path) -> None:
    criteria = parse("kl<=0.5, top1>=0.3, ppl<=1.5x")
    job = Job(str(model), tmp_path / "out", methods.fp8(), data=DATA, criteria=criteria, engine=ENGINE)
    outcome = run(job, Silent())
    assert outcome.passed and [path.name for path in tmp_path.iterdir()] == ["out"]
    evidence = read_evidence(tmp_path / "out")
    assert evidence.gate is not None and evidence.gate.data.num_sequences == 8
    assert [verdict.criterion for verdict in evidence.gate.verdicts] == ["kl<=0.5", "top1>=0.3", "ppl<=1.5x"]
    assert all(verdict.passed and verdict.low is not None for verdict in evidence.gate.verdicts)
    assert evidence.gate.divergence["is_exact"] and evidence.versions["sgl"]


def test_a_candidate_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    recipe = methods.int4(algorithm="rtn", group=32)
    job = Job(str(model), tmp_path / "out", recipe, data=DATA, criteria=parse("kl<=1e-9"), engine=ENGINE)
    outcome = run(job, Silent())
    assert not outcome.passed and outcome.verdicts[0].reason == "beyond"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_the_smallest_number_is_found_in_few_steps(total: int) -> None:
    for least in range(total + 1):
        asked: list[int] = []

        def passes(count: int, least: int = least, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= least

        assert fewest(total, passes) == least
        assert len(asked) <= 2 + total.bit_length()
    assert fewest(total, lambda _: False) is None


@pytest.mark.slow
def test_auto_keeps_as_much_wide_as_the_gate_asks(model: Path, tmp_path: Path) -> None:
    recipe = methods.int4(algorithm="rtn", group=32)

    def searched(name: str, limits: str) -> tuple[bool, set[str]]:
        job = Job(str(model), tmp_path / name, recipe, data=DATA, criteria=parse(limits), engine=ENGINE)
        outcome = search(job, Silent())
        if not outcome.passed:
            return False, set()
        evidence = read_evidence(tmp_path / name)
        return True, set(evidence.recipe["wider"])

    assert searched("loose", "kl<=10") == (True, set())
    narrow = tensors_of(tmp_path / "loose")
    run(Job(str(model), tmp_path / "plain", recipe), Silent())
    plain = tensors_of(tmp_path / "plain")
    assert narrow.keys() == plain.keys() and all(tensor.equal(plain[name]) for name, tensor in narrow.items())
    gate = read_evidence(tmp_path / "loose").gate
    assert gate is not None and gate.verdicts[0].low is not None
    passed, wide = searched("middle", f"kl<={gate.verdicts[0].low / 2:.6f}")
    assert passed and 0 < len(wide) < 14
    assert Packed(8, None).label in set(read_evidence(tmp_path / "middle").recipe["wider"].values())
    assert searched("never", "kl<=1e-9") == (False, set())
    assert {path.name for path in tmp_path.iterdir()} == {"loose", "plain", "middle"}
