"""The logit processors that ship with sgl. Each looks at one request only and never waits for the device.

Only methods of tensors are used, so that the classes can be imported (for their ``to_str``) where there is no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from sgl.engine.base.errors import SglError
from sgl.engine.base.processors import CONTEXT, CustomLogitProcessor, LogitContext

if TYPE_CHECKING:
    from torch import Tensor

_NEVER = float("-inf")
_PARAM = "custom_logit_processor"

TokenId = Annotated[int, Meta(ge=0)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Factor = Annotated[float, Meta(gt=0, le=1000)]

Params = Sequence[Mapping[str, Any]]


class BanTokens(CustomLogitProcessor, frozen=True):
    """These tokens never come."""

    name: ClassVar[str] = "ban_tokens"
    token_ids: TokenIds

    def check(self, vocab_size: int) -> None:
        _check_ids(self.token_ids, vocab_size)

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        return logits.index_fill_(1, _context(custom_param_list).upload(self.token_ids), _NEVER)


class OnlyTokens(CustomLogitProcessor, frozen=True):
    """Nothing but these tokens comes; those that end the answer count only if they are named."""

    name: ClassVar[str] = "only_tokens"
    token_ids: TokenIds

    def check(self, vocab_size: int) -> None:
        _check_ids(self.token_ids, vocab_size)

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        kept = logits.new_full(logits.shape, _NEVER)
        wanted = _context(custom_param_list).upload(self.token_ids)
        kept[:, wanted] = logits[:, wanted]
        return kept


class ForceTokens(CustomLogitProcessor, frozen=True):
    """The answer begins with these tokens, in this order."""

    name: ClassVar[str] = "force_tokens"
    token_ids: TokenIds

    def check(self, vocab_size: int) -> None:
        _check_ids(self.token_ids, vocab_size)

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        context = _context(custom_param_list)
        wanted, last = context.upload(self.token_ids), len(self.token_ids) - 1
        ordinal = context.position - context.num_prompt
        return _forced(logits, wanted.gather(0, ordinal.clamp(max=last).view(1)), ordinal <= last)


class MinLength(CustomLogitProcessor, frozen=True):
    """What would end the answer does not come before ``length`` tokens."""

    name: ClassVar[str] = "min_length"
    length: Count

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        context = _context(custom_param_list)
        stops = context.upload([token_id for token_id in context.stop_ids if token_id < logits.shape[1]])
        early = context.position - context.num_prompt < self.length
        logits[:, stops] = logits[:, stops].masked_fill(early, _NEVER)
        return logits


class NoRepeatNgram(CustomLogitProcessor, frozen=True):
    """No ``size`` tokens in a row come twice within prompt and answer, or within their last ``window`` tokens."""

    name: ClassVar[str] = "no_repeat_ngram"
    size: Annotated[int, Meta(ge=1, le=64)]
    window: Count | None = None

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        context = _context(custom_param_list)
        tokens, end, size = context.tokens.long(), context.position, self.size
        if len(tokens) < size:
            return logits
        runs = tokens.unfold(0, size, 1)  # [R, size]
        starts = _places(runs)
        first = 0 if self.window is None else end - self.window
        suffix = tokens[(end - size + 1 + _places(runs[0, 1:])).clamp(min=0)]  # [size - 1]
        repeated = (runs[:, :-1] == suffix).all(-1) & (starts + size <= end) & (starts >= first) & (end >= size)
        ends = runs[:, -1].clamp(0, logits.shape[1] - 1)  # what stands behind the known tokens may be anything
        banned = logits.new_zeros(logits.shape[1]).index_add(0, ends, repeated.to(logits.dtype))
        return logits.masked_fill_(banned > 0, _NEVER)


class TemperatureSchedule(CustomLogitProcessor, frozen=True):
    """Divides the logits by a factor that goes from ``start`` to ``end`` over the first ``steps`` tokens.

    It stays there, and comes on top of the request's own temperature.
    """

    name: ClassVar[str] = "temperature_schedule"
    start: Factor
    end: Factor
    steps: Count

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        context = _context(custom_param_list)
        share = ((context.position - context.num_prompt) / self.steps).clamp(max=1.0)
        return logits.div_(self.start + (self.end - self.start) * share)


class ThinkingBudget(CustomLogitProcessor, frozen=True):
    """Ends the thinking of a reasoning model after ``budget`` tokens by forcing ``end_id``, the token that closes it.

    Thinking begins after the last ``start_id``, or where none is given with the answer.
    """

    name: ClassVar[str] = "thinking_budget"
    budget: Annotated[int, Meta(ge=0, le=1 << 20)]
    end_id: TokenId
    start_id: TokenId | None = None

    def check(self, vocab_size: int) -> None:
        _check_ids([self.end_id, *([] if self.start_id is None else [self.start_id])], vocab_size)

    def __call__(self, logits: Tensor, custom_param_list: Params) -> Tensor:
        context = _context(custom_param_list)
        tokens, end = context.tokens, context.position
        places = _places(tokens)
        begun = _last(places < context.num_prompt if self.start_id is None else tokens == self.start_id, places, end)
        ended = _last(tokens == self.end_id, places, end)
        is_thinking = (begun >= 0) & (ended <= begun)
        spent = end - 1 - begun
        return _forced(logits, context.upload([self.end_id]), is_thinking & (spent >= self.budget))


def _context(custom_param_list: Params) -> LogitContext:
    """Of the only row: the engine calls processors row by row."""
    [params] = custom_param_list
    context: LogitContext = params[CONTEXT]
    return context


def _forced(logits: Tensor, token_id: Tensor, active: Tensor) -> Tensor:
    """Leaves no other token where ``active``; its own score, and so its logprob, stays."""
    others = _places(logits[0]) != token_id
    return logits.masked_fill_(others & active, _NEVER)


def _places(values: Tensor) -> Tensor:
    """0, 1, 2, ... along the first dimension."""
    return values.new_ones(values.shape[0]).long().cumsum(0) - 1


def _last(found: Tensor, places: Tensor, end: Tensor) -> Tensor:
    """The last of the first ``end`` places that was found, -1 for none."""
    return places.masked_fill(~found | (places >= end), -1).amax()


def _check_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    wrong = [token_id for token_id in token_ids if token_id >= vocab_size]
    if wrong:
        message = f"{_PARAM}: token id {wrong[0]} is outside the vocabulary of {vocab_size} tokens."
        raise SglError(message, param=_PARAM)
