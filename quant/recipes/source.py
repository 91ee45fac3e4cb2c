"""A checkpoint in floating point, read tensor by tensor; keeps none in memory and maps no file.

Reads into memory of its own, not through a map: so what a process uses is what it holds, and a model that is several
times larger than the memory evicts nothing but the page cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl.engine.base import hub
from sgl.engine.base.errors import ModelError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names."""

NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHUNK_BYTES = 16 << 20
_MAX_HEADER_BYTES = 100 << 20  # what safetensors itself allows


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file, by the file's header."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors:
    """The tensors of some files.

    Args:
        entries: by name, in the order of files and offsets.
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries

    @staticmethod
    def of(files: Iterable[Path]) -> Tensors:
        """
        Raises:
            ModelError: a file is corrupt.
        """
        entries: dict[str, Entry] = {}
        for file in sorted(files):
            entries |= _header(file)
        return Tensors(entries)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ModelError: it cannot be read, or holds a number that is none.
        """
        entry = self.entries[name]
        flat = torch.empty(math.prod(entry.shape), dtype=entry.dtype)
        filled = 0
        for chunk in self.chunks(name):
            flat[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return flat.view(entry.shape)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """One tensor in flat pieces of some megabytes; raises as `read`."""
        entry = self.entries[name]
        try:
            with entry.file.open("rb", buffering=0) as file:
                file.seek(entry.offset)
                left = entry.nbytes
                while left:
                    buffer = bytearray(min(left, CHUNK_BYTES))
                    _fill(file, buffer, entry.file)
                    left -= len(buffer)
                    chunk = torch.frombuffer(buffer, dtype=entry.dtype)
                    check_finite(name, chunk)
                    yield chunk
        except OSError as error:
            raise ModelError(f"{entry.file} cannot be read: {error.strerror}.") from None


class Source(Tensors):
    """A directory with config.json and safetensors.

    Raises:
        ModelError: files are missing or corrupt, or the weights are quantized already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = hub.read_config(str(folder))
        stored = self.config.get("quantization_config")
        if stored is not None:
            method = stored.get("quant_method") if isinstance(stored, dict) else stored
            raise ModelError(f"{folder} is quantized already ({method}): name the checkpoint that it was made from.")
        super().__init__(Tensors.of(_files(folder)).entries)
        if not self.entries:
            raise ModelError(f"{folder} holds no tensors.")

    def identity(self) -> str:
        """A short name for config.json and for names, sizes and times of the weights."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file in sorted({entry.file for entry in self.entries.values()}):
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def check_finite(name: str, tensor: Tensor) -> None:
    """
    Raises:
        ModelError: the tensor holds NaN or an infinite value.
    """
    if tensor.dtype in FLOATS and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{name} holds NaN or infinite values: the checkpoint is damaged; fetch it again.")


def _files(folder: Path) -> list[Path]:
    """The files that the index lists, or the single one."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise ModelError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json.")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read: {type(error).__name__}: {error}.") from None
    absent = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if absent:
        raise ModelError(f"{index} names files that are not in the directory: {', '.join(absent[:5])}.")
    return [folder / name for name in names]


def _header(file: Path) -> dict[str, Entry]:
    """The tensors of one file by name, in the order of their offsets."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        found = {name: _entry(file, 8 + length, facts) for name, facts in header.items() if name != "__metadata__"}
        if any(entry.offset + entry.nbytes > size for entry in found.values()):
            raise ValueError("it ends within a tensor")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is truncated or corrupt ({error}); fetch it again.") from None
    return dict(sorted(found.items(), key=lambda item: item[1].offset))


def _entry(file: Path, start: int, facts: Mapping[str, Any]) -> Entry:
    begin, end = facts["data_offsets"]
    if facts["dtype"] not in DTYPES:
        raise ValueError(f"{facts['dtype']} is no dtype that is known")
    entry = Entry(file, DTYPES[facts["dtype"]], tuple(facts["shape"]), start + begin)
    if begin < 0 or end - begin != entry.nbytes:
        raise ValueError("a tensor's offsets contradict its shape")
    return entry


def _fill(file: Any, buffer: bytearray, path: Path) -> None:
    view = memoryview(buffer)
    while view:
        count = file.readinto(view)
        if not count:
            raise ModelError(f"{path} became shorter while it was read.")
        view = view[count:]


_LAYER = re.compile(r"(?:^|\.)\d+\.")
_NOT_LINEAR = re.compile(r"(?:norm|embed|embeddings?|rotary|conv)[^.]*\.weight$|\.(?:gate|router|shared_expert_gate)\.")


def linear_modules(source: Source) -> list[str]:
    """Modules with a weight ``[out, in]`` inside numbered layers; routers, which choose experts, are none.

    So embeddings and heads stay as they are: they stand outside the layers.

    Raises:
        ModelError: there are none, or they are stored transposed, which compressed-tensors has no layout for.
    """
    found = []
    for name, entry in source.entries.items():
        module = name.removesuffix(".weight")
        if module == name or len(entry.shape) != 2 or entry.dtype not in FLOATS:
            continue
        if not _LAYER.search(name) or _NOT_LINEAR.search(f"{module}.weight"):
            continue
        bias = source.entries.get(f"{module}.bias")
        if bias is not None and bias.shape != entry.shape[:1]:
            raise ModelError(
                f"{module}.weight is stored as [in, out]; compressed-tensors holds only weights of [out, in], so this "
                "checkpoint cannot be quantized to a file: quantize it while loading (sgl serve --quantization)."
            )
        found.append(module)
    if not found:
        raise ModelError(f"{source.folder} has no linear layers that could be quantized.")
    return found
