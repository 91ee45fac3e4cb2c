"""SGLang's ``sampling_params`` objects."""

from __future__ import annotations

from typing import Any

import pytest

from sgl.engine.api import GenerateRequest
from sgl.engine.api.sampling import set_sampling
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, SamplingParams


def read(params: dict[str, Any] | None) -> GenerateRequest:
    request = GenerateRequest(text="x")
    set_sampling(request, params)
    return request


def test_defaults_are_sglangs() -> None:
    for params in (None, {}, {"stop": None, "top_p": None, "n": None}):
        request = read(params)
        assert request.sampling == SamplingParams()
        assert request == GenerateRequest(text="x", fit_max_new_tokens=True)


def test_every_field() -> None:
    request = read(
        {
            "max_new_tokens": 7,
            "min_new_tokens": 2,
            "stop": ["a", "b"],
            "stop_token_ids": [4],
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "frequency_penalty": 1,
            "presence_penalty": -1,
            "repetition_penalty": 1.5,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "no_stop_trim": True,
            "n": 2,
            "seed": 9,
            "logit_bias": {"5": 1.5},
            "regex": "a+",
        }
    )
    assert request == GenerateRequest(
        text="x",
        sampling=SamplingParams(
            max_new_tokens=7,
            min_new_tokens=2,
            stop_token_ids=(4,),
            temperature=0.0,
            top_p=0.5,
            top_k=3,
            min_p=0.1,
            frequency_penalty=1.0,
            presence_penalty=-1.0,
            repetition_penalty=1.5,
            ignore_eos=True,
            logit_bias=((5, 1.5),),
            grammar=Grammar("regex", "a+"),
        ),
        stop=("a", "b"),
        seed=9,
        n=2,
        no_stop_trim=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )
    assert read({"stop": "end"}).stop == ("end",)


def test_an_open_number_of_tokens() -> None:
    request = read({"max_new_tokens": None})
    assert request.fit_max_new_tokens
    assert request.sampling.max_new_tokens == 2**31 - 1


@pytest.mark.parametrize(
    ("params", "message", "param"),
    [
        ({"temperature": "hot"}, "expected `float`, got `str`", "sampling_params.temperature"),
        ({"n": 1.5}, "expected `int`, got `float`", "sampling_params.n"),
        ({"stop": [1]}, "expected `str`, got `int`", "sampling_params.stop[0]"),
        ({"ignore_eos": 1}, "expected `bool`, got `int`", "sampling_params.ignore_eos"),
        ({"colour": 1}, "is not a known field", "sampling_params.colour"),
        ({"logit_bias": {"x": 1}}, "expected `int`, got `str`", "sampling_params.logit_bias"),
        ({"regex": "a", "ebnf": "b"}, "Only one of regex, json_schema, or ebnf can be set", "ebnf"),
    ],
)
def test_wrong_types_name_the_field(params: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(SglError) as caught:
        read(params)
    assert message in caught.value.message
    assert param in caught.value.param
