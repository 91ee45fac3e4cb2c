"""Main program of an engine process: builds the loop that its standard input asks for and runs it until told to stop.

It lives and dies with the process that started it, and leaves SIGINT and SIGTERM to that one. Its arguments are modules
to import while the orders are still being written; until then it imports as little as possible.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl.engine.base.config import EngineConfig
    from sgl.engine.client.link import Link
    from sgl.engine.client.wire import Setup

_PR_SET_PDEATHSIG = 1


def main(imports: Sequence[str]) -> int:
    """Returns the exit status: 2 for an error of the user's, which the front reports."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    gc.disable()  # until the model is loaded: hardly anything that an import makes is garbage
    threading.Thread(target=_import_all, args=(imports,), name="imports", daemon=True).start()
    orders = sys.stdin.buffer.read()
    if not orders:  # the front has changed its mind
        os._exit(1)
    return _obey(orders)


def _import_all(names: Sequence[str]) -> None:
    with suppress(ImportError):  # it comes again where the module is needed
        for name in names:
            importlib.import_module(name)


def _obey(orders: bytes) -> int:
    import msgspec

    from sgl.engine.base import log
    from sgl.engine.base.config import EngineConfig
    from sgl.engine.base.sampler import sampling
    from sgl.engine.client.link import Link
    from sgl.engine.client.wire import Setup

    setup = msgspec.json.decode(orders, type=Setup)
    if os.getppid() != setup.parent_pid:  # it ended before the kernel was told to watch it
        return 1
    config = EngineConfig.from_json(bytes(setup.config))
    observe = config.observe
    log.configure(observe.log_level, observe.log_level_http or observe.log_level, observe.log_format)
    link = Link(setup.inbound, setup.outbound)
    try:
        with sampling("engine"):
            return _run(setup, config, link)
    finally:
        link.close()


def _run(setup: Setup, config: EngineConfig, link: Link) -> int:
    from sgl.engine.base.errors import SglError
    from sgl.engine.client.protocol import make_loop
    from sgl.engine.client.wire import Failed, Ready, to_info

    try:
        loop = make_loop(setup.loop, config, link, link)
    except SglError as error:
        link.send(Failed.from_error(error))
        return 2
    gc.freeze()  # what is there now stays: collections need not look at it again
    gc.enable()
    link.send(Ready(to_info(loop.info)))
    loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
