"""Collects requests and answers and writes them to files of JSON lines, all below one folder of the operator's."""

from __future__ import annotations

import itertools
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sgl.engine.base.errors import ConfigError, SglError
from sgl.server.background import Background

logger = logging.getLogger(__name__)

MAX_THRESHOLD = 100_000
_MAX_PENDING_BYTES = 64 * 2**20


class RequestDump:
    """Holds lines until there are enough for a file; the lines are on a thread of their own, which writes them.

    Args:
        root: where files may be; empty for nowhere.
        threshold: how many answers a file holds, unless they are long.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, root: str, threshold: int) -> None:
        self._root = Path(root).expanduser().resolve() if root else None
        self._threshold = threshold
        self._pending: list[bytes] = []
        self._num_bytes = 0
        self._serial = itertools.count()
        self._thread: Background | None = None
        try:
            self._folder = _made(self._root) if self._root else None
            if self._root:
                self._thread = Background("request-dump", "--dump-requests-folder")
        except OSError as error:
            text = f"--dump-requests-folder {root}: {error.strerror}."
            raise ConfigError(text, param="--dump-requests-folder") from None

    @property
    def is_on(self) -> bool:
        """Whether lines are wanted."""
        return self._folder is not None

    def configure(self, folder: str | None, threshold: int | None) -> None:
        """Changes what is given.

        Args:
            folder: a path below the root, or relative to it; empty for none.

        Raises:
            SglError: 400; it is outside or cannot be made, or the threshold is out of range.
        """
        if threshold is not None and not 1 <= threshold <= MAX_THRESHOLD:
            text = f"dump_requests_threshold must be between 1 and {MAX_THRESHOLD}, got {threshold}."
            raise SglError(text, param="dump_requests_threshold")
        chosen = self._folder if folder is None else self._inside(folder)
        if chosen != self._folder:
            self.flush()
        self._folder = chosen
        self._threshold = self._threshold if threshold is None else threshold

    def add(self, line: dict[str, Any]) -> None:
        """Takes one answer."""
        assert self._thread is not None and self._folder is not None
        data = msgspec.json.encode({"time": time.time(), **line}) + b"\n"
        self._thread.put(len(data), partial(self._hold, data, self._folder, self._threshold))

    def flush(self) -> None:
        """Writes what there is."""
        if self._thread is not None and self._folder is not None:
            self._thread.put(0, partial(self._write, self._folder))
            self._thread.wait()

    def close(self) -> None:
        """Writes what there is, and takes no more."""
        self.flush()
        self._folder = None
        if self._thread is not None:
            self._thread.close()

    def _hold(self, data: bytes, folder: Path, threshold: int) -> None:
        self._pending.append(data)
        self._num_bytes += len(data)
        if len(self._pending) >= threshold or self._num_bytes >= _MAX_PENDING_BYTES:
            self._write(folder)

    def _write(self, folder: Path) -> None:
        lines, self._pending, self._num_bytes = self._pending, [], 0
        if not lines:
            return
        name = f"requests-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{next(self._serial):06d}.jsonl"
        try:
            with (folder / name).open("xb") as file:
                file.writelines(lines)
        except OSError as error:
            logger.error("%d requests could not be dumped to %s: %s", len(lines), folder / name, error.strerror)

    def _inside(self, folder: str) -> Path | None:
        if not folder:
            return None
        if self._root is None:
            raise _refused("needs a server that was started with --dump-requests-folder")
        if "\0" in folder:
            raise _refused("must not have NUL characters")
        try:
            path = (self._root / folder).resolve()
            if not path.is_relative_to(self._root):
                raise _refused("must be below the server's --dump-requests-folder")
            return _made(path)
        except (OSError, RuntimeError):  # the latter for links in a circle
            raise _refused("cannot be used") from None


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _refused(what: str) -> SglError:
    return SglError(f"dump_requests_folder {what}.", param="dump_requests_folder")
