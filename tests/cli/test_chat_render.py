"""Streaming Markdown ends up on the screen as if it had been printed at once."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from sgl.cli.chat_render import MarkdownRenderer, PlainRenderer, renderer_for, split_blocks
from tests.cli.screen import Screen

ANSWER = """\
# Title

A paragraph with **bold**,
on two lines.

<tool_call>
{"name": "f"}
</tool_call>

- one
- two
  - nested

1. first
2. second

| a | b |
|---|---|
| 1 | 22 |

```python
def f():
    return 1
```

The end, 3 < 4 & more.
"""
SHOWN = """\
Title

A paragraph with bold,
on two lines.

<tool_call>
{"name": "f"}
</tool_call>

 • one
 • two
    • nested

 1 first
 2 second

 a  b
 ─────
 1  22

 def f():
     return 1

The end, 3 < 4 & more."""


def streamed(answer: str, sizes: list[int], height: int = 30) -> Screen:
    """What a terminal shows, history included, after the answer came in pieces of these sizes (repeated)."""
    screen = Screen(80, height)
    console = Console(file=screen, force_terminal=True, width=80, height=height, color_system=None, highlight=False)
    renderer = MarkdownRenderer(console)
    renderer.start()
    renderer.tick()
    start, turn = 0, 0
    while start < len(answer):
        size = sizes[turn % len(sizes)]
        renderer.feed(answer[start : start + size])
        renderer.tick()
        start, turn = start + size, turn + 1
    renderer.finish()
    return screen


def sizes_of(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, 40) for _ in range(50)]


@pytest.mark.parametrize("sizes", [[1], [7], [10**6], *map(sizes_of, range(5))])
def test_any_pieces_give_the_same_screen(sizes: list[int]) -> None:
    assert streamed(ANSWER, sizes).text() == SHOWN


@pytest.mark.parametrize("height", [6, 10, 24])
def test_answers_longer_than_the_window_scroll_without_loss_or_repetition(height: int) -> None:
    code = "\n".join(f"line {number}" for number in range(100))
    answer = f"Look:\n\n```\n{code}\n```\n\nDone."
    lines = streamed(answer, [9], height).text().splitlines()
    assert [line.strip() for line in lines if line.strip()] == ["Look:", *code.splitlines(), "Done."]


def test_a_long_paragraph_scrolls_too() -> None:
    words = [f"word{number}" for number in range(400)]
    shown = streamed(" ".join(words), [29], 10).text()
    assert shown.split() == words


def test_a_table_keeps_its_columns_however_long_it_gets() -> None:
    rows = "".join(f"| {'x' * number} | {number} |\n" for number in range(1, 40))
    lines = streamed(f"| a | b |\n|---|---|\n{rows}", [60], 10).text().splitlines()
    columns = {line.rstrip().rfind(" ") for line in lines[2:]}
    assert len(lines) == 41
    assert len(columns) == 1


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert streamed("a\x1b[2Jb\x1b]0;title\x07c\x9b1md", [3]).text() == "a[2Jb]0;titlec1md"


def test_nothing_is_left_of_an_answer_without_text() -> None:
    assert streamed("", [1]).text() == ""


@pytest.mark.parametrize(
    "blocks",
    [
        [""],
        ["one"],
        ["one\n\n"],
        ["one\n\n", "two"],
        ["```\na\n\nb\n\n"],
        ["- a\n\n- b"],
        ["a\n\n", "```\nb\n```\n\n", "c\u2028d"],
    ],
)
def test_blocks_are_what_cannot_change_any_more(blocks: list[str]) -> None:
    assert split_blocks("".join(blocks)) == blocks


def test_plain_text_is_exact_and_ends_with_a_newline(capsys: pytest.CaptureFixture[str]) -> None:
    for pieces, out in ((["a", "\n**b**"], "a\n**b**\n"), (["a\n"], "a\n"), ([""], "")):
        renderer = PlainRenderer()
        renderer.start()
        for piece in pieces:
            renderer.feed(piece)
            renderer.tick()
        renderer.finish()
        assert capsys.readouterr().out == out


def test_a_pipe_gets_plain_text() -> None:
    assert isinstance(renderer_for(Console(file=io.StringIO())), PlainRenderer)
    assert isinstance(renderer_for(Console(file=io.StringIO(), force_terminal=True)), MarkdownRenderer)
