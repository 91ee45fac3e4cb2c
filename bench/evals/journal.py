"""The file with one line for every item that was answered, from which an interrupted run goes on; judges nothing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from sgl.bench.evals.items import Record
from sgl.engine.base.errors import ConfigError

FILE = "items.jsonl"
_FORMAT = 1


def config_hash(head: Mapping[str, Any]) -> str:
    """Names a model and the settings of a task."""
    return hashlib.blake2b(json.dumps(head, sort_keys=True).encode(), digest_size=6).hexdigest()


class Journal:
    """The records in a directory. The first line says which model and which settings they belong to.

    Attributes:
        answered: by key of the item; failures are not among them, since they are asked again.
    """

    def __init__(self, directory: Path, head: Mapping[str, Any], *, fresh: bool = False) -> None:
        """
        Raises:
            ConfigError: the directory cannot be written, has answers of other settings, or is in use.
        """
        self.path = directory / FILE
        self.answered: dict[str, Record] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(f"--output {directory} cannot be written: {error.strerror}.", param="--output") from None
        try:
            self._begin(head, fresh)
        except BaseException:
            self._file.close()
            raise

    def add(self, record: Record) -> None:
        """Writes a record; it is there even if this process ends at once."""
        self._write(asdict(record))
        if not record.error:
            self.answered[record.key] = record

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, head: Mapping[str, Any], fresh: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"Another `sgl eval` writes to {self.path.parent}.", param="--output") from None
        if fresh:
            self._file.truncate(0)
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]  # a line that was being written when the machine stopped is none
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        if not whole:
            self._write({"format": _FORMAT, "config": config_hash(head), **head})
            return
        told, records = _parse(whole, self.path)
        if told.get("config") != config_hash(head):
            raise ConfigError(
                f"{self.path.parent} has answers of {_difference(told, head)}; name another --output, or pass --fresh.",
                param="--output",
            )
        self.answered = {record.key: record for record in records if not record.error}

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Record]]:
    """The head of a journal and its answers, by key; ``path`` is its file or its directory.

    Raises:
        ConfigError: it is none.
    """
    file = path / FILE if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", param="FILE") from None
    head, records = _parse(content[: content.rfind(b"\n") + 1], file)
    answered: dict[str, Record] = {}
    for record in records:
        if not record.error:
            answered[record.key] = record
    return head, answered


def _parse(content: bytes, path: Path) -> tuple[dict[str, Any], list[Record]]:
    lines = content.splitlines()
    with contextlib.suppress(ValueError, msgspec.ValidationError, IndexError):
        head = json.loads(lines[0])
        if isinstance(head, dict) and head.get("format") == _FORMAT:
            return head, [msgspec.json.decode(line, type=Record) for line in lines[1:]]
    raise ConfigError(f"{path} was not written by this version of `sgl eval`.", param="FILE")


def _difference(told: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    """The first thing in which two heads differ, for people."""
    for name, value in head.items():
        other = told.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            keys = [key for key in {**other, **value} if other.get(key) != value.get(key)]
            if keys:
                return f"other settings ({name}.{keys[0]}: {other.get(keys[0])!r:.60}, now {value.get(keys[0])!r:.60})"
        elif other != value:
            return f"other settings ({name}: {other!r:.60}, now {value!r:.60})"
    return "other settings"
