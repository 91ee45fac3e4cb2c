"""`/generate` against the contract, on a model whose answer to a prompt is the prompt."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sgl.engine.base.types import Grammar
from tests.server.conftest import Serve
from tests.server.fake import CONTEXT_LEN, EOS, logprob_of
from tests.server.scripted import die_in_a_stream
from tests.server.served import Served

PATH = "/generate"


def test_one_prompt(served: Served) -> None:
    output = served.answer(PATH, {"text": "héllo", "rid": "mine"})
    assert output == {
        "text": "héllo",
        "meta_info": {
            "id": "mine",
            "finish_reason": {"type": "stop", "matched": EOS},
            "prompt_tokens": 7,  # <s> and 6 bytes
            "completion_tokens": 7,  # 6 bytes and </s>
            "cached_tokens": 0,
        },
    }


def test_put_answers_like_post(served: Served) -> None:
    assert served.request("PUT", PATH, json={"text": "ab"}).json()["text"] == "ab"


def test_length_and_empty_answers(served: Served) -> None:
    output = served.answer(PATH, {"text": "abc", "sampling_params": {"max_new_tokens": 2}})
    assert output["text"] == "ab"
    assert output["meta_info"]["finish_reason"] == {"type": "length", "length": 2}
    output = served.answer(PATH, {"text": "abc", "sampling_params": {"max_new_tokens": 0}})
    assert (output["text"], output["meta_info"]["completion_tokens"]) == ("", 0)


def test_token_ids_in(served: Served) -> None:
    ids = served.engine.tokenizer.encode("abc")
    assert served.answer(PATH, {"input_ids": ids})["text"] == "abc"
    assert [o["text"] for o in served.answer(PATH, {"input_ids": [ids, ids[:2]]})] == ["abc", "a"]


def test_lists_come_back_as_lists_in_order(served: Served) -> None:
    body = {"text": ["one", "three", "x"], "rid": ["a", "b", "c"]}
    outputs = served.answer(PATH, body)
    assert [(o["text"], o["meta_info"]["id"]) for o in outputs] == [("one", "a"), ("three", "b"), ("x", "c")]
    assert [o["text"] for o in served.answer(PATH, {"text": ["x"]})] == ["x"]


def test_every_prompt_of_a_list_may_have_its_own_parameters(served: Served) -> None:
    body = {
        "text": ["abc", "abc"],
        "sampling_params": [{"max_new_tokens": 1}, None],
        "return_logprob": [False, True],
        "top_logprobs_num": [None, 2],
    }
    first, second = served.answer(PATH, body)
    assert (first["text"], second["text"]) == ("a", "abc")
    assert "output_token_logprobs" not in first["meta_info"]
    assert len(second["meta_info"]["output_top_logprobs"][0]) == 2


def test_several_answers_come_prompt_by_prompt(served: Served) -> None:
    outputs = served.answer(PATH, {"text": ["ab", "xyz"], "sampling_params": {"n": 2}})
    assert [o["text"] for o in outputs] == ["ab", "ab", "xyz", "xyz"]
    outputs = served.answer(PATH, {"text": "ab", "sampling_params": {"n": 3}})
    assert len(outputs) == 3


def test_streams_are_cumulative(served: Served) -> None:
    events = served.events(PATH, {"text": "grüße", "rid": "r"})
    texts = [event["text"] for event in events]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert "\ufffd" not in "".join(texts)
    assert events[-1] == served.answer(PATH, {"text": "grüße", "rid": "r"})
    assert all(event["meta_info"]["finish_reason"] is None for event in events[:-1])
    assert all("index" not in event for event in events)


@pytest.mark.parametrize("n", [1, 2])
def test_streamed_lists_say_which_output_an_event_is_of(served: Served, n: int) -> None:
    body: dict[str, Any] = {"text": ["ab", "wxyz"], "sampling_params": {"n": n}}
    finals = {event["index"]: event["text"] for event in served.events(PATH, body)}
    assert [finals[i] for i in range(2 * n)] == [o["text"] for o in served.answer(PATH, body)]


def test_stop_strings(served: Served) -> None:
    body: dict[str, Any] = {"text": "one. two. three", "sampling_params": {"stop": [". t", "nope"]}}
    output = served.answer(PATH, body)
    assert output["text"] == "one"
    assert output["meta_info"]["finish_reason"] == {"type": "stop", "matched": ". t"}
    assert served.events(PATH, body)[-1]["text"] == "one"
    body["sampling_params"]["no_stop_trim"] = True
    assert served.answer(PATH, body)["text"] == "one. t"


def test_logprobs(served: Served) -> None:
    body = {"text": "ab", "return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": 0}
    meta = served.answer(PATH, body)["meta_info"]
    bos, a, b = served.engine.tokenizer.encode("ab")
    assert meta["input_token_logprobs"] == [[None, bos, None], [logprob_of(a), a, None], [logprob_of(b), b, None]]
    assert meta["output_token_logprobs"] == [[logprob_of(i), i, None] for i in (a, b, EOS)]
    assert meta["output_top_logprobs"][0] == [[logprob_of(0), 0, None], [logprob_of(1), 1, None]]
    assert meta["input_top_logprobs"][0] is None

    shown = served.answer(PATH, {**body, "return_text_in_logprobs": True})["meta_info"]
    assert [entry[2] for entry in shown["output_token_logprobs"]] == ["a", "b", "</s>"]

    outputs_only = served.answer(PATH, {**body, "logprob_start_len": -1})["meta_info"]
    assert outputs_only["input_token_logprobs"] == []
    streamed = served.events(PATH, body)[-1]["meta_info"]
    assert streamed["output_token_logprobs"] == meta["output_token_logprobs"]
    assert streamed["input_token_logprobs"] == meta["input_token_logprobs"]


def test_cached_tokens_are_reported(served: Served) -> None:
    text = "x" * 40
    assert served.answer(PATH, {"text": text})["meta_info"]["cached_tokens"] == 0
    assert served.answer(PATH, {"text": text})["meta_info"]["cached_tokens"] == 32


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({}, "text", "Either text, input_ids or input_embeds should be provided."),
        ({"text": "a", "input_ids": [1]}, "text", "Either text, input_ids"),
        ({"text": 5}, "text", "expected `str | array | null`, got `int`"),
        ({"text": []}, "text", "not empty"),
        ({"text": ["a", 1]}, "text[1]", "expected `str`, got `int`"),
        ({"text": "a\0b"}, "text", "NUL"),
        ({"text": ["a\0b"]}, "text", "NUL"),
        ({"input_ids": []}, "input_ids", "not empty"),
        ({"input_ids": [[]]}, "input_ids", "empty"),
        ({"input_ids": [[1], 2]}, "input_ids", "a list of such lists"),
        ({"input_ids": [1, 999]}, "input_ids", "999 is outside the vocabulary"),
        ({"input_ids": [-1]}, "input_ids", "-1 is outside the vocabulary"),
        ({"input_ids": [10**30]}, "input_ids", "within the vocabulary"),
        ({"input_ids": ["a"]}, "input_ids[0]", "expected `int | array`"),
        ({"text": "a", "sampling_params": 3}, "sampling_params", "expected `object | array | null`"),
        ({"text": "a", "sampling_params": {"temperatur": 1}}, "sampling_params.temperatur", "not a known field"),
        ({"text": "a", "sampling_params": {"temperature": "hot"}}, "sampling_params.temperature", "expected `float`"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature", "temperature must be non-negative, got"),
        ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p", "top_p must be in (0, 1], got 0"),
        ({"text": "a", "sampling_params": {"top_k": 0}}, "top_k", "top_k must be -1 (disable), or at least 1, got 0."),
        ({"text": "a", "sampling_params": {"min_p": 2}}, "min_p", "min_p must be in [0, 1], got 2"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens", "at least 0"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 10**40}}, "max_new_tokens", "at most"),
        ({"text": "a", "sampling_params": {"n": 10**6}}, "n", "n must be between 1 and"),
        ({"text": "a", "sampling_params": {"stop": ""}}, "stop", "stop string"),
        ({"text": "a", "sampling_params": {"stop": 1}}, "sampling_params.stop", "expected `str | array"),
        ({"text": "a", "sampling_params": {"stop_token_ids": [5000]}}, "stop_token_ids", "outside the vocabulary"),
        ({"text": "a", "sampling_params": {"min_new_tokens": 200}}, "min_new_tokens", "min_new_tokens must be in"),
        ({"text": "a", "rid": ""}, "rid", "1 to"),
        ({"text": "a", "rid": 5}, "rid", "expected `str | array | null`"),
        ({"text": ["a", "b"], "rid": "same"}, "rid", "must be a list"),
        ({"text": ["a", "b"], "rid": ["same", "same"]}, "rid", "already running"),
        ({"text": ["a", "b"], "rid": ["one"]}, "rid", "entry for each of the 2 prompts, got 1"),
        ({"text": "a", "return_logprob": "yes"}, "return_logprob", "expected `bool | array | null`"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": -7}, "logprob_start_len", "-1"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 10**9}, "top_logprobs_num", "between 0 and"),
        ({"text": "x" * CONTEXT_LEN}, "text", "The input (2001 tokens) is longer than the model's context length"),
        (
            {"text": "a", "sampling_params": {"max_new_tokens": 3000}},
            "max_new_tokens",
            "maximum context length of 2000",
        ),
        ({"text": "a", "image_data": "http://x/y.png"}, "image_data", "`image_data` is not supported"),
        ({"input_embeds": [[0.5]], "text": "a"}, "text", "Either text, input_ids or input_embeds should be provided."),
        ({"input_embeds": [[0.5]]}, "input_embeds", "--disable-radix-cache"),
        ({"input_embeds": [0.5]}, "input_embeds[0]", "expected `array`"),
        ({"input_embeds": [[0.5], [[0.5]]]}, "input_embeds", "a list of such lists"),
        ({"text": "a", "session_params": {"id": "s"}}, "session_params.id", "no open session 's'"),
        ({"text": "a", "session_params": {"rid": "s"}}, "session_params.id", "is required"),
        ({"text": "a", "session_params": {"id": "s", "ofset": 3}}, "session_params.ofset", "not a known field"),
        (
            {"text": "a", "session_params": []},
            "session_params",
            "`session_params` must have an entry for each of the 1",
        ),
        ({"text": "a", "custom_logit_processor": "x"}, "custom_logit_processor", "--enable-custom-logit-processor"),
        ({"text": "a", "sampling_params": {"custom_params": {"a": 1}}}, "custom_params", "custom_logit_processor"),
        ({"text": "a", "token_ids_logprob": [[1], [2]]}, "token_ids_logprob", "each of the 1 prompts"),
        ({"text": "a", "token_ids_logprob": [1, [2]]}, "token_ids_logprob", "or of such lists"),
        ({"text": "a", "token_ids_logprob": [5000]}, "token_ids_logprob", "outside the vocabulary"),
        ({"text": "a", "token_ids_logprob": list(range(2000))}, "token_ids_logprob", "at most 1024"),
        ({"text": "a", "lora_path": ["x"]}, "lora_path", "`lora_path` is not supported"),
    ],
)
def test_refusals_name_the_field(served: Served, body: dict[str, Any], param: str, part: str) -> None:
    error = served.refusal(PATH, body)
    assert error["param"] == param
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"
    assert served.answer(PATH, {"text": "still here"})["text"] == "still here"
    assert not served.client.running


def test_harmless_values_of_unsupported_fields_pass(served: Served) -> None:
    body: dict[str, Any] = {
        "text": ["a", "b"],
        "image_data": None,
        "lora_path": [None, None],
        "session_params": {},
        "custom_logit_processor": "",
        "return_hidden_states": False,
        "modalities": [],
        "log_metrics": False,
        "sampling_params": {"regex": None, "json_schema": None, "ebnf": "", "custom_params": {}, "temperature": None},
    }
    outputs = served.answer(PATH, body)
    assert [o["text"] for o in outputs] == ["a", "b"]
    assert all("warnings" not in o["meta_info"] for o in outputs)


def test_an_empty_schema_is_a_schema_and_an_empty_object_no_processor(served: Served) -> None:
    served.answer(PATH, {"text": "a", "sampling_params": {"json_schema": {}}})
    assert served.client.received[-1].params.grammar == Grammar("json_schema", "{}")
    error = served.refusal(PATH, {"text": "a", "custom_logit_processor": {}})
    assert (error["param"], error["code"]) == ("custom_logit_processor", "invalid_type")
    served.answer("/v1/completions", {"prompt": "a", "json_schema": {}})
    assert served.client.received[-1].params.grammar == Grammar("json_schema", "{}")
    assert served.refusal("/v1/completions", {"prompt": "a", "session_params": []})["param"] == "session_params"


def test_fields_without_effect_are_named(served: Served) -> None:
    body = {"text": "a", "frobnicate": 1, "modalities": ["image"], "nothing": None}
    expected = ["`frobnicate` has no effect.", "`modalities` has no effect."]
    assert served.answer(PATH, body)["meta_info"]["warnings"] == expected
    assert served.events(PATH, body)[-1]["meta_info"]["warnings"] == expected


def test_an_error_before_the_first_event_is_an_http_status(served: Served) -> None:
    assert served.refusal(PATH, {"text": "", "input_ids": [1], "stream": True})["param"] == "text"
    assert served.refusal(PATH, {"text": "a", "sampling_params": {"top_p": 7}, "stream": True})["param"] == "top_p"


def test_an_error_in_a_stream_is_an_event(served: Served) -> None:
    die_in_a_stream(served)
    *events, last = served.events(PATH, {"text": "x" * 100})
    assert events and "killed" in last["error"]["message"]
    assert served.refusal(PATH, {"text": "a"}, status=500)["code"] == "engine_dead"


def test_max_new_tokens_null_is_what_the_context_leaves(served: Served) -> None:
    body = {"text": "a" * 1990, "sampling_params": {"max_new_tokens": None}}
    assert served.answer(PATH, body)["meta_info"]["completion_tokens"] == 9


def test_skip_tokenizer_speaks_in_ids(serve: Serve) -> None:
    served = serve(model_skip_tokenizer_init=True)
    output = served.answer(PATH, {"input_ids": [5, 6, 7]})
    assert output["token_ids"] == [5, 6, 7, EOS]
    assert "text" not in output
    assert "--skip-tokenizer-init" in served.refusal(PATH, {"text": "a"})["message"]


def test_hidden_states(served: Served, serve: Serve) -> None:
    body: dict[str, Any] = {"text": "ab", "return_hidden_states": True}
    bos, a, b = served.engine.tokenizer.encode("ab")
    expected = [[[0, bos], [1, a], [2, b]], [3, bos], [4, bos]]
    whole = served.answer(PATH, body)
    assert whole["meta_info"]["hidden_states"] == expected
    *others, last = served.events(PATH, {**body, "rid": whole["meta_info"]["id"]})
    assert last == whole and all("hidden_states" not in event["meta_info"] for event in others)
    several = {"text": ["ab", "c", "ab"], "return_hidden_states": [True, False, True], "sampling_params": {"n": 2}}
    found = [output["meta_info"].get("hidden_states") for output in served.answer(PATH, several)]
    assert found == [expected, expected, None, None, expected, expected]
    nothing = served.answer(PATH, {**body, "sampling_params": {"max_new_tokens": 0}, "unknown": 1})["meta_info"]
    assert nothing["hidden_states"] == expected[:1] and nothing["warnings"]
    long = served.answer(PATH, {"text": "x" * 100, "return_hidden_states": True})["meta_info"]["hidden_states"]
    assert [len(long[0]), *long[-1]] == [101, 200, bos]
    by_default = serve(serve_return_hidden_states=True)
    assert by_default.answer(PATH, {"text": "ab"})["meta_info"]["hidden_states"] == expected
    assert "hidden_states" not in by_default.answer(PATH, {"text": "ab", "return_hidden_states": False})["meta_info"]
