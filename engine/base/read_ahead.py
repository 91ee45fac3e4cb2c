"""Reads weight files into the system's cache while something else goes on; keeps nothing of them.

A loader that copies tensors out of a memory map faults them in by small pieces, which on a disk that is not local costs
many times what reading it from end to end does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 4 << 20


def read_ahead(files: Sequence[Path]) -> threading.Thread:
    """Starts reading what of the files is not in memory yet; nothing depends on whether it can. Linux only."""
    thread = threading.Thread(target=_read, args=(list(files),), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read(files: Sequence[Path]) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for file in files if sys.platform == "linux" else ():
        with suppress(OSError), file.open("rb", buffering=0) as source:
            for offset in range(0, os.fstat(source.fileno()).st_size, _CHUNK_BYTES):
                if not _is_cached(source.fileno(), offset):
                    os.preadv(source.fileno(), [buffer], offset)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether reading there would not wait; a chunk is taken to be in memory as a whole or not at all."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # it would wait, or the file system cannot tell
        return False
