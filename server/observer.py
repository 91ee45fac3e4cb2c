"""Watches requests pass and counts them in Prometheus series. Changes nothing about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from prometheus_client import disable_created_metrics, generate_latest

from sgl.engine.api import AsyncEngine, GenerateRequest, Generation
from sgl.engine.base.errors import SglError
from sgl.engine.base.metrics import Series

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_OTHER = "other"
LEFT = "client"
"""The reason of an abort whose client has gone."""
_ASKED = "request"
_REASONS: Mapping[str, str] = {"aborted": _ASKED, "server_overloaded": "overloaded", "shutdown": "shutdown"}
_BROKEN = "engine"


class Watch(Protocol):
    """Sees what becomes of one request."""

    def see(self, item: Generation) -> None:
        """An item of one of its answers."""

    def end(self, reason: str) -> None:
        """There are no more items: all answers are finished, or the rest of them was given up for this reason."""


Observer = Callable[[GenerateRequest], Watch]
"""Sees every request as it starts."""


class Meter(Protocol):
    """Counts HTTP requests."""

    def began(self, endpoint: str, method: str) -> None: ...

    def ended(self, endpoint: str, method: str, status: int) -> None: ...


class NullMeter:
    """Counts nothing."""

    def began(self, endpoint: str, method: str) -> None:
        """Nothing."""

    def ended(self, endpoint: str, method: str, status: int) -> None:
        """Nothing."""


def abort_reason(error: SglError) -> str:
    """Why an engine gave a request up; nothing where it was the client's mistake."""
    return _REASONS.get(error.code, _BROKEN if error.status >= 500 else "")


class Metrics:
    """Records requests in Prometheus series and renders them (``--enable-metrics``)."""

    def __init__(self, model_name: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
        self._series = Series(model_name)
        self._num_retracted = 0

    def observe(self, request: GenerateRequest) -> Watch:
        """Observer that counts tokens and times."""
        return _CountedRequest(self._series, request)

    def began(self, endpoint: str, method: str) -> None:
        """An HTTP request for the route of that template."""
        labels = endpoint, _bounded(method)
        self._series.http_requests(*labels).inc()
        self._series.http_active(*labels).inc()

    def ended(self, endpoint: str, method: str, status: int) -> None:
        """Its answer has been sent."""
        labels = endpoint, _bounded(method)
        self._series.http_active(*labels).dec()
        self._series.http_responses(endpoint, labels[1], status).inc()

    def render(self, engine: AsyncEngine) -> bytes:
        """The text format of Prometheus, with the gauges as of the engine's latest snapshot."""
        series, stats = self._series, engine.stats
        series.num_running_reqs.set(stats.num_running)
        series.num_queue_reqs.set(stats.num_waiting)
        series.num_used_tokens.set(stats.num_used_tokens)
        series.token_usage.set(stats.num_used_tokens / max(stats.num_total_tokens, 1))
        series.gen_throughput.set(stats.gen_throughput)
        series.cache_hit_rate.set(stats.cache_hit_rate)
        series.max_total_num_tokens.set(engine.info.max_total_num_tokens)
        series.engine_startup_s.set(engine.timeline.total_s)
        series.num_retracted_requests.inc(max(stats.num_preempted - self._num_retracted, 0))
        self._num_retracted = max(stats.num_preempted, self._num_retracted)
        return generate_latest(series.registry)


class _CountedRequest:
    """Counts one request; each of its answers is a request of its own to the engine, and to the series."""

    def __init__(self, series: Series, request: GenerateRequest) -> None:
        self._series = series
        self._is_constrained = request.sampling.grammar is not None
        self._start_s = time.monotonic()
        self._last_s: dict[int, float] = {}  # by answer, when its latest tokens came
        self._num_open = request.n

    def see(self, item: Generation) -> None:
        series, now_s = self._series, time.monotonic()
        num_new = len(item.token_ids)
        series.generation_tokens.inc(num_new)
        if item.index not in self._last_s and item.first_token_s is not None:
            series.time_to_first_token_s.observe(item.first_token_s - self._start_s)
            self._last_s[item.index] = item.first_token_s
            num_new -= 1
        if num_new > 0:
            # several tokens of one item, above all those of an answer that is not streamed, count with their mean
            series.inter_token_latency_s.observe((now_s - self._last_s[item.index]) / num_new, num_new)
            self._last_s[item.index] = now_s
        if item.finish_reason is not None:
            self._num_open -= 1
            self._finish(item, now_s)
            if item.finish_reason.kind == "abort":
                series.num_aborted_requests(_ASKED).inc()

    def end(self, reason: str) -> None:
        if reason and self._num_open:
            self._series.num_aborted_requests(reason).inc(self._num_open)

    def _finish(self, item: Generation, now_s: float) -> None:
        series = self._series
        series.num_requests.inc()
        if self._is_constrained:
            series.num_so_requests.inc()
            series.grammar_compilation_s.observe(item.grammar_time_s)
        series.prompt_tokens.inc(item.prompt_tokens)
        series.cached_tokens.inc(item.cached_tokens)
        series.queue_time_s.observe(item.queue_time_s)
        series.e2e_latency_s.observe(now_s - self._start_s)
        series.generate_latency_s.observe(now_s - self._start_s)
        num_later = item.completion_tokens - 1
        if item.first_token_s is not None and num_later > 0:
            series.time_per_output_token_s.observe((now_s - item.first_token_s) / num_later)


def _bounded(method: str) -> str:
    return method if method in _METHODS else _OTHER
