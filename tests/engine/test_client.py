"""Engines on threads and in real processes: messages, errors at start, death and shutdown."""

from __future__ import annotations

import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError, EngineDiedError, ModelError
from sgl.engine.base.types import Add, Call, Outputs, Reply, Request, SamplingParams, Stats
from sgl.engine.client import InProcessClient, ProcessClient
from sgl.engine.client import process as process_module

LOOP = "tests.engine.fake_loop:build_loop"
WAIT_S = 60


def config(behaviour: str = "well") -> EngineConfig:
    return EngineConfig().replace({"model.model_path": (behaviour, "test"), "observe.log_level": ("error", "test")})


class Peer:
    """A client with what came from it."""

    def __init__(self, client: InProcessClient | ProcessClient) -> None:
        self.client = client
        self.messages: queue.Queue[Any] = queue.Queue()
        self.deaths: queue.Queue[EngineDiedError] = queue.Queue()
        self.info = client.start(self.messages.put, self.deaths.put)

    def reply(self, call_id: int) -> Reply:
        while True:
            message = self.messages.get(timeout=WAIT_S)
            if isinstance(message, Reply):
                assert message.call_id == call_id
                return message


@pytest.fixture(params=[InProcessClient, ProcessClient])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Peer]]:
    clients = []

    def connect(behaviour: str = "well") -> Peer:
        clients.append(request.param(config(behaviour), LOOP))
        return Peer(clients[-1])

    yield connect
    for client in clients:
        client.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not a zombie either."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_messages_go_both_ways(connect: Callable[[], Peer]) -> None:
    peer = connect()
    assert (peer.info.model_path, peer.info.context_len, peer.info.eos_ids) == ("well", 64, (3,))
    assert isinstance(peer.messages.get(timeout=WAIT_S), Stats)
    params = SamplingParams(max_new_tokens=3, seed=2**63 - 1, logit_bias=((1, -0.5),))
    peer.client.send(Add(Request(rid="é\0", token_ids=(5, 6), params=params)))
    got: list[int] = []
    while True:
        message = peer.messages.get(timeout=WAIT_S)
        assert isinstance(message, Outputs)
        (output,) = message.items
        assert output.rid == "é\0"
        got += output.token_ids
        if output.finish is not None:
            break
    seed = 2**63 - 1
    assert got == [(token + seed) % 400 for token in (5, 6, 5)]
    args = {"text": "日本", "list": [1, None, 2.5], "nested": {"a": True}}
    peer.client.send(Call(7, "echo", args))
    assert peer.reply(7).value == args
    peer.client.send(Call(8, "nonsense"))
    assert peer.reply(8).error == "The engine has no operation 'nonsense'."


@pytest.mark.parametrize(
    ("behaviour", "kind", "message", "param"),
    [
        ("missing", ModelError, "There is no such model.", "model_path"),
        ("misconfigured", ConfigError, "That does not fit.", "--page-size"),
    ],
)
def test_what_the_engine_cannot_start_with_is_raised_here(
    connect: Callable[[str], Peer], behaviour: str, kind: type[Exception], message: str, param: str
) -> None:
    with pytest.raises(kind) as caught:
        connect(behaviour)
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.param, caught.value.status) == (message, param, 400)


def test_a_refusal_is_not_reported_as_a_death(caplog: pytest.LogCaptureFixture) -> None:
    client = ProcessClient(config("missing"), LOOP)
    deaths: list[EngineDiedError] = []
    with pytest.raises(ModelError):
        client.start(lambda message: None, deaths.append)
    assert (deaths, caplog.text) == ([], "")


def test_a_crash_is_reported_once(connect: Callable[[], Peer], capfd: pytest.CaptureFixture[str]) -> None:
    peer = connect()
    peer.client.send(Add(Request(rid="a", token_ids=(399,))))
    error = peer.deaths.get(timeout=WAIT_S)
    assert error.code == "engine_dead"
    peer.client.send(Call(1, "echo"))  # into the void
    peer.client.close()
    assert peer.deaths.empty()
    if isinstance(peer.client, ProcessClient):
        assert "RuntimeError: a bug while running" in capfd.readouterr().err


def test_closing_is_not_dying_and_can_be_repeated(connect: Callable[[], Peer]) -> None:
    peer = connect()
    peer.client.close()
    peer.client.close()
    peer.client.send(Call(1, "echo"))
    assert peer.deaths.empty()


def test_a_bug_while_loading_in_a_process(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineDiedError, match="exit code 1"):
        Peer(ProcessClient(config("bug"), LOOP))
    assert "RuntimeError: a bug while loading" in capfd.readouterr().err


def test_a_process_that_just_ends_while_loading() -> None:
    with pytest.raises(EngineDiedError, match="exit code 7"):
        Peer(ProcessClient(config("exit"), LOOP))


def test_a_killed_process_is_noticed_at_once() -> None:
    peer = Peer(ProcessClient(config(), LOOP))
    assert peer.client.pid is not None
    os.kill(peer.client.pid, signal.SIGKILL)
    assert "SIGKILL" in peer.deaths.get(timeout=WAIT_S).message
    assert not is_running(peer.client.pid)
    peer.client.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_leaves_signals_to_the_front(number: int) -> None:
    peer = Peer(ProcessClient(config(), LOOP))
    pid = peer.client.pid
    assert pid is not None
    os.kill(pid, number)
    peer.client.send(Call(1, "echo", {"still": "here"}))
    assert peer.reply(1).value == {"still": "here"}
    assert os.getsid(pid) != os.getsid(0)  # Ctrl-C in the terminal does not reach it
    peer.client.close()
    assert not is_running(pid)


def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "CLOSE_TIMEOUT_S", 0.2)
    peer = Peer(ProcessClient(config("stubborn"), LOOP))
    assert peer.client.pid is not None
    peer.client.close()
    wait_until(lambda: not is_running(peer.client.pid or 0))
    assert peer.deaths.empty()


def test_sockets_are_private_and_go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends keep talking when the directory is gone, so nothing is left even if they are killed."""
    made: list[tuple[Path, int]] = []
    mkdtemp = tempfile.mkdtemp

    def note(**arguments: str) -> str:
        directory = Path(mkdtemp(**arguments))
        made.append((directory, stat.S_IMODE(directory.stat().st_mode)))
        return str(directory)

    monkeypatch.setattr(tempfile, "mkdtemp", note)
    peer = Peer(ProcessClient(config(), LOOP))
    ((directory, mode),) = made
    assert mode == 0o700
    wait_until(lambda: not directory.exists())
    peer.client.send(Call(1, "echo", {"x": 1}))
    assert peer.reply(1).value == {"x": 1}
    peer.client.close()
    assert not directory.exists()


def test_the_starting_thread_may_end(connect: Callable[[], Peer]) -> None:
    peers: list[Peer] = []
    thread = threading.Thread(target=lambda: peers.append(connect()))
    thread.start()
    thread.join()
    time.sleep(0.1)
    peers[0].client.send(Call(1, "echo", {}))
    assert peers[0].reply(1).value == {}
    assert peers[0].deaths.empty()


PARENT = """
import sys, time
from tests.engine.test_client import LOOP, Peer, ProcessClient, config
peer = Peer(ProcessClient(config(), LOOP))
print(peer.client.pid, flush=True)
time.sleep(60)
"""


def test_the_engine_dies_with_its_parent() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid))
