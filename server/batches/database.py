"""The SQLite file under a store: opens it for one process alone, and keeps records in it. Knows no rule about them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sgl.engine.base.errors import SglError
from sgl.server.batches.records import BatchRecord, FileRecord

NAME = "batches.sqlite"
_LOCK_NAME = "lock"
_VERSION = 2
_JSON = ("metadata", "errors")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCHEMA = f"""
BEGIN;
CREATE TABLE file (number INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(FileRecord.__struct_fields__)}, UNIQUE (id));
CREATE TABLE batch (number INTEGER PRIMARY KEY AUTOINCREMENT, {", ".join(BatchRecord.__struct_fields__)}, UNIQUE (id));
CREATE INDEX batch_status ON batch (status);
CREATE TABLE answered (batch TEXT, line INTEGER, PRIMARY KEY (batch, line)) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_FROM_VERSION_1 = f"""
BEGIN;
ALTER TABLE file ADD COLUMN expires_at;
ALTER TABLE batch ADD COLUMN output_expires_after;
PRAGMA user_version = {_VERSION};
COMMIT;
"""

Record = TypeVar("Record", FileRecord, BatchRecord)


class StorageError(SglError):
    """The storage cannot be read or written now; it may again later, without anything lost."""

    def __init__(self, message: str, *, code: str = "storage_unavailable", status: int = 503) -> None:
        super().__init__(message, code=code, status=status, retryable=True)


@contextlib.contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """What the disk or SQLite complains about, as a sentence.

    Raises:
        StorageError: 507 where there is no space left, else 503.
        SglError: 500; a file is gone.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # mistakes of ours, not of the disk
        raise
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise _full(root) from error
        raise StorageError(f"The database in {root} cannot be used: {error}.") from error
    except FileNotFoundError as error:
        text = f"{error.filename} is gone, although the database in {root} knows it."
        raise SglError(text, code="storage_damaged", status=500) from error
    except OSError as error:
        if error.errno in _FULL:
            raise _full(root) from error
        raise StorageError(f"The storage in {root} cannot be used: {error.strerror}.") from error


def _full(root: Path) -> StorageError:
    text = f"There is no space left for {root}; free some, or use another --file-storage-path."
    return StorageError(text, code="insufficient_storage", status=507)


class Lock:
    """Keeps other processes out of a directory, until it is closed or this process ends, however it ends."""

    def __init__(self, root: Path) -> None:
        self._file = os.open(root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._file, 20).decode("ascii", "replace").strip()
            os.close(self._file)
            text = f"{root} is in use by another process (pid {owner}); choose another --file-storage-path."
            raise StorageError(text, code="storage_in_use") from None
        os.ftruncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode())

    def close(self) -> None:
        os.close(self._file)


class Database:
    """Records in tables. Belongs to the thread that made it."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare(path)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, path: Path) -> None:
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = FULL")  # an answer that was counted survives a power failure, too
        [(version,)] = self.execute("PRAGMA user_version")
        if version == 0:
            self._connection.executescript(_SCHEMA)
        elif version == 1:
            self._connection.executescript(_FROM_VERSION_1)
        elif version != _VERSION:
            text = (
                f"{path} was made by another version of sgl (format {version}, not {_VERSION}); use another directory."
            )
            raise StorageError(text)

    def close(self) -> None:
        self._connection.close()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, values).fetchall()

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(sql, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in it happens, or nothing."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk may have ended it already
                self.execute("ROLLBACK")
            raise

    def insert(self, record: FileRecord | BatchRecord) -> None:
        names = record.__struct_fields__
        values = [_to_column(name, getattr(record, name)) for name in names]
        sql = f"INSERT INTO {_table(type(record))} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        self.execute(sql, values)

    def update(self, record: FileRecord | BatchRecord) -> None:
        """Replaces the record of that id."""
        names = record.__struct_fields__
        values = [_to_column(name, getattr(record, name)) for name in names]
        sql = f"UPDATE {_table(type(record))} SET {', '.join(f'{name} = ?' for name in names)} WHERE id = ?"
        self.execute(sql, [*values, record.id])

    def find(self, kind: type[Record], id: str) -> Record | None:
        return next(iter(self.select(kind, "WHERE id = ?", [id])), None)

    def select(self, kind: type[Record], clauses: str, values: Sequence[Any] = ()) -> list[Record]:
        names = kind.__struct_fields__
        rows = self.execute(f"SELECT {', '.join(names)} FROM {_table(kind)} {clauses}", values)
        return [_to_record(kind, dict(zip(names, row, strict=True))) for row in rows]

    def page(
        self, kind: type[Record], after: str, limit: int, *, descending: bool, where: dict[str, str]
    ) -> list[Record] | None:
        """Up to ``limit`` records that follow ``after`` in the order of their creation; None if there is no such.

        Args:
            after: id of a record, or empty to begin with the first.
            where: values that columns must have.
        """
        conditions, values = [f"{name} = ?" for name in where], [*where.values()]
        if after:
            found = self.execute(f"SELECT number FROM {_table(kind)} WHERE id = ?", [after])
            if not found:
                return None
            conditions.append(f"number {'<' if descending else '>'} {int(found[0][0])}")
        clauses = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return self.select(
            kind, f"{clauses} ORDER BY number {'DESC' if descending else 'ASC'} LIMIT {int(limit)}", values
        )


def _table(kind: type[FileRecord] | type[BatchRecord]) -> str:
    return "file" if kind is FileRecord else "batch"


def _to_column(name: str, value: Any) -> Any:
    return msgspec.json.encode(value).decode() if name in _JSON else value


def _to_record(kind: type[Record], row: dict[str, Any]) -> Record:
    values = {name: msgspec.json.decode(value) if name in _JSON else value for name, value in row.items()}
    return msgspec.convert(values, kind)
