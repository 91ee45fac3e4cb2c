"""`/v1/files` and `/v1/batches` over a real socket: the official client, and forms that no client would send."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sgl.server.batches import upload
from sgl.server.state import ServerState
from tests.server.batches.inputs import entries, jsonl, request, requests
from tests.server.fake import make_config
from tests.server.live import LiveEcho, Process, live, process, read_all, until

CHAT = "/v1/chat/completions"
MAX_FILE_BYTES = 300_000


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "storage"


@pytest.fixture(scope="module")
def server(storage: Path) -> Iterator[LiveEcho]:
    options = {"file_storage_path": str(storage), "max_file_bytes": MAX_FILE_BYTES, "max_body_bytes": 20_000}
    with live(serve_api_key="k", **{f"serve_{name}": value for name, value in options.items()}) as server:
        assert not storage.exists()
        yield server


@pytest.fixture
def client(server: LiveEcho) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: LiveEcho) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": "Bearer k"}, timeout=60) as http:
        yield http


def ended(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    until(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed", "cancelled", "expired"))
    return client.batches.retrieve(batch.id)


def start(client: openai.OpenAI, content: bytes, endpoint: Any = CHAT) -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def test_files(client: openai.OpenAI, storage: Path) -> None:
    content = os.urandom(250_000)  # more than a body may have
    file = client.files.create(file=("../../etc/ü pass\nwd", content), purpose="user_data")
    assert (file.bytes, file.purpose, file.object, file.status) == (250_000, "user_data", "file", "processed")
    assert "\n" not in file.filename and file.filename.startswith("../../etc/ü pass")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    assert [path.read_bytes() for path in storage.rglob("*") if path.name == file.id] == [content]
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="There is no file"):
            call(file.id)


def test_an_empty_file_is_a_file(client: openai.OpenAI) -> None:
    file = client.files.create(file=("empty", b""), purpose="batch")
    assert (file.bytes, client.files.content(file.id).read()) == (0, b"")


def test_lists_have_pages(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{i}", b"x"), purpose="batch").id for i in range(5)]
    assert [file.id for file in client.files.list(limit=2)][:5] == made[::-1]
    page = client.files.list(limit=2, after=made[4], purpose="batch")
    assert ([file.id for file in page.data], page.has_more) == ([made[3], made[2]], True)
    assert [file.id for file in client.files.list(limit=1, after=made[1], order="asc")] == made[2:]
    batches = [start(client, requests(1)).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=1)][:3] == batches[::-1]
    assert client.batches.list(limit=2, after=batches[1]).data[0].id == batches[0]


@pytest.mark.parametrize(
    ("path", "param", "status"),
    [
        ("/v1/files?limit=0", "limit", 400),
        ("/v1/files?limit=10001", "limit", 400),
        ("/v1/files?limit=-1", "limit", 400),
        ("/v1/files?limit=1e3", "limit", 400),
        ("/v1/files?limit=" + "9" * 5000, "limit", 400),
        ("/v1/files?limit=٣", "limit", 400),
        ("/v1/files?order=random", "order", 400),
        ("/v1/files?after=file-x", "after", 404),
        ("/v1/batches?limit=101", "limit", 400),
        ("/v1/batches?limit=", "limit", 400),
        ("/v1/batches?after=' OR 1=1 --", "after", 404),
        ("/v1/files/..%2f..%2fbatches.sqlite/content", None, 404),
        ("/v1/files/../lock", None, 404),
        ("/v1/files/%00/content", "file_id", 404),
        ("/v1/files/%ff", "file_id", 404),
        ("/v1/batches/batch_x", "batch_id", 404),
    ],
)
def test_bad_questions_are_refused(http: httpx.Client, path: str, param: str | None, status: int) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text


def test_a_key_is_needed(server: LiveEcho) -> None:
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/batches"), ("POST", "/v1/batches")):
        assert httpx.request(method, server.url + path, timeout=60).status_code == 401


def test_options_names_the_methods_of_all_routes_of_a_path(http: httpx.Client) -> None:
    assert http.options("/v1/files").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert http.put("/v1/files/x").headers["allow"] == "DELETE, GET, HEAD, OPTIONS"


def form(*parts: tuple[str, bytes], boundary: str = "b", end: bytes = b"--b--\r\n") -> dict[str, Any]:
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return {"content": body + end, "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}


FILE = ('name="file"; filename="x"', b"{}")
PURPOSE = ('name="purpose"', b"batch")
ANCHOR = ('name="expires_after[anchor]"', b"created_at")
SECONDS = ('name="expires_after[seconds]"', b"3600")


@pytest.mark.parametrize(
    ("sent", "status", "param", "part"),
    [
        (form(FILE), 400, "purpose", "`purpose` is required"),
        (form(FILE, ('name="purpose"', b"fine-tune")), 400, "purpose", "neither trains nor searches"),
        (form(FILE, ('name="purpose"', b"\xff")), 400, "purpose", "must be one of batch, user_data"),
        (form(PURPOSE), 400, "file", "`file` is required"),
        (form(PURPOSE, ('name="file"', b"{}")), 400, "file", "`file` is required"),
        (form(PURPOSE, FILE, FILE), 400, "file", "Exactly one file"),
        (form(PURPOSE, ('name="other"; filename="x"', b"{}")), 400, "file", "Exactly one file"),
        (form(PURPOSE, FILE, SECONDS), 400, "expires_after[anchor]", "must be created_at, got None"),
        (form(PURPOSE, FILE, ANCHOR), 400, "expires_after[seconds]", "must be between 3600 and 2592000, got None"),
        (form(PURPOSE, FILE, ANCHOR, (SECONDS[0], b"3599")), 400, "expires_after[seconds]", "got '3599'"),
        (form(PURPOSE, FILE, end=b""), 400, None, "ends too early"),
        (form(PURPOSE, FILE, boundary="c"), 400, None, "not a valid form"),
        (form(PURPOSE, FILE, boundary=""), 400, None, "multipart/form-data"),
        (form(PURPOSE, FILE, boundary="b" * 1000), 400, None, "boundary that is too long"),
        (form(("x", b"x")), 400, None, "a part without a name"),
        (form(*[(f'name="x{i}"', b"x") for i in range(17)]), 400, None, "more than 16 fields"),
        (form(*[('name="x"', b"x") for _ in range(17)]), 400, None, "more than 16 fields"),
        (form(('name="x"', b"x" * 5000)), 400, "x", "at most 4096 bytes"),
        (form(('name="' + "n" * 60_000 + '"', b"x")), 400, None, "not a valid form"),
        ({"json": {"purpose": "batch"}}, 400, None, "multipart/form-data"),
        ({"content": b""}, 400, None, "multipart/form-data"),
        (form((FILE[0], b"x" * (MAX_FILE_BYTES + 1)), PURPOSE), 413, "file", "larger than 300000 bytes"),
        (form((FILE[0], b"x" * 600_000), PURPOSE), 413, None, "see --max-file-bytes"),
    ],
    ids=range(23),
)
def test_bad_forms_are_refused_and_leave_nothing(
    http: httpx.Client, storage: Path, sent: dict[str, Any], status: int, param: str | None, part: str
) -> None:
    http.get("/v1/files")
    before = sorted(storage.glob("files/*"))
    answer = http.post("/v1/files", **sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert part in error["message"]
    assert sorted(storage.glob("files/*")) == before


def test_a_file_at_the_limit_is_taken_in_whatever_order_it_comes(http: httpx.Client) -> None:
    content = b"x" * MAX_FILE_BYTES
    for parts in ((PURPOSE, (FILE[0], content)), ((FILE[0], content), PURPOSE)):
        answer = http.post("/v1/files", **form(*parts))
        assert (answer.status_code, answer.json()["bytes"]) == (200, MAX_FILE_BYTES)
    assert http.post("/v1/files", **form(PURPOSE, FILE, ('name="x"', b"y"))).json()["warnings"] == [
        "`x` has no effect."
    ]


def test_an_upload_that_is_cut_off_leaves_nothing(server: LiveEcho, http: httpx.Client, storage: Path) -> None:
    http.get("/v1/files")
    before = sorted(storage.glob("files/*"))
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: 200000\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + form(FILE, end=b"")["content"])
        until(lambda: sorted(storage.glob("files/*")) != before)
    until(lambda: sorted(storage.glob("files/*")) == before)


def test_a_full_disk_refuses_uploads_and_leaves_nothing(
    http: httpx.Client, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, content: bytes) -> None:
        os.write(file, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    http.get("/v1/files")
    before = sorted(storage.glob("files/*"))
    with monkeypatch.context() as patch:
        patch.setattr(upload, "_write_all", full)
        answer = http.post("/v1/files", **form(PURPOSE, FILE))
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
    assert sorted(storage.glob("files/*")) == before
    assert http.post("/v1/files", **form(PURPOSE, FILE)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"input_file_id": "file-none"}, 404, "file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"input_file_id": 7}, 400, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"endpoint": "/flush_cache"}, 400, "endpoint"),
        ({"endpoint": ["/v1/completions"]}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"completion_window": 24}, 400, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, 400, "metadata"),
        ({"metadata": {"": "v"}}, 400, "metadata"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata"),
        ({"metadata": {str(i): "v" for i in range(17)}}, 400, "metadata"),
        ({"metadata": {"k": 1}}, 400, "metadata.k"),
        ({"metadata": "x"}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}}, 400, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "completed_at", "seconds": 3600}}, 400, "output_expires_after.anchor"),
        ({"output_expires_after": 3600}, 400, "output_expires_after"),
    ],
    ids=range(17),
)
def test_bad_batches_are_refused(
    client: openai.OpenAI, http: httpx.Client, changes: dict[str, Any], status: int, param: str
) -> None:
    file = client.files.create(file=("in", requests(1)), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **changes}
    answer = http.post("/v1/batches", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"].partition("[")[0] in (param, "metadata")


def test_a_batch_of_chats(client: openai.OpenAI, server: LiveEcho) -> None:
    wrong = request("wrong", body={"messages": [{"role": "user", "content": "x"}], "temperature": -1})
    late = request("urgent", body={"messages": [{"role": "user", "content": "now"}], "priority": 3})
    file = client.files.create(file=("in.jsonl", requests(50) + jsonl(wrong, late)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"who": "me"},
    )
    assert (batch.status, batch.object, batch.output_file_id) == ("validating", "batch", None)
    batch = ended(client, batch)
    assert (batch.status, batch.metadata) == ("completed", {"who": "me"})
    counts = batch.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (52, 51, 1)
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.finalizing_at or 0) <= (batch.completed_at or 0)
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.output_file_id is not None and batch.error_file_id is not None
    answers = {entry["custom_id"]: entry for entry in entries(client.files.content(batch.output_file_id).read())}
    assert len(answers) == 51
    for i in range(50):
        completion = openai.types.chat.ChatCompletion.model_validate(answers[f"r{i}"]["response"]["body"])
        assert completion.choices[0].message.content == f"<user>say r{i}"
    [failed] = entries(client.files.content(batch.error_file_id).read())
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("wrong", 400)
    assert failed["response"]["body"]["error"]["param"] == "temperature"
    assert failed["response"]["request_id"]
    assert {received.priority for received in server.client.received[-51:]} == {-1, 3}
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "me"}])
    assert server.client.received[-1].priority == 0


@pytest.mark.parametrize(
    ("endpoint", "body", "text"),
    [
        ("/v1/completions", {"prompt": "abc"}, '"text":"abc"'),
        ("/v1/responses", {"input": "abc"}, '"text":"<user>abc"'),
        ("/v1/messages", {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 50}, '"text":"<user>abc"'),
        ("/generate", {"text": "abc"}, '"text":"abc"'),
    ],
)
def test_other_endpoints(client: openai.OpenAI, endpoint: str, body: dict[str, Any], text: str) -> None:
    batch = ended(client, start(client, jsonl(request("a", url=endpoint, body=body)), endpoint))
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.output_file_id is not None
    assert text in client.files.content(batch.output_file_id).text


def test_files_may_expire(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("in", requests(1)), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    batch = ended(client, batch)
    assert batch.output_file_id is not None
    output = client.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 7200


def test_wrong_lines_are_listed(client: openai.OpenAI) -> None:
    batch = ended(client, start(client, jsonl(request("a"), request("a"), "x") + b"nope"))
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert batch.errors is not None and batch.errors.data is not None
    found = [(error.line, error.code, error.param) for error in batch.errors.data]
    assert found == [
        (2, "duplicate_custom_id", "custom_id"),
        (3, "invalid_field", None),
        (4, "invalid_json_line", None),
    ]
    assert batch.failed_at is not None


def test_the_lines_of_a_batch_are_as_long_as_bodies_may_be(client: openai.OpenAI) -> None:
    content = jsonl(request("long", body={"messages": [{"role": "user", "content": "x" * 30_000}]}))
    batch = ended(client, start(client, content))
    assert batch.errors is not None and batch.errors.data is not None
    assert [error.code for error in batch.errors.data] == ["line_too_long"]


def test_cancelling_answers_at_once_and_keeps_what_is_there(client: openai.OpenAI, server: LiveEcho) -> None:
    most = server.client.num_finished + 100  # that many are answered until it is cancelled
    server.client.limit = lambda: 1 if server.client.num_finished >= most else math.inf
    try:
        batch = start(client, requests(1500))
        until(lambda: (client.batches.retrieve(batch.id).request_counts or batch).completed > 64)  # type: ignore[union-attr]
        with pytest.raises(openai.ConflictError, match="still runs"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        with contextlib.suppress(openai.ConflictError):  # it may have ended by now
            assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended(client, batch)
    finally:
        server.client.limit = lambda: math.inf
    assert (batch.status, batch.completed_at) == ("cancelled", None)
    assert batch.output_file_id is not None and batch.error_file_id is not None
    answered = entries(client.files.content(batch.output_file_id).read())
    left = entries(client.files.content(batch.error_file_id).read())
    assert sorted(entry["custom_id"] for entry in answered + left) == sorted(f"r{i}" for i in range(1500))
    until(lambda: not server.client.running)
    with pytest.raises(openai.ConflictError, match="it is cancelled"):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted


def test_large_files_are_never_held_in_memory(tmp_path: Path) -> None:
    size = 60 * 2**20
    path = tmp_path / "large"
    path.write_bytes(b"x" * size)
    with process(serve_file_storage_path=str(tmp_path / "s")) as server:
        url = f"{server.wait_for('ready at (.*)')[1]}/v1/files"
        with path.open("rb") as file, contextlib.closing(httpx.Client(timeout=60)) as http:
            http.post(url, files={"file": b"x"}, data={"purpose": "batch"})
            peak_kb = _peak_kb(server)
            made = http.post(url, files={"file": file}, data={"purpose": "batch"}).json()
            assert made["bytes"] == size
            with http.stream("GET", f"{url}/{made['id']}/content") as answer:
                assert sum(map(len, answer.iter_raw())) == size
            assert _peak_kb(server) - peak_kb < 16 * 1024


def _peak_kb(server: Process) -> int:
    status = Path(f"/proc/{server.popen.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def test_a_head_request_gets_no_content(server: LiveEcho, client: openai.OpenAI) -> None:
    file = client.files.create(file=("x", b"secret"), purpose="batch")
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"HEAD /v1/files/{file.id}/content HTTP/1.1\r\nHost: x\r\n".encode())
        sock.sendall(b"Connection: close\r\nAuthorization: Bearer k\r\n\r\n")
        answer = read_all(sock)
    assert b"content-length: 6" in answer and b"secret" not in answer


def test_a_storage_that_cannot_be_looked_at_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    state = ServerState(make_config(serve_file_storage_path="x" * 5000))
    asyncio.run(state.batches.resume())
    assert "Batches of a former run wait" in caplog.text
