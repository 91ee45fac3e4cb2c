"""The in-process backend over a real front and a fake engine loop, which answers with the prompt's own tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from sgl.cli.chat_backend import ContextFullError, Piece
from sgl.cli.chat_local import LocalBackend, own_defaults, sampling
from sgl.engine.api import AsyncEngine
from sgl.engine.base.errors import SglError
from tests.engine.fake_loop import CONTEXT
from tests.engine.front import checkpoint, with_engine

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def with_backend(path: Path, use: Callable[[LocalBackend], Coroutine[Any, Any, Any]]) -> Any:
    async def run(engine: AsyncEngine) -> Any:
        return await use(LocalBackend(engine, {}))

    values = {"model__chat_template": TEMPLATE, "model__served_model_name": "m"}
    return with_engine(path, run, **values)


async def answer(backend: LocalBackend, question: str, **params: Any) -> list[Piece]:
    return [piece async for piece in backend.stream([{"role": "user", "content": question}], params)]


def test_an_answer_with_its_numbers(tmp_path: Path) -> None:
    pieces = with_backend(checkpoint(tmp_path), lambda b: answer(b, "vwxyz", temperature=0.0, max_tokens=5))
    assert "".join(piece.text for piece in pieces) == "vwxyz"
    last = pieces[-1]
    assert (last.finish, last.prompt_tokens, last.completion_tokens, last.cached_tokens) == ("length", 5, 5, 2)


def test_a_stop_string_and_the_seed_arrive(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    pieces = with_backend(path, lambda b: answer(b, "vwxyz", temperature=0.0, max_tokens=5, stop="yz"))
    assert "".join(piece.text for piece in pieces) == "vwx"
    assert pieces[-1].finish == "stop"
    pieces = with_backend(path, lambda b: answer(b, "vwxyz", max_tokens=5, seed=1))
    assert "".join(piece.text for piece in pieces) == "wxyz{"  # the fake engine adds the seed


def test_a_conversation_that_leaves_no_room_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ContextFullError, match=f"has 60 tokens; context and KV cache hold {CONTEXT}"):
        with_backend(checkpoint(tmp_path), lambda b: answer(b, "x" * 60))


def test_an_answer_never_asks_for_more_than_the_context_holds(tmp_path: Path) -> None:
    pieces = with_backend(checkpoint(tmp_path), lambda b: answer(b, "x" * 40, temperature=0.0))
    assert pieces[-1].completion_tokens == CONTEXT - 40 - 1


def test_leaving_stops_the_engine(tmp_path: Path) -> None:
    async def leave(backend: LocalBackend) -> dict[str, Any]:
        pieces = backend.stream([{"role": "user", "content": "xy"}], {"temperature": 0.0})
        await anext(pieces)
        await pieces.aclose()
        return await asyncio.wait_for(backend._engine.call("running"), 60)

    found = with_backend(checkpoint(tmp_path, "patient"), leave)
    assert found["rids"] == []
    assert len(found["aborted"]) == 1


def test_what_the_engine_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SglError, match="temperature must be non-negative"):
        with_backend(checkpoint(tmp_path), lambda b: answer(b, "x", temperature=-1.0))


@pytest.mark.parametrize(
    ("told", "params"),
    [
        ('{"do_sample": false, "temperature": 0.6}', {"temperature": 0.0}),
        ('{"do_sample": true, "temperature": 0.6, "top_k": 20}', {"temperature": 0.6, "top_k": 20}),
        ('{"eos_token_id": 2}', {}),
        ('{"temperature": "hot"}', {}),
        ("[]", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_the_models_own_sampling_is_the_default(tmp_path: Path, told: str, params: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(told)
    assert own_defaults(tmp_path / "generation_config.json") == params
    assert own_defaults(tmp_path / "none.json") == {}


def test_parameters_of_the_chat_become_the_engines() -> None:
    params = {"top_k": 3, "min_p": 0.1, "max_tokens": 99, "stop": "x", "seed": 1}
    found = sampling(params, 10, (7,))
    assert (found.top_k, found.min_p, found.max_new_tokens, found.stop_token_ids) == (3, 0.1, 10, (7,))
    assert found.temperature == 0.7
    assert sampling({"temperature": 0.0, "max_tokens": 4}, 10, ()).max_new_tokens == 4


def test_makers_defaults_are_read_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text('{"do_sample": true, "top_k": 0, "top_p": 0.0, "temperature": 0.6}')
    assert own_defaults(file) == {"top_k": -1, "temperature": 0.6}
