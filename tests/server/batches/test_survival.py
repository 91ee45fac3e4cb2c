"""``kill -9`` at random moments: every line is answered exactly once, whatever was going on."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from sgl.server.batches.records import BatchRecord
from sgl.server.batches.store import Store
from tests.server.batches.inputs import add_batch, entries, requests
from tests.server.live import ROOT, Process, process, until

NUM_LINES = 1200


def worked(root: Path, rng: random.Random | None = None) -> None:
    """A process works on the store, until it has done everything; with ``rng`` it is killed after some more of it.

    One that is to be killed stops answering in time, so that however late the kill comes something is left to do.
    """
    command = [sys.executable, "-m", "tests.server.batches.worker_process", str(root)]
    command += [str(NUM_LINES // 5)] if rng is not None else []
    enough = root / "enough"
    enough.unlink(missing_ok=True)
    goal = _num_bytes(root) + (rng.randrange(20_000) if rng is not None else 0)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process, contextlib.ExitStack() as stack:
        if rng is not None:
            stack.callback(process.kill)  # it would not end by itself
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        if rng is not None:
            until(lambda: _num_bytes(root) > goal or enough.exists() or process.poll() is not None)
            time.sleep(rng.random() * 0.06)  # somewhere within a group of answers, which takes 0.05 s
            process.kill()
        assert process.wait(60) in (0, -9)


def _num_bytes(root: Path) -> int:
    found = 0
    for path in root.glob("files/*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found += path.stat().st_size
    return found


def answered(store: Store, batch: BatchRecord) -> tuple[list[str], set[int]]:
    """The ids in both files of a batch that has ended, and who answered."""
    shown = batch.to_api()
    names, pids = [], set()
    for key in ("output_file_id", "error_file_id"):
        for entry in entries(store.path_of(shown[key])):
            names.append(entry["custom_id"])
            if entry["response"] is not None:
                body = entry["response"]["body"]
                assert body["said"] == f"say {entry['custom_id']}"
                pids.add(body["pid"])
    return names, pids


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_a_killed_process_loses_no_line_and_doubles_none(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with contextlib.closing(Store(tmp_path)) as store:
        batch = add_batch(store, requests(NUM_LINES))
    for _ in range(4):
        worked(tmp_path, rng)
    worked(tmp_path)
    with contextlib.closing(Store(tmp_path)) as store:
        batch = store.batch(batch.id)
        assert (batch.status, batch.completed + batch.failed) == ("completed", NUM_LINES)
        names, pids = answered(store, batch)
    assert sorted(names) == sorted(f"r{i}" for i in range(NUM_LINES))
    assert len(pids) > 1  # the answers of those who were killed have been kept


def test_a_process_killed_while_it_cancels_goes_on_cancelling(tmp_path: Path) -> None:
    rng = random.Random(3)
    with contextlib.closing(Store(tmp_path)) as store:
        batch = add_batch(store, requests(8_000))
    worked(tmp_path, rng)
    with contextlib.closing(Store(tmp_path)) as store:
        assert store.advance(batch.id, "cancelling").status == "cancelling"
    for _ in range(2):
        worked(tmp_path, rng)
    worked(tmp_path)
    with contextlib.closing(Store(tmp_path)) as store:
        batch = store.batch(batch.id)
        assert batch.status == "cancelled"
        names, _ = answered(store, batch)
    assert sorted(names) == sorted(f"r{i}" for i in range(8_000))


def test_a_killed_server_goes_on_and_answers_every_line_once(tmp_path: Path) -> None:
    options = {"serve_file_storage_path": str(tmp_path / "storage")}
    with process(most_answers=100, **options) as server:
        with _client(server) as client:
            file = client.files.create(file=("in.jsonl", requests(400)), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            until(lambda: _completed(client, batch.id) > 50)
        server.popen.kill()
    with process(**options) as server, _client(server) as client:
        server.wait_for("Going on with 1 batches")
        assert client.batches.retrieve(batch.id).status == "in_progress"
        until(lambda: client.batches.retrieve(batch.id).status == "completed")
        ended = client.batches.retrieve(batch.id)
        assert ended.output_file_id is not None and ended.error_file_id is None
        answers = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    found = {entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"] for entry in answers}
    assert len(answers) == 400
    assert found == {f"r{i}": f"<user>say r{i}" for i in range(400)}


def _client(server: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.wait_for('ready at (.*)')[1]}/v1", api_key="k", max_retries=0)


def _completed(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def test_a_server_that_was_told_to_end_does_not_wait_for_its_batches(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    options = {"hold": str(tmp_path), "serve_file_storage_path": str(storage), "serve_drain_timeout_s": 60.0}
    with process(**options) as server:
        with _client(server) as client:
            file = client.files.create(file=requests(50), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        server.popen.terminate()
        assert server.wait() == 0
    with contextlib.closing(Store(storage)) as store:
        [left] = store.open_batches()
        assert (left.id, left.status) == (batch.id, "in_progress")


def test_of_two_servers_with_one_directory_the_second_says_so(tmp_path: Path) -> None:
    options = {"serve_file_storage_path": str(tmp_path)}
    with process(**options) as first, _client(first) as client:
        assert client.files.list().data == []
        with process(**options) as second:
            url = second.wait_for("ready at (.*)")[1]
            second.wait_for("Batches of a former run wait: .* is in use by another process")
            answer = httpx.get(f"{url}/v1/files", timeout=60)
            assert answer.status_code == 503
            assert f"pid {first.popen.pid}" in answer.json()["error"]["message"]
            assert httpx.get(f"{url}/health", timeout=60).status_code == 200
            first.popen.kill()
            first.wait()
            assert httpx.get(f"{url}/v1/files", timeout=60).status_code == 200
