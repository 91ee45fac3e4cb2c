"""Routes about the server itself: health, facts, cache, metrics. Generates at most one token."""

from __future__ import annotations

import logging

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import sgl
from sgl.engine.base import hub
from sgl.engine.base.errors import SglError
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.health import check_engine
from sgl.server.state import state_of
from sgl.server.warmup import generate_one_token

logger = logging.getLogger(__name__)

_FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)
_PROBE_TIMEOUT_S = 20.0


class LoggingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to change; what is not given stays.

    Args:
        log_requests_level: 0 names, 1 parameters, 2 texts that may be cut, 3 everything.
        dump_requests_folder: below --dump-requests-folder; empty ends the dumping.
        dump_requests_threshold: answers in a file.
    """

    log_requests: bool | None = None
    log_requests_level: int | None = None
    dump_requests_folder: str | None = None
    dump_requests_threshold: int | None = None


async def health(request: Request) -> Response:
    """200 while the engine's heart beats."""
    state = state_of(request)
    check_engine(state.engine, state.config.serve.watchdog_timeout)
    return Response()


async def health_generate(request: Request) -> Response:
    """200 once a token was generated. Not counted in the metrics."""
    await generate_one_token(state_of(request).engine, _PROBE_TIMEOUT_S)
    return Response()


async def model_info(request: Request) -> Response:
    """Exactly three keys: clients assert on the set."""
    info = state_of(request).engine.info
    keys = {
        "model_path": info.model_path,
        "tokenizer_path": info.tokenizer_path,
        "is_generation": info.is_generation,
    }
    return JsonResponse(keys)


async def server_info(request: Request) -> Response:
    """Every option (secrets hidden), what the engine holds and does, and the version."""
    engine = state_of(request).engine
    model = engine.config.model
    facts = {
        "max_total_num_tokens": engine.info.max_total_num_tokens,
        "max_req_input_len": engine.info.max_req_input_len,
        "pages": await engine.call("pages"),
        "weights": await engine.call("describe_weights"),
        "canary": await engine.call("canary"),
        "startup": {"total": engine.timeline.total_s, **engine.timeline.phases()},
        "stats": msgspec.structs.asdict(engine.stats),
        "load": {"num_active": engine.num_active, "num_requests": engine.num_requests},
        "cost": msgspec.to_builtins(engine.info.cost),
        "quantization_evidence": hub.read_evidence(engine.info.model_path, model.revision, model.download_dir),
        "version": sgl.__version__,
    }
    return JsonResponse({**engine.config.to_flat_dict(), **facts})


async def flush_cache(request: Request) -> Response:
    """Empties the prefix cache unless requests are running."""
    reply = await state_of(request).engine.call("flush_cache")
    logger.info("Cache flushed successfully!" if reply["success"] else "Cache not flushed: requests are running.")
    return PlainTextResponse(_FLUSHED, status_code=200 if reply["success"] else 400)


async def configure_logging(request: Request) -> Response:
    """Changes what is logged and dumped of the requests that begin from now on."""
    body = convert(await read_object(request), LoggingBody)
    state_of(request).request_log.configure(**msgspec.structs.asdict(body))
    return Response()


async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    state = state_of(request)
    if state.metrics is None:
        raise SglError("Metrics are off; start the server with --enable-metrics.", code="not_found", status=404)
    body = state.metrics.render(state.engine)
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")
