"""Where the command line writes: answers to stdout, everything about them to stderr. Decides colours, nothing else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


_CONTROL = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text from elsewhere without control characters: a model must not move the cursor or rename the window."""
    return text.translate(_CONTROL)


def out() -> Console:
    """The console of standard output: no colours and no wrapping to 80 columns when it is not a terminal."""
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


def err() -> Console:
    """The console of standard error."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


def complain(message: str, hint: str = "") -> None:
    """``Error: message`` in red on standard error."""
    from rich.text import Text

    text = Text.assemble(("Error: ", "bold red"), printable(message))
    if hint:
        text.append(f"\n{hint}", style="dim")
    err().print(text, soft_wrap=True)


def drop_stdout() -> None:
    """Points standard output at nothing, so that the interpreter's last flush into a closed pipe says nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
