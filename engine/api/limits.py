"""Refuses requests that ask for too much or for nonsense: the only place that judges what clients send.

The engine behind it asserts and does not check again. Every number has a hard cap.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sgl.engine.api.request import GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams
from sgl.engine.text.tokenizer import check_text

MAX_RID_CHARS = 256
MAX_SALT_CHARS = 1024
MAX_N = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 128
MAX_INT = 2**31 - 1
MAX_TEMPERATURE = 1000.0
_MAX_SHOWN_CHARS = 200
_PIECE_CHARS = 8
"""For each token of the context: how much of a long text is tokenized at a time to see whether it can fit."""

Check = tuple[str, Callable[[float], bool], str]

_SAMPLING: tuple[Check, ...] = (
    ("max_new_tokens", lambda v: 0 <= v <= MAX_INT, f"must be at least 0 and at most {MAX_INT}"),
    ("temperature", lambda v: v >= 0, "must be non-negative"),
    ("temperature", lambda v: v <= MAX_TEMPERATURE, f"must be at most {MAX_TEMPERATURE:g}"),
    ("top_p", lambda v: 0 < v <= 1, "must be in (0, 1]"),
    ("min_p", lambda v: 0 <= v <= 1, "must be in [0, 1]"),
    ("top_k", lambda v: v == -1 or v >= 1, "must be -1 (disable), or at least 1"),
    ("top_k", lambda v: v <= MAX_INT, f"must be at most {MAX_INT}"),
    ("frequency_penalty", lambda v: -2 <= v <= 2, "must be in [-2, 2]"),
    ("presence_penalty", lambda v: -2 <= v <= 2, "must be in [-2, 2]"),
    ("repetition_penalty", lambda v: 0 < v <= 2, "must be in (0, 2]"),
)
"""Field, whether a value is fine (false for not-a-number), and what is said if not."""

_REQUEST: tuple[Check, ...] = (
    ("n", lambda v: 1 <= v <= MAX_N, f"must be between 1 and {MAX_N}"),
    ("top_logprobs_num", lambda v: 0 <= v <= MAX_TOP_LOGPROBS, f"must be between 0 and {MAX_TOP_LOGPROBS}"),
    ("logprob_start_len", lambda v: -1 <= v <= MAX_INT, "must be -1 (outputs only), or at least 0"),
    ("priority", lambda v: -MAX_INT <= v <= MAX_INT, f"must be between -{MAX_INT} and {MAX_INT}"),
)


@dataclass(frozen=True)
class Limits:
    """What the engine can take; see `ModelInfo`. ``has_text`` is false without a tokenizer."""

    context_len: int
    max_total_num_tokens: int
    max_req_input_len: int
    vocab_size: int
    auto_truncate: bool
    has_text: bool = True


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits, with as many new tokens as fit."""

    token_ids: tuple[int, ...]
    max_new_tokens: int
    warnings: tuple[str, ...] = ()


def check_request(request: GenerateRequest, limits: Limits) -> None:
    """Everything that can be said before the prompt is tokenized.

    Raises:
        SglError: 400, with the field and what it may be.
    """
    _check_types(request)
    if (request.text is None) == (request.input_ids is None):
        raise SglError("Either text, input_ids or input_embeds should be provided.", param="text")
    _run(_REQUEST, request)
    _run(_SAMPLING, request.sampling)
    if request.seed is not None and not -(2**63) <= request.seed < 2**63:
        raise SglError(f"seed must fit in 64 bits, got {request.seed}.", param="seed")
    _check_names(request)
    if request.stop and not limits.has_text:
        raise SglError("stop needs a tokenizer, but --skip-tokenizer-init is set; use stop_token_ids.", param="stop")
    if request.top_logprobs_num > limits.vocab_size:
        raise SglError(
            f"top_logprobs_num is {request.top_logprobs_num}, but the vocabulary has {limits.vocab_size} tokens.",
            param="top_logprobs_num",
        )
    _check_stops(request.stop)
    _check_tokens(request.sampling, limits.vocab_size)


def check_answers(count: int, max_queued: int) -> None:
    """Refuses more answers at once than may ever wait, before anything is made for each of them.

    Raises:
        SglError: 400.
    """
    limit = max(max_queued, MAX_N)
    if count > limit:
        message = f"The request asks for {count} answers (prompts times n); at most {limit} can be asked for at once."
        raise SglError(message, code="too_many_answers", param="n")


def bounded_text(text: str, count: Callable[[str], int], limits: Limits) -> str:
    """The text, if it may fit; to tokenize megabytes at once only to refuse them would take gigabytes of memory.

    Args:
        count: how many tokens a text has. Pieces of a text have a few more than the whole, hence the margin.

    Raises:
        SglError: 400; it is too long for certain, and may not be cut.
    """
    size, enough, num_tokens = _PIECE_CHARS * limits.context_len, 2 * limits.context_len, 0
    if len(text) <= size:
        return text
    for end in range(size, len(text) + size, size):
        num_tokens += count(text[end - size : end])
        if num_tokens > enough:
            if limits.auto_truncate:
                return text[:end]
            raise _too_long(_longer(f"more than {enough}", limits), "text")
    return text


def fit_prompt(token_ids: Sequence[int], request: GenerateRequest, limits: Limits) -> Prompt:
    """The prompt as the engine takes it: within the vocabulary, the context and the KV cache.

    Raises:
        SglError: 400 if it is not, and may not be made to.
    """
    param = "text" if request.input_ids is None else "input_ids"
    ids = _checked_ids(token_ids, param, limits.vocab_size)
    wanted = request.sampling.max_new_tokens
    warnings: list[str] = []
    if limits.auto_truncate and len(ids) > limits.max_req_input_len:
        warnings.append(f"The prompt was cut to its first {limits.max_req_input_len} tokens.")
        ids = ids[: limits.max_req_input_len]
    if len(ids) > limits.context_len:
        raise _too_long(_longer(str(len(ids)), limits), param)
    room = min(limits.context_len, limits.max_total_num_tokens) - len(ids)
    if wanted > room > 0 and (request.fit_max_new_tokens or limits.auto_truncate):
        if not request.fit_max_new_tokens:
            warnings.append(f"max_new_tokens was cut from {wanted} to {room}.")
        wanted = room
    if wanted > room:
        _refuse_total(len(ids), wanted, limits)
    if request.logprob_start_len > len(ids):
        message = f"logprob_start_len must be at most the prompt's {len(ids)} tokens, got {request.logprob_start_len}."
        raise SglError(message, param="logprob_start_len")
    return Prompt(tuple(ids), wanted, tuple(warnings))


def _check_types(request: GenerateRequest) -> None:
    """Python does not; the ids of the prompt are checked where they are counted."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name != "input_ids"}
    try:
        msgspec.convert(msgspec.to_builtins(fields, builtin_types=(bytes,)), GenerateRequest)
    except (msgspec.ValidationError, TypeError) as error:
        raise type_error(error) from None


_MISPLACED = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)
_SENTENCES: Mapping[str, str] = {"contains unknown": "is not a known field", "missing required": "is required"}


def type_error(error: Exception, prefix: str = "") -> SglError:
    """What msgspec says about a wrong type, as a sentence that names the field by its dotted path.

    Args:
        prefix: the field that holds what was checked, if it was not everything.
    """
    what, _, place = str(error).partition(" - at ")  # `$.a.b`, or `key` in `$.a.b`
    path = prefix + place.partition("$")[2].removesuffix("`")
    misplaced = _MISPLACED.fullmatch(what)
    if misplaced is not None:
        path += f".{misplaced[2]}"
    name = path.removeprefix(".")[:_MAX_SHOWN_CHARS]
    subject = f"`{name}`" if name else "The request"
    if misplaced is not None:
        return SglError(f"{subject} {_SENTENCES[misplaced[1]]}.", code="invalid_field", param=name)
    sentence = what[:1].lower() + what[1:_MAX_SHOWN_CHARS]
    return SglError(f"{subject}: {sentence}.", code="invalid_type", param=name or None)


def _run(checks: tuple[Check, ...], owner: GenerateRequest | SamplingParams) -> None:
    for name, is_fine, sentence in checks:
        value = getattr(owner, name)
        if not is_fine(value):
            raise SglError(f"{name} {sentence}, got {value}.", param=name)


def _check_names(request: GenerateRequest) -> None:
    for name, value, most in (("rid", request.rid, MAX_RID_CHARS), ("cache_salt", request.cache_salt, MAX_SALT_CHARS)):
        if value is not None:
            check_text(value, name)
            if len(value) > most or (name == "rid" and not value):
                raise SglError(f"{name} must have 1 to {most} characters, got {len(value)}.", param=name)
    if request.sampling.grammar is not None:
        check_text(request.sampling.grammar.source, request.sampling.grammar.kind)


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise SglError(f"stop must hold at most {MAX_STOPS} strings, got {len(stops)}.", param="stop")
    for stop in stops:
        check_text(stop, "stop")
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            message = f"Every stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(stop)}."
            raise SglError(message, param="stop")


def _check_tokens(params: SamplingParams, vocab_size: int) -> None:
    """The fields that depend on each other or on the vocabulary."""
    if params.min_new_tokens and not 0 < params.min_new_tokens < params.max_new_tokens:
        message = (
            f"min_new_tokens must be in [0, max_new_tokens ({params.max_new_tokens})), got {params.min_new_tokens}."
        )
        raise SglError(message, param="min_new_tokens")
    if len(params.stop_token_ids) > MAX_STOP_IDS:
        message = f"stop_token_ids must hold at most {MAX_STOP_IDS} ids, got {len(params.stop_token_ids)}."
        raise SglError(message, param="stop_token_ids")
    if params.stop_token_ids:
        _checked_ids(params.stop_token_ids, "stop_token_ids", vocab_size)
    if len(params.logit_bias) > MAX_LOGIT_BIAS:
        message = f"logit_bias must hold at most {MAX_LOGIT_BIAS} tokens, got {len(params.logit_bias)}."
        raise SglError(message, param="logit_bias")
    for token_id, bias in params.logit_bias:
        _checked_ids((token_id,), "logit_bias", vocab_size)
        if not -100 <= bias <= 100:
            raise SglError(f"logit_bias must be in [-100, 100], got {bias} for token {token_id}.", param="logit_bias")


def _checked_ids(token_ids: Sequence[int], param: str, vocab_size: int) -> Sequence[int]:
    """The ids as plain integers of the vocabulary."""
    try:
        ids = array("q", token_ids)
    except (TypeError, OverflowError):
        raise SglError(f"{param} must hold integers within the vocabulary.", param=param) from None
    if not ids:
        raise SglError("The prompt is empty: it must have at least one token.", param=param)
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        message = f"{param}: token id {wrong} is outside the vocabulary of {vocab_size} tokens (0 to {vocab_size - 1})."
        raise SglError(message, param=param)
    return ids


def _refuse_total(num_prompt: int, num_new: int, limits: Limits) -> None:
    total = num_prompt + num_new
    if total > limits.context_len:
        raise _too_long(
            f"Requested token count exceeds the model's maximum context length of {limits.context_len} tokens. "
            f"You requested a total of {total} tokens: {num_prompt} tokens from the input messages and "
            f"{num_new} tokens for the completion. Please reduce the number of tokens in the input messages or the "
            "completion to fit within the limit.",
            "max_new_tokens",
        )
    raise _too_long(
        f"The request needs {total} tokens of KV cache ({num_prompt} of the prompt, {num_new} new), but there are only "
        f"{limits.max_total_num_tokens}; ask for less, or start the engine with a larger --max-total-tokens.",
        "max_new_tokens",
    )


def _longer(num_tokens: str, limits: Limits) -> str:
    return f"The input ({num_tokens} tokens) is longer than the model's context length ({limits.context_len} tokens)."


def _too_long(message: str, param: str) -> SglError:
    return SglError(message, code="context_length_exceeded", param=param)
