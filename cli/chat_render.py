"""Shows an answer while it arrives: as Markdown in a terminal, as it is in a pipe."""

from __future__ import annotations

import itertools
import sys
import time
from typing import TYPE_CHECKING, ClassVar, Protocol

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown
from rich.segment import Segment, SegmentLines
from rich.spinner import Spinner
from rich.text import Text

from sgl.cli.console import printable

if TYPE_CHECKING:
    from rich.markdown import MarkdownElement

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_CODE_THEME = "ansi_dark"  # the terminal's own colours: readable on light and dark backgrounds


class Renderer(Protocol):
    """Shows one answer: `start`, any number of `feed` and `tick`, `finish`."""

    def start(self) -> None: ...

    def feed(self, text: str) -> None:
        """More of the answer."""
        ...

    def tick(self) -> None:
        """Some time went by: repaint."""
        ...

    def finish(self) -> None: ...


class PlainRenderer:
    """Writes the text as it comes, and a newline at the end if the answer has none."""

    def __init__(self) -> None:
        self._last = ""

    def start(self) -> None:
        self._last = ""

    def feed(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._last = text

    def tick(self) -> None:
        pass

    def finish(self) -> None:
        if self._last and not self._last.endswith("\n"):
            self.feed("\n")


class _LeftHeading(Heading):
    """Headings as bold text at the left: the library's are centred and boxed."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Answer(Markdown):
    """Markdown as models write it: a newline is a newline, and tags are text."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _LeftHeading}

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme=_CODE_THEME)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def split_blocks(text: str) -> list[str]:
    """Paragraphs, lists, code, ...: no further text can change any but the last. Together they are the text."""
    starts = [token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.nesting >= 0 and token.map]
    lines = text.split("\n")
    cuts = [0, *starts[1:], len(lines)]
    blocks = ["\n".join(lines[start:end]) for start, end in itertools.pairwise(cuts)]
    return [*(block + "\n" for block in blocks[:-1]), blocks[-1]]


class MarkdownRenderer:
    """Paints the growing end of the answer in place; what is final scrolls away above it like any other output.

    Only the last block is painted again and again, and of it only as much as the window holds: the terminal never has
    to repaint what it has already scrolled.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._text = ""  # the last block, not final
        self._printed = 0  # its lines that are already above the window
        self._begun = False  # whether anything was printed
        self._painted = ""

    def start(self) -> None:
        self._text, self._printed, self._begun, self._painted = "", 0, False, ""
        self._live = Live(Spinner("dots"), console=self._console, auto_refresh=False, transient=True)
        self._live.start(refresh=True)

    def feed(self, text: str) -> None:
        self._text += printable(text)

    def tick(self) -> None:
        if not self._text.strip():
            self._live.refresh()
            return
        if self._text == self._painted:
            return
        self._settle()
        lines = self._lines(self._text)
        window = max(4, self._console.height - 4)
        if len(lines) - self._printed > window and not _is_table(self._text):
            end = len(lines) - window // 2
            self._print(lines[self._printed : end])
            self._printed = end
        gap = [[Segment("")]] if self._begun and not self._printed else []
        self._painted = self._text
        self._live.update(SegmentLines([*gap, *lines[self._printed :][-window:]], new_lines=True), refresh=True)

    def finish(self) -> None:
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        self._settle()
        if self._text.strip():
            self._print(self._lines(self._text)[self._printed :])

    def _settle(self) -> None:
        """Prints all blocks but the last for good."""
        *final, self._text = split_blocks(self._text)
        for block in final:
            self._print(self._lines(block)[self._printed :])
            self._printed = 0

    def _lines(self, text: str) -> list[list[Segment]]:
        return _trim(self._console.render_lines(_Answer(text), pad=False))

    def _print(self, lines: list[list[Segment]]) -> None:
        """Prints lines for good, with an empty line before a block that follows another."""
        gap = [[Segment("")]] if self._begun and not self._printed else []
        self._console.print(SegmentLines([*gap, *lines], new_lines=True), end="")
        self._begun = True


def _trim(lines: list[list[Segment]]) -> list[list[Segment]]:
    """Without the empty lines that some blocks bring along at either end, and the spaces at the end of lines."""
    stripped = [_strip(line) for line in lines]
    filled = [i for i, line in enumerate(stripped) if line]
    return stripped[filled[0] : filled[-1] + 1] if filled else []


def _strip(line: list[Segment]) -> list[Segment]:
    *rest, last = line or [Segment("")]
    text = last.text.rstrip()
    if text:
        return [*rest, Segment(text, last.style)]
    return _strip(rest) if rest else []


def _is_table(text: str) -> bool:
    """Whether the block is a table, whose columns may still change their widths."""
    return any(token.type == "table_open" for token in _PARSER.parse(text))


def renderer_for(console: Console) -> Renderer:
    """Markdown for a terminal, plain text for anything else."""
    return MarkdownRenderer(console) if console.is_terminal else PlainRenderer()


class Stopwatch:
    """When the first and the last piece of an answer arrived, in seconds since its start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.first_s: float | None = None
        self.last_s = 0.0

    def lap(self) -> None:
        self.last_s = time.perf_counter() - self._start
        if self.first_s is None:
            self.first_s = self.last_s
