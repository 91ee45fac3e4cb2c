"""Every class of bad input over every JSON route: the right refusal, while others are served, and nothing is lost.

The server runs the real engine over a tiny random model, on a real socket.
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from sgl.server.auth import Level
from sgl.server.routes import ROUTES
from tests.models.checkpoints import make_checkpoint
from tests.server.bad_forms import FORMS
from tests.server.bad_input import (
    CONTEXT_LEN,
    EMBEDDING_SAMPLES,
    MAX_BODY_BYTES,
    PER_TARGET,
    SAMPLES,
    Case,
    cases_of,
    targets,
)
from tests.server.bad_values import VALUES
from tests.server.live import Live, until
from tests.server.served import parse_events

TARGETS = targets(SAMPLES)
EMBEDDING_TARGETS = targets(EMBEDDING_SAMPLES)
CLASSES = {**FORMS, **VALUES}
LARGE = ("oversized", "too_many_parts")
"""Classes whose bodies have a megabyte: fewer of them for each route."""
ELSEWHERE = {
    "/v1/batches": "reads files that must be there first",
    "/start_profile": "would leave a profile running",
    "/update_weights": "needs another checkpoint",
    "/update_weights_from_disk": "needs another checkpoint",
    "/close_session": "needs a session",
}
"""JSON routes that have no body here that is answered with 200, and why."""
HEALTHY: dict[str, Any] = {
    "text": "The quick brown fox",
    "stream": True,
    "sampling_params": {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True},
}


def _start(factory: pytest.TempPathFactory, **more: Any) -> Live:
    checkpoint = make_checkpoint("llama", factory.mktemp("bad") / "tiny")
    options = {
        **{"model_path": str(checkpoint), "device": "cpu", "dtype": "float32", "cpu_threads": 1},
        **{"max_total_tokens": 4096, "drain_timeout_s": 1.0, "context_length": CONTEXT_LEN},
        **{"max_body_bytes": MAX_BODY_BYTES, "strict_model_name": True},
        **{"file_storage_path": str(factory.mktemp("files")), **more},
    }
    config = sources.configure(sources.from_call(options))
    return Live(AsyncEngine.start(config, in_process=True), config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = _start(tmp_path_factory)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for route in ROUTES:  # whatever is opened once and kept has been opened then
            if "GET" in (route.methods or ()) and route.level is not Level.ADMIN:
                client.get(route.path)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """As `server`, but an embedding model."""
    server = _start(tmp_path_factory, is_embedding=True)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_lost(server: Live) -> Iterator[None]:
    """While the tests run a healthy client streams; after them all pages, slots and file handles are back."""
    undisturbed = _stream(server)
    for grammar in ({"regex": "[a-z]+"}, {"ebnf": 'root ::= "a"'}):  # or the files of their compilers would come later
        params = {"max_new_tokens": 1, **grammar}
        httpx.post(
            f"{server.url}/generate", json={"text": "x", "sampling_params": params}, timeout=60
        ).raise_for_status()
    num_files = _num_files(server)
    streams: list[dict[str, Any]] = []
    done = threading.Event()

    def keep_streaming() -> None:
        while not done.is_set() or not streams:
            streams.append(_stream(server))
            done.wait(0.05)

    healthy = threading.Thread(target=keep_streaming)
    healthy.start()
    try:
        yield
    finally:
        done.set()
        healthy.join(60)
    assert all(last == undisturbed for last in streams)
    until(lambda: server.engine.num_active == 0)
    until(lambda: _is_whole(httpx.get(f"{server.url}/get_server_info", timeout=60).json()["pages"]))
    until(lambda: server.engine.stats.num_running == 0)
    until(lambda: _num_files(server) <= num_files)


@pytest.fixture(scope="module")
def web(server: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def _is_whole(pages: dict[str, int]) -> bool:
    return pages["free"] + pages["cached"] == pages["total"]


def _num_files(server: Live) -> int:
    """Open files once no client is connected."""
    until(lambda: not server.has_connections)
    return len(list(Path("/proc/self/fd").iterdir()))


def _stream(server: Live) -> dict[str, Any]:
    """The last event of the healthy stream; each one before goes on from the one before it."""
    events = parse_events(httpx.post(f"{server.url}/generate", json=HEALTHY, timeout=60).text)
    for before, after in itertools.pairwise(events):
        assert after["text"].startswith(before["text"])
    *_, last = events
    return {"text": last["text"], **{key: last["meta_info"][key] for key in ("finish_reason", "completion_tokens")}}


def _send(connection: http.client.HTTPConnection, case: Case) -> tuple[int, bytes]:
    connection.request(case.method, case.path, case.body, dict(case.headers))
    with connection.getresponse() as response:
        return response.status, response.read()


def _fault(case: Case, status: int, data: bytes) -> str:
    """What is wrong with an answer, or nothing."""
    if status != case.status:
        return f"{status} instead of {case.status}: {case} -> {data[:300]!r}"
    if case.method == "HEAD":
        return ""
    error = json.loads(data).get("error")
    if not isinstance(error, dict) or {"message", "type", "param", "code"} != set(error):
        return f"not an error body: {case} -> {data[:300]!r}"
    told = f"{error['param']} {error['message']}"
    if case.names and not any(name in told for name in case.names):
        return f"does not name {case.names}: {case} -> {told}"
    if len(data) > 4096:
        return f"{len(data)} bytes: {case}"
    return ""


def _run(server: Live, cases: Iterable[Case]) -> tuple[list[str], list[float]]:
    """What was wrong, and how long each answer took."""
    faults, times_s = [], []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for case in cases:
        start_s = time.perf_counter()
        try:
            status, data = _send(connection, case)
        except (http.client.HTTPException, OSError) as error:
            faults.append(f"{error!r}: {case}")
            connection.close()
            continue
        times_s.append(time.perf_counter() - start_s)
        fault = _fault(case, status, data)
        if fault:
            faults.append(fault)
    connection.close()
    return faults, times_s


def test_every_json_route_is_covered() -> None:
    paths = {route.path for route in ROUTES if route.body is not None}
    assert {target.path for target in (*TARGETS, *EMBEDDING_TARGETS)} | set(ELSEWHERE) == paths
    assert len(CLASSES) >= 24


@pytest.mark.parametrize("path", SAMPLES)
def test_the_samples_are_fine(web: httpx.Client, path: str) -> None:
    """Otherwise everything else here would be refused for the wrong reason."""
    answer = web.post(path, json=SAMPLES[path])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", CLASSES)
def test_bad_input_is_refused(server: Live, name: str) -> None:
    """A few cases of a class for each route; more for each if only few routes have any."""
    choices = (cases_of(name, CLASSES[name], TARGETS, most) for most in range(2, 100))
    found = next(cases for cases in choices if len(cases) >= 20)
    faults, _ = _run(server, found)
    assert not faults, _shown(faults, len(found))


def test_bad_input_to_an_embedding_model_is_refused(embedder: Live) -> None:
    """A few cases of every class of wrong form, after all the samples."""
    for path, body in EMBEDDING_SAMPLES.items():
        answer = httpx.post(f"{embedder.url}{path}", json=body, timeout=60)
        assert answer.status_code == 200, (path, answer.text)
    found: list[Case] = []
    for name, make in FORMS.items():
        found += cases_of(name, make, EMBEDDING_TARGETS, 1 if name in LARGE else 3)
    faults, _ = _run(embedder, found)
    assert not faults, _shown(faults, len(found))
    until(lambda: embedder.engine.num_active == 0)
    until(lambda: _is_whole(httpx.get(f"{embedder.url}/get_server_info", timeout=60).json()["pages"]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_routes_and_fields_and_how_long_it_takes(server: Live, record_property: Any) -> None:
    """20 cases of every class for every route that has so many."""
    found: list[Case] = []
    for name, make in CLASSES.items():
        found += cases_of(name, make, TARGETS, 2 if name in LARGE else PER_TARGET)
    faults, times_s = _run(server, found)
    p99_s = statistics.quantiles(times_s, n=100)[98]
    record_property("refusal_p99_ms", 1e3 * p99_s)
    print(f"{len(times_s)} refusals beside a stream: p99 {1e3 * p99_s:.1f} ms, longest {1e3 * max(times_s):.1f} ms")
    print(f"the longest: {found[times_s.index(max(times_s))]}" if len(times_s) == len(found) else "")
    assert not faults, _shown(faults, len(found))


def _shown(faults: list[str], count: int) -> str:
    return "\n".join((f"{len(faults)} of {count}:", *faults[:40]))


_ODD_IDS = (
    *("x", "..", "../..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%00", "a%00b", "%ff%fe", "é".encode().hex(), "%20", "-1"),
    *("0", "null", "x" * 5000, "a/b", "%0d%0aX: y", "file-", "batch_", "resp_", "*", "?a=b", "#x", "{id}", "%25", "~"),
)


@pytest.mark.parametrize(
    "route", [r for r in ROUTES if "{" in r.path], ids=lambda r: f"{sorted(r.methods)[0]} {r.path}"
)
def test_odd_identifiers(web: httpx.Client, route: Any) -> None:
    faults = []
    for odd in _ODD_IDS:
        path = route.path.split("{")[0] + odd + route.path.split("}")[1]
        for method in sorted(route.methods):
            answer = web.request(method, path)
            if (
                not (400 <= answer.status_code < 500 or odd in ("?a=b", "#x", "..", "../.."))
                or answer.status_code >= 500
            ):
                faults.append(f"{method} {path:.200} -> {answer.status_code} {answer.text:.200}")
    assert not faults, "\n".join(faults)


_QUERIES = (
    "limit=x",
    "limit=-1",
    "limit=0",
    "limit=99999999999999999999",
    "after=%00",
    "after=x",
    "order=x",
    "a=" * 500,
)


@pytest.mark.parametrize(
    "path",
    [r.path for r in ROUTES if "GET" in (r.methods or ()) and "{" not in r.path and r.level is not Level.ADMIN],
)
def test_odd_queries(web: httpx.Client, path: str) -> None:
    for query in (*_QUERIES, "&".join(_QUERIES)):
        answer = web.get(f"{path}?{query}")
        assert answer.status_code < 500, (query, answer.text)


_UPLOADS: list[tuple[str, bytes]] = [
    ("", b""),
    ("application/json", b"{}"),
    ("multipart/form-data", b"x"),
    ("multipart/form-data; boundary=", b"x"),
    ("multipart/form-data; boundary=b", b""),
    ("multipart/form-data; boundary=b", b"--b\r\n"),
    ("multipart/form-data; boundary=b", b"--b--\r\n"),
    ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--\r\n"),
    ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b'),
    ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 5000 + b"\r\nx\r\n--b--\r\n"),
    ("multipart/form-data; boundary=" + "b" * 3000, b"--" + b"b" * 3000 + b"--\r\n"),
    ("multipart/form-data; boundary=b", b"\xff" * 1000),
]


@pytest.mark.parametrize(("kind", "body"), _UPLOADS, ids=map(str, range(len(_UPLOADS))))
def test_broken_uploads(web: httpx.Client, kind: str, body: bytes) -> None:
    answer = web.post("/v1/files", content=body, headers={"content-type": kind} if kind else {})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"]
