"""Starts the interpreter of an engine process; what the engine shall do is told to it later.

It is worth starting early: importing torch takes most of the time until an engine is ready, and the front has things of
its own to do meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import sgl
from sgl.engine.base import env

ENGINE_IMPORTS = ("torch", "sgl.engine.attn.choice", "sgl.engine.models.loader", "sgl.engine.runtime.executor")
"""What an engine that runs a model imports in any case."""


class Interpreter:
    """A process that runs `sgl.engine.worker` and waits on its standard input for orders.

    It ends with the thread that started it, and is in a session of its own: Ctrl-C in the terminal is not for it.

    Args:
        imports: modules to import until the orders come.

    Attributes:
        started_s: on `time.monotonic`'s clock.
    """

    def __init__(self, imports: Sequence[str] = ENGINE_IMPORTS) -> None:
        environment = env.all_variables()
        root = str(Path(sgl.__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, environment.get("PYTHONPATH", "")) if part)
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sgl.engine.worker", *imports],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**environment, "PYTHONPATH": path},
        )

    def order(self, setup: bytes) -> None:
        """Tells it what to do, once. That it died before is for whoever waits for its answer to find out."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(setup)

    def close(self) -> None:
        """Ends it if it has not ended yet."""
        assert self.process.stdin is not None
        self.process.kill()
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
