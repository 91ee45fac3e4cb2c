"""Files and batches on disk: what is kept, what is visible, and what a crash or a full disk leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import openai.types
import pytest

from sgl.engine.base.errors import SglError
from sgl.server.batches import store as store_module
from sgl.server.batches.database import NAME, StorageError
from sgl.server.batches.records import FINAL, BatchRecord, Status
from sgl.server.batches.store import Answered, Store
from tests.server.batches.inputs import CHAT, add_batch, add_input, entries, requests


def answer(line: int, failed: bool = False) -> Answered:
    return Answered(line, b'{"custom_id":"r%d","pad":"%b"}\n' % (line, b"x" * line), failed, 2, 1, 3, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "storage"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with contextlib.closing(Store(root)) as store:
        yield store


def started(store: Store, total: int) -> BatchRecord:
    batch = add_batch(store, requests(total))
    return store.advance(batch.id, "in_progress", total=total)


def test_nobody_else_may_look_in(store: Store, root: Path) -> None:
    batch = started(store, 1)
    store.append(batch.id, [answer(1)])
    for path in (root, root / "files"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path_of(batch.output_id).stat().st_mode) == 0o600


def test_a_second_process_is_told_who_is_there(store: Store, root: Path) -> None:
    with pytest.raises(StorageError, match=rf"in use by another process \(pid {os.getpid()}\)"):
        Store(root)


def test_files_are_listed_page_by_page(store: Store) -> None:
    made = [add_input(store, b"%d" % i) for i in range(7)]
    newest = [file.id for file in store.files("", "", 3, True)]
    assert newest == made[:-4:-1]
    assert [file.id for file in store.files("", newest[-1], 10, True)] == made[3::-1]
    assert [file.id for file in store.files("batch", made[1], 2, False)] == made[2:4]
    assert store.files("user_data", "", 10, True) == []
    with pytest.raises(SglError) as missing:
        store.files("", "file-none", 10, True)
    assert (missing.value.status, missing.value.param) == (404, "after")


def test_a_deleted_file_is_gone(store: Store) -> None:
    file_id = add_input(store, b"x")
    store.delete_file(file_id)
    assert not store.path_of(file_id).exists()
    for call in (store.file, store.delete_file):
        with pytest.raises(SglError) as missing:
            call(file_id)
        assert missing.value.status == 404


@pytest.mark.parametrize("name", ["../../etc/passwd", "file-../x", "/etc/passwd", "' OR 1=1 --", "", "\0"])
def test_names_of_clients_never_become_paths(store: Store, name: str) -> None:
    for call in (store.file, store.delete_file, store.batch):
        with pytest.raises(SglError) as missing:
            call(name)
        assert missing.value.status == 404


def test_the_input_of_a_running_batch_stays(store: Store) -> None:
    batch = started(store, 1)
    with pytest.raises(SglError, match="still runs") as refused:
        store.delete_file(batch.input_file_id)
    assert refused.value.status == 409
    store.advance(batch.id, "cancelling")
    store.advance(batch.id, "cancelled")
    store.delete_file(batch.input_file_id)


def test_a_batch_needs_a_file_for_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = store_module.new_id("file")
    store.path_of(file_id).touch()
    store.add_file(file_id, "user_data", "x")
    with pytest.raises(SglError, match="was uploaded for `user_data`"):
        store.create_batch(file_id, "/v1/completions", None)
    monkeypatch.setattr(store_module, "MAX_OPEN_BATCHES", 2)
    add_batch(store, b"x")
    add_batch(store, b"x")
    with pytest.raises(SglError, match="2 batches wait already") as refused:
        add_batch(store, b"x")
    assert refused.value.status == 429


def test_answers_are_visible_once_the_batch_has_ended(store: Store) -> None:
    batch = started(store, 4)
    store.append(batch.id, [answer(1), answer(3, failed=True)])
    batch = store.append(batch.id, [answer(4)])
    assert (batch.completed, batch.failed) == (2, 1)
    assert store.answered(batch.id) == {1, 3, 4}
    shown = batch.to_api()
    assert (shown["output_file_id"], shown["error_file_id"]) == (None, None)
    for file_id in (batch.output_id, batch.error_id):
        with pytest.raises(SglError):
            store.file(file_id)

    store.append(batch.id, [answer(2)])
    store.advance(batch.id, "finalizing")
    shown = store.advance(batch.id, "completed").to_api()
    assert entries(store.path_of(shown["output_file_id"])) == entries(b"".join(answer(i).text for i in (1, 4, 2)))
    assert entries(store.path_of(shown["error_file_id"])) == entries(answer(3).text)
    assert store.file(shown["output_file_id"]).purpose == "batch_output"
    assert store.answered(batch.id) == set()
    assert shown["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert shown["usage"]["input_tokens_details"] == {"cached_tokens": 4}
    assert shown["usage"]["total_tokens"] == 4 * 5
    openai.types.Batch.model_validate(shown, strict=True)
    openai.types.FileObject.model_validate(store.file(shown["output_file_id"]).to_api(), strict=True)


def test_a_line_is_answered_once(store: Store) -> None:
    batch = started(store, 3)
    store.append(batch.id, [answer(1)])
    before = store.batch(batch.id)
    with pytest.raises(sqlite3.IntegrityError):
        store.append(batch.id, [answer(2), answer(1)])
    assert store.batch(batch.id) == before
    store.append(batch.id, [answer(2)])
    store.advance(batch.id, "finalizing")
    store.advance(batch.id, "completed")
    assert entries(store.path_of(batch.output_id)) == entries(answer(1).text + answer(2).text)


ORDER: dict[Status, set[Status]] = {  # OpenAI's diagram of a batch's life, and what may break off
    "validating": {"in_progress", "failed", "cancelling"},
    "in_progress": {"finalizing", "expired", "cancelling", "failed"},
    "finalizing": {"completed", "cancelling", "failed"},
    "cancelling": {"cancelled", "failed"},
}


PATHS: dict[Status, list[Status]] = {
    "validating": [],
    "in_progress": ["in_progress"],
    "finalizing": ["in_progress", "finalizing"],
    "completed": ["in_progress", "finalizing", "completed"],
    "failed": ["failed"],
    "expired": ["in_progress", "expired"],
    "cancelling": ["cancelling"],
    "cancelled": ["cancelling", "cancelled"],
}


@pytest.mark.parametrize("status", get_args(Status))
def test_statuses_follow_each_other(store: Store, status: Status) -> None:
    file_id = add_input(store, b"x")
    for target in sorted(set(get_args(Status)) - {"validating"}):
        batch = store.create_batch(file_id, "", None)
        for step in PATHS[status]:
            batch = store.advance(batch.id, step)
        assert batch.status == status
        after = store.advance(batch.id, target)
        if target in ORDER.get(status, set()):
            assert after.status == target
            assert getattr(after, f"{target}_at") is not None
        else:
            assert after == batch
        openai.types.Batch.model_validate(after.to_api(), strict=True)
        assert (after in store.open_batches()) == (after.status not in FINAL)


def test_what_a_crash_left_behind_is_overwritten_or_swept(root: Path) -> None:
    store = Store(root)
    batch = started(store, 3)
    store.append(batch.id, [answer(1), answer(2, failed=True)])
    with store.path_of(batch.output_id).open("ab") as file:
        file.write(b'{"custom_id":"half a li' * 50)
    store.path_of(batch.error_id).write_bytes(answer(2).text + b"x")
    (root / "files" / "file-upload-cut-short").write_bytes(b"x")
    store.close()
    with contextlib.closing(Store(root)) as again:
        assert not (root / "files" / "file-upload-cut-short").exists()
        assert again.answered(batch.id) == {1, 2}
        again.append(batch.id, [answer(3)])
        again.advance(batch.id, "finalizing")
        again.advance(batch.id, "completed")
        assert entries(again.path_of(batch.output_id)) == entries(answer(1).text + answer(3).text)
        assert again.path_of(batch.error_id).read_bytes() == answer(2).text


def test_answers_that_vanished_are_noticed(store: Store) -> None:
    batch = started(store, 3)
    store.append(batch.id, [answer(1), answer(2)])
    os.truncate(store.path_of(batch.output_id), 5)
    with pytest.raises(SglError, match="has lost answers") as lost:
        store.append(batch.id, [answer(3)])
    assert not lost.value.retryable
    store.advance(batch.id, "failed")
    assert store.file(batch.output_id).bytes == 5


class FullDisk:
    """Writes as long as there is room."""

    def __init__(self) -> None:
        self.room = 10**9

    def write_at(self, file: int, content: memoryview, offset: int) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num_written = os.pwrite(file, content[: self.room], offset)
        self.room -= num_written
        return num_written


@pytest.mark.parametrize("room", [0, 1, 20, 45, 60])
def test_a_full_disk_keeps_all_of_a_group_or_nothing(tmp_path: Path, room: int) -> None:
    disk = FullDisk()
    with contextlib.closing(Store(tmp_path / "s", write_at=disk.write_at)) as store:
        batch = started(store, 3)
        store.append(batch.id, [answer(1)])
        before = store.batch(batch.id)
        disk.room = room
        with pytest.raises(StorageError, match="no space left") as full:
            store.append(batch.id, [answer(2), answer(3, failed=True)])
        assert (full.value.status, full.value.code, full.value.retryable) == (507, "insufficient_storage", True)
        assert store.batch(batch.id) == before
        assert store.answered(batch.id) == {1}
        disk.room = 10**9
        store.append(batch.id, [answer(2), answer(3, failed=True)])
        store.advance(batch.id, "finalizing")
        store.advance(batch.id, "completed")
        assert entries(store.path_of(batch.output_id)) == entries(answer(1).text + answer(2).text)
        assert entries(store.path_of(batch.error_id)) == entries(answer(3).text)


def test_a_full_disk_stops_the_database_and_nothing_breaks(store: Store) -> None:
    batch = started(store, 5000)
    store.append(batch.id, [answer(1)])
    execute = store._database.execute
    [(num_pages,)] = execute("PRAGMA page_count")
    execute(f"PRAGMA max_page_count = {num_pages}")
    before = store.batch(batch.id)
    many = [answer(i) for i in range(2, 5000)]
    with pytest.raises(StorageError, match="no space left"):
        store.append(batch.id, many)
    assert store.batch(batch.id) == before
    execute("PRAGMA max_page_count = 1000000")
    store.append(batch.id, many)
    assert len(store.answered(batch.id)) == 4999


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(StorageError, match=r"The database in .* cannot be used"):
        Store(tmp_path)
    (tmp_path / NAME).unlink()
    with contextlib.closing(Store(tmp_path)):  # and the lock was given back
        pass


def test_a_database_of_another_format_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(StorageError, match="format 7"):
        Store(tmp_path)


@pytest.mark.parametrize("kind", ["file", "missing parent is a file"])
def test_a_directory_that_cannot_be_is_a_sentence(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(StorageError, match="cannot be used"):
        Store(tmp_path / "x" if kind == "file" else tmp_path / "x" / "y")


def test_the_window_ends(tmp_path: Path) -> None:
    now: list[Any] = [1000.0]
    with contextlib.closing(Store(tmp_path, window_s=60, now=lambda: now[0])) as store:
        batch = add_batch(store, b"x")
        assert (batch.created_at, batch.expires_at) == (1000, 1060)
        now[0] += 61
        assert store.seconds_left(batch) == -1


def test_files_expire_when_nobody_needs_them(tmp_path: Path) -> None:
    now: list[Any] = [1000.0]
    with contextlib.closing(Store(tmp_path, now=lambda: now[0])) as store:
        kept = add_input(store, b"kept")
        brief = add_input(store, b"brief", expires_after=3600)
        needed = add_input(store, b"needed", expires_after=3600)
        assert [file.expires_at for file in store.files("", "", 9, False)] == [None, 4600, 4600]
        batch = store.create_batch(needed, CHAT, None, 7200)
        now[0] = 4599.9
        assert store.file(brief).id == brief
        now[0] = 4600.0
        with pytest.raises(SglError, match="There is no file"):
            store.file(brief)
        assert not store.path_of(brief).exists()
        assert [file.id for file in store.files("", "", 9, False)] == [kept, needed]
        store.advance(batch.id, "in_progress", total=1)
        store.append(batch.id, [answer(1)])
        store.advance(batch.id, "finalizing")
        store.advance(batch.id, "completed")
        assert [file.id for file in store.files("", "", 9, False)] == [kept, batch.output_id]
        now[0] = 4600.0 + 7200
    with contextlib.closing(Store(tmp_path, now=lambda: now[0])) as store:
        assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [kept]
        assert store.batch(batch.id).output_expires_after == 7200


def test_a_directory_of_the_first_format_goes_on(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path)) as store:
        batch = started(store, 1)
    with contextlib.closing(sqlite3.connect(tmp_path / NAME)) as connection:
        connection.executescript(
            "ALTER TABLE file DROP COLUMN expires_at; ALTER TABLE batch DROP COLUMN output_expires_after;"
            "PRAGMA user_version = 1;"
        )
    with contextlib.closing(Store(tmp_path)) as store:
        assert store.batch(batch.id) == batch
        assert store.file(batch.input_file_id).expires_at is None


def test_a_page_follows_a_file_that_expires_between(tmp_path: Path) -> None:
    now: list[Any] = [1000.0]
    with contextlib.closing(Store(tmp_path, now=lambda: now[0])) as store:
        first, second = (add_input(store, b"x", expires_after=3600) for _ in range(2))
        third = add_input(store, b"x")
        assert [file.id for file in store.files("", "", 1, False)] == [first]
        record, opened = store.open_file(first)
        now[0] = 9000.0
        assert [file.id for file in store.files("", first, 9, False)] == [second, third]
        assert [file.id for file in store.files("", "", 9, False)] == [third]
        with opened:
            assert (record.id, opened.read()) == (first, b"x")
