"""Routes about the model's weights and the memory that they and the KV cache take. The engine does what they ask."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sgl.engine.base.errors import SglError
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.state import state_of

_MAX_ROWS = 1 << 20


class UpdateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint to go on with.

    Args:
        model_path: a directory or an id on the Hub, of the architecture and the sizes of the served model.
        load_format: as --load-format.
        abort_all_requests: whether running requests are ended instead of being finished first.
    """

    model_path: str
    load_format: str | None = None
    abort_all_requests: bool = False


class WeightsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tensor to show.

    Args:
        name: as the checkpoint has it.
        truncate_size: rows at most.
    """

    name: str
    truncate_size: int = 100


class UpdateResult(msgspec.Struct):
    """What came of it."""

    success: bool
    message: str


async def update(request: Request) -> Response:
    """Exchanges the weights: running requests finish with the old ones, and a failure leaves them serving."""
    engine, body = state_of(request).engine, convert(await read_object(request), UpdateBody)
    options = {"drain_s": 0.0} if body.abort_all_requests else {}
    result = await engine.update_weights(body.model_path, body.load_format or "auto", **options)
    return JsonResponse(result, 200 if result["success"] else 400)


async def by_name(request: Request) -> Response:
    """The first rows of a tensor, as it was read from the checkpoint."""
    engine, body = state_of(request).engine, convert(await read_object(request), WeightsBody)
    if not 1 <= body.truncate_size <= _MAX_ROWS:
        message = f"truncate_size must be between 1 and {_MAX_ROWS}, got {body.truncate_size}."
        raise SglError(message, param="truncate_size")
    found = await engine.call("get_weights", name=body.name, truncate_size=body.truncate_size)
    return JsonResponse(await asyncio.to_thread(_nested, memoryview(found["data"]).cast("f"), found["rows"]))


async def release(request: Request) -> Response:
    """Gives back the memory of weights and KV cache; only while no request is known."""
    await state_of(request).engine.call("release_memory")
    return Response()


async def resume(request: Request) -> Response:
    """Takes the memory again and reads the weights from where they came from."""
    await state_of(request).engine.resume_memory()
    return Response()


async def from_trainer(request: Request) -> Response:
    """Refuses what this server cannot do: to receive weights over a process group."""
    raise SglError(
        f"{request.url.path} is not supported: weights are exchanged through the disk, with /update_weights_from_disk.",
        code="not_supported",
    )


def _nested(values: memoryview[float], shape: Sequence[int]) -> Any:
    """Numbers as nested lists, encoded row by row: beside the event loop this does not hold it up."""
    if len(shape) <= 1:
        return msgspec.Raw(msgspec.json.encode(values.tolist()))
    size = math.prod(shape[1:])
    return [_nested(values[row * size : (row + 1) * size], shape[1:]) for row in range(shape[0])]
