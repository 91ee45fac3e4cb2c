"""Declares every Prometheus series: names, help texts, labels and buckets. Records nothing by itself."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

TIME_TO_FIRST_TOKEN_S: Sequence[float] = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 15, 20, 25, 30),
)
E2E_LATENCY_S: Sequence[float] = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60)
TIME_PER_OUTPUT_TOKEN_S: Sequence[float] = (
    *(0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
FUNC_LATENCY_S: Sequence[float] = tuple(0.05 * 1.5**k for k in range(18))


class Series:
    """All series of one server, on a registry of their own, already bound to the model's name.

    Args:
        model_name: the value of the ``model_name`` label.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self.prompt_tokens = self._counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = self._counter("generation_tokens", "Number of generation tokens processed.")
        self.num_requests = self._counter("num_requests", "Number of requests processed.")
        self.time_to_first_token_s = self._histogram(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", TIME_TO_FIRST_TOKEN_S
        )
        self.e2e_latency_s = self._histogram(
            "e2e_request_latency_seconds", "Histogram of End-to-end request latency in seconds", E2E_LATENCY_S
        )
        self.time_per_output_token_s = self._histogram(
            "time_per_output_token_seconds",
            "Histogram of time per output token in seconds.",
            TIME_PER_OUTPUT_TOKEN_S,
        )
        self.generate_latency_s = Histogram(
            "sglang:func_latency_seconds",
            "Function latency in seconds",
            ["name"],
            registry=self.registry,
            buckets=FUNC_LATENCY_S,
        ).labels("generate_request")
        self.num_running_reqs = self._gauge("num_running_reqs", "The number of running requests")
        self.num_used_tokens = self._gauge("num_used_tokens", "The number of used tokens")
        self.gen_throughput = self._gauge("gen_throughput", "The generate throughput (token/s)")
        self.num_queue_reqs = self._gauge("num_queue_reqs", "The number of requests in the waiting queue")
        self.token_usage = self._gauge("token_usage", "The token usage")
        self.cache_hit_rate = self._gauge("cache_hit_rate", "The cache hit rate")

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"sglang:{name}", text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"sglang:{name}", text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(f"sglang:{name}", text, ["model_name"], registry=self.registry, buckets=buckets)
        return family.labels(self._model_name)
