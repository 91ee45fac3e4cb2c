from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sgl.bench.data import DataOptions, Sample, Vocabulary, digest, load, num_requests, warm_up
from sgl.engine.base.errors import ConfigError
from sgl.engine.text.tokenizer import load_tokenizer, no_tokenizer
from tests.models.checkpoints import VOCAB_SIZE, make_tokenizer

LETTERS = Vocabulary(range(10, 100), lambda text: [ord(letter) for letter in text])


def test_random_lengths_lie_in_their_range_and_fill_it() -> None:
    options = DataOptions(num_prompts=400, random_input=20, random_output=10, random_range_ratio=0.5)
    samples = load(options, LETTERS)
    assert {len(sample.input_ids) for sample in samples} == set(range(10, 21))
    assert {sample.output_len for sample in samples} == set(range(5, 11))
    assert {token for sample in samples for token in sample.input_ids} == set(LETTERS.ids)


def test_random_prompts_of_one_length_are_distinct() -> None:
    samples = load(DataOptions(num_prompts=200, random_input=16, random_output=4, random_range_ratio=1.0), LETTERS)
    assert len({sample.input_ids for sample in samples}) == 200
    assert {(len(sample.input_ids), sample.output_len) for sample in samples} == {(16, 4)}


@pytest.mark.parametrize("name", ["random", "generated-shared-prefix"])
def test_the_seed_decides(name: str) -> None:
    options = DataOptions(dataset_name=name, random_input=16)
    first, again = load(options, LETTERS), load(options, LETTERS)
    other = load(dataclasses.replace(options, seed=2), LETTERS)
    assert first == again and digest(first) == digest(again)
    assert first != other and digest(first) != digest(other)


def test_no_prompt_is_empty() -> None:
    assert min(len(s.input_ids) for s in load(DataOptions(num_prompts=50, random_input=1), LETTERS)) == 1


def test_groups_share_their_prefix_and_nothing_else() -> None:
    options = DataOptions(
        dataset_name="generated-shared-prefix",
        prefix_groups=3,
        prompts_per_group=4,
        prefix_len=12,
        question_len=8,
        prefix_output_len=5,
    )
    samples = load(options, LETTERS)
    assert {(len(sample.input_ids), sample.output_len) for sample in samples} == {(20, 5)}
    prefixes = [sample.input_ids[:12] for sample in samples]
    assert {prefixes.count(prefix) for prefix in prefixes} == {4} and len(set(prefixes)) == 3
    assert len({sample.input_ids[12:] for sample in samples}) == 12


def test_warm_up_has_the_lengths_but_not_the_prompts() -> None:
    samples = load(DataOptions(num_prompts=3, random_input=32, random_output=64), LETTERS)
    warm = warm_up(samples, 5, LETTERS)
    assert [len(s.input_ids) for s in warm] == [len(samples[i % 3].input_ids) for i in range(5)]
    assert max(sample.output_len for sample in warm) <= 16
    assert not {sample.input_ids for sample in warm} & {sample.input_ids for sample in samples}


@pytest.fixture
def sharegpt(tmp_path: Path) -> Path:
    talks: list[Any] = [
        {"conversations": [{"from": "human", "value": f"question {i}"}, {"from": "gpt", "value": "answer" * (i + 1)}]}
        for i in range(6)
    ]
    talks += [
        {"conversations": [{"value": "too short?"}, {"value": "no"}]},
        {"conversations": [{"value": "nobody answers"}]},
        {"id": "empty"},
    ]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(talks))
    return file


def test_sharegpt_asks_the_first_question_for_an_answer_as_long(sharegpt: Path) -> None:
    options = DataOptions(dataset_name="sharegpt", dataset_path=str(sharegpt), num_prompts=6)
    samples = load(options, LETTERS)
    assert {sample.text: sample.output_len for sample in samples} == {f"question {i}": 6 * (i + 1) for i in range(6)}
    assert all(sample.input_ids == tuple(map(ord, sample.text)) for sample in samples)
    assert load(options, LETTERS) == samples
    fixed = load(dataclasses.replace(options, output_len=9, num_prompts=3), LETTERS)
    assert [sample.output_len for sample in fixed] == [9, 9, 9]


def test_jsonl_keeps_order_and_takes_text_or_ids(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"prompt": "hello", "output_len": 3}\n\n{"prompt": [5, 6, 7], "output_len": 4, "more": 1}\n')
    options = DataOptions(dataset_name="jsonl", dataset_path=str(file))
    first, second = load(options, LETTERS)
    assert (first.input_ids, first.output_len, first.text) == (tuple(map(ord, "hello")), 3, "hello")
    assert (second.input_ids, second.output_len, second.text) == ((5, 6, 7), 4, "")
    assert load(dataclasses.replace(options, num_prompts=1, output_len=8), LETTERS)[0].output_len == 8


def trace(tmp_path: Path, *lines: str) -> DataOptions:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(f'{{"prompt": [5], "output_len": 2{line}}}\n' for line in lines))
    return DataOptions(dataset_name="jsonl", dataset_path=str(file))


def test_timestamps_count_from_the_first_request(tmp_path: Path) -> None:
    options = trace(tmp_path, ', "timestamp": 103.5', ', "timestamp": 101', ', "timestamp_ms": 102250')
    assert [sample.due_s for sample in load(options, LETTERS)] == [0.0, 1.25, 2.5]
    assert digest(load(options, LETTERS)) != digest(load(trace(tmp_path, "", "", ""), LETTERS))


def test_a_trace_has_all_its_timestamps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 of 3 lines have no timestamp"):
        load(trace(tmp_path, ', "timestamp": 1', "", ', "timestamp": 2'), LETTERS)
    with pytest.raises(ConfigError, match="\"timestamp\" must be a number, got 'soon'"):
        load(trace(tmp_path, ', "timestamp": "soon"'), LETTERS)


def test_conversations_have_the_questions_asked_for(sharegpt: Path, tmp_path: Path) -> None:
    options = DataOptions(num_prompts=3, turns=4, random_input=8, random_output=5)
    for sample in load(options, LETTERS):
        turns = (sample, *sample.later)
        assert len(turns) == 4 and all(0 < len(turn.input_ids) <= 8 for turn in turns)
    assert num_requests(load(options, LETTERS)) == 12
    said = ["first?", "the answer", "second?", "another answer", "third?"]
    file = tmp_path / "long.json"
    file.write_text(json.dumps([{"conversations": [{"value": text} for text in said]}]))
    talk = DataOptions(dataset_name="sharegpt", dataset_path=str(file), num_prompts=1, turns=3)
    (sample,) = load(talk, LETTERS)
    assert [(turn.text, turn.output_len) for turn in (sample, *sample.later)] == [("first?", 10), ("second?", 14)]


def test_a_question_follows_the_answer_before_it() -> None:
    talk = Sample((1, 2), 3, "one", later=(Sample((4,), 5, "two"), Sample((6,), 1, "three")))
    second = talk.follow([8, 9], "eight")
    assert second is not None and second.prompt_ids == (1, 2, 8, 9, 4) and second.past == ("one", "eight")
    third = second.follow([7], "seven")
    assert third is not None and third.prompt_ids == (1, 2, 8, 9, 4, 7, 6) and third.output_len == 1
    assert third.past == ("one", "eight", "two", "seven") and third.text == "three"
    assert third.follow([1], "x") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of .* must be"),
        ('{"prompt": ""}', "line 1 of .* must be"),
        ('{"prompt": [1, "x"], "output_len": 2}', "line 1 of .* must be"),
        ('{"prompt": [true], "output_len": 2}', "line 1 of .* must be"),
        ('{"prompt": "x"}', 'line 1 of .* has no "output_len"'),
        ('{"prompt": "x", "output_len": "3"}', 'line 1 of .* has no "output_len"'),
        ("", "has no prompts"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line)
    with pytest.raises(ConfigError, match=message):
        load(DataOptions(dataset_name="jsonl", dataset_path=str(file)), LETTERS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_name": "mmlu"}, "--dataset-name mmlu is unknown; use random, sharegpt"),
        ({"dataset_name": "sharegpt"}, "needs --dataset-path"),
        ({"dataset_path": "x"}, "--dataset-path needs --dataset-name sharegpt or jsonl"),
        ({"num_prompts": 0}, "--num-prompts must be at least 1"),
        ({"turns": 0}, "--turns must be at least 1"),
        ({"dataset_name": "generated-shared-prefix", "turns": 2}, "--turns needs --dataset-name random or sharegpt"),
        ({"random_input": -3}, "--random-input must be at least 1"),
        ({"random_range_ratio": 1.5}, "--random-range-ratio must be between 0 and 1"),
        ({"dataset_name": "generated-shared-prefix", "num_prompts": 7}, "--num-prompts 7 is not the 8 x 16"),
        ({"dataset_name": "jsonl", "dataset_path": "/nowhere"}, "--dataset-path /nowhere cannot be read: No such file"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(DataOptions(**fields), LETTERS)


def test_too_few_conversations_are_refused(sharegpt: Path) -> None:
    with pytest.raises(ConfigError, match="has 6 usable conversations, fewer than --num-prompts 7"):
        load(DataOptions(dataset_name="sharegpt", dataset_path=str(sharegpt), num_prompts=7), LETTERS)


def test_a_vocabulary_has_no_special_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tokenizer(tmp_path))
    assert list(Vocabulary.of(tokenizer).ids) == list(range(4, VOCAB_SIZE))
    assert list(Vocabulary.of(tokenizer, 100).ids) == list(range(4, 100))
    assert list(Vocabulary.of(no_tokenizer(tmp_path), 7).ids) == list(range(7))
