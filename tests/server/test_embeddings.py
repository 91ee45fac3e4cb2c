"""Embeddings, scores and rankings over a socket, from real engines over tiny random models, against transformers."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import sgl
from sgl.engine.api import AsyncEngine
from sgl.engine.base import sources
from sgl.engine.base.errors import SglError
from sgl.server import rerank
from tests.models.checkpoints import VOCAB_SIZE, frame_tokenizer, make_checkpoint
from tests.server import bad_input
from tests.server.live import Live, until

TEXTS = ["The quick brown fox", "Rome is the capital of Italy.", "one, two, three"]
CONTEXT_LEN = 96
NOT_EMBEDDING = (
    "This model does not appear to be an embedding model by default. Please add `--is-embedding` when launching the "
    "server or try another model."
)

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "", {}),
    "cross-encoder": ("bert", "SequenceClassification", {"num_labels": 1}),
    "classifier": ("bert", "SequenceClassification", {"num_labels": 3}),
    "reward": ("llama", "SequenceClassification", {"num_labels": 1}),
    "llama": ("llama", "CausalLM", {}),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes a server per model, once."""
    started: list[Live] = []

    @cache
    def serve(model: str) -> Live:
        family, head, fields = MODELS[model]
        path = make_checkpoint(family, tmp_path_factory.mktemp(model), head=head, **fields)
        options: dict[str, Any] = {"model_path": str(path), "device": "cpu", "dtype": "float32", "cpu_threads": 1}
        if family == "bert":
            frame_tokenizer(path)
        options |= {"max_total_tokens": 4096, "drain_timeout_s": 1.0, "enable_metrics": True, "random_seed": 0}
        options["max_body_bytes"] = bad_input.MAX_BODY_BYTES
        config = sources.configure(sources.from_call(options))
        started.append(Live(AsyncEngine.start(config, in_process=True), config))
        return started[-1]

    yield serve
    for server in started:
        server.close()


def path_of(server: Live) -> Path:
    return Path(server.engine.info.model_path)


@cache
def theirs(path: Path, head: str) -> tuple[Any, Any]:
    import transformers

    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    return auto.from_pretrained(path, dtype=torch.float32).eval(), transformers.AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def their_embedding(server: Live, text: str, size: int = 64) -> Tensor:
    model, tokenizer = theirs(path_of(server), "")
    found = tokenizer(text, return_tensors="pt", return_token_type_ids=True)
    vector: Tensor = normalize(normalize(model(**found).last_hidden_state[0, 0], dim=0)[:size], dim=0)
    return vector


@torch.no_grad()
def their_scores(server: Live, text: str, pair: str | None = None) -> Tensor:
    model, tokenizer = theirs(path_of(server), "SequenceClassification")
    found = tokenizer(text, pair, return_tensors="pt", return_token_type_ids=True)
    if model.config.model_type == "llama":
        found.pop("token_type_ids")
    scores: Tensor = model(**found).logits[0]
    return scores


def post(server: Live, path: str, body: Any) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(server: Live, path: str, body: Any, status: int = 400) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.mark.parametrize("format", ["float", "base64", openai.omit])
def test_the_official_client(format: Any, servers: Any) -> None:
    server = servers("bert")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        answer = client.embeddings.create(model="m", input=TEXTS, encoding_format=format)
        assert (answer.object, answer.model, [item.index for item in answer.data]) == ("list", "m", [0, 1, 2])
        count = sum(len(server.engine.tokenizer.encode(text)) for text in TEXTS)
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)
        for item, text in zip(answer.data, TEXTS, strict=True):
            vector: Any = item.embedding
            if format == "base64":
                vector = struct.unpack("<64f", base64.b64decode(vector))
            assert (torch.tensor(vector) - their_embedding(server, text)).abs().max() < 1e-5
        small = client.embeddings.create(model="m", input=TEXTS[0], dimensions=8)
        assert (torch.tensor(small.data[0].embedding) - their_embedding(server, TEXTS[0], 8)).abs().max() < 1e-5


def test_the_asynchronous_client_at_once(servers: Any) -> None:
    server = servers("bert")

    async def run() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            answers = await asyncio.gather(*(client.embeddings.create(model="m", input=text) for text in TEXTS * 8))
            return [answer.data[0].embedding for answer in answers]

    for vector, text in zip(asyncio.run(run()), TEXTS * 8, strict=True):
        assert (torch.tensor(vector) - their_embedding(server, text)).abs().max() < 1e-5


def test_inputs_come_in_four_forms(servers: Any) -> None:
    server = servers("bert")
    ids = server.engine.tokenizer.encode(TEXTS[0])
    vectors = [
        [item["embedding"] for item in post(server, "/v1/embeddings", {"input": given})["data"]]
        for given in (TEXTS[0], [TEXTS[0]], ids, [ids])
    ]
    assert vectors == [vectors[0]] * 4 and len(vectors[0]) == 1


def test_native_routes_answer_a_list_with_a_list(servers: Any) -> None:
    server = servers("bert")
    one, many = (post(server, "/encode", {"model": "m", "text": text}) for text in (TEXTS[0], TEXTS))
    assert one["embedding"] == many[0]["embedding"] and len(many) == 3
    assert (torch.tensor(one["embedding"]) - their_embedding(server, TEXTS[0])).abs().max() < 1e-5
    ids = server.engine.tokenizer.encode(TEXTS[0])
    named = post(server, "/encode", {"input_ids": ids, "rid": "mine", "temperature": 1, "dimensions": 4})
    assert named["meta_info"]["id"] == "mine" and named["meta_info"]["prompt_tokens"] == len(ids)
    assert named["meta_info"]["warnings"] == ["`temperature` has no effect."]
    assert len(named["embedding"]) == 4


@pytest.mark.parametrize("model", ["reward", "classifier", "cross-encoder"])
def test_classify(model: str, servers: Any) -> None:
    server = servers(model)
    for item, text in zip(post(server, "/classify", {"text": TEXTS}), TEXTS, strict=True):
        wanted = their_scores(server, text)
        wanted = wanted.sigmoid() if model == "cross-encoder" else wanted
        assert (torch.tensor(item["embedding"]) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("route", ["/v1/rerank", "/rerank"])
def test_a_cross_encoder_ranks(route: str, servers: Any) -> None:
    server = servers("cross-encoder")
    documents = [TEXTS[1], {"text": TEXTS[2], "id": 7}, TEXTS[0]]
    texts = [TEXTS[1], TEXTS[2], TEXTS[0]]
    answer = post(server, route, {"model": "m", "query": "Rome?", "documents": documents})
    wanted = [float(their_scores(server, "Rome?", text).sigmoid()) for text in texts]
    order = sorted(range(3), key=lambda index: -wanted[index])
    assert [result["index"] for result in answer["results"]] == order
    assert [result["document"] for result in answer["results"]] == [{"text": texts[index]} for index in order]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == pytest.approx([wanted[index] for index in order], abs=1e-5)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    best = post(server, route, {"query": "Rome?", "documents": documents, "top_n": 1, "return_documents": False})
    assert best["results"] == [{"index": order[0], "relevance_score": scores[0]}]


def test_a_reward_model_ranks_answers_to_a_question(servers: Any) -> None:
    server = servers("reward")
    answer = post(server, "/v1/rerank", {"query": "Rome?", "documents": TEXTS})
    _, tokenizer = theirs(path_of(server), "SequenceClassification")
    for result in answer["results"]:
        messages = [{"role": "user", "content": "Rome?"}, {"role": "assistant", "content": TEXTS[result["index"]]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert result["relevance_score"] == pytest.approx(float(their_scores(server, text)), abs=1e-4)


def test_pairs_are_scored(servers: Any) -> None:
    server = servers("cross-encoder")
    many = post(server, "/v1/score", {"text_1": TEXTS[0], "text_2": TEXTS})
    assert (many["object"], [item["index"] for item in many["data"]]) == ("list", [0, 1, 2])
    wanted = [float(their_scores(server, TEXTS[0], text).sigmoid()) for text in TEXTS]
    assert [item["score"] for item in many["data"]] == pytest.approx(wanted, abs=1e-5)
    paired = post(server, "/v1/score", {"text_1": TEXTS, "text_2": TEXTS[::-1]})["data"]
    wanted = [float(their_scores(server, *pair).sigmoid()) for pair in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert [item["score"] for item in paired] == pytest.approx(wanted, abs=1e-5)


def test_embeddings_are_compared_by_their_angle(servers: Any) -> None:
    server = servers("bert")
    vectors = [their_embedding(server, text) for text in TEXTS]
    wanted = [float(cosine_similarity(vectors[0], vector, dim=0)) for vector in vectors]
    scored = post(server, "/v1/score", {"text_1": TEXTS[0], "text_2": TEXTS})
    assert [item["score"] for item in scored["data"]] == pytest.approx(wanted, abs=1e-5)
    ranked = post(server, "/v1/rerank", {"query": TEXTS[0], "documents": TEXTS})["results"]
    assert ranked[0]["index"] == 0 and 0.9999 < ranked[0]["relevance_score"] <= 1.0
    assert {item["index"]: item["relevance_score"] for item in ranked} == pytest.approx(
        dict(enumerate(wanted)), abs=1e-5
    )


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("item_first", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_label_tokens_are_scored_by_a_model_that_generates(
    softmax: bool, item_first: bool, as_ids: bool, servers: Any
) -> None:
    server = servers("llama")
    labels = [17, 5, 300]
    model, tokenizer = theirs(path_of(server), "CausalLM")
    query, items = ("Rome is", [" big", " old and large"])
    encode = (lambda text: tokenizer.encode(text)) if as_ids else (lambda text: text)
    body = {"query": encode(query), "items": [encode(item) for item in items], "label_token_ids": labels}
    answer = post(server, "/v1/score", {**body, "apply_softmax": softmax, "item_first": item_first})
    assert answer["object"] == "scoring"
    for item, scores in zip(items, answer["scores"], strict=True):
        parts = [item, query] if item_first else [query, item]
        texts = parts if as_ids else ["".join(parts)]
        ids = [token_id for text in texts for token_id in tokenizer.encode(text)]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        wanted = logits[labels].softmax(0) if softmax else logits.softmax(0)[labels]
        assert scores == pytest.approx(wanted.tolist(), rel=1e-4)


@pytest.mark.parametrize("retryable", [False, True])
def test_label_scores_say_whether_to_try_again(retryable: bool, servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers("llama")

    async def refused(requests: Any, **options: Any) -> Any:
        raise SglError("Full.", code="server_overloaded", status=503, retryable=retryable)
        yield

    monkeypatch.setattr(server.state, "generate", refused)
    body = {"query": "a", "items": ["b"], "label_token_ids": [1]}
    response = httpx.post(f"{server.url}/v1/score", json=body, timeout=60)
    assert (response.status_code, "retry-after" in response.headers) == (503, retryable)


def test_a_text_of_many_pairs_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    monkeypatch.setattr(rerank, "checked_text", lambda text, param: looked_at.append(text) or text)
    pairs = rerank._pairs(["query"], ["a", "b", "c"], "documents")
    assert [(pair.first, pair.second) for pair in pairs] == [("query", "a"), ("query", "b"), ("query", "c")]
    assert looked_at == ["a", "b", "c"]


LONG = "Rome " * 200


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/embeddings", {"input": [TEXTS[0], LONG]}, "input[1]", "the model's context length (96 tokens)"),
        ("/v1/embeddings", {"input": LONG}, "input", "context length"),
        ("/v1/embeddings", {"input": [[5], [VOCAB_SIZE]]}, "input[1]", "token id 320 is outside the vocabulary"),
        ("/v1/embeddings", {"input": [[5], []]}, "input[1]", "at least one token"),
        ("/v1/embeddings", {"input": []}, "input", "not empty"),
        ("/v1/embeddings", {"input": ["a", 3]}, "input", "must be a text, a list of texts"),
        ("/v1/embeddings", {"input": "a\0"}, "input", "NUL"),
        ("/v1/embeddings", {}, "input", "required"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, "dimensions", "between 1 and 64"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions", "between 1 and 64"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 97}, "truncate_prompt_tokens", "between 1 and 96"),
        ("/v1/embeddings", {"input": ["a"] * 4097}, "input", "at most 4096"),
        ("/encode", {}, "text", "Either text or input_ids"),
        ("/encode", {"text": ["a", "b"], "rid": "x"}, "rid", "an entry for each"),
        ("/encode", {"text": "a", "image_data": "x"}, "image_data", "not supported"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents", "1 to 4096"),
        ("/v1/rerank", {"query": "a", "documents": ["a", LONG]}, "documents[1]", "context length"),
        ("/v1/rerank", {"query": LONG, "documents": ["a"]}, "query", "context length"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n", "at least 0"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": "x"}]}, None, "text"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "as many as"),
        ("/v1/score", {"text_1": "a"}, "text_2", "required"),
        ("/v1/score", {}, "text_1", "Either text_1 and text_2, or query and items"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "query": "c"}, "text_1", "Either"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [5]}, None, "does not generate text"),
    ],
)  # fmt: skip
def test_mistakes_are_named(path: str, body: Any, param: str | None, words: str, servers: Any) -> None:
    error = refusal(servers("bert"), path, body)
    assert words in error["message"]
    assert error["param"] == param or param is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": "a", "items": ["b"]}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": [VOCAB_SIZE]}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": [1] * 1025}, "label_token_ids"),
        ({"query": "a", "items": [], "label_token_ids": [1]}, "items"),
        ({"query": "a", "items": [[1]], "label_token_ids": [1]}, "items"),
        ({"items": ["a"], "label_token_ids": [1]}, "query"),
        ({"query": "a", "items": ["b" * 4000], "label_token_ids": [1]}, "items"),
    ],
)
def test_mistakes_in_label_scores_are_named(body: Any, param: str, servers: Any) -> None:
    assert refusal(servers("llama"), "/v1/score", body)["param"] == param


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/encode", {"text": "a"}),
        ("/classify", {"text": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ],
)
def test_a_model_that_generates_has_no_embeddings(path: str, body: Any, servers: Any) -> None:
    assert refusal(servers("llama"), path, body)["message"] == NOT_EMBEDDING


@pytest.mark.parametrize("model", ["bert", "reward"])
def test_a_model_with_vectors_does_not_generate(model: str, servers: Any) -> None:
    server = servers(model)
    for path, body in (
        ("/generate", {"text": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        assert "does not generate text" in refusal(server, path, body)["message"]
    info = httpx.get(f"{server.url}/get_model_info", timeout=60).json()
    assert info.keys() == {"model_path", "tokenizer_path", "is_generation"} and info["is_generation"] is False
    assert httpx.get(f"{server.url}/health_generate", timeout=60).status_code == 200


def test_a_head_for_scores_gives_no_embeddings_and_several_scores_no_ranking(servers: Any) -> None:
    assert "gives scores, not embeddings" in refusal(servers("classifier"), "/v1/embeddings", {"input": "a"})["message"]
    error = refusal(servers("classifier"), "/v1/rerank", {"query": "a", "documents": ["b"]})
    assert "gives 3 scores" in error["message"]


def test_what_is_too_long_is_cut_on_request(servers: Any) -> None:
    """To what transformers cuts it to: the frame stays."""
    server = servers("bert")
    model, tokenizer = theirs(path_of(server), "")
    for asked, most in ((-1, CONTEXT_LEN), (20, 20)):
        answer = post(server, "/v1/embeddings", {"input": LONG, "truncate_prompt_tokens": asked})
        assert answer["usage"]["prompt_tokens"] == most
        found = tokenizer(LONG, truncation=True, max_length=most, return_tensors="pt")
        with torch.no_grad():
            wanted = normalize(model(found["input_ids"], found["attention_mask"]).last_hidden_state[0, 0], dim=0)
        assert (torch.tensor(answer["data"][0]["embedding"]) - wanted).abs().max() < 1e-5


def test_requests_are_counted_and_no_page_is_lost(servers: Any) -> None:
    server = servers("bert")

    def tokens() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        return float(next(line for line in lines if line.startswith("sglang:prompt_tokens_total")).rpartition(" ")[2])

    before = tokens()
    used = post(server, "/v1/embeddings", {"input": TEXTS * 20})["usage"]["prompt_tokens"]
    assert tokens() - before == used

    def is_settled() -> bool:
        pages = httpx.get(f"{server.url}/get_server_info", timeout=60).json()["pages"]
        return bool(pages["free"] == pages["total"])

    until(is_settled)
    assert server.engine.num_active == 0


def test_cut_texts_are_told_where_the_server_cuts(tmp_path: Path) -> None:
    path = frame_tokenizer(make_checkpoint("bert", tmp_path, head=""))
    options = {"model_path": str(path), "device": "cpu", "dtype": "float32", "allow_auto_truncate": True}
    with sgl.Engine(**options, max_total_tokens=4096, cpu_threads=1) as engine:
        short, long = engine.encode([TEXTS[0], LONG])
        assert "warnings" not in short["meta_info"]
        assert long["meta_info"]["warnings"] == ["prompt[1] was cut to 96 tokens."]
        assert long["meta_info"]["prompt_tokens"] == CONTEXT_LEN


def test_the_offline_engine_encodes(tmp_path: Path) -> None:
    """Also what generates, where it is told to; and what sentence-transformers says about lengths holds."""
    path = make_checkpoint("llama", tmp_path, head="CausalLM")
    (path / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 50}')
    options = {"model_path": str(path), "device": "cpu", "dtype": "float32", "cpu_threads": 1}
    with sgl.Engine(**options, is_embedding=True, max_total_tokens=4096, chunked_prefill_size=16) as engine:
        assert not engine.tokenizer_manager.info.is_generation and engine.tokenizer_manager.info.context_len == 50
        model, tokenizer = theirs(path, "")
        outputs = engine.encode(TEXTS)
        for output, text in zip(outputs, TEXTS, strict=True):
            with torch.no_grad():
                wanted = model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0)
            assert (torch.tensor(output["embedding"]) - wanted).abs().max() < 1e-4
        assert engine.encode(TEXTS[0])["embedding"] == outputs[0]["embedding"]
        assert asyncio.run(engine.async_encode(input_ids=[5, 6], dimensions=3))["embedding"]
        with pytest.raises(SglError, match="does not generate text"):
            engine.generate("a")
        with pytest.raises(SglError, match="Either prompt or input_ids"):
            engine.encode()


def test_context_length_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    from sgl.engine.base.errors import ConfigError

    path = make_checkpoint("roberta", tmp_path, head="")
    options = {"model_path": str(path), "device": "cpu", "cpu_threads": 1, "max_total_tokens": 4096}
    with pytest.raises(ConfigError, match="--context-length 97: this model has learned 96 positions"):
        sgl.Engine(**options, context_length=97)
    with sgl.Engine(**options) as engine:
        assert engine.tokenizer_manager.info.context_len == 96
        assert len(engine.encode(input_ids=[5] * 96)["embedding"]) == 64
