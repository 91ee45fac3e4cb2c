"""Counts what steps did, writes the two periodic log lines and prepares `Stats`; decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sgl.engine.base.types import Stats, StepPlan
from sgl.engine.core.scheduler import Scheduler

logger = logging.getLogger(__name__)

STATS_INTERVAL_S = 0.25


class Reporter:
    """Follows one scheduler."""

    def __init__(self, scheduler: Scheduler, log_interval: int, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._log_interval = max(log_interval, 1)
        self._clock = clock
        self._decode_steps = 0
        self._logged_s = self._sent_s = clock()
        self._logged_tokens = self._sent_tokens = self._tokens = 0

    def count(self, num_tokens: int) -> None:
        self._tokens += num_tokens

    def note(self, plan: StepPlan) -> None:
        """Logs a step: every one that brings new requests, and every ``log_interval``-th of the others."""
        scheduler = self._scheduler
        fresh = [row for row in plan.rows if row.init is not None]
        if fresh:
            logger.info(
                "Prefill batch. #new-seq: %d, #new-token: %d, #cached-token: %d, cache hit rate: %.2f%%, "
                "token usage: %.2f, #running-req: %d, #queue-req: %d",
                len(fresh),
                sum(row.num_tokens for row in fresh),
                sum(row.computed or 0 for row in fresh),
                100 * self._hit_rate(),
                self._usage(),
                scheduler.num_running,
                scheduler.num_waiting,
            )
        elif plan.rows:
            self._decode_steps += 1
            if self._decode_steps % self._log_interval == 0:
                self._log_decode()

    def _log_decode(self) -> None:
        now = self._clock()
        rate = (self._tokens - self._logged_tokens) / max(now - self._logged_s, 1e-9)
        self._logged_s, self._logged_tokens = now, self._tokens
        scheduler = self._scheduler
        logger.info(
            "Decode batch. #running-req: %d, #token: %d, token usage: %.2f, gen throughput (token/s): %.2f, "
            "#queue-req: %d",
            scheduler.num_running,
            scheduler.num_used_pages * scheduler.config.page_size,
            self._usage(),
            rate,
            scheduler.num_waiting,
        )

    def due_stats(self) -> Stats | None:
        """A snapshot, at most every `STATS_INTERVAL_S`."""
        now = self._clock()
        elapsed = now - self._sent_s
        if elapsed < STATS_INTERVAL_S:
            return None
        rate = (self._tokens - self._sent_tokens) / elapsed
        self._sent_s, self._sent_tokens = now, self._tokens
        scheduler = self._scheduler
        page_size = scheduler.config.page_size
        return Stats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_used_tokens=scheduler.num_used_pages * page_size,
            num_total_tokens=scheduler.config.num_pages * page_size,
            cache_hit_rate=self._hit_rate(),
            gen_throughput=rate,
            num_preempted=scheduler.num_preempted,
        )

    def _hit_rate(self) -> float:
        return self._scheduler.num_cached_tokens / max(self._scheduler.num_prompt_tokens, 1)

    def _usage(self) -> float:
        return self._scheduler.num_used_pages / self._scheduler.config.num_pages
