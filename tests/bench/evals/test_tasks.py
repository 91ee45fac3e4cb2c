"""The published formats of data sets, prompts as SGLang's scripts write them, and how answers are read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sgl.bench.evals.asks import Ask, Call, Passage, Reply, Scores
from sgl.bench.evals.items import Item, record_of
from sgl.bench.evals.tasks.gsm8k import Gsm8k, number_in
from sgl.bench.evals.tasks.json_schema import BUILT_IN, JsonSchema, fault_of
from sgl.bench.evals.tasks.mmlu import Mmlu, letter_in
from sgl.bench.evals.tasks.needle import Needle, depths_of
from sgl.bench.evals.tasks.perplexity import Perplexity
from sgl.bench.evals.tasks.questions import Asking
from sgl.bench.evals.tasks.tool_calls import ToolCalls
from sgl.engine.base.errors import ConfigError
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.bench.evals.fake import FakeModel

DEMO = Path(__file__).parents[3] / "assets" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ask_of(item: Item) -> Ask:
    assert isinstance(item.ask, Ask)
    return item.ask


# ---- gsm8k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = <<3+4=7>>7 eggs.\n#### 7", 7),
        ("#### 1,234", 1234),
        ("#### -5", -5),
        ("so the price is $18.00.", 18),
        (r"first 12, then \boxed{42}, as 13 shows", 42),
        (r"\boxed{1} ... \boxed{2}", 2),
        ("#### 8\n\nand then 9", 8),
        ("It costs 1,000,000 dollars", 1_000_000),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_gsm8k_asks_what_is_behind_its_examples(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": f"because\n#### {i}"} for i in range(6)]
    task = Gsm8k(jsonl(tmp_path / "test.jsonl", *rows), num_shots=2, num_questions=3)
    items = task.items(FakeModel())
    assert [item.id for item in items] == ["gsm8k/2", "gsm8k/3", "gsm8k/4"]
    assert ask_of(items[0]).prompt == (
        "Question: Q0?\nAnswer: because\n#### 0\n\nQuestion: Q1?\nAnswer: because\n#### 1\n\nQuestion: Q2?\nAnswer:"
    )
    assert ask_of(items[0]).stop[0] == "Question" and ask_of(items[0]).max_tokens == 512
    assert items[0].expected == 2
    assert task.judge(items[0], Reply("it is 2", "stop")).is_right
    assert task.judge(items[0], Reply("it is 2.5", "stop")).is_right is False
    nothing = record_of(items[0], Reply("?", "stop"), task.judge(items[0], Reply("?", "stop")))
    assert task.figures([nothing]) == {"invalid": 1.0}


def test_gsm8k_takes_examples_from_elsewhere(tmp_path: Path) -> None:
    test = jsonl(tmp_path / "test.jsonl", {"question": "T", "answer": "#### 1"})
    train = jsonl(tmp_path / "train.jsonl", {"question": "E", "answer": "#### 2"})
    [item] = Gsm8k(test, num_shots=1, shots_from=train).items(FakeModel())
    assert item.id == "gsm8k/0" and str(ask_of(item).prompt).startswith("Question: E\nAnswer: #### 2\n\n")


def test_a_system_prompt_makes_it_a_conversation(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "test.jsonl", {"question": "T", "answer": "#### 1"})
    asking = Asking(system_prompt="Reason.", max_tokens=99)
    [item] = Gsm8k(data, num_shots=0, asking=asking).items(FakeModel())
    ask = ask_of(item)
    assert ask.messages == (
        {"role": "system", "content": "Reason."},
        {"role": "user", "content": "Question: T\nAnswer:"},
    )
    assert (ask.max_tokens, ask.stop) == (99, ())


@pytest.mark.parametrize(
    ("lines", "shots", "message"),
    [
        (['{"question": "a"}'], 0, "Line 1 of .* is no JSON object with question, answer"),
        (["[]"], 0, "Line 1"),
        ([], 0, "has no lines"),
        (['{"question": "a", "answer": "none"}'], 0, "The answer of question 0 has no number"),
        (['{"question": "a", "answer": "#### 1"}'], 2, "only 1 examples"),
        (['{"question": "a", "answer": "#### 1"}'], 1, "has 1 questions, of which --num-shots 1 are examples"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, lines: list[str], shots: int, message: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        Gsm8k(str(file), num_shots=shots).items(FakeModel())


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--data nowhere.jsonl cannot be read: No such file"):
        Gsm8k("nowhere.jsonl").items(FakeModel())


# ---- mmlu ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mmlu(tmp_path: Path) -> str:
    """The layout of the published archive."""
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
    for subject in ("abstract_algebra", "world_religions"):
        rows = [f'"{subject}, {i}?",a{i},"b,{i}",c{i},d{i},{"ABCD"[i % 4]}\n' for i in range(5)]
        (tmp_path / "dev" / f"{subject}_dev.csv").write_text("".join(rows))
        (tmp_path / "test" / f"{subject}_test.csv").write_text("".join(rows[:3]))
    return str(tmp_path)


def test_mmlu_writes_the_published_prompt(mmlu: str) -> None:
    task = Mmlu(mmlu, num_shots=1)
    items = task.items(FakeModel())
    assert [item.id for item in items[:3]] == [f"mmlu/abstract_algebra/{i}" for i in range(3)]
    assert {item.group for item in items} == {"abstract algebra", "world religions"}
    assert ask_of(items[1]).prompt == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "abstract_algebra, 0?\nA. a0\nB. b,0\nC. c0\nD. d0\nAnswer: A\n\n"
        "abstract_algebra, 1?\nA. a1\nB. b,1\nC. c1\nD. d1\nAnswer:"
    )
    assert ask_of(items[1]).max_tokens == 1 and items[1].expected == "B"
    assert task.judge(items[1], Reply(" B", "length")).is_right
    assert not task.judge(items[1], Reply(" C", "length")).is_right


def test_mmlu_takes_some_subjects(mmlu: str) -> None:
    assert {item.group for item in Mmlu(mmlu, num_subjects=1).items(FakeModel())} == {"abstract algebra"}
    assert len(Mmlu(mmlu, num_questions=4).items(FakeModel())) == 4


def test_another_folder_is_no_mmlu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no test/SUBJECT_test.csv"):
        Mmlu(str(tmp_path)).items(FakeModel())


def test_too_many_examples_are_refused(mmlu: str) -> None:
    with pytest.raises(ConfigError, match="abstract_algebra has only 5 examples"):
        Mmlu(mmlu, num_shots=6).items(FakeModel())


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B", "B"),
        ("B. because", "B"),
        ("(C)", ""),
        ("The answer is (C).", "C"),
        ("**Answer:** D", "D"),
        ("Answer: A, no: the answer is B", "B"),
        ("A dog", "A"),
        ("Because", ""),
        ("", ""),
    ],
)
def test_the_letter_of_an_answer(text: str, letter: str) -> None:
    assert letter_in(text) == letter


# ---- structured output and tools -------------------------------------------------------------------------------------


def test_answers_are_checked_against_their_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for _, schema in BUILT_IN:
        jsonschema.Draft202012Validator.check_schema(schema)
    task = JsonSchema()
    items = task.items(FakeModel())
    assert len(items) == len(BUILT_IN) and ask_of(items[0]).schema == BUILT_IN[0][1]
    assert task.judge(items[0], Reply('{"name": "Anna", "age": 31, "city": "Berlin"}', "stop")).is_right
    assert not fault_of('{"name": "Anna", "age": 31, "city": "Berlin"}', BUILT_IN[0][1])
    assert fault_of('{"name": "Anna", "age": "31"', BUILT_IN[0][1]).startswith("not JSON")
    assert fault_of('{"name": "Anna", "age": "31", "city": "x"}', BUILT_IN[0][1]).startswith("invalid: '31'")


def test_schemas_come_from_a_file_too(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    schema = {"type": "integer"}
    data = jsonl(tmp_path / "s.jsonl", {"prompt": "How many?", "schema": schema, "id": "one"})
    [held] = JsonSchema(data).items(FakeModel())
    [free] = JsonSchema(data, is_held=False).items(FakeModel())
    assert held.id == "one" and ask_of(held).schema == schema
    assert ask_of(held).messages == ({"role": "user", "content": "How many?"},)
    assert ask_of(free).schema is None and json.dumps(schema) in ask_of(free).messages[0]["content"]
    with pytest.raises(ConfigError, match=r"Case 0 .* needs an object as schema"):
        JsonSchema(jsonl(tmp_path / "t.jsonl", {"schema": True})).items(FakeModel())


def test_calls_are_compared_by_name_and_arguments(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    row = {"tools": [tool], "prompt": "1+2", "expected": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}
    task = ToolCalls(jsonl(tmp_path / "calls.jsonl", row, {**row, "expected": []}))
    first, second = task.items(FakeModel())

    def judged(item: Item, *calls: Call) -> tuple[bool | None, float]:
        judgement = task.judge(item, Reply("", "tool_calls", calls=calls))
        return judgement.is_right, judgement.figures["right_names"]

    assert judged(first, Call("add", '{"b": 2.0, "a": 1}')) == (True, 1.0)
    assert judged(first, Call("add", '{"a": 1, "b": 3}')) == (False, 1.0)
    assert judged(first, Call("sub", '{"a": 1, "b": 2}')) == (False, 0.0)
    assert judged(first) == (False, 0.0)
    assert judged(first, Call("add", '{"a": 1,')) == (False, 1.0)
    assert judged(second) == (True, 1.0)
    assert ask_of(first).tools == (tool,)


@pytest.mark.parametrize("expected", [None, [{"name": "f"}], [{"name": "f", "arguments": "{}"}], {"name": "f"}])
def test_cases_without_right_calls_are_refused(tmp_path: Path, expected: object) -> None:
    data = jsonl(tmp_path / "calls.jsonl", {"tools": [], "prompt": "x", "expected": expected})
    with pytest.raises(ConfigError, match=r"Case 0 .* and expected calls"):
        ToolCalls(data).items(FakeModel())


# ---- needle ----------------------------------------------------------------------------------------------------------


def test_needles_stand_where_they_should(tokenizer: Tokenizer) -> None:
    task = Needle((256, 512), (0, 50, 100), count=2)
    items = task.items(FakeModel(tokenizer=tokenizer))
    assert len(items) == 12 and len({item.id for item in items}) == 12
    for item in items:
        _, length, depth, _ = item.id.split("/")
        text = ask_of(item).messages[0]["content"].rpartition("\n\n")[0]
        num_tokens = len(tokenizer.encode(text, add_special_tokens=False))
        assert 0.85 * int(length) < num_tokens <= int(length)
        place = text.index(f"is {item.expected}.") / len(text)
        assert place == pytest.approx(int(depth) / 100, abs=0.17)
    again = Needle((256, 512), (0, 50, 100), count=2).items(FakeModel(tokenizer=tokenizer))
    assert [item.key for item in again] == [item.key for item in items]


def test_the_number_counts_wherever_it_is_said(tokenizer: Tokenizer) -> None:
    task = Needle((64,), (0,), count=1)
    [item] = task.items(FakeModel(tokenizer=tokenizer))
    assert task.judge(item, Reply(f"It is {item.expected}.", "stop")).is_right
    assert task.judge(item, Reply(f"{item.expected[:2]},{item.expected[2:]}", "stop")).is_right
    assert not task.judge(item, Reply(f"1{item.expected}", "stop")).is_right


def test_texts_must_fit_the_context(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"--lengths 2048 and the question do not fit the 2048 tokens"):
        Needle((2048,), (0,)).items(FakeModel(tokenizer=tokenizer))


def test_depths_are_percentages() -> None:
    assert depths_of("0, 50,100") == (0, 50, 100)
    with pytest.raises(ConfigError, match="--depths takes percentages"):
        depths_of("50,101")


# ---- perplexity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(16, None), (16, 4), (16, 16), (7, 3), (1000, None)])
def test_windows_score_every_token_at_most_once(
    tokenizer: Tokenizer, tmp_path: Path, window: int, stride: int | None
) -> None:
    text = "The capital of Peru is Lima. " * 20
    (tmp_path / "a.txt").write_text(text)
    items = Perplexity(str(tmp_path / "a.txt"), window=window, stride=stride).items(FakeModel(tokenizer=tokenizer))
    ids, scored = tokenizer.encode(text), []
    for item in items:
        passage, start = item.ask, int(item.id.rpartition("/")[2])
        assert isinstance(passage, Passage) and len(passage.token_ids) <= window
        assert list(passage.token_ids) == ids[start : start + len(passage.token_ids)]
        scored += range(start + passage.start, start + len(passage.token_ids))
    assert len(scored) == len(set(scored))
    firsts = {0} if stride and stride < window else set(range(0, len(ids), window))
    assert set(scored) == set(range(len(ids))) - firsts


def test_perplexity_is_of_all_tokens_together(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "a.jsonl", {"text": "What is 2 + 3?"}, {"text": "Hello"})
    task = Perplexity(data, window=8)
    items = task.items(FakeModel(tokenizer=tokenizer))
    records = []
    for item in items:
        assert isinstance(item.ask, Passage)
        scores = Scores(tuple(-0.5 for _ in item.ask.token_ids[item.ask.start :]), (True,))
        records.append(record_of(item, scores, task.judge(item, scores)))
    assert task.figures(records)["perplexity"] == pytest.approx(math.exp(0.5))
