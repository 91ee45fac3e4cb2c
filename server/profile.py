"""Routes that start and end the recording of a profile in the engine. They read no profile."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.state import state_of


class ProfileBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to record; everything may be left out.

    Args:
        output_dir: where the trace goes, below $SGLANG_TORCH_PROFILER_DIR.
        num_steps: ends the profile by itself after so many steps.
        activities: of CPU and GPU.
        with_stack: whether the places in the source are recorded.
        record_shapes: whether the shapes of tensors are recorded.
    """

    output_dir: str | None = None
    num_steps: int | None = None
    activities: list[str] | None = None
    with_stack: bool | None = None
    record_shapes: bool | None = None


async def start(request: Request) -> Response:
    """Records what the engine does from now on."""
    raw: dict[str, Any] = await read_object(request) if await request.body() else {}
    body = convert(raw, ProfileBody)
    options = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    await state_of(request).engine.call("start_profile", **options)
    return PlainTextResponse("Start profiling.\n")


async def status(request: Request) -> Response:
    """Whether a profile is being recorded, how far it is, and where the last trace was written."""
    return JsonResponse(await state_of(request).engine.call("profile_status"))


async def stop(request: Request) -> Response:
    """Ends the recording and writes the trace."""
    await state_of(request).engine.call("stop_profile")
    return PlainTextResponse("Stop profiling. This will take some time.\n")
