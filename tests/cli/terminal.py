"""Runs a program in a pseudo-terminal, types into it and reads what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>()][0-9A-B]?)")


class Terminal:
    """The user's side of the terminal."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._pid, self._descriptor = pid, descriptor
        self.output = ""

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def expect(self, text: str, timeout_s: float = 100.0) -> str:
        """Reads until ``text`` shows, control sequences left out; returns what came before it."""
        deadline_s = time.monotonic() + timeout_s
        while text not in (shown := _ESCAPES.sub("", self.output)):
            assert time.monotonic() < deadline_s, f"no {text!r} in {shown!r}"
            assert self._read(), f"it ended without {text!r}: {shown!r}"
        before, _, self.output = shown.partition(text)
        return before

    def wait(self, timeout_s: float = 100.0) -> int:
        """The exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < deadline_s, f"still running: {self.output!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self) -> bool:
        """Takes in what is there, within a moment; False at the end. Answers when asked where the cursor is."""
        if not select.select([self._descriptor], [], [], 0.1)[0]:
            return True
        try:
            chunk = os.read(self._descriptor, 65536).decode("utf-8", "replace")
        except OSError:  # Linux reports the end of a terminal so
            return False
        if "\x1b[6n" in chunk:
            self.type("\x1b[1;1R")
        self.output += chunk
        return bool(chunk)


@contextmanager
def terminal(
    words: Sequence[str], environment: Mapping[str, str], width: int = 100, *, background: bool = False
) -> Iterator[Terminal]:
    """``python -m sgl`` with these words in a terminal of its own; killed at the end if it still runs.

    Args:
        background: whether it is a background job of a shell.
    """
    command = [sys.executable, "-m", "sgl", *words]
    if background:
        command = ["/bin/sh", "-mc", '"$@" & wait', "sh", *command]
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execve(command[0], command, {"TERM": "xterm", "PATH": "/usr/bin:/bin", **environment})
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    try:
        yield Terminal(pid, descriptor)
    finally:
        os.close(descriptor)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
