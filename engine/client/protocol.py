"""What the front knows of an engine, wherever it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import EngineDiedError
from sgl.engine.base.types import Inbound, Outbound
from sgl.engine.client.wire import ModelInfo

CLOSE_TIMEOUT_S = 10.0
"""How long an engine may take to end by itself."""

OnMessage = Callable[[Outbound], None]
OnDied = Callable[[EngineDiedError], None]


class Client(Protocol):
    """One engine. Callbacks come from a thread of the client; `send` and `close` may be called from any."""

    def start(self, on_message: OnMessage, on_died: OnDied) -> ModelInfo:
        """Loads the model; returns when the engine can work.

        Args:
            on_message: called with everything that the engine sends.
            on_died: called once if the engine ends without having been told to.

        Raises:
            SglError: it cannot; the error that the engine met.
        """

    def send(self, message: Inbound) -> None:
        """Hands a message to the engine, without waiting. Nothing happens if it has ended."""

    def close(self) -> None:
        """Ends the engine; waits for it up to `CLOSE_TIMEOUT_S`. Idempotent."""


def make_loop(name: str, config: EngineConfig, inbox: Any, outbox: Any) -> Any:
    """Calls the ``module:function`` that builds an engine's loop (an `EngineLoop` or one of a test)."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)(config, inbox, outbox)
