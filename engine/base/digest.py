"""Names the content of files by one hash, computed once for files that do not change; knows nothing of models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sgl.engine.base import env

_BLOCK_BYTES = 1 << 20


def digest(files: Sequence[Path]) -> str:
    """``sha256:...`` of the files' names and contents, in this order; read again only if a size or a time changed.

    Raises:
        OSError: a file cannot be read.
    """
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([stamps, [file.name for file in files]]).encode()).hexdigest()
    kept = env.cache_dir() / "digests" / key
    with suppress(OSError):
        return kept.read_text(encoding="ascii")
    found = "sha256:" + _content(files)
    with suppress(OSError):  # a cache that cannot be written only costs time
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(found, encoding="ascii")
    return found


def digest_text(text: str) -> str:
    """``sha256:...`` of a text."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _content(files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        part = hashlib.sha256()
        with file.open("rb") as source:
            while block := source.read(_BLOCK_BYTES):
                part.update(block)
        whole.update(f"{file.name} {part.hexdigest()}\n".encode())
    return whole.hexdigest()
