"""Watches requests pass: metrics and the request log. Changes nothing about them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prometheus_client import generate_latest

from sgl.engine.api import GenerateRequest, Generation
from sgl.engine.base.metrics import Series
from sgl.engine.base.types import Stats

logger = logging.getLogger(__name__)

Watch = Callable[[Generation], None]
"""Sees every generation of one request."""
Observer = Callable[[GenerateRequest], Watch]
"""Sees every request as it starts."""

_LOGGED_CHARS = 2048


def log_request(request: GenerateRequest) -> Watch:
    """Observer that logs parameters and results (``--log-requests``); long texts are cut."""
    logger.info("Receive: rid=%r %s", request.rid, repr(request)[:_LOGGED_CHARS])

    def watch(item: Generation) -> None:
        if item.finish_reason is not None:
            logger.info(
                "Finish: rid=%r index=%d finish_reason=%s prompt_tokens=%d completion_tokens=%d text=%s",
                *(request.rid, item.index, item.finish_reason.kind, item.prompt_tokens, item.completion_tokens),
                repr(item.text)[:_LOGGED_CHARS],
            )

    return watch


class Metrics:
    """Records requests in Prometheus series and renders them (``--enable-metrics``)."""

    def __init__(self, model_name: str) -> None:
        self._series = Series(model_name)

    def observe(self, request: GenerateRequest) -> Watch:
        """Observer that counts tokens and times."""
        series, start_s = self._series, time.monotonic()
        begun: set[int] = set()

        def watch(item: Generation) -> None:
            now_s, first_s = time.monotonic(), item.first_token_s
            if first_s is not None and item.index not in begun:
                begun.add(item.index)
                series.time_to_first_token_s.observe(first_s - start_s)
            if item.finish_reason is None:
                return
            series.num_requests.inc()
            series.prompt_tokens.inc(item.prompt_tokens)
            series.generation_tokens.inc(item.completion_tokens)
            series.e2e_latency_s.observe(now_s - start_s)
            series.generate_latency_s.observe(now_s - start_s)
            num_later = item.completion_tokens - 1
            if first_s is not None and num_later > 0:
                series.time_per_output_token_s.observe((now_s - first_s) / num_later)

        return watch

    def render(self, stats: Stats) -> bytes:
        """The text format of Prometheus, with the gauges as of ``stats``."""
        series = self._series
        series.num_running_reqs.set(stats.num_running)
        series.num_queue_reqs.set(stats.num_waiting)
        series.num_used_tokens.set(stats.num_used_tokens)
        series.token_usage.set(stats.num_used_tokens / max(stats.num_total_tokens, 1))
        series.gen_throughput.set(stats.gen_throughput)
        series.cache_hit_rate.set(stats.cache_hit_rate)
        return generate_latest(series.registry)
