"""The whole engine, from text to text, on a tiny random Llama; against transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import sgl
from sgl.engine.api import AsyncEngine, GenerateRequest
from sgl.engine.base import sources
from sgl.engine.base.errors import ModelError
from tests.engine.front import collect, greedy
from tests.models.checkpoints import make_checkpoint

PROMPTS = ["Hello world", "naïve café 😀", "def f(x):\n    return x", "日本語", "a"]
OPTIONS: dict[str, Any] = {
    **{"dtype": "float32", "device": "cpu", "max_total_tokens": 2048, "max_running_requests": 8, "cpu_threads": 1},
    **{"page_size": 4, "random_seed": 0},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[sgl.Engine]:
    with sgl.Engine(model_path=str(path), **OPTIONS) as engine:
        yield engine


def reference(model: LlamaForCausalLM, prompt: list[int], num_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens, pad_token_id=1
    )
    return out[0, len(prompt) :].tolist()


def tokens(output: dict[str, Any]) -> list[int]:
    return [token_id for _, token_id, _ in output["meta_info"]["output_token_logprobs"]]


def test_greedy_answers_are_those_of_transformers(engine: sgl.Engine, model: LlamaForCausalLM) -> None:
    outputs = engine.generate(PROMPTS, {"temperature": 0, "max_new_tokens": 24}, return_logprob=True)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        expected = reference(model, engine.tokenizer.encode(prompt), 24)
        assert tokens(output) == expected
        visible = expected[:-1] if expected[-1] == 1 else expected
        assert output["text"] == engine.tokenizer.decode(visible)


def test_logprobs_are_those_of_transformers(engine: sgl.Engine, model: LlamaForCausalLM) -> None:
    prompt = engine.tokenizer.encode("Hello world")
    params = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    output = engine.generate(
        input_ids=prompt, sampling_params=params, return_logprob=True, logprob_start_len=0, top_logprobs_num=3
    )
    meta = output["meta_info"]
    ids = [*prompt, *tokens(output)]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    got = [*meta["input_token_logprobs"], *meta["output_token_logprobs"]]
    assert [token_id for _, token_id, _ in got] == ids
    assert got[0][0] is None
    for position in range(1, len(ids)):
        assert got[position][0] == pytest.approx(expected[position - 1, ids[position]].item(), abs=1e-3)
    tops = [*meta["input_top_logprobs"], *meta["output_top_logprobs"]]
    for position in range(1, len(ids)):
        assert [token_id for _, token_id, _ in tops[position]] == expected[position - 1].topk(3).indices.tolist()


def test_a_second_time_comes_from_the_cache(engine: sgl.Engine) -> None:
    params = {"temperature": 0, "max_new_tokens": 4}
    prompt = list(range(50, 63))
    first, second = (engine.generate(input_ids=prompt, sampling_params=params) for _ in range(2))
    assert second["text"] == first["text"]
    assert (first["meta_info"]["cached_tokens"], second["meta_info"]["cached_tokens"]) == (0, 12)
    assert engine.flush_cache()
    assert engine.generate(input_ids=prompt, sampling_params=params)["meta_info"]["cached_tokens"] == 0


def test_stop_strings_end_the_answer_where_the_text_says(engine: sgl.Engine) -> None:
    params = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
    text = engine.generate("Hello world", params)["text"]
    stop = text[len(text) // 2 :][:3]
    chunks = list(engine.generate("Hello world", {**params, "stop": stop}, stream=True))
    assert chunks[-1]["text"] == text[: text.index(stop)]
    assert chunks[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_samples_depend_on_their_seed_only(engine: sgl.Engine) -> None:
    params = {"temperature": 1.0, "max_new_tokens": 12, "seed": 5, "ignore_eos": True}
    alone = [engine.generate("Hello", {**params, "seed": 5 + i})["text"] for i in range(4)]
    together = engine.generate("Hello", {**params, "n": 4})
    assert [output["text"] for output in together] == alone
    assert len(set(alone)) > 1


def test_no_new_tokens(engine: sgl.Engine) -> None:
    output = engine.generate("Hello world", {"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0)
    assert (output["text"], output["meta_info"]["completion_tokens"]) == ("", 0)
    assert len(output["meta_info"]["input_token_logprobs"]) == output["meta_info"]["prompt_tokens"]


def test_an_engine_in_a_process_of_its_own(path: Path, model: LlamaForCausalLM) -> None:
    config = sources.configure(sources.from_call({"model_path": str(path), "log_level": "error", **OPTIONS}))

    async def main() -> None:
        engine = await asyncio.to_thread(AsyncEngine.start, config, in_process=False)
        try:
            chat = engine.template.render([{"role": "user", "content": "Hi"}])
            request = GenerateRequest(text=chat, add_special_tokens=False, sampling=greedy(16), stream=True)
            items = await collect(engine, request)
            expected = reference(model, engine.tokenizer.encode(chat, add_special_tokens=False), 16)
            assert items[-1].output_ids == expected
            assert "".join(item.delta for item in items) == items[-1].text
            assert engine.info.context_len == 256
        finally:
            await engine.shutdown()

    asyncio.run(main())


def test_a_corrupt_checkpoint_is_the_same_error_in_both_places(path: Path, tmp_path: Path) -> None:
    for file in path.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    config = sources.configure(sources.from_call({"model_path": str(tmp_path), "log_level": "error", **OPTIONS}))
    messages = []
    for in_process in (True, False):
        with pytest.raises(ModelError) as caught:
            AsyncEngine.start(config, in_process=in_process)
        messages.append(caught.value.message)
    assert messages[0] == messages[1]
