"""A terminal small enough to check: it knows the few control sequences that rich writes and keeps what scrolls."""

from __future__ import annotations

import re
from typing import TextIO

_TOKEN = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen(TextIO):
    """Use it as a file. Refuses to move into lines that have scrolled away, which a real terminal cannot repaint."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._lines = [""]
        self._row = self._column = 0

    def write(self, text: str) -> int:
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            assert match, f"unknown control sequence {text[position : position + 8]!r}"
            position = match.end()
            arguments, command, control, plain = match.groups()
            if command:
                self._control(command, int(arguments.split(";")[0] or 1) if arguments else 1, arguments)
            elif control:
                self._row, self._column = self._row + (control == "\n"), 0
                self._lines += [""] * (self._row + 1 - len(self._lines))
            else:
                line = self._lines[self._row].ljust(self._column)
                self._lines[self._row] = line[: self._column] + plain + line[self._column + len(plain) :]
                self._column += len(plain)
                assert self._column <= self._width, "a line is wider than the terminal"
        return len(text)

    def _control(self, command: str, count: int, arguments: str) -> None:
        if command == "A":
            self._row -= count
            assert self._row >= len(self._lines) - self._height, "it repaints what has scrolled away"
        elif command == "K":
            assert arguments == "2"
            self._lines[self._row] = ""
        else:
            assert command in "mhl", f"unknown control sequence {command}"

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """All lines ever shown, without empty ones at the end."""
        return "\n".join(line.rstrip() for line in self._lines).rstrip("\n")
