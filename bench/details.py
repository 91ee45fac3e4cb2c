"""What single requests of a run did, as lists in its result line by SGLang's names; writes them and reads them back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl.bench.figures import Outcome


@dataclass(frozen=True)
class Request:
    """One answered request, in seconds; ``start_s`` counts from the first request of the run.

    ``itls_s`` are the gaps between its tokens, those that came at once sharing theirs.
    """

    start_s: float
    ttft_s: float
    itls_s: Sequence[float]
    e2e_s: float

    @property
    def token_times_s(self) -> list[float]:
        """When each token came, on the clock of ``start_s``."""
        return list(itertools.accumulate(self.itls_s, initial=self.start_s + self.ttft_s))


def record(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Lists with one entry for every request, in the order they were sent; times of failed ones are 0."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.start_s)
    begin_s = ordered[0].start_s if ordered else 0.0
    return {
        "start_times": [outcome.start_s - begin_s for outcome in ordered],
        "input_lens": [outcome.input_len for outcome in ordered],
        "output_lens": [outcome.output_len for outcome in ordered],
        "ttfts": [0.0 if outcome.error else outcome.ttft_s or 0.0 for outcome in ordered],
        "itls": [[] if outcome.error else outcome.itl_s for outcome in ordered],
        "e2e_latencies": [0.0 if outcome.error else outcome.e2e_latency_s for outcome in ordered],
        "errors": [outcome.error for outcome in ordered],
    }


def requests_of(raw: Mapping[str, Any]) -> list[Request]:
    """The answered requests of a result line; none if it has no such lists, or not of one length."""
    names = ("ttfts", "itls", "errors")
    if not all(isinstance(raw.get(name), list) for name in names):
        return []
    ttfts, itls, errors = (raw[name] for name in names)
    starts = raw.get("start_times") or [0.0] * len(ttfts)
    totals = raw.get("e2e_latencies") or [ttft + sum(gaps) for ttft, gaps in zip(ttfts, itls, strict=False)]
    if len({len(values) for values in (ttfts, itls, errors, starts, totals)}) > 1:
        return []
    rows = zip(starts, ttfts, itls, totals, errors, strict=True)
    return [Request(start, ttft, gaps, total) for start, ttft, gaps, total, error in rows if ttft and not error]
