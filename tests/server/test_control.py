"""Routes about the server itself."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import sgl
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import EngineDiedError
from sgl.engine.base.metrics import E2E_LATENCY_S, TIME_PER_OUTPUT_TOKEN_S, TIME_TO_FIRST_TOKEN_S
from sgl.server.app import build_app
from sgl.server.state import ServerState
from tests.server.conftest import Serve
from tests.server.fake import make_config
from tests.server.served import Served


def test_health(served: Served) -> None:
    response = served.get("/health")
    assert (response.status_code, response.content) == (200, b"")
    assert served.request("HEAD", "/health").status_code == 200


def test_health_of_a_dead_engine(served: Served) -> None:
    served.client.die(EngineDiedError("killed"))
    response = served.get("/health")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_dead"
    assert served.get("/health_generate").status_code == 503


def test_health_of_a_silent_engine(serve: Serve) -> None:
    served = serve(serve_watchdog_timeout=30.0)
    served.engine.last_heartbeat_s = time.monotonic() - 40
    response = served.get("/health")
    most_s = time.monotonic() - served.engine.last_heartbeat_s
    assert response.status_code == 503
    found = re.search(r" (\d+) s", response.json()["error"]["message"])
    assert found and 40 <= int(found[1]) <= round(most_s)


def test_health_generate(served: Served) -> None:
    response = served.get("/health_generate")
    assert (response.status_code, response.content) == (200, b"")
    [request] = served.client.received
    assert request.params.max_new_tokens == 1


def test_model_info_has_exactly_three_keys(served: Served) -> None:
    assert served.get("/get_model_info").json() == {
        "model_path": "/models/echo",
        "tokenizer_path": "/models/echo",
        "is_generation": True,
    }


def test_server_info(serve: Serve) -> None:
    served = serve(serve_api_key="topsecret", serve_admin_api_key="moresecret")
    response = served.get("/get_server_info", headers={"authorization": "Bearer topsecret"})
    info = response.json()
    assert "secret" not in response.text
    assert set(EngineConfig().to_flat_dict()) <= set(info)
    assert (info["max_total_num_tokens"], info["max_req_input_len"]) == (4000, 1999)
    assert info["max_total_tokens"] == 4000  # settled by the engine
    assert info["version"] == sgl.__version__
    assert info["pages"] == {"total": 250, "free": 250, "cached": 0}
    assert info["stats"]["num_running"] == 0


def test_flush_cache(served: Served) -> None:
    body = {"text": "x" * 40}
    served.answer("/generate", body)
    response = served.request("POST", "/flush_cache")
    assert response.status_code == 200
    assert response.text == (
        "Cache flushed.\nPlease check backend logs for more details. "
        "(When there are running or waiting requests, the operation will not be performed.)\n"
    )
    assert served.answer("/generate", body)["meta_info"]["cached_tokens"] == 0


def test_metrics_are_off_by_default(served: Served) -> None:
    response = served.get("/metrics")
    assert response.status_code == 404
    assert "--enable-metrics" in response.json()["error"]["message"]


def test_metrics(serve: Serve) -> None:
    served = serve(observe_enable_metrics=True, model_served_model_name="echo")
    served.answer("/generate", {"text": "abc"})
    served.events("/generate", {"text": "abc"})
    served.answer("/generate", {"text": "abc", "log_metrics": False})
    served.get("/health_generate")
    families = {f.name: f for f in text_string_to_metric_families(served.get("/metrics").text)}

    def value(name: str) -> float:
        [sample] = [s for f in families.values() for s in f.samples if s.name == name]
        assert sample.labels == {"model_name": "echo"}
        return sample.value

    assert value("sglang:prompt_tokens_total") == 8
    assert value("sglang:generation_tokens_total") == 8
    assert value("sglang:num_requests_total") == 2
    assert value("sglang:e2e_request_latency_seconds_count") == 2
    assert value("sglang:time_to_first_token_seconds_count") == 2
    assert value("sglang:time_per_output_token_seconds_count") == 2
    for gauge in ("num_running_reqs", "num_used_tokens", "gen_throughput", "num_queue_reqs", "token_usage"):
        assert value(f"sglang:{gauge}") >= 0
    assert value("sglang:cache_hit_rate") == 0

    def buckets(name: str) -> list[float]:
        return [float(s.labels["le"]) for s in families[name].samples if s.name.endswith("_bucket")][:-1]

    assert buckets("sglang:time_to_first_token_seconds") == list(TIME_TO_FIRST_TOKEN_S)
    assert buckets("sglang:e2e_request_latency_seconds") == list(E2E_LATENCY_S)
    assert buckets("sglang:time_per_output_token_seconds") == list(TIME_PER_OUTPUT_TOKEN_S)
    latency = families["sglang:func_latency_seconds"]
    assert latency.samples[0].labels["name"] == "generate_request"
    assert (len(E2E_LATENCY_S), len(TIME_TO_FIRST_TOKEN_S), len(TIME_PER_OUTPUT_TOKEN_S)) == (15, 20, 18)
    assert buckets("sglang:func_latency_seconds")[-1] == pytest.approx(49.26306264766848)


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_token_has_a_time_of_its_own(serve: Serve, stream: bool) -> None:
    served = serve(delay_s=0.001, observe_enable_metrics=True)

    def value(name: str) -> float:
        families = text_string_to_metric_families(served.get("/metrics").text)
        [sample] = [s for family in families for s in family.samples if s.name == f"sglang:{name}"]
        return sample.value

    served.post("/generate", {"text": "abcdefghij", "stream": stream})  # ten letters and the end
    first_s, whole_s = value("time_to_first_token_seconds_sum"), value("e2e_request_latency_seconds_sum")
    later_s = value("inter_token_latency_seconds_sum")
    assert 0 < first_s < whole_s
    assert first_s + later_s == pytest.approx(whole_s)
    assert value("time_per_output_token_seconds_sum") == pytest.approx(later_s / 10)

    served.post("/generate", {"text": "abc", "sampling_params": {"max_new_tokens": 0}})  # no token, no time
    assert value("e2e_request_latency_seconds_count") == 2
    assert value("time_to_first_token_seconds_count") == 1
    assert value("time_per_output_token_seconds_count") == 1


def test_requests_are_logged_on_demand(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sgl.server")
    serve().answer("/generate", {"text": "quiet"})
    assert "quiet" not in caplog.text
    serve(observe_log_requests=True).answer("/generate", {"text": "long " * 300, "rid": "r7"})
    received, finished = (r.getMessage() for r in caplog.records if "rid='r7'" in r.getMessage())
    assert received.startswith("Receive:") and finished.startswith("Finish:")
    assert "long long" in received and "finish_reason='length'" in finished


def test_while_the_engine_starts_everything_is_503() -> None:
    async def statuses() -> list[int]:
        app = build_app(ServerState(make_config()))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            gets = [await client.get(path) for path in ("/health", "/health_generate", "/v1/models", "/get_model_info")]
            posts = [await client.post("/generate", json={"text": "a"})]
            return [response.status_code for response in (*gets, *posts)]

    assert asyncio.run(statuses()) == [503] * 5


def test_keys_are_not_in_the_repr_of_the_configuration() -> None:
    config = dataclasses.replace(EngineConfig(), serve=dataclasses.replace(EngineConfig().serve, api_key="topsecret"))
    assert "topsecret" not in str(config.to_flat_dict())
