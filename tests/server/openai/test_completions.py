"""`/v1/completions`; the made-up model answers with the prompt."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.fake import BOS, EOS, logprob_of
from tests.server.served import Served

PATH = "/v1/completions"


def text_of(events: list[Any], index: int = 0) -> str:
    """What a stream says in one choice."""
    return "".join(c["text"] for e in events for c in e["choices"] if c["index"] == index)


def test_an_answer(served: Served) -> None:
    answer = served.answer(PATH, {"model": "any", "prompt": "hi"})
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1.7e9
    assert answer == {
        "object": "text_completion",
        "model": "any",
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop", "matched_stop": EOS}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }
    assert served.client.received[-1].params.temperature == 1.0


def test_sixteen_tokens_by_default(served: Served) -> None:
    choice = served.answer(PATH, {"prompt": "0123456789abcdefgh"})["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("0123456789abcdef", "length")


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([64, 65], ["ab"]),
        ([[64, 65], [66]], ["ab", "c"]),
    ],
)
def test_forms_of_the_prompt(served: Served, prompt: Any, texts: list[str]) -> None:
    prompt = _shift(prompt, served.engine.tokenizer.encode("a", add_special_tokens=False)[0] - 64)
    answer = served.answer(PATH, {"prompt": prompt})
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    events = served.events(PATH, {"prompt": prompt})
    assert [text_of(events, i) for i in range(len(texts))] == texts


def _shift(prompt: Any, by: int) -> Any:
    """Token ids moved so that 64 becomes the one of ``a``."""
    if isinstance(prompt, list):
        return [_shift(item, by) for item in prompt]
    return prompt + by if isinstance(prompt, int) else prompt


def test_choices_of_several_prompts_and_answers(served: Served) -> None:
    body = {"prompt": ["ab", "xyz"], "n": 2, "stream_options": {"include_usage": True}}
    answer = served.answer(PATH, body)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "ab"), (1, "ab"), (2, "xyz"), (3, "xyz")]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 14, "total_tokens": 21}
    events = served.events(PATH, body)
    assert [text_of(events, i) for i in range(4)] == ["ab", "ab", "xyz", "xyz"]
    assert events[-1]["usage"] == answer["usage"]


def test_echo(served: Served) -> None:
    body = {"prompt": "hé", "echo": True, "max_tokens": 1}
    assert served.answer(PATH, body)["choices"][0]["text"] == "héh"
    assert text_of(served.events(PATH, body)) == "héh"
    ids = served.engine.tokenizer.encode("hé")
    assert served.answer(PATH, {**body, "prompt": ids})["choices"][0]["text"] == "héh"
    assert served.answer(PATH, {**body, "max_tokens": 0})["choices"][0]["text"] == "hé"


def test_logprobs(served: Served) -> None:
    body = {"prompt": "héz", "logprobs": 2}
    logprobs = served.answer(PATH, body)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["h", "bytes:\\xc3", "bytes:\\xa9", "z", "</s>"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    ids = [*served.engine.tokenizer.encode("héz", add_special_tokens=False), EOS]
    assert logprobs["token_logprobs"] == [logprob_of(i) for i in ids]
    assert [len(top) for top in logprobs["top_logprobs"]] == [3] * 5  # the two likeliest and the one taken
    assert logprobs["top_logprobs"][0]["h"] == logprob_of(ids[0])

    parts = [c["logprobs"] for e in served.events(PATH, body) for c in e["choices"]]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for part in parts for entry in part[name]] == logprobs[name]


def test_logprobs_of_an_echoed_prompt(served: Served) -> None:
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = served.answer(PATH, body)["choices"][0]
    ids = served.engine.tokenizer.encode("ab")
    assert choice["text"] == "aba"
    assert choice["logprobs"]["tokens"] == ["<s>", "a", "b", "a"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2]
    assert ids[0] == BOS
    assert choice["logprobs"]["token_logprobs"] == [None, *(logprob_of(i) for i in (*ids[1:], ids[1]))]
    assert choice["logprobs"]["top_logprobs"][0] is None
    scored = served.answer(PATH, {**body, "max_tokens": 0})["choices"][0]
    assert scored["logprobs"]["tokens"] == ["<s>", "a", "b"]
    without = served.answer(PATH, {**body, "logprobs": 0})["choices"][0]["logprobs"]
    assert without["top_logprobs"] is None and len(without["token_logprobs"]) == 4


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({}, "prompt", "`prompt` is required."),
        ({"prompt": []}, "prompt", "not empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": ["a", 1]}, "prompt", "a list of"),
        ({"prompt": [["a"]]}, "prompt[0][0]", "expected `int`"),
        ({"prompt": {"a": 1}}, "prompt", "expected `str | array`"),
        ({"prompt": "a\0"}, "prompt", "NUL"),
        ({"prompt": [5000]}, "prompt", "prompt: token id 5000 is outside the vocabulary"),
        ({"prompt": "x" * 2000}, "prompt", "longer than the model's context length"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "max_tokens must be at least 0"),
        ({"prompt": "a", "logprobs": -1}, "logprobs", "logprobs must be between 0 and"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "`suffix` is not supported"),
        ({"prompt": "a", "best_of": 3}, "best_of", "`best_of` is not supported"),
        ({"prompt": "a", "stream_options": 1}, "stream_options", "expected `object | null`"),
    ],
)
def test_refusals_name_the_field(served: Served, body: dict[str, Any], param: str, part: str) -> None:
    error = served.refusal(PATH, body)
    assert error["param"] == param
    assert part in error["message"]
