"""Weight files are read from end to end beside the start, as far as they are not in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sgl.engine.base import read_ahead

pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="Linux only")


@pytest.mark.parametrize("is_cached", [False, True])
def test_what_is_not_in_memory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool) -> None:
    file, read = tmp_path / "model.safetensors", []
    file.write_bytes(bytes(2500))
    preadv = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int, *flags: int) -> int:
        count = preadv(descriptor, buffers, offset, *flags)
        read.append((offset, count))
        return count

    monkeypatch.setattr(read_ahead, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(read_ahead, "_is_cached", lambda *_: is_cached)
    monkeypatch.setattr("os.preadv", watched)
    read_ahead.read_ahead([tmp_path / "is not there", file]).join()
    assert read == ([] if is_cached else [(0, 1000), (1000, 1000), (2000, 500)])


def test_what_was_just_written_is_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(10))
    with file.open("rb") as source:
        assert read_ahead._is_cached(source.fileno(), 0) in (True, False)  # some file systems cannot tell
        assert not read_ahead._is_cached(source.fileno(), 10)
