"""How batches are worked off: how many lines at once, in whose turn, and what stops them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from sgl.engine.base.errors import OverloadedError, SglError
from sgl.server.batches import journal, runner
from sgl.server.batches.dispatch import Reply, UnreachableError
from sgl.server.batches.records import BatchRecord
from sgl.server.batches.runner import Runner
from sgl.server.batches.store import Store
from sgl.server.batches.worker import StoreThread
from tests.server.batches.inputs import FakeModel, add_batch, entries, ids, jsonl, request, requests, running, until


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (journal, runner):
        monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.005)
        monkeypatch.setattr(module, "_LAST_PAUSE_S", 0.02)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 100))


async def add(thread: StoreThread, content: bytes) -> BatchRecord:
    return await thread.do(add_batch, content)


async def finish(thread: StoreThread, runner: Runner, batch: BatchRecord) -> BatchRecord:
    await runner.start(batch)
    return await thread.do(Store.batch, batch.id)


def test_a_batch_from_its_input_to_its_output(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel()
        async with running(tmp_path, model, max_in_flight=8) as (thread, runner):
            batch = await finish(thread, runner, await add(thread, requests(300)))
            assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 300, 300, 0)
            assert (batch.input_tokens, batch.cached_tokens, batch.output_tokens) == (600, 300, 900)
            answers = entries(thread.path_of(batch.output_id))
            assert {entry["custom_id"]: entry["response"]["body"]["said"] for entry in answers} == {
                f"r{i}": f"r{i}" for i in range(300)
            }
            assert {entry["response"]["request_id"] for entry in answers} == {f"id-r{i}" for i in range(300)}
            assert len({entry["id"] for entry in answers}) == 300
            assert answers[0].keys() == {"id", "custom_id", "response", "error"}
            assert model.most == 8
            assert set(model.asked.values()) == {1}

    run(work())


def test_failures_have_a_file_of_their_own(tmp_path: Path) -> None:
    async def model(endpoint: str, body: bytes) -> Reply:
        return Reply(400 if b"r1" in body else 200, "x", b"<html>\n no JSON" if b"r2" in body else b'{"usage": 7}')

    async def work() -> None:
        async with running(tmp_path, model) as (thread, runner):
            batch = await finish(thread, runner, await add(thread, requests(3)))
            assert (batch.status, batch.completed, batch.failed) == ("completed", 2, 1)
            assert sorted(ids(thread.path_of(batch.output_id))) == ["r0", "r2"]
            [failed] = entries(thread.path_of(batch.error_id))
            assert (failed["custom_id"], failed["response"]["status_code"], failed["error"]) == ("r1", 400, None)

    run(work())


def test_wrong_lines_fail_the_batch_before_anything_is_asked(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel()
        async with running(tmp_path, model) as (thread, runner):
            content = requests(3) + jsonl(request("r1"), request("x", method="GET"))
            batch = await finish(thread, runner, await add(thread, content))
            assert (batch.status, batch.total, model.asked) == ("failed", 5, {})
            found = [(error.line, error.code) for error in batch.errors]
            assert found == [(4, "duplicate_custom_id"), (5, "invalid_method")]

    run(work())


def test_a_cancelled_batch_says_so_of_every_line_that_has_no_answer(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel()
        async with running(tmp_path, model, max_in_flight=4) as (thread, runner):
            batch = await add(thread, requests(5000))
            task = runner.start(batch)
            await until(lambda: len(model.asked) > 20)
            model.hold.clear()
            await until(lambda: model.num_open == 4)
            assert (await thread.do(Store.advance, batch.id, "cancelling")).status == "cancelling"
            runner.cancel(batch.id)
            await asyncio.wait((task,))
            assert model.num_open == 0  # what was being answered has been aborted
            batch = await finish(thread, runner, batch)
            assert (batch.status, batch.total, batch.completed + batch.failed) == ("cancelled", 5000, 5000)
            answered, left = ids(thread.path_of(batch.output_id)), entries(thread.path_of(batch.error_id))
            assert len(answered) == batch.completed >= 16
            assert sorted(answered + [entry["custom_id"] for entry in left]) == sorted(f"r{i}" for i in range(5000))
            assert {entry["error"]["code"] for entry in left} == {"batch_cancelled"}
            assert {entry["response"] for entry in left} == {None}

    run(work())


@pytest.mark.parametrize("when", ["waiting", "validating", "twice", "unstarted"])
def test_a_batch_can_be_cancelled_at_any_time(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(runner, "_MAX_RUNNING", 1)
        model = FakeModel()
        async with running(tmp_path, model) as (thread, chosen):
            if when == "waiting":
                model.hold.clear()
                chosen.start(await add(thread, requests(1)))
                await until(lambda: model.num_open)
            batch = await add(thread, requests(50))
            if when != "unstarted":
                chosen.start(batch)
            if when == "waiting":
                await asyncio.sleep(0.02)
            await thread.do(Store.advance, batch.id, "cancelling")
            chosen.cancel(batch.id)
            if when == "twice":
                chosen.cancel(batch.id)
            batch = await finish(thread, chosen, batch)
            assert batch.status == "cancelled"
            assert "r7" not in model.asked or when == "twice"

    run(work())


def test_a_server_that_ends_while_a_batch_is_cancelled_keeps_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        monkeypatch.setattr(journal, "_GROUP_S", 0.2)
        model = FakeModel(most_answers=10)
        async with running(tmp_path, model) as (thread, chosen):
            batch = await add(thread, requests(50))
            chosen.start(batch)
            await until(lambda: len(model.asked) > 10)
            await thread.do(Store.advance, batch.id, "cancelling")
            chosen.cancel(batch.id)
            await asyncio.sleep(0)  # the journal still waits for more answers
        async with running(tmp_path, model) as (thread, chosen):
            batch = await finish(thread, chosen, batch)
        assert (batch.status, batch.completed, batch.num_answered) == ("cancelled", 8, 50)

    run(work())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_batch_expires_and_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel(most_answers=10)
        async with running(tmp_path, model, window_s=1, now=lambda: 1000.5) as (thread, runner):
            batch = await finish(thread, runner, await add(thread, requests(40)))
            assert (batch.status, batch.completed + batch.failed) == ("expired", 40)
            assert {entry["error"]["code"] for entry in entries(thread.path_of(batch.error_id))} == {"batch_expired"}
            assert batch.completed <= 10

    run(work())


def test_batches_take_turns(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel(delay_s=0.001)
        async with running(tmp_path, model, max_in_flight=2) as (thread, runner):
            long, short = await add(thread, requests(2000)), await add(thread, requests(10))
            runner.start(long)
            await until(lambda: len(model.asked) > 20)
            assert (await finish(thread, runner, short)).status == "completed"
            assert (await thread.do(Store.batch, long.id)).completed < 1000

    run(work())


def test_a_busy_engine_is_asked_again(tmp_path: Path) -> None:
    async def work() -> None:
        model, refused = FakeModel(), set()

        async def busy(endpoint: str, body: bytes) -> Reply:
            if body not in refused:
                refused.add(body)
                raise OverloadedError("Too many requests wait.")
            return await model(endpoint, body)

        async with running(tmp_path, busy) as (thread, runner):
            batch = await finish(thread, runner, await add(thread, requests(30)))
            assert (batch.status, batch.completed, len(refused)) == ("completed", 30, 30)

    run(work())


def test_a_line_at_which_the_engine_fails_holds_nobody_up(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel()

        async def failing(endpoint: str, body: bytes) -> Reply:
            if b"r3" in body:
                raise SglError("The step failed.", code="model_error", status=500, retryable=True)
            return await model(endpoint, body)

        async with running(tmp_path, failing, max_in_flight=1) as (thread, runner):
            batch = await finish(thread, runner, await add(thread, requests(8)))
            assert (batch.status, batch.completed, batch.failed) == ("completed", 7, 1)
            [entry] = entries(thread.path_of(batch.error_id))
            assert (entry["custom_id"], entry["response"]) == ("r3", None)
            assert entry["error"] == {"code": "model_error", "message": "The step failed."}

    run(work())


def test_with_nobody_left_to_ask_a_batch_waits_for_another_run(tmp_path: Path) -> None:
    async def work() -> None:
        model = FakeModel()

        async def gone(endpoint: str, body: bytes) -> Reply:
            if len(model.asked) >= 10:
                raise UnreachableError("The server is gone.")
            return await model(endpoint, body)

        async with running(tmp_path, gone) as (thread, runner):
            batch = await add(thread, requests(30))
            with pytest.raises(UnreachableError, match="is gone"):
                await runner.start(batch)
            batch = await thread.do(Store.batch, batch.id)
            assert (batch.status, batch.completed) == ("in_progress", 10)
            model.asked.clear()
        model = FakeModel()
        async with running(tmp_path, model) as (thread, runner):
            assert (await finish(thread, runner, batch)).completed == 30
            assert len(model.asked) == 20

    run(work())


def test_stopping_again_and_again_answers_every_line_once(tmp_path: Path) -> None:
    async def work() -> None:
        num_asked = 0
        async with running(tmp_path, FakeModel()) as (thread, _):
            batch = await add(thread, requests(400))
        for _ in range(6):
            model = FakeModel(delay_s=0.002)
            async with running(tmp_path, model, max_in_flight=5) as (thread, runner):
                [batch] = await thread.do(Store.open_batches)
                runner.start(batch)
                await until(lambda model=model: len(model.asked) >= 30)
            num_asked += len(model.asked)
        async with running(tmp_path, FakeModel()) as (thread, runner):
            batch = await finish(thread, runner, batch)
            assert sorted(ids(thread.path_of(batch.output_id))) == sorted(f"r{i}" for i in range(400))
        assert num_asked >= 180

    run(work())


def test_a_full_disk_pauses_a_batch_until_there_is_space(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = 20_000

    def write_at(file: int, content: memoryview, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num_written = os.pwrite(file, content[:room], offset)
        room -= num_written
        return num_written

    async def work() -> None:
        nonlocal room
        model = FakeModel()
        async with running(tmp_path, model, write_at=write_at) as (thread, runner):
            task = runner.start(await add(thread, requests(1500)))
            await until(lambda: any("no space left" in record.message for record in caplog.records))
            [batch] = await thread.do(Store.batches, "", 1)
            most = batch.completed + journal.MAX_PENDING
            assert most < 1500
            await until(lambda: len(model.asked) == most)
            await asyncio.sleep(0.1)
            assert len(model.asked) == most  # it does not ask on and on
            assert not task.done()
            room = 10**9
            await task
            [batch] = await thread.do(Store.batches, "", 1)
            assert batch.status == "completed"
            assert sorted(ids(thread.path_of(batch.output_id))) == sorted(f"r{i}" for i in range(1500))
            assert set(model.asked.values()) == {1}

    run(work())


def test_a_full_disk_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    def write_at(file: int, content: memoryview, offset: int) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    async def work() -> None:
        model = FakeModel()
        async with running(tmp_path, model, write_at=write_at) as (thread, runner):
            runner.start(await add(thread, requests(20)))
            await until(lambda: len(model.asked) == 20)
        async with running(tmp_path, model) as (thread, runner):
            [batch] = await thread.do(Store.open_batches)
            assert (await finish(thread, runner, batch)).completed == 20

    run(work())


def test_a_mistake_of_ours_fails_the_batch_instead_of_hanging_it(tmp_path: Path) -> None:
    async def broken(endpoint: str, body: bytes) -> Reply:
        raise ZeroDivisionError

    async def work() -> None:
        async with running(tmp_path, broken) as (thread, runner):
            batch = await finish(thread, runner, await add(thread, requests(20)))
            assert (batch.status, [error.code for error in batch.errors]) == ("failed", ["internal_error"])

    run(work())


def test_an_input_that_somebody_removed_fails_the_batch(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path, FakeModel()) as (thread, runner):
            batch = await add(thread, requests(20))
            thread.path_of(batch.input_file_id).unlink()
            batch = await finish(thread, runner, batch)
            assert (batch.status, [error.code for error in batch.errors]) == ("failed", ["storage_damaged"])

    run(work())
