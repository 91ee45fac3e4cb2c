"""Reads SGLang's ``sampling_params`` objects, for the server and the offline engine alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from sgl.engine.api.limits import MAX_INT, type_error
from sgl.engine.api.request import GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, SamplingParams

GrammarField = Literal["regex", "json_schema", "ebnf", "structural_tag"]
GRAMMAR_FIELDS: tuple[GrammarField, ...] = get_args(GrammarField)
"""The fields of requests that hold a grammar, named as its kind is."""


class NativeSampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields with their defaults."""

    max_new_tokens: int | msgspec.UnsetType | None = msgspec.UNSET
    min_new_tokens: int = 0
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1
    seed: int | None = None
    logit_bias: dict[int, float] = {}
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    custom_params: dict[str, Any] | None = None


def set_sampling(request: GenerateRequest, params: Mapping[str, Any] | None) -> None:
    """Sets what the object says on a request; null stands for the default, but in ``max_new_tokens`` for all that fit.

    Raises:
        SglError: 400; the object has an unknown field or a value of the wrong type.
    """
    if not isinstance(params, Mapping | None):
        message = f"sampling_params must be an object, got {params!r:.40}."
        raise SglError(message, code="invalid_type", param="sampling_params")
    given = {key: value for key, value in (params or {}).items() if value is not None or key == "max_new_tokens"}
    try:
        found = msgspec.convert(given, NativeSampling, str_keys=True)
    except msgspec.ValidationError as error:
        raise type_error(error, "sampling_params") from None
    unset = found.max_new_tokens is msgspec.UNSET
    most = SamplingParams().max_new_tokens if unset else found.max_new_tokens
    request.fit_max_new_tokens = unset or most is None
    request.sampling = SamplingParams(
        max_new_tokens=most if isinstance(most, int) else MAX_INT,
        min_new_tokens=found.min_new_tokens,
        temperature=found.temperature,
        top_p=found.top_p,
        top_k=found.top_k,
        min_p=found.min_p,
        frequency_penalty=found.frequency_penalty,
        presence_penalty=found.presence_penalty,
        repetition_penalty=found.repetition_penalty,
        stop_token_ids=tuple(found.stop_token_ids),
        ignore_eos=found.ignore_eos,
        logit_bias=tuple(found.logit_bias.items()),
        grammar=_grammar(found),
    )
    request.stop = (found.stop,) if isinstance(found.stop, str) else tuple(found.stop)
    request.seed = found.seed
    request.n = found.n
    request.custom_params = found.custom_params
    request.no_stop_trim = found.no_stop_trim
    request.skip_special_tokens = found.skip_special_tokens
    request.spaces_between_special_tokens = found.spaces_between_special_tokens


def _grammar(found: NativeSampling) -> Grammar | None:
    given = [kind for kind in GRAMMAR_FIELDS if getattr(found, kind) is not None]
    if len(given) > 1:
        raise SglError("Only one of regex, json_schema, or ebnf can be set.", param=given[1])
    if not given:
        return None
    source = getattr(found, given[0])
    return Grammar(given[0], source if isinstance(source, str) else msgspec.json.encode(source).decode())
