"""The engine as a model under test, and the divergence of two models, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl.bench.evals import divergence
from sgl.bench.evals.asks import Ask, Passage
from sgl.bench.evals.local import Local
from sgl.bench.evals.running import evaluate
from sgl.bench.evals.tasks.demo import Demo
from sgl.bench.evals.tasks.needle import Needle
from sgl.engine.base.errors import ConfigError, SglError

DEMO = Path(__file__).parents[3] / "assets" / "demo"
OPTIONS = {"device": "cpu", "cpu_threads": 1, "max_total_tokens": 8192, "dtype": "float32"}
TEXTS = (
    "What is the capital of Peru?",
    "Sort these words: red, apple, zoo",
    "My name is Anna. What is my name?",
    "Repeat: tree house",
    "What is 88 - 19?",
    "Reverse: a, b, c",
)


@pytest.fixture(scope="module")
def demo() -> Iterator[Local]:
    with Local.load(model_path=str(DEMO), **OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
def documents(demo: Local) -> list[list[int]]:
    return [demo.tokenizer.encode(text) for text in TEXTS]


def logprobs_of(checkpoint: Path, documents: list[list[int]]) -> list[np.ndarray]:
    """transformers' distributions behind all tokens but the last, float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1).numpy() for ids in documents]


def test_distributions_are_those_of_transformers(demo: Local, documents: list[list[int]]) -> None:
    async def collected(ids: list[int]) -> np.ndarray:
        return np.concatenate([block async for block in demo.next_token_logprobs(ids)])

    for ids, wanted in zip(documents, logprobs_of(DEMO, documents), strict=True):
        found = demo.run(collected(ids))
        assert found.shape == (len(ids), 3072)
        np.testing.assert_allclose(found[:-1], wanted, atol=2e-4)


def test_scores_are_those_of_transformers(demo: Local, documents: list[list[int]]) -> None:
    ids, wanted = documents[0], logprobs_of(DEMO, documents[:1])[0]
    found = demo.run(demo.score(Passage(tuple(ids), 3)))
    chosen = wanted[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found.logprobs, chosen[2:], atol=2e-4)
    assert list(found.is_greedy) == list(wanted.argmax(1)[2:] == np.array(ids[3:]))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a little noise on its weights."""
    folder = tmp_path_factory.mktemp("other")
    for file in DEMO.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in load_file(DEMO / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_divergence_is_that_of_transformers_distributions(
    demo: Local, other: Path, documents: list[list[int]], tmp_path: Path
) -> None:
    divergence.record(demo, documents, tmp_path / "all")
    divergence.record(demo, documents, tmp_path / "some", max_bytes=8 * 500 * sum(len(ids) - 1 for ids in documents))
    with Local.load(model_path=str(other), **OPTIONS) as candidate:
        exact, lower = (
            divergence.compare(divergence.Recording.open(tmp_path / name), candidate) for name in ("all", "some")
        )
    p, q = (np.concatenate(logprobs_of(path, documents)) for path in (DEMO, other))
    kl = (np.exp(p) * (p - q)).sum(1)
    following = np.concatenate([ids[1:] for ids in documents])
    nll_p, nll_q = (-logprobs[np.arange(len(following)), following] for logprobs in (p, q))
    assert exact.is_exact and exact.tail_mass == 0
    assert exact.num_positions == len(kl)
    assert exact.kl.value == pytest.approx(kl.mean(), rel=1e-3)
    assert exact.kl_max == pytest.approx(kl.max(), rel=1e-3)
    assert exact.top1_agreement.value == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert exact.perplexity_reference.value == pytest.approx(np.exp(nll_p.mean()), rel=1e-3)
    assert exact.perplexity_candidate.value == pytest.approx(np.exp(nll_q.mean()), rel=1e-3)
    assert exact.perplexity_ratio.value == pytest.approx(np.exp(nll_q.mean() - nll_p.mean()), rel=1e-3)
    assert exact.kl.low is not None and exact.kl.low < exact.kl.value < exact.kl.high  # type: ignore[operator]
    kept = np.sort(np.exp(p), axis=1)[:, -500:].sum(1)
    assert not lower.is_exact and lower.tail_mass == pytest.approx((1 - kept).mean(), abs=1e-5)
    assert 0.9 * exact.kl.value < lower.kl.value < exact.kl.value
    assert lower.top1_agreement == exact.top1_agreement


def test_a_model_does_not_differ_from_itself(demo: Local, documents: list[list[int]], tmp_path: Path) -> None:
    recording = divergence.record(demo, documents, tmp_path)
    found = divergence.compare(recording, demo)
    assert (found.kl.value, found.top1_agreement.value, found.perplexity_ratio.value) == (0.0, 1.0, 1.0)
    few = divergence.record(demo, documents[:3], tmp_path)
    assert divergence.compare(few, demo).kl.low is None


def test_what_cannot_be_compared_is_refused(demo: Local, documents: list[list[int]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Document 1 has 1 tokens"):
        divergence.record(demo, [documents[0], [5]], tmp_path)
    with pytest.raises(ConfigError, match="no documents"):
        divergence.record(demo, [], tmp_path)
    with pytest.raises(ConfigError, match="holds no recording"):
        divergence.Recording.open(tmp_path)
    with pytest.raises(SglError, match="tokens"):
        divergence.record(demo, [[5] * 5000], tmp_path)
    with pytest.raises(SglError, match=r"hidden must be 1 to 5461 float32 vectors of 256"):
        demo.run(demo.engine.call("logprobs", hidden=b"12"))


def test_long_texts_become_documents() -> None:
    assert list(divergence.windows(range(10), 3)) == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]


def test_conversations_are_answered(demo: Local) -> None:
    reply = demo.run(demo.answer(Ask(messages=({"role": "user", "content": "What is the capital of Peru?"},))))
    assert (reply.text, reply.finish) == ("The capital of Peru is Lima.", "stop")
    ids = demo.tokenizer.encode("<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n")
    cut = demo.run(demo.answer(Ask(prompt=tuple(ids), max_tokens=3)))
    assert cut.finish == "length" and cut.completion_tokens == 3


def test_tools_are_called_and_schemas_followed(demo: Local) -> None:
    function = {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    tool = {"type": "function", "function": function}
    asked = ({"role": "user", "content": "What is the weather in Berlin?"},)
    reply = demo.run(demo.answer(Ask(messages=asked, tools=(tool,))))
    assert reply.finish == "tool_calls" and reply.text == ""
    assert [(call.name, call.arguments) for call in reply.calls] == [("get_weather", '{"city": "Berlin"}')]
    held = demo.run(demo.answer(Ask(messages=asked, schema={"enum": ["sunny", "rainy"]})))
    assert held.text in ('"sunny"', '"rainy"')


def test_the_demo_model_knows_its_capitals(demo: Local) -> None:
    run = evaluate(Demo(("capital", "demo-word-fact"), count=20, seed=1), demo)
    found = run.summary()
    assert found["accuracy"] > 0.9 and found["num_failed"] == 0 and found["ended"] == 1.0
    assert set(found["groups"]) == {"capital", "word fact"}
    assert all(record.expected and "<|im_end|>" not in record.expected for record in run.records)
    with pytest.raises(ConfigError, match=r"has no skill 'capitall'. Did you mean"):
        Demo(("capitall",))


def test_a_needle_is_asked_for(demo: Local) -> None:
    found = evaluate(Needle((128,), (50,), count=2), demo).summary()
    assert found["num_answered"] == 2 and set(found["groups"]) == {"128 tokens, 50%"}
