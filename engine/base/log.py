"""Sets up logging for a program: levels and the one formatter. Decides nothing about what is logged.

Libraries only ever call ``logging.getLogger(__name__)``; `configure` is for the processes that we start.
"""

from __future__ import annotations

import logging
import sys

HTTP_LOGGER = "sgl.http"
"""One line per request that was answered; has a level of its own (``--log-level-http``)."""

_FORMAT = "[%(asctime)s] %(levelname)s %(message)s"
_TIME = "%Y-%m-%d %H:%M:%S"


def configure(level: str, http_level: str) -> None:
    """Sends the log of this process to stderr; replaces what was set up before.

    Args:
        level: for everything of ours, a name of the stdlib in any case (``info``).
        http_level: for the access log.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("sgl").setLevel(level.upper())
    logging.getLogger(HTTP_LOGGER).setLevel(http_level.upper())
