"""Where the command line writes: answers to stdout or a file, all about them to stderr. Decides colours and widths."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


_PIPE_WIDTH = 160
"""Columns of a table that nobody looks at: programs want its words whole. COLUMNS says otherwise."""

_CONTROL = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text from elsewhere without control characters: a model must not move the cursor or rename the window."""
    return text.translate(_CONTROL)


def out() -> Console:
    """The console of standard output: no colours and no wrapping to 80 columns when it is not a terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(soft_wrap=True, highlight=False, width=shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns)


def err() -> Console:
    """The console of standard error."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


def bar(*, transient: bool = False) -> Progress:
    """A bar on standard error for what is counted; ``transient`` ones are gone at the end, and never in a file."""
    from rich import progress

    screen = err()
    counted = progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()
    times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
    is_unseen = transient and not screen.is_terminal
    return progress.Progress(*counted, *times, console=screen, transient=transient, disable=is_unseen)


def complain(message: str, hint: str = "") -> None:
    """``Error: message`` in red on standard error."""
    from rich.text import Text

    text = Text.assemble(("Error: ", "bold red"), printable(message))
    if hint:
        text.append(f"\n{hint}", style="dim")
    err().print(text, soft_wrap=True)


def write_output(output: str, content: str) -> None:
    """Writes the file that --output names, and says where it is.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        Path(output).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}.", param="--output") from None
    err().print(f"Written to {printable(output)}", soft_wrap=True, markup=False)


def drop_stdout() -> None:
    """Points standard output at nothing, so that the interpreter's last flush into a closed pipe says nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
