"""`/v1/models`: the one model that is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sgl.server.errors import JsonResponse
from sgl.server.state import ServerState, state_of


async def listing(request: Request) -> Response:
    """A list of one."""
    return JsonResponse({"object": "list", "data": [_card(state_of(request))]})


async def one(request: Request) -> Response:
    """The model by its id; 404 for any other."""
    state = state_of(request)
    name = request.path_params["model"]
    if name != state.model_name:
        raise state.no_such_model(name)
    return JsonResponse(_card(state))


def _card(state: ServerState) -> dict[str, Any]:
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.created_s,
        "owned_by": "sglang",
        "root": state.model_name,
        "max_model_len": state.engine.info.context_len,
    }
