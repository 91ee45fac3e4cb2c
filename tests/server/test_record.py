"""What ``--record`` writes, what it never writes, and what happens where it cannot."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sgl.engine.base.errors import ConfigError
from sgl.server.pseudonym import Pseudonyms
from sgl.server.record import Folder, Recorder
from sgl.server.state import ServerState
from tests.server.fake import make_config
from tests.server.served import Served

GREEDY = {"temperature": 0, "max_new_tokens": 5}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi there"}], "temperature": 0, "max_tokens": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recordings"


class Recorded:
    """A server that records; closing it gives the lines."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.served = Served(observe_record=str(folder), **options)
        self.state: ServerState = self.served.app.state.server

    def lines(self) -> list[dict[str, Any]]:
        self.state.recorder.close()
        self.served.close()
        text = "".join(file.read_text() for file in sorted(self.folder.glob("*")))
        return [json.loads(line) for line in text.splitlines()]


def test_a_line_has_the_request_and_its_answer(folder: Path) -> None:
    server = Recorded(folder)
    body = {"text": "hello", "sampling_params": GREEDY}
    whole = server.served.post("/generate", body, headers={"x-request-id": "r1"}).json()
    server.served.events("/generate", body)
    server.served.answer("/v1/chat/completions", CHAT)
    server.served.events("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    native, stream, chat, chat_stream = server.lines()
    assert (native["rid"], native["path"], native["body"]) == ("r1", "/generate", body)
    assert native["answer"].pop("e2e_s") > 0
    choices = [{"text": whole["text"], "finish": "length"}]
    assert native["answer"] == {"status": 200, "choices": choices, "prompt_tokens": 6, "completion_tokens": 5}
    assert stream["answer"]["choices"] == choices
    assert 0 < stream["answer"]["first_s"] <= stream["answer"]["e2e_s"]
    assert chat["answer"]["choices"] == chat_stream["answer"]["choices"] == [{"text": "<user", "finish": "length"}]
    assert chat_stream["answer"]["completion_tokens"] == 5
    assert native["at_s"] <= stream["at_s"] <= chat["at_s"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/completions", {"model": "m", "prompt": ["ab", "cd"], "max_tokens": 2}, ["ab", "cd"]),
        ("/v1/responses", {"model": "m", "input": "hi"}, ["<user>hi"]),
        ("/v1/messages", {"model": "m", "messages": CHAT["messages"], "max_tokens": 6}, ["<user>"]),
    ],
)
def test_every_api_is_read(folder: Path, path: str, body: dict[str, Any], text: list[str], stream: bool) -> None:
    server = Recorded(folder)
    assert server.served.post(path, {**body, "stream": stream}).status_code == 200
    (line,) = server.lines()
    assert [choice["text"] for choice in line["answer"]["choices"]] == text
    assert all(choice["finish"] for choice in line["answer"]["choices"])
    assert "error" not in line["answer"] and line["answer"]["e2e_s"] > 0
    assert ("first_s" in line["answer"]) == stream


def test_refusals_are_recorded_but_not_what_lacks_the_key(folder: Path) -> None:
    server = Recorded(folder, serve_api_key="the-key-itself")
    assert server.served.post("/generate", {"text": "a"}).status_code == 401
    answer = server.served.post("/generate", {"text": 3}, headers={"authorization": "Bearer the-key-itself"})
    assert answer.status_code == 400
    server.served.post("/generate", [1], headers={"authorization": "Bearer the-key-itself"})  # no request at all
    (line,) = server.lines()
    assert line["answer"]["status"] == 400 and line["answer"]["error"] == answer.json()["error"]["message"]


def test_keys_are_never_written(folder: Path) -> None:
    server = Recorded(folder, serve_api_key="the-key-itself", observe_log_redact="ID-[0-9]+")
    secret = "sk-abcdefghijklmnop0123"
    body = {"text": f"{secret} and ID-77", "sampling_params": GREEDY, "custom_params": {"api_key": "plain"}}
    server.served.post("/generate", body, headers={"authorization": "Bearer the-key-itself"})
    server.served.post("/generate", {"text": "free"}, headers={"x-api-key": "the-key-itself"})
    lines = server.lines()
    written = json.dumps(lines)
    assert not any(part in written for part in ("the-key-itself", secret, "ID-77", "plain"))
    assert [line.get("hidden") for line in lines] == [["secrets"], None]


def test_hidden_texts_keep_their_shape(folder: Path) -> None:
    server = Recorded(folder, observe_record_redact="text")
    text = "the secret  plan of the day"
    server.served.answer("/generate", {"text": text, "sampling_params": GREEDY})
    server.served.answer("/generate", {"input_ids": [100, 101, 102], "sampling_params": {"stop": ["xyz"]}})
    server.served.answer("/v1/chat/completions", {**CHAT, "user": "me"})
    first, ids, chat = server.lines()
    hidden = first["body"]["text"]
    assert [len(word) for word in hidden.split(" ")] == [len(word) for word in text.split(" ")]
    assert not set(hidden.split()) & set(text.split())
    assert len({word for word in hidden.split() if len(word) == 3}) == 3, "one word has many pseudonyms"
    assert len(first["answer"]["choices"][0]["text"]) == 5
    assert len(ids["body"]["input_ids"]) == 3 and ids["body"]["input_ids"] != [100, 101, 102]
    assert len(ids["body"]["sampling_params"]["stop"][0]) == 3 and ids["body"]["sampling_params"]["stop"] != ["xyz"]
    message = chat["body"]["messages"][0]
    assert message["role"] == "user" and len(message["content"]) == 8 and message["content"] != "hi there"
    assert chat["hidden"] == ["text", "user"] and chat["body"]["model"] == "m"


def test_pseudonyms_begin_alike_where_the_texts_do() -> None:
    names = Pseudonyms()
    a, b = names.text("one two three four"), names.text("one two thirty four")
    assert a[:8] == b[:8] and a[8:] != b[8:]
    assert names.text("one two") == a[:7] != Pseudonyms().text("one two")
    assert names.ids([5, 6, 7])[:2] == names.ids([5, 6, 8])[:2] or max(names.ids([5, 6, 7])) <= 7


def test_the_oldest_file_goes_and_the_newest_stays(folder: Path) -> None:
    files = Folder(folder, 8000)
    for number in range(40):
        files.write(b"%d" % number + b"-" * 495 + b"\n")
    files.close()
    written = sorted(folder.glob("recording-*.jsonl"))
    assert sum(path.stat().st_size for path in written) <= 8000
    assert sum(path.stat().st_size for path in written) > 6000
    assert written[-1].read_bytes().splitlines()[-1].startswith(b"39-")
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


def test_a_full_disk_ends_the_recording_with_one_line(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Folder, line: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server = Recorded(folder)
    monkeypatch.setattr(Folder, "write", full)
    caplog.set_level(logging.WARNING, "sgl.server.record")
    for _ in range(3):
        assert server.served.answer("/generate", {"text": "abc", "sampling_params": GREEDY})["text"] == "abc"
    assert server.lines() == []
    assert [record.getMessage() for record in caplog.records] == ["--record has ended: No space left on device"]
    assert not server.state.recorder.is_on


def test_what_the_thread_cannot_keep_up_with_is_left_out_whole(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl.server.background.MAX_WAITING_BYTES", 1000)
    server = Recorded(folder)
    free = threading.Event()
    server.state.recorder.put(990, lambda: bool(free.wait(60)) or None)
    assert server.served.answer("/generate", {"text": "abc", "sampling_params": GREEDY})["text"] == "abc"
    free.set()
    assert server.lines() == []
    assert [record.levelname for record in caplog.records if record.name == "sgl.server.background"] == ["WARNING"]


def test_an_answer_that_a_client_left_is_marked(folder: Path) -> None:
    from tests.server.live import live, post, until

    with live(hold=True, observe_record=str(folder)) as server:
        sock = post(server.port, "/generate", {"text": "a" * 900, "sampling_params": {"max_new_tokens": 900}})
        until(lambda: server.client.received)
        sock.close()
        until(lambda: server.client.aborted)
    (line,) = [json.loads(text) for file in folder.glob("*") for text in file.read_text().splitlines()]
    assert line["answer"]["error"] == "The answer was broken off."


def test_nothing_is_there_when_it_is_off() -> None:
    recorder = Recorder(make_config().observe)
    recorder.close()
    assert not recorder.is_on and "record" not in {thread.name for thread in threading.enumerate()}
    assert not any("Recording" in str(layer) for layer in Served().app.user_middleware)


def test_a_folder_that_cannot_be_made_is_refused_by_flag(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--record .*file: File exists"):
        Recorder(make_config(observe_record=str(tmp_path / "file")).observe)
