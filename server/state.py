"""What the handlers of one server share: configuration, the engine once it is there, and who watches requests."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import chain

import msgspec
from starlette.requests import Request

from sgl.engine.api import AsyncEngine, GenerateRequest, Generation
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import OverloadedError, SglError
from sgl.server.batches.service import Batches
from sgl.server.observer import LEFT, Metrics, Observer, abort_reason
from sgl.server.openai.responses.store import ResponseStore
from sgl.server.record import Recorder
from sgl.server.request_log import RequestLog

logger = logging.getLogger(__name__)


class ServerState:
    """Created before the engine, so that the port can answer while the model loads."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.model_name = config.model.served_model_name or config.model.model_path
        self.created_s = int(time.time())
        self.metrics = Metrics(self.model_name) if config.observe.enable_metrics else None
        self.request_log = RequestLog(config.observe)
        self.recorder = Recorder(config.observe)
        self.phase = "the engine starts"
        self.is_draining = False
        self.responses = ResponseStore(config.serve.max_stored_responses, config.serve.max_stored_response_bytes)
        self.batches = Batches(self)
        self._engine: AsyncEngine | None = None
        self._priority = 0
        self._shows_partial = True

    @property
    def engine(self) -> AsyncEngine:
        """The running engine.

        Raises:
            OverloadedError: it is still starting.
        """
        if self._engine is None:
            raise OverloadedError("The model is still loading; try again soon.")
        return self._engine

    @property
    def is_ready(self) -> bool:
        """Whether the engine has started."""
        return self._engine is not None

    @property
    def has_died(self) -> bool:
        """Whether the engine stopped without having been told to."""
        return self._engine is not None and not self._engine.alive

    def start(self, engine: AsyncEngine) -> None:
        """Opens the routes that need the engine."""
        self._engine = engine

    def for_batches(self, priority: int) -> ServerState:
        """The same server for requests that have this priority unless they ask for one, and want all of an answer."""
        other = copy.copy(self)
        other._priority = priority
        other._shows_partial = False
        return other

    async def drain(self) -> None:
        """Refuses new requests and lets the running ones finish; what has not by the end of the time is aborted."""
        self.is_draining = True
        await self.batches.stop()
        if self._engine is not None:
            timeout_s = self.config.serve.drain_timeout_s
            logger.info("Shutting down; %d running requests have %g s.", self._engine.num_active, timeout_s)
            await self._engine.drain(timeout_s)

    async def close(self) -> None:
        """Ends the engine, if there is one."""
        await self.batches.close()
        self.request_log.close()
        self.recorder.close()
        if self._engine is not None:
            await self._engine.shutdown()

    def generate(
        self, requests: Sequence[GenerateRequest], *, partial: bool = True, log_metrics: bool = True
    ) -> AsyncGenerator[tuple[int, Generation], None]:
        """Answers prompts: yields (which one, item) as items come. Closing it aborts what is left.

        Args:
            partial: see `AsyncEngine.generate_batch`.

        Raises:
            SglError: a request is refused, or the engine gave one up.
        """
        if self._priority:
            requests = [_with_priority(request, self._priority) for request in requests]
        observers = self._observers(log_metrics)
        items = self.engine.generate_batch(requests, partial=partial and self._shows_partial)
        return self._observed(requests, items, observers) if observers else items

    async def _observed(
        self,
        requests: Sequence[GenerateRequest],
        answers: AsyncGenerator[tuple[int, Generation], None],
        observers: Sequence[Observer],
    ) -> AsyncGenerator[tuple[int, Generation], None]:
        watches = [[observe(request) for observe in observers] for request in requests]
        reason = LEFT  # if nothing else is said, this generator was closed before its end
        try:
            async with aclosing(answers) as items:
                async for position, item in items:
                    for watch in watches[position]:
                        watch.see(item)
                    yield position, item
            reason = ""
        except SglError as error:
            reason = abort_reason(error)
            raise
        finally:
            for watch in chain.from_iterable(watches):
                watch.end(reason)

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            SglError: 404 where ``--strict-model-name`` is set and ``name`` is another model's.
        """
        if self.config.serve.strict_model_name and name not in (None, self.model_name):
            raise self.no_such_model(name)

    def no_such_model(self, name: object) -> SglError:
        """OpenAI's answer to the name of a model that is not served."""
        message = f"The model `{name}` does not exist; this server serves `{self.model_name}`."
        return SglError(message, code="model_not_found", status=404, param="model")

    def _observers(self, log_metrics: bool) -> tuple[Observer, ...]:
        logs = (self.request_log.observe,) if self.request_log.is_on else ()
        metrics = (self.metrics.observe,) if self.metrics and log_metrics else ()
        return (*logs, *metrics)


def _with_priority(request: GenerateRequest, priority: int) -> GenerateRequest:
    return msgspec.structs.replace(request, priority=request.priority or priority)


def state_of(request: Request) -> ServerState:
    """The state of the server that a request came to."""
    state: ServerState = request.app.state.server
    return state
