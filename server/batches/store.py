"""Files and batches on disk, such that a crash at any moment loses no answer and doubles none.

One directory: a database, and a file for each id. Answers are appended to a file first and counted in the database
then, together with how long the file has become; whatever stands behind that length was never counted, and is
overwritten. Blocking, and confined to one thread; asks no model.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import msgspec

from sgl.engine.base.errors import SglError
from sgl.server.batches.database import NAME, Database, Lock, storage_errors
from sgl.server.batches.records import FINAL, BatchRecord, FileRecord, LineError, Status, new_id

MAX_OPEN_BATCHES = 1000
COMPLETION_WINDOW = "24h"
_BEFORE: dict[Status, tuple[Status, ...]] = {
    "in_progress": ("validating",),
    "finalizing": ("in_progress",),
    "completed": ("finalizing",),
    "failed": ("validating", "in_progress", "finalizing", "cancelling"),
    "expired": ("in_progress",),
    "cancelling": ("validating", "in_progress", "finalizing"),
    "cancelled": ("cancelling",),
}
"""For each status those that it may follow."""

WriteAt = Callable[[int, memoryview, int], int]


class Answered(NamedTuple):
    """The answer to a line: what is appended to the output, or to the errors if it ``failed``."""

    line: int
    text: bytes
    failed: bool
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class Store:
    """See the module.

    Args:
        root: the directory; made if it is not there.
        one_output: whether failures are appended to the output, too, instead of a file of their own.
        window_s: when a batch expires, after its creation.
        now: seconds since the epoch.
        write_at: as `os.pwrite`.

    Raises:
        StorageError: the directory cannot be used, or another process uses it.
    """

    def __init__(
        self,
        root: Path,
        *,
        one_output: bool = False,
        window_s: int = 24 * 3600,
        now: Callable[[], float] = time.time,
        write_at: WriteAt = os.pwrite,
    ) -> None:
        self.root = root
        self._one_output = one_output
        self._window_s = window_s
        self._now = now
        self._write_at = write_at
        with storage_errors(root), contextlib.ExitStack() as undo:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = Lock(root)
            undo.callback(self._lock.close)
            self._files = root / "files"
            self._files.mkdir(mode=0o700, exist_ok=True)
            self._database = Database(root / NAME)
            undo.callback(self._database.close)
            self._expire()
            self._sweep()
            undo.pop_all()

    @staticmethod
    def exists(root: Path) -> bool:
        """Whether there is a store in a directory."""
        return (root / NAME).exists()

    def close(self) -> None:
        self._database.close()
        self._lock.close()

    # ---- files -------------------------------------------------------------------------------------------------------

    def path_of(self, file_id: str) -> Path:
        """Where the content of a file is. The id must be of a record or new: never a client's word."""
        return self._files / file_id

    def add_file(self, file_id: str, purpose: str, filename: str, expires_after: int | None = None) -> FileRecord:
        """Makes a file visible whose content is at its path, and on disk; for good, or for so many seconds."""
        with storage_errors(self.root):
            size = self.path_of(file_id).stat().st_size
            self._sync_folder()
            record = self._file_record(file_id, purpose, filename, size, expires_after)
            with self._database.transaction():
                self._database.insert(record)
        return record

    def file(self, file_id: str) -> FileRecord:
        """
        Raises:
            SglError: 404.
        """
        self.expire()
        with storage_errors(self.root):
            found = self._database.find(FileRecord, file_id)
        return found if found is not None else _missing("file", file_id)

    def open_file(self, file_id: str) -> tuple[FileRecord, BinaryIO]:
        """A file and its content, which stays readable if the file is deleted meanwhile.

        Raises:
            SglError: 404.
        """
        record = self.file(file_id)
        with storage_errors(self.root):
            return record, self.path_of(file_id).open("rb")

    def files(self, purpose: str, after: str, limit: int, descending: bool) -> list[FileRecord]:
        """A page of the files of a purpose (of any if that is empty), the newest first if ``descending``."""
        where = {"purpose": purpose} if purpose else {}
        if not after:  # so that a list's next page finds the file that the last one ended with
            self.expire()
        with storage_errors(self.root):
            found = self._database.page(FileRecord, after, limit, descending=descending, where=where)
        return found if found is not None else _missing("file", after, "after")

    def delete_file(self, file_id: str) -> None:
        """
        Raises:
            SglError: 404, or 409 while a batch needs it.
        """
        self.file(file_id)
        with storage_errors(self.root):
            users = [batch.id for batch in self._open_batches() if batch.input_file_id == file_id]
            if users:
                text = f"File {file_id} is the input of {users[0]}, which still runs; cancel that, or wait for its end."
                raise SglError(text, code="file_in_use", status=409, param="file_id")
            self._delete(file_id)

    def expire(self) -> None:
        """Deletes the files whose time is over; the input of a batch when that has ended."""
        with storage_errors(self.root):
            self._expire()

    # ---- batches -----------------------------------------------------------------------------------------------------

    def create_batch(
        self,
        input_file_id: str,
        endpoint: str,
        metadata: dict[str, str] | None,
        output_expires_after: int | None = None,
    ) -> BatchRecord:
        """A batch that is to be validated.

        Raises:
            SglError: 404 without such a file, 400 if it is of another purpose, 429 if too many batches are open.
        """
        source = self.file(input_file_id)
        if source.purpose != "batch":
            text = f"File {input_file_id} was uploaded for `{source.purpose}`; `input_file_id` needs purpose `batch`."
            raise SglError(text, code="invalid_purpose", param="input_file_id")
        now_s = self._now_s()
        batch = BatchRecord(
            id=new_id("batch"),
            status="validating",
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=COMPLETION_WINDOW,
            metadata=metadata,
            output_id=new_id("file"),
            error_id=new_id("file"),
            output_expires_after=output_expires_after,
            created_at=now_s,
            expires_at=now_s + self._window_s,
        )
        with storage_errors(self.root):
            if len(self._open_batches()) >= MAX_OPEN_BATCHES:
                text = f"{MAX_OPEN_BATCHES} batches wait already; wait for one to end, or cancel one."
                raise SglError(text, code="too_many_batches", status=429, retryable=True)
            with self._database.transaction():
                self._database.insert(batch)
        return batch

    def batch(self, batch_id: str) -> BatchRecord:
        """
        Raises:
            SglError: 404.
        """
        with storage_errors(self.root):
            found = self._database.find(BatchRecord, batch_id)
        return found if found is not None else _missing("batch", batch_id)

    def batches(self, after: str, limit: int) -> list[BatchRecord]:
        """A page of batches, the newest first."""
        with storage_errors(self.root):
            found = self._database.page(BatchRecord, after, limit, descending=True, where={})
        return found if found is not None else _missing("batch", after, "after")

    def open_batches(self) -> list[BatchRecord]:
        """Those that are not final, the oldest first."""
        with storage_errors(self.root):
            return self._open_batches()

    def seconds_left(self, batch: BatchRecord) -> float:
        """Until a batch expires; not positive if it should have."""
        return batch.expires_at - self._now()

    def advance(
        self, batch_id: str, status: Status, *, total: int | None = None, errors: Sequence[LineError] = ()
    ) -> BatchRecord:
        """Moves a batch on; with a final status its answers become visible.

        If the status cannot follow the one that the batch is in by now, nothing happens.
        """
        with storage_errors(self.root), self._database.transaction():
            batch = self.batch(batch_id)
            if batch.status not in _BEFORE[status]:
                return batch
            changes: dict[str, Any] = {
                "status": status,
                f"{status}_at": self._now_s(),
                "errors": [*batch.errors, *errors],
            }
            if total is not None:
                changes["total"] = total
            if status in FINAL:
                self._publish(batch)
            after = msgspec.structs.replace(batch, **changes)
            self._database.update(after)
        return after

    def answered(self, batch_id: str) -> set[int]:
        """The lines that have an answer."""
        with storage_errors(self.root):
            return {line for (line,) in self._database.execute("SELECT line FROM answered WHERE batch = ?", [batch_id])}

    def append(self, batch_id: str, answers: Sequence[Answered]) -> BatchRecord:
        """Keeps answers: all of them for good, or none.

        Raises:
            StorageError: none was kept; the same call may succeed later.
        """
        with storage_errors(self.root):
            batch = self.batch(batch_id)
            good = b"".join(answer.text for answer in answers if self._one_output or not answer.failed)
            bad = b"".join(answer.text for answer in answers if answer.failed and not self._one_output)
            self._extend(batch.output_id, batch.output_bytes, good)
            self._extend(batch.error_id, batch.error_bytes, bad)
            num_failed = sum(answer.failed for answer in answers)
            after = msgspec.structs.replace(
                batch,
                output_bytes=batch.output_bytes + len(good),
                error_bytes=batch.error_bytes + len(bad),
                completed=batch.completed + len(answers) - num_failed,
                failed=batch.failed + num_failed,
                input_tokens=batch.input_tokens + sum(answer.input_tokens for answer in answers),
                cached_tokens=batch.cached_tokens + sum(answer.cached_tokens for answer in answers),
                output_tokens=batch.output_tokens + sum(answer.output_tokens for answer in answers),
                reasoning_tokens=batch.reasoning_tokens + sum(answer.reasoning_tokens for answer in answers),
            )
            rows = [(batch_id, answer.line) for answer in answers]
            with self._database.transaction():
                self._database.execute_many("INSERT INTO answered (batch, line) VALUES (?, ?)", rows)
                self._database.update(after)
        return after

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _now_s(self) -> int:
        return int(self._now())

    def _file_record(
        self, file_id: str, purpose: str, filename: str, size: int, expires_after: int | None
    ) -> FileRecord:
        created = self._now_s()
        expires = None if expires_after is None else created + expires_after
        return FileRecord(
            id=file_id, purpose=purpose, filename=filename, bytes=size, created_at=created, expires_at=expires
        )

    def _delete(self, file_id: str) -> None:
        with self._database.transaction():
            self._database.execute("DELETE FROM file WHERE id = ?", [file_id])
        self.path_of(file_id).unlink(missing_ok=True)

    def _expire(self) -> None:
        due = self._database.execute("SELECT id FROM file WHERE expires_at <= ?", [self._now_s()])
        if due:
            needed = {batch.input_file_id for batch in self._open_batches()}
            for (file_id,) in due:
                if file_id not in needed:
                    self._delete(file_id)

    def _open_batches(self) -> list[BatchRecord]:
        marks = ", ".join("?" * len(FINAL))
        return self._database.select(BatchRecord, f"WHERE status NOT IN ({marks}) ORDER BY number", FINAL)

    def _extend(self, file_id: str, size: int, content: bytes) -> None:
        """Writes behind the first ``size`` bytes of a file, in place of what may be there, and down to the disk."""
        if not content:
            return
        path = self.path_of(file_id)
        is_new = not path.exists()
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size < size:
                text = f"{path} has lost answers: it is shorter than the {size} bytes that were written."
                raise SglError(text, code="storage_damaged", status=500)
            self._write_all(file, content, size)
            os.ftruncate(file, size + len(content))
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)  # gives the space back; what is behind the size does not count anyway
            raise
        finally:
            os.close(file)
        if is_new:
            self._sync_folder()

    def _write_all(self, file: int, content: bytes, offset: int) -> None:
        view = memoryview(content)
        while view:
            num_written = self._write_at(file, view, offset)
            view, offset = view[num_written:], offset + num_written

    def _publish(self, batch: BatchRecord) -> None:
        """Makes the answers of a batch visible as files. Within a transaction."""
        for file_id, size, kind in (
            (batch.output_id, batch.output_bytes, "output"),
            (batch.error_id, batch.error_bytes, "error"),
        ):
            path = self.path_of(file_id)
            if size and path.exists():
                num_bytes = min(size, path.stat().st_size)  # less only where somebody else has damaged it
                os.truncate(path, num_bytes)
                name = f"{batch.id}_{kind}.jsonl"
                keep_s = batch.output_expires_after
                self._database.insert(self._file_record(file_id, "batch_output", name, num_bytes, keep_s))
        self._database.execute("DELETE FROM answered WHERE batch = ?", [batch.id])

    def _sync_folder(self) -> None:
        """So that the names of new files survive a power failure."""
        folder = os.open(self._files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _sweep(self) -> None:
        """Removes content that a crash left without a record: uploads cut short, files half deleted."""
        known: set[str] = {file_id for (file_id,) in self._database.execute("SELECT id FROM file")}
        known.update(_parts(self._open_batches()))
        for path in self._files.iterdir():
            if path.name not in known:
                path.unlink()


def _parts(batches: Iterable[BatchRecord]) -> Iterable[str]:
    for batch in batches:
        yield from (batch.output_id, batch.error_id)


def _missing(kind: str, id: str, param: str = "") -> NoReturn:
    raise SglError(f"There is no {kind} {id[:100]!r}.", code="not_found", status=404, param=param or f"{kind}_id")
