"""What is counted, and that no client can make the number of series grow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sgl.engine.base.metrics import Series
from sgl.server.routes import ROUTES
from tests.server.conftest import Serve
from tests.server.live import live, post, until
from tests.server.scripted import die_in_a_stream
from tests.server.served import Served

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "examples" / "monitoring"


def _samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _total(text: str, name: str, **labels: str) -> float:
    """The sum of a series over all labels that are not given."""
    return sum(
        value
        for (found, pairs), value in _samples(text).items()
        if found == f"sglang:{name}" and labels.items() <= dict(pairs).items()
    )


@pytest.fixture
def counted(serve: Serve) -> Served:
    return serve(observe_enable_metrics=True, model_served_model_name="echo")


def test_the_text_is_what_sglang_0_4_3_printed(counted: Served) -> None:
    """The lines of the documented example, but for their values; whatever is new stands apart."""
    counted.answer("/generate", {"text": "abc"})
    lines = counted.get("/metrics").text.splitlines()
    shown = {re.sub(r" \S+$", "", line) for line in lines if not line.startswith("#")}
    for line in (
        'sglang:prompt_tokens_total{model_name="echo"}',
        'sglang:generation_tokens_total{model_name="echo"}',
        'sglang:time_to_first_token_seconds_bucket{le="0.06",model_name="echo"}',
        'sglang:e2e_request_latency_seconds_bucket{le="60.0",model_name="echo"}',
        'sglang:time_per_output_token_seconds_bucket{le="0.075",model_name="echo"}',
        'sglang:func_latency_seconds_bucket{le="0.07500000000000001",name="generate_request"}',
        'sglang:num_running_reqs{model_name="echo"}',
        'sglang:cache_hit_rate{model_name="echo"}',
    ):
        assert line in shown
    for line in (
        "# HELP sglang:prompt_tokens_total Number of prefill tokens processed.",
        "# TYPE sglang:prompt_tokens_total counter",
        "# HELP sglang:e2e_request_latency_seconds Histogram of End-to-end request latency in seconds",
        "# HELP sglang:func_latency_seconds Function latency in seconds",
        "# HELP sglang:gen_throughput The generate throughput (token/s)",
    ):
        assert line in lines
    assert not any("_created" in line for line in lines)


@pytest.mark.parametrize("stream", [False, True])
def test_gaps_between_tokens_add_up_to_the_time_after_the_first(serve: Serve, stream: bool) -> None:
    served = serve(delay_s=0.01, observe_enable_metrics=True)
    served.post("/generate", {"text": "abcdefghij", "stream": stream, "sampling_params": {"n": 2}})
    text = served.get("/metrics").text
    assert _total(text, "inter_token_latency_seconds_count") == 20  # eleven tokens each, the first of which is no gap
    assert _total(text, "inter_token_latency_seconds_sum") > 0
    assert _total(text, "inter_token_latency_seconds_bucket", le="+Inf") == 20
    buckets = [
        value
        for (name, labels), value in _samples(text).items()
        if name == "sglang:inter_token_latency_seconds_bucket" and labels
    ]
    assert buckets == sorted(buckets)
    assert _total(text, "generation_tokens_total") == 22
    assert _total(text, "num_requests_total") == 2


def test_cached_tokens_and_queue_time(counted: Served) -> None:
    for _ in range(2):
        counted.answer("/generate", {"text": "x" * 40})
    text = counted.get("/metrics").text
    assert _total(text, "cached_tokens_total") == 32
    assert _total(text, "queue_time_seconds_count") == 2
    assert _total(text, "max_total_num_tokens") == 4000


def test_aborts_by_reason() -> None:
    with live(hold=True, observe_enable_metrics=True) as server:
        body = {"text": "x" * 500, "rid": "r", "sampling_params": {"max_new_tokens": 400, "n": 2}, "stream": True}
        for num_gone in (1, 2):
            sock = post(server.port, "/generate", body)
            until(lambda: server.client.running)
            sock.close()
            until(lambda: not server.client.running)
            until(
                lambda n=num_gone: _total(_scrape(server.url), "num_aborted_requests_total", reason="client") == 2 * n
            )
        counted = _total(_scrape(server.url), "num_aborted_requests_total")
        assert counted == 4


def _scrape(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=60).text


def test_an_engine_that_dies_aborts(serve: Serve) -> None:
    served = serve(observe_enable_metrics=True)
    die_in_a_stream(served)
    served.events("/generate", {"text": "x" * 100})
    text = served.get("/metrics").text
    assert _total(text, "num_aborted_requests_total", reason="engine") == 1


def test_a_mistake_is_no_abort(counted: Served) -> None:
    counted.refusal("/generate", {"text": "a", "sampling_params": {"top_p": 7}})
    assert _total(counted.get("/metrics").text, "num_aborted_requests_total") == 0


def test_requests_and_answers_are_counted_by_route(counted: Served) -> None:
    counted.answer("/generate", {"text": "abc"})
    counted.refusal("/generate", {})
    counted.get("/nothing")
    counted.get("/v1/models/other")
    text = counted.get("/metrics").text
    assert _total(text, "http_responses_total", endpoint="/generate", method="POST", status_code="200") == 1
    assert _total(text, "http_responses_total", endpoint="/generate", method="POST", status_code="400") == 1
    assert _total(text, "http_responses_total", endpoint="unknown", status_code="404") == 1
    assert _total(text, "http_responses_total", endpoint="/v1/models/{model:path}", status_code="404") == 1
    assert _total(text, "http_requests_total") == 5
    assert _total(text, "http_requests_active") == 1  # the one that asks


def test_the_number_of_series_is_bounded(counted: Served) -> None:
    """Thousands of odd paths, models, methods, names and headers."""

    def ask(start: int, count: int) -> int:
        for i in range(start, start + count):
            counted.get(f"/odd/{i}")
            counted.get(f"/v1/models/m{i}")
            counted.request(f"M{i}", "/generate", headers={"x-request-id": f"id{i}"})
            counted.post("/generate", {"text": "a", "rid": f"r{i}", "model": f"m{i}", "top_p": i, "cache_salt": str(i)})
        return len(_samples(counted.get("/metrics").text))

    ask(0, 1)
    few = ask(1, 1)
    assert ask(2, 800) == few
    assert few < 500


def test_children_of_labels_are_made_once() -> None:
    series = Series("m")
    assert series.http_requests("/generate", "POST") is series.http_requests("/generate", "POST")
    assert series.num_aborted_requests("client") is series.num_aborted_requests("client")


def test_health_checks_and_unmetered_requests_are_not_counted(counted: Served) -> None:
    counted.get("/health_generate")
    counted.answer("/generate", {"text": "abc", "log_metrics": False})
    text = counted.get("/metrics").text
    for name in ("num_requests_total", "prompt_tokens_total", "inter_token_latency_seconds_count"):
        assert _total(text, name) == 0


def test_the_front_process_tells_its_memory(counted: Served) -> None:
    samples = _samples(counted.get("/metrics").text)
    assert samples["process_resident_memory_bytes", ()] > 2**20
    assert samples["process_open_fds", ()] > 0


def test_every_declared_series_is_rendered(counted: Served) -> None:
    counted.answer("/generate", {"text": "abc"})
    text = counted.get("/metrics").text
    for family in Series("m").families:
        assert f"# HELP {family.name} {family.help}\n" in text
        assert f"# TYPE {family.name} {family.kind}\n" in text


def test_the_page_of_metrics_is_up_to_date() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    program = "from tools.generate_docs import metrics; print(metrics(), end='')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert page == done.stdout, "run `make docs`"


def _expressions(value: Any) -> list[str]:
    """Every PromQL expression in a dashboard."""
    if isinstance(value, list):
        return [found for item in value for found in _expressions(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("expr", "query", "definition") if isinstance(value.get(key), str)]
    return own + [found for item in value.values() for found in _expressions(item)]


def test_the_dashboard_asks_only_for_series_that_exist(counted: Served) -> None:
    counted.answer("/generate", {"text": "abc"})
    counted.refusal("/generate", {})
    exposed = {name for name, _ in _samples(counted.get("/metrics").text)}
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    asked = {name for text in _expressions(dashboard) for name in re.findall(r"\b(?:sglang:|process_)\w+", text)}
    assert len(asked) > 20
    assert asked - {"sglang:num_aborted_requests_total"} <= exposed  # which has no child before the first abort
    declared = {name for family in Series("m").families for name in _names(family.name, family.kind)}
    assert {name for name in asked if name.startswith("sglang:")} <= declared


def _names(name: str, kind: str) -> tuple[str, ...]:
    return (f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,)


def test_the_monitoring_stack_fits_together() -> None:
    first, second = (
        yaml.safe_load((MONITORING / name).read_text()) for name in ("compose.yaml", "docker-compose.yaml")
    )
    assert first == second
    assert set(first["services"]) == {"prometheus", "grafana"}
    for service in first["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (MONITORING / source).exists()
    [scrape] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    assert scrape["metrics_path"] == "/metrics"
    assert any(route.path == "/metrics" for route in ROUTES)
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in panels}) == len(panels)


def test_a_scrape_does_not_wait_for_anything(counted: Served) -> None:
    counted.engine.last_heartbeat_s = time.monotonic() - 10**6  # an engine that hangs is just when metrics are needed
    assert counted.get("/metrics").status_code == 200
