"""Refuses requests that ask for too much or for nonsense: the only place that judges what clients send.

The engine behind it asserts and does not check again. Every number has a hard cap.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sgl.engine.api.request import GenerateRequest
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, SamplingParams
from sgl.engine.grammar.limits import check_source
from sgl.engine.text.tokenizer import check_text

MAX_RID_CHARS = 256
MAX_SALT_CHARS = 1024
MAX_N = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 128
MAX_LOGPROB_IDS = 1024
MAX_HIDDEN_VALUES = 1 << 24
"""Numbers in the hidden states of one request: 64 MiB, and about five times as much as JSON."""
MAX_STREAMED_HIDDEN_VALUES = 1 << 21
"""The same in a stream, where they are one event."""
MAX_INT = 2**31 - 1
MAX_TEMPERATURE = 1000.0
_MAX_SHOWN_CHARS = 200
_PIECE_CHARS = 8
"""For each token of the context: how much of a long text is tokenized at a time to see whether it can fit."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have; not-a-number is in none.

    Args:
        is_above: whether ``least`` itself is outside.
        but: numbers in between that are outside, too.
    """

    least: float = -math.inf
    most: float = math.inf
    is_above: bool = False
    but: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        is_enough = self.least < value if self.is_above else self.least <= value
        return is_enough and value <= self.most and value not in self.but


Check = tuple[str, Range, str]

_SAMPLING: tuple[Check, ...] = (
    ("max_new_tokens", Range(0, MAX_INT), f"must be at least 0 and at most {MAX_INT}"),
    ("temperature", Range(0), "must be non-negative"),
    ("temperature", Range(0, MAX_TEMPERATURE), f"must be at most {MAX_TEMPERATURE:g}"),
    ("top_p", Range(0, 1, is_above=True), "must be in (0, 1]"),
    ("min_p", Range(0, 1), "must be in [0, 1]"),
    ("top_k", Range(-1, but=(0,)), "must be -1 (disable), or at least 1"),
    ("top_k", Range(-1, MAX_INT, but=(0,)), f"must be at most {MAX_INT}"),
    ("frequency_penalty", Range(-2, 2), "must be in [-2, 2]"),
    ("presence_penalty", Range(-2, 2), "must be in [-2, 2]"),
    ("repetition_penalty", Range(0, 2, is_above=True), "must be in (0, 2]"),
)
"""Field, what it may be, and what is said if it is not."""

_REQUEST: tuple[Check, ...] = (
    ("n", Range(1, MAX_N), f"must be between 1 and {MAX_N}"),
    ("top_logprobs_num", Range(0, MAX_TOP_LOGPROBS), f"must be between 0 and {MAX_TOP_LOGPROBS}"),
    ("logprob_start_len", Range(-1, MAX_INT), "must be -1 (outputs only), or at least 0"),
    ("priority", Range(-MAX_INT, MAX_INT), f"must be between -{MAX_INT} and {MAX_INT}"),
)

RANGES: Mapping[str, Range] = {name: allowed for name, allowed, _ in (*_SAMPLING, *_REQUEST)}
"""By field, the last and narrowest of its checks."""


@dataclass(frozen=True)
class Limits:
    """What the engine can take; see `ModelInfo`.

    ``has_text`` is false without a tokenizer, ``shares_prefixes`` with ``--disable-radix-cache``.
    """

    context_len: int
    max_total_num_tokens: int
    max_req_input_len: int
    vocab_size: int
    auto_truncate: bool
    has_text: bool = True
    hidden_size: int = 0
    shares_prefixes: bool = True
    has_processors: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits, with as many new tokens as fit. Token ids mean nothing where ``embeds`` are given."""

    token_ids: tuple[int, ...]
    max_new_tokens: int
    embeds: bytes = b""
    warnings: tuple[str, ...] = ()


def check_request(request: GenerateRequest, limits: Limits) -> None:
    """Everything that can be said before the prompt is tokenized.

    Raises:
        SglError: 400, with the field and what it may be.
    """
    _check_types(request)
    if sum(given is not None for given in (request.text, request.input_ids, request.input_embeds)) != 1:
        raise SglError("Either text, input_ids or input_embeds should be provided.", param="text")
    _run(_REQUEST, request)
    _run(_SAMPLING, request.sampling)
    if request.seed is not None and not -(2**63) <= request.seed < 2**63:
        raise SglError(f"seed must fit in 64 bits, got {request.seed}.", param="seed")
    _check_names(request)
    if request.stop and not limits.has_text:
        raise SglError("stop needs a tokenizer, but --skip-tokenizer-init is set; use stop_token_ids.", param="stop")
    if request.return_text_in_logprobs and not limits.has_text:
        message = "return_text_in_logprobs needs a tokenizer, but --skip-tokenizer-init is set."
        raise SglError(message, param="return_text_in_logprobs")
    if request.top_logprobs_num > limits.vocab_size:
        raise SglError(
            f"top_logprobs_num is {request.top_logprobs_num}, but the vocabulary has {limits.vocab_size} tokens.",
            param="top_logprobs_num",
        )
    _check_stops(request.stop)
    _check_tokens(request.sampling, limits.vocab_size)
    if len(request.token_ids_logprob) > MAX_LOGPROB_IDS:
        message = f"token_ids_logprob must hold at most {MAX_LOGPROB_IDS} ids, got {len(request.token_ids_logprob)}."
        raise SglError(message, param="token_ids_logprob")
    if request.token_ids_logprob:
        _checked_ids(request.token_ids_logprob, "token_ids_logprob", limits.vocab_size)
    _check_processor(request, limits)
    if request.session is not None:
        _check_session(request)
    if request.input_embeds is not None:
        _check_embedded(request, limits)


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
    if request.input_embeds is None:
        param, embeds = "text" if request.input_ids is None else "input_ids", array("f")
        ids = _checked_ids(token_ids, param, limits.vocab_size)
    else:
        param, embeds = "input_embeds", _checked_embeds(request.input_embeds, limits)
        ids = [0] * len(request.input_embeds)
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
    if request.return_hidden_states:
        _check_hidden(len(ids) + wanted, request, limits)
    return Prompt(tuple(ids), wanted, embeds[: len(ids) * limits.hidden_size].tobytes(), tuple(warnings))


_COUNTED = ("input_ids", "input_embeds")


def _check_types(request: GenerateRequest) -> None:
    """Python does not; the numbers of the prompt are checked where they are counted."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__ if name not in _COUNTED}
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
    for name, allowed, sentence in checks:
        value = getattr(owner, name)
        if value not in allowed:
            raise SglError(f"{name} {sentence}, got {value}.", param=name)


def _check_names(request: GenerateRequest) -> None:
    names = [("rid", request.rid, MAX_RID_CHARS), ("cache_salt", request.cache_salt, MAX_SALT_CHARS)]
    if request.session is not None:
        names += [("session_params.id", request.session.id, MAX_RID_CHARS)]
        names += [("session_params.rid", request.session.rid, MAX_RID_CHARS)]
    for name, value, most in names:
        if value is not None:
            check_text(value, name)
            if len(value) > most or (name == "rid" and not value):
                raise SglError(f"{name} must have 1 to {most} characters, got {len(value)}.", param=name)
    if request.sampling.grammar is not None:
        check_grammar(request.sampling.grammar)


def _check_processor(request: GenerateRequest, limits: Limits) -> None:
    if request.custom_logit_processor is not None and not limits.has_processors:
        message = "custom_logit_processor needs an engine started with --enable-custom-logit-processor."
        raise SglError(message, param="custom_logit_processor")
    if request.custom_params and request.custom_logit_processor is None:
        raise SglError("custom_params needs a custom_logit_processor that takes them.", param="custom_params")


def _check_session(request: GenerateRequest) -> None:
    session = request.session
    assert session is not None
    if request.n != 1:
        raise SglError(f"n must be 1 with session_params, got {request.n}.", param="n")
    if session.offset is not None and not -MAX_INT <= session.offset <= MAX_INT:
        message = f"session_params.offset must be between -{MAX_INT} and {MAX_INT}, got {session.offset}."
        raise SglError(message, param="session_params.offset")


def _check_embedded(request: GenerateRequest, limits: Limits) -> None:
    """What cannot go with a prompt that has no tokens."""
    if limits.shares_prefixes:
        message = "input_embeds needs an engine started with --disable-radix-cache: prefixes are found by their tokens."
        raise SglError(message, param="input_embeds")
    conflicts = {
        "session_params": request.session is not None,
        "return_receipt": request.return_receipt,
        "logprob_start_len": request.return_logprob and request.logprob_start_len >= 0,
        "repetition_penalty": request.sampling.repetition_penalty != 1.0,
    }
    for name, is_set in conflicts.items():
        if is_set:
            raise SglError(f"{name} needs the tokens of the prompt, which input_embeds does not have.", param=name)


def _checked_embeds(rows: Sequence[Sequence[float]], limits: Limits) -> array[float]:
    """The vectors one after the other, as float32."""
    if not 1 <= len(rows) <= limits.context_len:
        message = f"input_embeds must hold 1 to {limits.context_len} vectors, got {len(rows)}."
        raise _too_long(message, "input_embeds") if len(rows) else SglError(message, param="input_embeds")
    embeds = array("f")
    for position, row in enumerate(rows):
        try:
            embeds.extend(row)
        except (TypeError, OverflowError):
            message = f"input_embeds[{position}] must be a list of numbers."
            raise SglError(message, param="input_embeds") from None
        if len(embeds) != (position + 1) * limits.hidden_size:
            size = len(embeds) - position * limits.hidden_size
            message = f"input_embeds[{position}] has {size} numbers; the model's hidden size is {limits.hidden_size}."
            raise SglError(message, param="input_embeds")
    if not all(map(math.isfinite, embeds)):
        raise SglError("input_embeds must hold finite float32 numbers.", param="input_embeds")
    return embeds


def _check_hidden(num_positions: int, request: GenerateRequest, limits: Limits) -> None:
    total = num_positions * request.n * limits.hidden_size
    most = MAX_STREAMED_HIDDEN_VALUES if request.stream else MAX_HIDDEN_VALUES
    if total > most:
        message = (
            f"return_hidden_states asks for up to {total} numbers ({num_positions} positions of {limits.hidden_size}, "
            f"n={request.n}); at most {most} can be {'streamed' if request.stream else 'returned'}: lower "
            "max_new_tokens or send less."
        )
        raise SglError(message, param="return_hidden_states")


def check_grammar(grammar: Grammar) -> None:
    """What can be said at a glance; whether it can be compiled is found out where it is.

    Raises:
        SglError: 400; it is too large or no text.
    """
    check_source(grammar.source, grammar.kind)
    check_text(grammar.source, grammar.kind)


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
