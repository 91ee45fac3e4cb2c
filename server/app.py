"""Puts the server together, and runs it: from an open port over a ready engine to a drained exit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import logging
import socket
import sys
import threading
from collections.abc import Callable

import uvloop
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from sgl.engine.api import AsyncEngine
from sgl.engine.base import log
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import EngineDiedError
from sgl.engine.base.interpreter import Interpreter
from sgl.server.auth import Auth, own_names
from sgl.server.body import BodyLimit
from sgl.server.envelope import Envelope
from sgl.server.errors import body_of, error_response, routing_error
from sgl.server.http import HttpServer, listen, signals_end, url_of
from sgl.server.observer import NullMeter
from sgl.server.record import Recording
from sgl.server.routes import ROUTES
from sgl.server.state import ServerState
from sgl.server.warmup import generate_one_token

logger = logging.getLogger(__name__)

_WARM_UP_TIMEOUT_S = 600.0
_SWITCH_S = 5e-4
"""After so long a thread hands Python's lock on. A tenth of the usual: a token on its way out needs the lock a few
times, and waits each time for as long beside a thread that decodes a large body."""

StartEngine = Callable[[EngineConfig], AsyncEngine]
Ready = Callable[[str], None]


def run_server(
    config: EngineConfig,
    *,
    ready: Ready = lambda url: None,
    start: StartEngine | None = None,
    interpreter: Interpreter | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests finish (``serve.drain_timeout_s``) and returns.

    The port answers from the beginning; with 503 until the engine has generated a first token.

    Args:
        ready: called with the server's URL once it is ready.
        start: makes the engine (blocking); a process of its own by default.
        interpreter: that process, if it has been started already.

    Raises:
        ConfigError: the address cannot be used.
        SglError: the engine does not start, or it stopped before it was told to.
    """
    observe = config.observe
    log.configure(observe.log_level, observe.log_level_http or observe.log_level, observe.log_format)
    sock = listen(config.serve.host, config.serve.port)
    sys.setswitchinterval(_SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, sock, ready, start or functools.partial(_start_engine, interpreter=interpreter)))


def _start_engine(config: EngineConfig, interpreter: Interpreter | None) -> AsyncEngine:
    return AsyncEngine.start(config, in_process=False, interpreter=interpreter)


def build_app(state: ServerState) -> Starlette:
    """The ASGI application of a server whose engine may still be starting."""
    serve = state.config.serve
    names = (name for given in serve.allowed_host for name in given.split(","))
    app = Starlette(
        routes=list(ROUTES),
        middleware=[
            Middleware(BodyLimit, max_bytes=serve.max_body_bytes, uploads={"/v1/files": serve.max_file_bytes}),
            Middleware(Envelope, meter=state.metrics or NullMeter()),
            Middleware(Auth, api_key=serve.api_key, admin_key=serve.admin_api_key, hosts=own_names(serve.host, names)),
            *([Middleware(Recording, recorder=state.recorder)] if state.recorder.is_on else []),
        ],
        exception_handlers={HTTPException: _routing_failed},
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


async def _routing_failed(request: Request, error: Exception) -> Response:
    """404, 405, and what OPTIONS asks: the methods of a path."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted({*_methods(request), "OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return error_response(routing_error(error, request.method, request.url.path), headers, body_of(request.scope))


def _methods(request: Request) -> set[str]:
    """What all routes of a path answer together."""
    found = (route for route in ROUTES if route.matches(request.scope)[0] is not Match.NONE)
    return {method for route in found for method in route.methods or ()}


async def _serve(config: EngineConfig, sock: socket.socket, ready: Ready, start: StartEngine) -> None:
    state = ServerState(config)
    server = HttpServer(build_app(state), state)
    with signals_end(server):
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        preparing = asyncio.create_task(_prepare(state, start))
        try:
            await asyncio.wait((serving, preparing), return_when=asyncio.FIRST_COMPLETED)
            if preparing.done():
                preparing.result()
                url = url_of(sock, config.serve.host)
                logger.info("Uvicorn running on %s (Press CTRL+C to quit)", url)
                logger.info("Ready in %s", state.engine.timeline)
                logger.info("The server is fired up and ready to roll!")
                ready(url)
                resuming = asyncio.create_task(state.batches.resume())
                death = asyncio.create_task(state.engine.died.wait())  # nothing will be answered any more: end, too
                await asyncio.wait((serving, death), return_when=asyncio.FIRST_COMPLETED)
                death.cancel()
                await resuming
        finally:
            preparing.cancel()
            server.should_exit = True
            await serving
            await state.close()
    if state.has_died:
        raise EngineDiedError


async def _prepare(state: ServerState, start: StartEngine) -> None:
    """Starts the engine, has it generate one token, and opens the routes."""
    logger.info("server_args=%s", state.config.describe())
    state.phase = "the model is being loaded"
    engine = await _in_daemon_thread(lambda: start(state.config))
    state.phase = "the model generates a first token"
    try:
        await generate_one_token(engine, _WARM_UP_TIMEOUT_S)
    except BaseException:
        engine.close()
        raise
    engine.timeline.mark("warm-up")
    gc.freeze()  # what is there now stays: collections need not look at it again
    state.start(engine)


async def _in_daemon_thread(call: Callable[[], AsyncEngine]) -> AsyncEngine:
    """Like `asyncio.to_thread`, but a call that hangs does not keep the process from ending."""
    outcome: concurrent.futures.Future[AsyncEngine] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where the outcome is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, name="engine-start", daemon=True).start()
    return await asyncio.wrap_future(outcome)
