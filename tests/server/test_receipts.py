"""Receipts of every API's answers, streamed or not, over a real engine: `sgl verify` takes them as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from sgl.engine.api import AsyncEngine
from sgl.engine.api.receipt import again, read_receipts
from sgl.engine.base import sources
from tests.cli.test_main import run
from tests.models.checkpoints import make_checkpoint
from tests.server.live import Live

HI: Any = [{"role": "user", "content": "hi"}]
COMMON: dict[str, Any] = {"temperature": 0.8, "ignore_eos": True, "seed": 5, "return_receipt": True}

ASKED: dict[str, tuple[str, dict[str, Any], int]] = {
    "generate": ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 6}, "return_receipt": True}, 1),
    "chat": ("/v1/chat/completions", {**COMMON, "messages": HI, "max_tokens": 6, "n": 2, "stop": "zzz"}, 2),
    "completions": ("/v1/completions", {**COMMON, "prompt": ["ab", "cd"], "max_tokens": 6}, 2),
    "responses": ("/v1/responses", {**COMMON, "input": "hi", "max_output_tokens": 6}, 1),
    "messages": ("/v1/messages", {**COMMON, "messages": HI, "max_tokens": 6}, 1),
}
"""By API: where, what, and how many answers."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    checkpoint = make_checkpoint("llama", tmp_path_factory.mktemp("receipts") / "tiny")
    options = {"model_path": str(checkpoint), "device": "cpu", "dtype": "float32", "cpu_threads": 1}
    config = sources.configure(sources.from_call({**options, "max_total_tokens": 2048, "drain_timeout_s": 1.0}))
    server = Live(AsyncEngine.start(config, in_process=True), config)
    try:
        yield server
    finally:
        server.close()


def answer_of(server: Live, path: str, body: dict[str, Any]) -> bytes:
    response = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", ASKED)
def test_the_receipt_of_an_answer_repeats_it(server: Live, api: str, stream: bool) -> None:
    path, body, count = ASKED[api]
    receipts = read_receipts(answer_of(server, path, {**body, "stream": stream}))
    assert len(receipts) == count
    for receipt in receipts:
        request = again(receipt)
        params = {"max_new_tokens": 6, "seed": request.seed, "ignore_eos": request.sampling.ignore_eos}
        if api != "generate":
            params["temperature"] = 0.8
        raw = {"input_ids": list(receipt.prompt_ids), "sampling_params": params, "return_receipt": True}
        (found,) = read_receipts(answer_of(server, "/generate", raw))
        assert found.output_ids == receipt.output_ids and found.params.seed == receipt.params.seed


def test_who_does_not_ask_gets_none(server: Live) -> None:
    for path, body, _ in ASKED.values():
        answer = answer_of(server, path, {**body, "return_receipt": False})
        assert b'"receipt"' not in answer and b'"sgl"' not in answer


def test_a_client_of_openai_can_hand_it_to_verify(
    server: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=5, n=2, temperature=0.7, extra_body={"return_receipt": True}
    )
    file = tmp_path / "answer.json"
    file.write_text(answer.model_dump_json())
    assert run(monkeypatch, "verify", str(file), "--max-total-tokens", "1024", "--cpu-threads", "1") == 0
    assert capsys.readouterr().out.count("verified: the same 5 tokens") == 2
