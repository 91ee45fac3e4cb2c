"""``sgl chat`` as a program: from scripts, and in a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.fake_server import FakeServer, running
from tests.cli.terminal import Terminal, terminal

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with running() as server:
        yield server


def chat(fake: FakeServer, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl", "chat", "--url", fake.url, *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENVIRONMENT, check=False)


@pytest.mark.parametrize(
    ("words", "stdin", "question"),
    [
        (["--prompt", "**one** two"], "", "**one** two"),
        (["-p", "sum up:"], "a text\n", "sum up:\n\na text"),
        ([], "only piped \u2603", "only piped \u2603"),
    ],
)
def test_a_pipe_gets_the_answer_and_nothing_else(fake: FakeServer, words: list[str], stdin: str, question: str) -> None:
    done = chat(fake, *words, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (0, question + "\n", "")
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": question}]


def test_options_of_the_conversation_reach_the_server(fake: FakeServer, tmp_path: Path) -> None:
    saved = {
        "format": "sgl-chat", "version": 1, "params": {"seed": 3},
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }  # fmt: skip
    (tmp_path / "talk.json").write_text(json.dumps(saved))
    words = ["--param", "temperature=0", "--param", "max_tokens=9", "--system", "s", "--model", "other"]
    done = chat(fake, *words, "--load", str(tmp_path / "talk.json"), "-p", "q")
    assert done.returncode == 0, done.stderr
    body = fake.bodies[-1]
    assert [message["content"] for message in body["messages"]] == ["s", "a", "b", "q"]
    assert {name: body[name] for name in ("temperature", "max_tokens", "seed", "model")} == {
        "temperature": 0, "max_tokens": 9, "seed": 3, "model": "other",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["-p", "drop"], 1, "(The connection broke off: the answer is not complete.)"),
        (["-p", "error"], 2, "Error: The request was preempted for good."),
        (["-p", "500"], 2, "Error: The engine has stopped."),
        ([], 2, "Error: There is nothing to ask: pass --prompt or pipe text in."),
        (["-p", "q", "--param", "heat=1"], 2, "Error: There is no parameter 'heat'."),
        (["-p", "q", "--param", "seed"], 2, "Error: --param must be name=value"),
        (
            ["-p", "q", "--page-size", "8"],
            2,
            "Error: --page-size cannot be used with --url: that model runs elsewhere.",
        ),
        (["-p", "q", "--load", "/no/such"], 2, "Error: /no/such cannot be read: No such file or directory."),
    ],
)
def test_exit_codes(fake: FakeServer, words: list[str], code: int, sentence: str) -> None:
    done = chat(fake, *words)
    assert done.returncode == code
    assert done.stderr.startswith(sentence)
    assert done.stdout == ("half an ans\n" if "drop" in words else "")


def test_an_answer_that_is_cut_off_is_still_an_answer(fake: FakeServer) -> None:
    done = chat(fake, "-p", "long")
    assert (done.returncode, done.stdout) == (0, "long\n")
    assert "cut off" in done.stderr


def test_an_interrupt_stops_the_answer_and_the_script_knows(fake: FakeServer) -> None:
    command = [sys.executable, "-m", "sgl", "chat", "--url", fake.url, "-p", "slow"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"tick0 "
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"(stopped)\n"
    assert fake.disconnected.wait(60)


def test_a_reader_that_goes_away_is_no_error(fake: FakeServer) -> None:
    command = [sys.executable, "-m", "sgl", "chat", "--url", fake.url, "-p", "slow"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(6)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.fixture
def talk(fake: FakeServer, tmp_path: Path) -> Iterator[Terminal]:
    """The chat in a terminal, at its first prompt."""
    with terminal(["chat", "--url", fake.url], {"XDG_STATE_HOME": str(tmp_path)}) as shown:
        shown.expect("fake-model")
        shown.expect("> ")
        yield shown


def test_a_conversation(fake: FakeServer, talk: Terminal, tmp_path: Path) -> None:
    talk.type("hello **you**\r")
    talk.expect("hello you")
    talk.expect("> ")
    talk.type("one\\\rtwo\x1b\rthree\r")
    talk.expect("three\r\n")
    talk.expect("> ")
    assert fake.bodies[-1]["messages"][-1]["content"] == "one\ntwo\nthree"
    talk.type(f"/save {tmp_path}/talk.json\r")
    talk.expect("Saved 4 messages")
    talk.type("/stats\r")
    talk.expect("tokens/s")
    talk.type("/nope\r")
    talk.expect("Error: There is no command /nope.")
    talk.type("/exit\r")
    assert talk.wait() == 0
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 4
    history = tmp_path / "sgl" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    assert "+hello **you**" in history.read_text()


def test_pasted_lines_stay_together(fake: FakeServer, talk: Terminal) -> None:
    talk.type("\x1b[200~a\nb\n\nc\x1b[201~\r")
    talk.expect("c\r\n")
    talk.expect("> ")
    assert fake.bodies[-1]["messages"][-1]["content"] == "a\nb\n\nc"


def test_ctrl_c_stops_the_answer_and_not_the_program(fake: FakeServer, talk: Terminal) -> None:
    talk.type("slow\r")
    talk.expect("tick5 ")
    talk.type("\x03")
    talk.expect("(stopped)")
    assert fake.disconnected.wait(60)
    talk.expect("> ")
    talk.type("and now\r")
    talk.expect("and now\r\n")
    talk.expect("> ")
    kept = fake.bodies[-1]["messages"][1]
    assert kept["role"] == "assistant"
    assert kept["content"].startswith("tick0 tick1 ")


def test_ctrl_c_at_the_prompt_clears_then_asks_then_leaves(talk: Terminal) -> None:
    talk.type("abc\x03")
    talk.type("\x03")
    talk.expect("Ctrl-C again or Ctrl-D leaves the chat")
    talk.type("\x03")
    assert talk.wait() == 0


def test_ctrl_d_leaves(talk: Terminal) -> None:
    talk.type("\x04")
    assert talk.wait() == 0


def test_the_chat_goes_on_after_errors_and_overflow(fake: FakeServer, talk: Terminal) -> None:
    for question in ("500", "error"):
        talk.type(f"{question}\r")
        talk.expect("Error: ")
        talk.expect("> ")
    for question in ("a", "b", "c", "d"):
        talk.type(f"{question}\r")
        before = talk.expect(f"{question}\r\n")
        talk.expect("> ")
    assert "the oldest turns are left out" in before
    assert [message["content"] for message in fake.bodies[-1]["messages"]] == ["b", "b", "c", "c", "d"]


def test_no_colour_where_none_is_wanted(fake: FakeServer, tmp_path: Path) -> None:
    with terminal(["chat", "--url", fake.url, "-p", "**x**"], {"NO_COLOR": "1"}) as shown:
        assert shown.wait() == 0
        assert "\x1b[3" not in shown.output


def test_a_missing_server_is_told_at_once(fake: FakeServer) -> None:
    with terminal(["chat", "--url", "127.0.0.1:1"], {}) as shown:
        shown.expect("Error: No server answers at http://127.0.0.1:1/v1")
        assert shown.wait() == 2


def test_a_background_job_is_not_stopped(fake: FakeServer) -> None:
    words = ["chat", "--url", fake.url, "-p", "from behind"]
    with terminal(words, ENVIRONMENT, background=True) as screen:
        screen.expect("from behind")
        assert screen.wait() == 0
