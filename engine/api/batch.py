"""A call with several prompts in SGLang's form: per-prompt lists become requests, answers come back in the same order.

Shared by the server's `/generate` and the offline engine; knows neither HTTP nor which forms a prompt may come in.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sgl.engine.api.request import GenerateRequest
from sgl.engine.api.sampling import set_sampling
from sgl.engine.base.errors import SglError

Output = dict[str, Any]
Items = AsyncIterator[tuple[int, int, Output]]
"""(position of the prompt, which of its answers, rendered item) as they come."""


@dataclass(frozen=True)
class Batch:
    """The requests of one call.

    Args:
        is_list: whether the caller gets a list, in which answers that stream say their ``index``.
    """

    requests: list[GenerateRequest]
    is_list: bool

    async def whole(self, items: Items) -> Output | list[Output]:
        """The last item of every answer, in the order of prompts and, within one, of its answers."""
        outputs = {(position, index): output async for position, index, output in items}
        ordered = [outputs[key] for key in sorted(outputs)]
        return ordered if self.is_list else ordered[0]

    async def stream(self, items: Items) -> AsyncGenerator[Output, None]:
        """Every item as it comes."""
        firsts = list(accumulate((request.n for request in self.requests), initial=0))
        async for position, index, output in items:
            yield {**output, "index": firsts[position] + index} if self.is_list else output


def make_batch(field: str, prompts: Sequence[Any], is_list: bool, columns: Mapping[str, Any], **common: Any) -> Batch:
    """One request for each prompt.

    Args:
        field: the one of `GenerateRequest` that the prompts go to: ``text``, ``input_ids``, ...
        is_list: whether the prompts came as a list.
        columns: ``sampling_params``, ``session_params`` and fields of `GenerateRequest` of which each prompt may have
            its own: one value for all or a list with one for each; None stands for the default.
        common: fields of `GenerateRequest` that all prompts share.

    Raises:
        SglError: lists of different lengths, or sampling parameters that are none.
    """
    split = {name: _column(value, name, len(prompts)) for name, value in columns.items()}
    requests = []
    for position, prompt in enumerate(prompts):
        row = {name: column[position] for name, column in split.items() if column[position] is not None}
        sampling, session = row.pop("sampling_params", None), row.pop("session_params", None)
        request = GenerateRequest(**{field: prompt}, session=session, **common, **row)
        set_sampling(request, sampling)
        requests.append(request)
    return Batch(requests, is_list or any(request.n != 1 for request in requests))


def token_columns(given: Sequence[Any] | None, count: int) -> list[tuple[int, ...]]:
    """``token_ids_logprob`` of each prompt: one list of ids is for all, a list of lists has one for each.

    Raises:
        SglError: it is neither.
    """
    entries = list(given or ())
    if all(isinstance(entry, int) for entry in entries):
        return [tuple(entries)] * count
    if len(entries) != count or not all(entry is None or isinstance(entry, Sequence) for entry in entries):
        message = f"`token_ids_logprob` must be a list of token ids, or of such lists for each of the {count} prompts."
        raise SglError(message, param="token_ids_logprob")
    return [tuple(entry or ()) for entry in entries]


def _column(value: Any, name: str, count: int) -> Sequence[Any]:
    """One value for each prompt."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        if name == "rid" and value is not None and count > 1:
            raise SglError("`rid` must be a list, with an entry for each prompt.", param="rid")
        return [value] * count
    if len(value) != count:
        message = f"`{name}` must have an entry for each of the {count} prompts, got {len(value)}."
        raise SglError(message, param=name)
    return value
