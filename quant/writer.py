"""Writes safetensors of any size tensor by tensor, so that what was written survives the process; knows no model.

The layout of all files is fixed before the first byte: a tensor has its place, whenever it comes. A journal beside them
says which units (tensors that belong together) are complete; a later process goes on with the others. The folder is
called ``OUT.partial`` and has no config.json until `Writer.publish`, which renames it: nothing half-written can be
loaded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sgl.engine.base.errors import ConfigError
from sgl.quant.recipes.source import NAMES

JOURNAL = "journal.jsonl"
SHARD_BYTES = 5 * 10**9
_MARGIN_BYTES = 64 << 20  # tokenizer, index, and what file systems keep for themselves
_SYNC_S = 2.0
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def like(tensor: Tensor) -> Planned:
        return Planned(tensor.dtype, tuple(tensor.shape))


@dataclass(slots=True)
class _Shard:
    """One file: its header, and where its tensors begin."""

    name: str
    header: bytes
    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0


class Writer:
    """The folder ``OUT.partial``, filled unit by unit.

    Args:
        out: where the checkpoint will stand.
        tensors: all of them, in the order of the files.
        run: what makes this run the one that began: a folder of another run is refused.
        restart: whether what another run left is thrown away.
        shard_bytes: of a file, at most.
        file_of: the file of a tensor, in place of files by size.

    Raises:
        ConfigError: ``out`` exists, another run is there or at work, or the disk is too small.
    """

    def __init__(
        self,
        out: Path,
        tensors: Mapping[str, Planned],
        run: str,
        *,
        restart: bool = False,
        shard_bytes: int = SHARD_BYTES,
        file_of: Callable[[str], str] | None = None,
    ) -> None:
        check_free(out)
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.tensors = tensors
        self._shards = _by_size(tensors, shard_bytes) if file_of is None else _by_name(tensors, file_of)
        self._place = {name: shard for shard in self._shards for name in shard.offsets}
        self._files: dict[str, IO[bytes]] = {}
        self._unsaved: list[str] = []
        self._saved_at = time.monotonic()
        self._lock: IO[str] | None = None
        self.units: dict[str, dict[str, Any]] = {}
        if restart:
            self.remove()
        fresh = not (self.folder / JOURNAL).is_file()
        if fresh:
            self._check_disk()
        try:
            self._open(run, fresh)
        except OSError as error:
            if fresh:
                self.remove()
            raise self._disk_error(error) from None

    @property
    def nbytes(self) -> int:
        """Of all files of tensors."""
        return sum(shard.size for shard in self._shards)

    def write(self, name: str, pieces: Iterable[Tensor]) -> None:
        """One tensor, in flat pieces.

        Raises:
            ConfigError: the disk is full.
        """
        shard, planned = self._place[name], self.tensors[name]
        file = self._files[shard.name]
        file.seek(shard.offsets[name])
        written = 0
        try:
            for piece in pieces:
                assert piece.dtype == planned.dtype, f"{name} is {piece.dtype}, planned was {planned.dtype}"
                written += file.write(piece.contiguous().view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise self._disk_error(error) from None
        assert written == planned.nbytes, f"{name} has {written} bytes, planned were {planned.nbytes}"

    def read(self, name: str) -> Tensor:
        """A tensor that is complete."""
        shard, planned = self._place[name], self.tensors[name]
        file = self._files[shard.name]
        file.flush()
        file.seek(shard.offsets[name])
        content = bytearray(file.read(planned.nbytes))
        return torch.frombuffer(content, dtype=planned.dtype).reshape(planned.shape)

    def complete(self, unit: str, facts: Mapping[str, Any]) -> None:
        """All tensors of the unit are written; ``facts`` are given back by ``units`` after a restart."""
        self.units[unit] = dict(facts)
        self._unsaved.append(unit)
        if time.monotonic() - self._saved_at > _SYNC_S:
            self.save()

    def save(self) -> None:
        """Makes what is complete survive a loss of power, too.

        Raises:
            ConfigError: the disk is full.
        """
        lines = [json.dumps({"unit": unit, **self.units[unit]}) + "\n" for unit in self._unsaved]
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            with (self.folder / JOURNAL).open("a") as journal:
                journal.writelines(lines)
                journal.flush()
                os.fsync(journal.fileno())
        except OSError as error:
            raise self._disk_error(error) from None
        self._unsaved.clear()
        self._saved_at = time.monotonic()

    def view(self, into: Path, documents: Mapping[str, bytes]) -> None:
        """A folder ``into`` that looks like the published one: links to the tensors, and the other files."""
        into.mkdir()
        for shard in self._shards:
            (into / shard.name).symlink_to((self.folder / shard.name).resolve())
        for name, content in {**self._index(), **documents}.items():
            (into / name).write_bytes(content)

    def publish(self, documents: Mapping[str, bytes]) -> None:
        """Adds the other files and gives the folder its name; config.json comes last.

        Raises:
            ConfigError: the disk is full, or ``out`` appeared meanwhile.
        """
        self.save()
        everything = {**self._index(), **documents}
        try:
            for name in sorted(everything, key=lambda name: name == "config.json"):
                with (self.folder / name).open("wb") as file:
                    file.write(everything[name])
                    file.flush()
                    os.fsync(file.fileno())
            self.close()
            (self.folder / JOURNAL).unlink()
            check_free(self.out)
            self.folder.rename(self.out)
        except OSError as error:
            raise self._disk_error(error) from None

    def close(self) -> None:
        """Lets go of the files; what is complete stays."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Leaves nothing behind."""
        self.close()
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _open(self, run: str, fresh: bool) -> None:
        """Locks the folder, finds what is complete in it, and opens its files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / JOURNAL).open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(f"another process is writing {self.folder}; wait for it.", param="--output") from None
        if fresh:
            for shard in self._shards:
                self._create(shard)
            self._lock.write(json.dumps({"run": run}) + "\n")
            self._lock.flush()
        else:
            self._resume(run)
        self._remove_others()
        for shard in self._shards:
            self._files[shard.name] = (self.folder / shard.name).open("r+b")

    def _create(self, shard: _Shard) -> None:
        with (self.folder / shard.name).open("wb") as file:
            file.write(shard.header)
            file.flush()
            try:
                os.posix_fallocate(file.fileno(), 0, shard.size)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise
                file.truncate(shard.size)  # a file system that reserves nothing

    def _resume(self, run: str) -> None:
        assert self._lock is not None
        self._lock.seek(0)
        lines = [line for line in self._lock.read().split("\n")[:-1] if line]  # a last line without an end is half one
        try:
            entries = [json.loads(line) for line in lines]
            found = entries[0]["run"] if entries else ""
            self.units = {entry.pop("unit"): entry for entry in entries[1:]}
        except (ValueError, KeyError, TypeError):
            found = ""
        sizes = {shard.name: shard.size for shard in self._shards}
        if found != run or any(_size(self.folder / name) != size for name, size in sizes.items()):
            self.close()
            raise ConfigError(
                f"{self.folder} was left by a run with other options or another model: add --restart to throw it away, "
                "or name another output.",
                param="--output",
            )
        end = sum(len(line.encode()) + 1 for line in lines)
        self._lock.truncate(end)

    def _remove_others(self) -> None:
        """What a process that was killed left beside the tensors: a candidate of the gate, or unfinished documents."""
        known = {JOURNAL, *(shard.name for shard in self._shards)}
        for path in self.folder.iterdir():
            if path.name in known:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _check_disk(self) -> None:
        parent = next(parent for parent in self.folder.absolute().parents if parent.is_dir())
        free, needed = shutil.disk_usage(parent).free, self.nbytes + _MARGIN_BYTES
        if free < needed:
            raise ConfigError(
                f"{parent} has {free / 1e9:.2f} GB free and the checkpoint needs {needed / 1e9:.2f} GB; name an output "
                "on a larger disk.",
                param="--output",
            )

    def _disk_error(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.folder} cannot be written: {error.strerror}.", param="--output")

    def _index(self) -> dict[str, bytes]:
        """The index of several files; nothing for a single one."""
        if len(self._shards) == 1:
            return {}
        places = {name: self._place[name].name for name in self.tensors}
        total = sum(planned.nbytes for planned in self.tensors.values())
        content = {"metadata": {"total_size": total}, "weight_map": places}
        return {"model.safetensors.index.json": (json.dumps(content, indent=2) + "\n").encode()}


def check_free(out: Path) -> None:
    """
    Raises:
        ConfigError: there is something at the place of the output.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already; name another output or remove it.", param="--output")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _by_name(tensors: Mapping[str, Planned], file_of: Callable[[str], str]) -> list[_Shard]:
    groups: dict[str, dict[str, Planned]] = {}
    for name, planned in tensors.items():
        groups.setdefault(file_of(name), {})[name] = planned
    return [_shard(f"{file}.safetensors", group) for file, group in groups.items()]


def _by_size(tensors: Mapping[str, Planned], shard_bytes: int) -> list[_Shard]:
    """Files of at most so many bytes; a larger tensor has one of its own."""
    groups: list[dict[str, Planned]] = [{}]
    for name, planned in tensors.items():
        size = sum(other.nbytes for other in groups[-1].values())
        if groups[-1] and size + planned.nbytes > shard_bytes:
            groups.append({})
        groups[-1][name] = planned
    count = len(groups)
    numbered = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    names = ["model.safetensors"] if count == 1 else numbered
    return [_shard(name, group) for name, group in zip(names, groups, strict=True)]


def _shard(name: str, tensors: Mapping[str, Planned]) -> _Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor, planned in tensors.items():
        offsets = [begin, begin + planned.nbytes]
        header[tensor] = {"dtype": NAMES[planned.dtype], "shape": list(planned.shape), "data_offsets": offsets}
        begin += planned.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    content = len(text).to_bytes(8, "little") + text
    places = {tensor: len(content) + header[tensor]["data_offsets"][0] for tensor in tensors}
    return _Shard(name, content, places, len(content) + begin)
