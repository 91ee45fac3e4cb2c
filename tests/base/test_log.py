"""The set-up of logging, in a process of its own: it replaces the handlers of the root logger."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import logging
from sgl.engine.base import log
log.configure("info", "warning")
log.configure("INFO", "warning")
logging.getLogger("sgl.engine.loop").debug("hidden")
logging.getLogger("sgl.engine.loop").info("shown %d", 7)
logging.getLogger(log.HTTP_LOGGER).info("hidden")
logging.getLogger(log.HTTP_LOGGER).error("shown too")
logging.getLogger("somebody").info("hidden")
logging.getLogger("somebody").warning("careful")
"""


def test_levels_and_format() -> None:
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", _PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert [re.sub(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] ", "", line) for line in lines] == [
        "INFO shown 7",
        "ERROR shown too",
        "WARNING careful",
    ]
