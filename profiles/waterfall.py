"""What a server says of a request's time, drawn as a waterfall for pages; asks no server itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sgl.bench.report_page import LIGHT, document
from sgl.bench.svg import Axis, Stretch, number, timeline
from sgl.engine.api.explanation import Explanation, Piece

ORDER = (
    *("parse", "tokenize", "hand over", "grammar", "queue", "preempted", "held"),
    *("prefill", "decode", "between steps", "deliver", "detokenize", "respond"),
    "network",
)
"""Parts from the first to the last."""

_COLOURS = {"queue": 1, "preempted": 5, "held": 5, "hand over": 1, "grammar": 4, "prefill": 0, "decode": 2}
_OTHER = 3


def parts_of(found: Explanation) -> list[str]:
    """Those that took any time, in order."""
    return [part for part in ORDER if found.parts.get(part)]


def colour_of(part: str) -> int:
    """The number of a part's colour, the same wherever it is drawn."""
    return _COLOURS.get(part, _OTHER)


def said(piece: Piece) -> str:
    """What there is to say about a piece in one line."""
    told = f"{piece.part}: {number(piece.ms)} ms"
    if piece.num_steps:
        last = piece.first_step + piece.num_steps - 1
        steps = f"step {piece.first_step}" if piece.num_steps == 1 else f"steps {piece.first_step} to {last}"
        told += f", {steps}, {piece.tokens} tokens"
    return f"{told}; {piece.cause}" if piece.cause else told


def svg(found: Explanation) -> str:
    """The chart alone, for a page that has its style."""
    rows = parts_of(found)
    stretches = [
        Stretch(
            rows.index(piece.part), piece.begin_ms, piece.begin_ms + piece.ms, "", said(piece), colour_of(piece.part)
        )
        for piece in found.pieces
        if piece.part in rows
    ]
    axis = Axis("milliseconds", 0.0, max(found.total_ms, 1e-3))
    return timeline(rows, stretches, axis, f"Waterfall of {found.rid}")


def svg_file(found: Explanation) -> str:
    """The chart as a file of its own."""
    colours = " ".join(f".s{i} {{ fill: {colour} }}" for i, colour in enumerate(LIGHT))
    style = f"text {{ font: 11px system-ui, sans-serif; fill: #0b0b0b }} .grid {{ stroke: #e4e3df }} {colours}"
    head, _, body = svg(found).partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{body}\n'


def page(answers: Sequence[Explanation], title: str) -> str:
    """All answers of a request on one page."""
    return document(title, "\n".join(_answer(found) for found in answers))


def _answer(found: Explanation) -> str:
    rows = "".join(
        f'<tr><td class="text">{part}</td><td>{number(found.parts[part])}</td>'
        f"<td>{found.parts[part] / found.total_ms:.1%}</td><td>{number(found.alone.parts.get(part, 0.0))}</td></tr>"
        for part in parts_of(found)
    )
    total = f'<tr><td class="text"><b>all</b></td><td><b>{number(found.total_ms)}</b></td><td>100%</td>'
    total += f"<td><b>{number(found.alone.total_ms)}</b></td></tr>"
    head = '<tr><th class="text"></th><th>ms</th><th>of all</th><th>alone, ms</th></tr>'
    delays = "".join(f"<li>{number(delay.ms)} ms: {escape(delay.cause)}</li>" for delay in found.delays)
    return (
        f'<h2>{escape(found.rid)}</h2><p class="soft">{escape(headline(found))}</p>'
        f'<div class="card">{svg(found)}</div>'
        f'<h3>Parts</h3><div class="card"><table><thead>{head}</thead><tbody>{rows}{total}</tbody></table></div>'
        f'<p class="soft">{escape(counterfactual(found))}</p>'
        + (f'<h3>Delays</h3><div class="card"><ol>{delays}</ol></div>' if delays else "")
    )


def headline(found: Explanation) -> str:
    """One line on the request as a whole."""
    first = f"first token after {number(found.first_token_ms)} ms" if found.first_token_ms is not None else ""
    parts = [
        f"{number(found.total_ms)} ms ({found.state})",
        first,
        f"{found.prompt_tokens} prompt tokens ({found.cached_tokens} cached), {found.completion_tokens} answered",
        f"{found.num_steps} steps",
    ]
    return " · ".join(filter(None, parts))


def counterfactual(found: Explanation) -> str:
    """What it would have been without the others."""
    alone = found.alone
    learned = (
        f"{number(alone.step_ms)} ms a step and {number(alone.token_us)} us a token, learned from {alone.num_steps}"
    )
    return f"Alone it would have taken about {number(alone.total_ms)} ms (the simulator's model: {learned} steps)."
