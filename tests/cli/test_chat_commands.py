"""Commands that begin with a slash."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sgl.cli.chat_commands import COMMANDS, AnswerStats, Desk, completions, execute
from sgl.cli.chat_session import ChatError, Session


@pytest.fixture
def desk() -> Desk:
    session = Session()
    session.ask("2 + 3?")
    session.answer("5")
    return Desk(session, Console(file=io.StringIO(), width=100, highlight=False), "m")


def said(desk: Desk) -> str:
    assert isinstance(desk.console.file, io.StringIO)
    return desk.console.file.getvalue()


def test_help_lists_all_commands(desk: Desk) -> None:
    execute(desk, "/help")
    assert all(name in said(desk) for name in COMMANDS)
    assert [name for name, _ in completions()] == list(COMMANDS)


def test_the_system_prompt(desk: Desk) -> None:
    execute(desk, "/system Be brief.")
    assert desk.session.system == "Be brief."
    execute(desk, "/system")
    assert said(desk).count("System prompt: Be brief.") == 2
    execute(desk, "/system off")
    assert desk.session.system == ""


def test_parameters_are_set_shown_and_unset(desk: Desk) -> None:
    execute(desk, "/set temperature = 0.2")
    execute(desk, "/set")
    assert desk.session.params == {"temperature": 0.2}
    assert "0.2" in said(desk)
    execute(desk, "/set temperature=")
    assert desk.session.params == {}


def test_reset_keeps_the_system_prompt(desk: Desk) -> None:
    desk.session.system = "s"
    execute(desk, "/reset")
    assert desk.session == Session(system="s")


def test_regenerate_asks_again_and_undo_does_not(desk: Desk) -> None:
    assert execute(desk, "/regenerate") == "2 + 3?"
    assert desk.session.messages == []
    with pytest.raises(ChatError, match="nothing to answer again"):
        execute(desk, "/regenerate")
    desk.session.ask("q")
    assert execute(desk, "/undo") is None
    assert desk.session.messages == []


def test_save_and_load(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "a b.json"
    before = Session(desk.session.system, list(desk.session.messages))
    execute(desk, f"/save {path}")
    execute(desk, f"/save {path}")  # its own files may be overwritten
    assert path.stat().st_mode & 0o077 == 0
    execute(desk, "/reset")
    execute(desk, f"/load {path}")
    assert desk.session == before
    assert [file.name for file in tmp_path.iterdir()] == ["a b.json"]


def test_a_file_that_is_no_chat_is_not_overwritten(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "thesis.json"
    path.write_text("{}")
    with pytest.raises(ChatError, match=r"exists and is not a saved chat"):
        execute(desk, f"/save {path}")
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/hlep", "There is no command /hlep. Did you mean '/help'? /help lists them."),
        ("/set temperature", "/set wants name=value"),
        ("/set temperature=hot", "temperature must be a number between 0 and 10, got 'hot'."),
        ("/save", "/save wants a file"),
        ("/save /no/such/folder/x.json", "cannot be written: No such file or directory."),
        ("/load /no/such.json", "cannot be read: No such file or directory."),
        ("/load /", "cannot be read: Is a directory."),
    ],
)
def test_mistakes_are_told(desk: Desk, line: str, sentence: str) -> None:
    with pytest.raises(ChatError) as caught:
        execute(desk, line)
    assert sentence in caught.value.message


def test_stats(desk: Desk) -> None:
    execute(desk, "/stats")
    assert "There is no answer yet." in said(desk)
    desk.stats += [AnswerStats("stop", 0.5, 2.5, 10, 21, 4), AnswerStats("stopped", None, 0.0, None, None, None)]
    execute(desk, "/stats")
    lines = [line.split() for line in said(desk).splitlines()]
    assert ["1", "10", "4", "21", "500", "ms", "10.0", "stop"] in lines
    assert ["2", "-", "-", "-", "-", "-", "stopped"] in lines


def test_exit_ends_the_chat(desk: Desk) -> None:
    with pytest.raises(EOFError):
        execute(desk, "/exit")
