"""Says of a ledger what its parts are and what caused each delay, and how long the request would have taken alone.

The counterfactual is the simulator's cost model (`StepTime`) with what the engine's latest steps have taught it: the
same chunks and tokens, in steps of their own, without a queue.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import msgspec

from sgl.engine.api.ledger import Book, Ledger, Part, Run, Wait
from sgl.engine.base.ledger import Hold, StepTime

MAX_DELAYS = 10

Namer = Callable[[str], str]
"""What another request is called, by the engine's name of it."""

_HOLDS = {
    Hold.BUDGET: "steps had their tokens (--chunked-prefill-size)",
    Hold.SLOTS: "no slot was free (--max-running-requests)",
    Hold.MEMORY: "there was no memory for its KV cache (--mem-fraction-static)",
    Hold.PAUSE: "weights were exchanged",
}


class Piece(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A stretch of the request's time; pieces follow each other without gaps.

    Args:
        num_steps: engine steps in it, the first of which is ``first_step``.
        others: requests that shared them, at most.
        tokens: that it computed in them; ``other_tokens`` those of the others.
        schedule_ms, forward_ms, sample_ms, gap_ms: within the steps, and between them.
    """

    part: str
    begin_ms: float
    ms: float
    cause: str = ""
    first_step: int = 0
    num_steps: int = 0
    others: int = 0
    tokens: int = 0
    other_tokens: int = 0
    schedule_ms: float = 0.0
    forward_ms: float = 0.0
    sample_ms: float = 0.0
    gap_ms: float = 0.0


class Delay(msgspec.Struct):
    """Time that the request would not have needed by itself."""

    ms: float
    cause: str


class Alone(msgspec.Struct):
    """What the request would have taken with the engine to itself.

    Args:
        step_ms, token_us: how long a step takes, and a token more in it, learned from ``num_steps`` steps.
    """

    total_ms: float
    parts: dict[str, float]
    step_ms: float
    token_us: float
    num_steps: int


class Explanation(msgspec.Struct):
    """Where the time of one answer went.

    Args:
        received: when its HTTP request came, in seconds since 1970.
        parts: milliseconds by part; they sum to ``total_ms``.
        sampling_ms: within the steps, as ``schedule_ms``; 0 where steps go on beside the host.
        detokenize_ms: all of it; but for the last tokens it happens beside the engine's steps.
    """

    rid: str
    state: str
    received: float
    total_ms: float
    first_token_ms: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    num_steps: int
    parts: dict[str, float]
    schedule_ms: float
    sampling_ms: float
    detokenize_ms: float
    pieces: list[Piece]
    delays: list[Delay]
    alone: Alone


class Explanations(msgspec.Struct):
    """Of all answers of one request."""

    rid: str
    answers: list[Explanation]


class Listed(msgspec.Struct):
    """One answer, and the part that took most of its time."""

    rid: str
    state: str
    total_ms: float
    first_token_ms: float | None
    prompt_tokens: int
    completion_tokens: int
    largest: str
    largest_ms: float
    alone_ms: float


class Listing(msgspec.Struct):
    """The slowest answers first, of so many that are known."""

    num_known: int
    requests: list[Listed]


def explain(ledger: Ledger, book: Book, namer: Namer) -> Explanation:
    """As things are now, if the request still runs."""
    now_s = time.monotonic()
    zero_s = ledger.passage.received_s
    step_time = book.step_time
    parts: dict[str, float] = defaultdict(float)
    alone: dict[str, float] = defaultdict(float)
    pieces, delays = [], []
    for part, begin_s, end_s, entry in _entries(ledger, now_s):
        took_s = end_s - begin_s
        parts[part] += 1e3 * took_s
        alone_s = _alone_s(part, took_s, entry, step_time, has_begun=bool(alone["decode"]))
        alone[part] += 1e3 * alone_s
        cause = _cause(entry, namer)
        pieces.append(_piece(part, 1e3 * (begin_s - zero_s), 1e3 * took_s, cause, entry))
        if cause and took_s > alone_s:
            delays.append(Delay(1e3 * (took_s - alone_s), f"{part}: {cause}"))
    first_s = ledger.first_token_s
    return Explanation(
        rid=ledger.name,
        state=ledger.finish or "running",
        received=time.time() - (now_s - zero_s),
        total_ms=sum(parts.values()),
        first_token_ms=1e3 * (first_s - zero_s) if first_s else None,
        prompt_tokens=ledger.prompt_tokens,
        cached_tokens=ledger.cached_tokens,
        completion_tokens=ledger.completion_tokens,
        num_steps=ledger.num_steps,
        parts=dict(parts),
        schedule_ms=sum(piece.schedule_ms for piece in pieces),
        sampling_ms=sum(piece.sample_ms for piece in pieces),
        detokenize_ms=1e3 * ledger.detokenize_s,
        pieces=pieces,
        delays=sorted(delays, key=lambda delay: -delay.ms)[:MAX_DELAYS],
        alone=Alone(
            total_ms=sum(alone.values()),
            parts=dict(alone),
            step_ms=1e3 * step_time.step_s,
            token_us=1e6 * step_time.token_s,
            num_steps=book.num_steps,
        ),
    )


def _entries(ledger: Ledger, now_s: float) -> Iterator[tuple[Part, float, float, Run | Wait | None]]:
    """The parts with what the ledger has on them, if they are the engine's."""
    kept = {id(entry): entry for entry in ledger.entries}
    by_end = {(entry.part, entry.end_s): entry for entry in kept.values()}
    for part, begin_s, end_s in ledger.parts(now_s):
        yield part, begin_s, end_s, by_end.get((part, end_s))


def _alone_s(part: Part, took_s: float, entry: Run | Wait | None, step_time: StepTime, *, has_begun: bool) -> float:
    """What remains of a part when nobody else is there."""
    if isinstance(entry, Wait):
        return took_s if part == "grammar" else 0.0
    if isinstance(entry, Run):
        if part == "prefill" and has_begun:
            return 0.0  # what was lost when it was preempted is computed again
        own_s = entry.gap_s + entry.count * step_time.step_s + entry.num_tokens * step_time.token_s
        return min(took_s, own_s)
    return took_s


def _piece(part: Part, begin_ms: float, ms: float, cause: str, entry: Run | Wait | None) -> Piece:
    if not isinstance(entry, Run):
        return Piece(part=part, begin_ms=begin_ms, ms=ms, cause=cause)
    return Piece(
        part=part,
        begin_ms=begin_ms,
        ms=ms,
        cause=cause,
        first_step=entry.first,
        num_steps=entry.count,
        others=entry.others,
        tokens=entry.num_tokens,
        other_tokens=entry.other_tokens,
        schedule_ms=1e3 * entry.schedule_s,
        forward_ms=1e3 * entry.forward_s,
        sample_ms=1e3 * entry.sample_s,
        gap_ms=1e3 * entry.gap_s,
    )


def _cause(entry: Run | Wait | None, namer: Namer) -> str:
    if entry is None:
        return ""
    if isinstance(entry, Run):
        if entry.chunk is not None:
            more = f" and {entry.others - 1} more" if entry.others > 1 else ""
            return f"chunk of {namer(entry.chunk.rid)} ({entry.chunk.num_tokens} tokens){more}"
        return f"shared with {entry.others} others" if entry.others > 1 else "shared with 1 other" * entry.others
    reasons = [f"{_HOLDS[hold]}, {_ms(seconds)}" for hold, seconds in entry.holds[:1]]
    for cause in entry.causes[:3]:
        what = f"chunk of {namer(cause.rid)} ({cause.num_tokens} tokens)" if cause.rid else "answers of others"
        reasons.append(f"{what}, {_ms(cause.seconds)}")
    return "; ".join(reasons)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"
