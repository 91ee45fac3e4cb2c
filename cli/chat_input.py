"""Reads what the user types: several lines, history, completion of commands. Knows nothing of the conversation."""

from __future__ import annotations

import os
import stat
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

_STYLE = Style.from_dict({"mark": "ansicyan bold", "more": "ansibrightblack", "placeholder": "ansibrightblack"})
_HINT = FormattedText([("class:placeholder", "Ctrl-C again or Ctrl-D leaves the chat")])


class Input:
    """The prompt. Enter sends; Alt-Enter, a backslash at the end of the line and pasting make several lines."""

    def __init__(self, history: Path, commands: Iterable[tuple[str, str]]) -> None:
        self._leaving = False  # Ctrl-C was pressed on an empty line
        self._prompt: PromptSession[str] = PromptSession(
            FormattedText([("class:mark", "> ")]),
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: FormattedText([("class:more", "… ")]),
            placeholder=lambda: _HINT if self._leaving else "",
            key_bindings=self._bindings(),
            history=open_history(history),
            completer=_Commands(tuple(commands)),
            complete_while_typing=True,
            reserve_space_for_menu=4,
            style=_STYLE,
        )
        self._prompt.default_buffer.on_text_changed += lambda _: self._stay()

    async def read(self) -> str:
        """What was typed.

        Raises:
            EOFError: Ctrl-D, or Ctrl-C twice on an empty line.
        """
        self._stay()
        return str(await self._prompt.prompt_async())

    def _stay(self) -> None:
        self._leaving = False

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            elif buffer.text.strip():
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            elif self._leaving:
                event.app.exit(exception=EOFError, style="class:exiting")
            else:
                self._leaving = True

        return keys


def open_history(path: Path) -> History:
    """The history file, readable by its owner only; kept in memory where none can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Keys do not show while an answer is painted; they are kept for the next prompt. Ctrl-C still interrupts."""
    before = _modes()
    if before:
        _set_modes([*before[:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]])
    try:
        yield
    finally:
        if before:
            _set_modes(before)


def _modes() -> list[Any]:
    """The terminal's; nothing where there is no terminal, or it is not ours."""
    with suppress(termios.error, OSError, ValueError):
        return termios.tcgetattr(sys.stdin.fileno()) if _is_in_foreground() else []
    return []


def _set_modes(modes: list[Any]) -> None:
    """The system stops a background job that changes its terminal."""
    with suppress(termios.error, OSError):
        if _is_in_foreground():
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, modes)


def _is_in_foreground() -> bool:
    return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()


class _Commands(Completer):
    def __init__(self, commands: tuple[tuple[str, str], ...]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text
        if typed.startswith("/") and " " not in typed and "\n" not in typed:
            for name, help in self._commands:
                if name.startswith(typed):
                    yield Completion(name, start_position=-len(typed), display_meta=help)
