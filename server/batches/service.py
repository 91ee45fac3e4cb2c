"""The files and batches of one server: opened when first needed, continued after a restart, closed with the server."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sgl.engine.base.errors import OverloadedError, SglError

if TYPE_CHECKING:
    from sgl.server.batches.runner import Runner
    from sgl.server.batches.worker import StoreThread
    from sgl.server.state import ServerState

logger = logging.getLogger(__name__)

_PRIORITY = -1
"""Of the lines of batches, where they ask for none: everybody else is served first."""
_MAX_RUNNING = 64
"""Requests that the engine runs at once, where it does not say how many."""
_SHARE_OF_OTHERS = 4
"""One in so many places stays free of batches, so that other requests need not displace them."""
_EXPIRE_S = 600.0
"""How often files are deleted whose time is over, if nobody asks for any file meanwhile."""


@dataclass(frozen=True)
class Desk:
    """What the routes work with."""

    thread: StoreThread
    runner: Runner
    endpoints: tuple[str, ...]


class Batches:
    """Costs nothing, neither time nor a directory, until it is used."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._root = Path(state.config.serve.file_storage_path).expanduser()
        self._opening: asyncio.Task[Desk] | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._closing = False

    async def desk(self) -> Desk:
        """
        Raises:
            StorageError: the directory cannot be used, for example because another server uses it.
            OverloadedError: the server is starting or shutting down.
        """
        if self._closing:
            raise OverloadedError("The server is shutting down.")
        failed = self._opening is not None and self._opening.done() and self._opening.exception() is not None
        if self._opening is None or failed:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def resume(self) -> None:
        """Goes on with what a former run has left, if there was one."""
        try:
            if not await asyncio.to_thread(self._root.is_dir):
                return
            from sgl.server.batches.store import Store

            if await asyncio.to_thread(Store.exists, self._root):
                await self.desk()
        except (OSError, SglError) as error:
            logger.warning("Batches of a former run wait: %s", error)

    async def stop(self) -> None:
        """Aborts the lines that are being answered; they are asked again after a restart."""
        self._closing = True
        desk = await self._opened()
        if desk is not None:
            await desk.runner.stop()

    async def close(self) -> None:
        await self.stop()
        desk = await self._opened()
        self._opening = None
        if self._expiring is not None:
            self._expiring.cancel()
        if desk is not None:
            await desk.thread.close()

    async def _opened(self) -> Desk | None:
        if self._opening is None:
            return None
        await asyncio.wait((self._opening,))
        return None if self._opening.exception() is not None else self._opening.result()

    async def _open(self) -> Desk:
        from sgl.server.auth import GuardedRoute
        from sgl.server.batches.dispatch import AppDispatch
        from sgl.server.batches.lines import Limits
        from sgl.server.batches.runner import Runner
        from sgl.server.batches.store import Store
        from sgl.server.batches.worker import StoreThread
        from sgl.server.routes import ROUTES

        config = self._state.engine.config
        routes = [route for route in ROUTES if isinstance(route, GuardedRoute)]
        dispatch = AppDispatch(routes, self._state.for_batches(_PRIORITY))
        thread = await StoreThread.open(lambda: Store(self._root))
        running = config.schedule.max_running_requests or _MAX_RUNNING
        in_flight = max(running - running // _SHARE_OF_OTHERS, 1)
        limits = Limits(line_bytes=config.serve.max_body_bytes)
        desk = Desk(thread, Runner(thread, dispatch, dispatch.endpoints, in_flight, limits), dispatch.endpoints)
        unfinished = await thread.do(Store.open_batches)
        if unfinished:
            logger.info("Going on with %d batches in %s", len(unfinished), self._root)
        for batch in unfinished:
            desk.runner.start(batch)
        self._expiring = asyncio.create_task(_expire(thread))
        return desk


async def _expire(thread: StoreThread) -> None:
    """Deletes the files whose time is over, now and then."""
    from sgl.server.batches.store import Store

    while True:
        await asyncio.sleep(_EXPIRE_S)
        try:
            await thread.do(Store.expire)
        except SglError as error:
            logger.warning("Files that have expired stay for now: %s", error)
