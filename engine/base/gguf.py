"""The header of a GGUF file: its metadata and where its tensors lie; reads no weights and imports no torch."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl.engine.base.errors import ModelError

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ITEMS = 1 << 24  # of an array, of a string's bytes, of tensors: beyond, the file is not what it says


@dataclass(frozen=True, slots=True)
class BlockType:
    """Numbers that are stored together: how many, in how many bytes."""

    name: str
    numbers: int
    size_bytes: int


TYPES = {
    0: BlockType("f32", 1, 4),
    1: BlockType("f16", 1, 2),
    2: BlockType("q4_0", 32, 18),
    3: BlockType("q4_1", 32, 20),
    6: BlockType("q5_0", 32, 22),
    7: BlockType("q5_1", 32, 24),
    8: BlockType("q8_0", 32, 34),
    12: BlockType("q4_k", 256, 144),
    13: BlockType("q5_k", 256, 176),
    14: BlockType("q6_k", 256, 210),
    30: BlockType("bf16", 1, 2),
}
"""The types that are supported, by their number in a file."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: its shape, outermost dimension first, and its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.numbers * self.type.size_bytes


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a file says of itself."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read(path: Path) -> Gguf:
    """The header of a file.

    Raises:
        ModelError: it is truncated, corrupt, of another version, one of several, or has a type that is not supported.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, _Cursor(path, data))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None


class _Cursor:
    """A place in a file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) < count:
            raise self.problem("it ends within its header")
        self.at += count
        return part

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self) -> int:
        value: int = self.number("Q")
        if value > _MOST_ITEMS:
            raise self.problem(f"its header counts {value} items")
        return value

    def text(self) -> str:
        return self.take(self.count()).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(self._code(kind))
        kind, count = self.number("I"), self.count()
        if kind in (_STRING, _ARRAY):
            return [self.value(kind) for _ in range(count)]
        code = f"{count}{self._code(kind)}"
        return list(struct.unpack("<" + code, self.take(struct.calcsize("<" + code))))

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.problem(f"its header has a value of type {kind}")
        return _SCALARS[kind]

    def problem(self, text: str) -> ModelError:
        return ModelError(f"{self.path} is truncated or corrupt ({text}); fetch it again.")


def _parse(path: Path, cursor: _Cursor) -> Gguf:
    if cursor.take(4) != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file.")
    version = cursor.number("I")
    if version not in (2, 3):
        raise ModelError(f"{path} is of GGUF version {version}; supported are 2 and 3.")
    num_tensors, num_values = cursor.count(), cursor.count()
    read_value: Callable[[], Any] = lambda: cursor.value(cursor.number("I"))  # noqa: E731 - after its key
    metadata = {cursor.text(): read_value() for _ in range(num_values)}
    if int(metadata.get("split.count") or 1) > 1:
        raise ModelError(f"{path} is one of several files; join them with `llama-gguf-split --merge`.")
    entries = [_entry(cursor) for _ in range(num_tensors)]
    alignment = int(metadata.get("general.alignment") or 32)
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        tensor = _tensor(path, name, shape, kind, start + offset)
        rows = 1
        for size in shape[:-1]:
            rows *= size
        if tensor.offset + rows * tensor.row_bytes > len(cursor.data):
            raise cursor.problem(f"{name} reaches beyond its end")
        tensors[name] = tensor
    return Gguf(path, metadata, tensors)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    shape = tuple(cursor.number("Q") for _ in range(min(cursor.number("I"), 8)))
    return name, shape[::-1], cursor.number("I"), cursor.number("Q")


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    if kind not in TYPES:
        known = ", ".join(block.name.upper() for block in TYPES.values())
        raise ModelError(f"{path}: {name} is of GGUF type {kind}, which is not supported; supported: {known}.")
    block = TYPES[kind]
    if not shape or 0 in shape or shape[-1] % block.numbers:
        raise ModelError(f"{path} is corrupt: {name} of shape {list(shape)} cannot be of type {block.name.upper()}.")
    return GgufTensor(name, shape, block, offset)
