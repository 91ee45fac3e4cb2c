"""Chats with a model that runs in this process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from sgl.cli.chat_backend import ContextFullError, Piece
from sgl.cli.chat_session import ChatError, Params, parse_parameter
from sgl.engine.base import hub
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import SamplingParams

if TYPE_CHECKING:
    from sgl.engine.api import AsyncEngine

_TEMPERATURE = 0.7  # as the server's chat API
_DEFAULTS = ("temperature", "top_p", "top_k", "repetition_penalty")
_ROOM = 256
"""Tokens that the context must have left for an answer (or a quarter of it, if that is less)."""


class LocalBackend:
    """One engine."""

    def __init__(self, engine: AsyncEngine, defaults: Params) -> None:
        self._engine = engine
        self._defaults = defaults
        self.model = engine.config.model.served_model_name

    @staticmethod
    def load(config: EngineConfig) -> LocalBackend:
        """Loads the model; takes as long as that takes.

        Raises:
            ModelError: it cannot be loaded.
        """
        from sgl.engine.api import AsyncEngine

        model = config.model
        engine = AsyncEngine.start(config, in_process=True)
        folder = hub.locate(model.model_path, ("generation_config.json",), model.revision, model.download_dir)
        return LocalBackend(engine, own_defaults(folder / "generation_config.json"))

    async def stream(self, messages: list[dict[str, str]], params: Params) -> AsyncGenerator[Piece, None]:
        from sgl.engine.api import GenerateRequest

        engine, template = self._engine, self._engine.template
        prompt = engine.tokenizer.encode(template.render(messages), add_special_tokens=False)
        longest = min(engine.info.context_len, engine.info.max_total_num_tokens)
        room = longest - len(prompt) - 1
        if room < min(_ROOM, longest // 4):
            raise ContextFullError(
                f"The conversation has {len(prompt)} tokens; context and KV cache hold {longest}.",
                code="context_length_exceeded",
            )
        request = GenerateRequest(
            input_ids=prompt,
            sampling=sampling({**self._defaults, **params}, room, template.stop_token_ids),
            stop=(*template.stop, *([params["stop"]] if "stop" in params else [])),
            seed=params.get("seed"),
            stream=True,
        )
        async with contextlib.aclosing(engine.generate(request)) as items:
            async for item in items:
                finish = item.finish_reason
                if finish is not None and finish.kind == "abort":
                    raise SglError(finish.message or "The engine broke off the answer.", code="broken_off")
                yield Piece(
                    text=item.delta,
                    finish=finish.kind if finish is not None else None,
                    prompt_tokens=item.prompt_tokens,
                    completion_tokens=item.completion_tokens,
                    cached_tokens=item.cached_tokens,
                )

    async def close(self) -> None:
        await self._engine.shutdown(0.0)


def own_defaults(path: Path) -> Params:
    """The sampling parameters that the model's makers recommend, where they make sense."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("do_sample") is False:
            return {"temperature": 0.0}
        found = {name: told[name] for name in _DEFAULTS if told.get(name) is not None}
    except (OSError, ValueError, AttributeError):
        return {}
    if found.get("top_k") == 0:
        found["top_k"] = -1  # transformers' way to say that all tokens are allowed
    defaults: Params = {}
    for name, value in found.items():
        with contextlib.suppress(ChatError):  # a default that makes no sense is no default
            defaults[name] = parse_parameter(name, value)
    return defaults


def sampling(params: Params, room: int, stop_token_ids: tuple[int, ...]) -> SamplingParams:
    """The engine's parameters for those of the chat; ``room`` tokens are left in the context."""
    known = {key: value for key, value in params.items() if key not in ("max_tokens", "stop", "seed", "temperature")}
    return SamplingParams(
        max_new_tokens=min(room, params.get("max_tokens", room)),
        temperature=params.get("temperature", _TEMPERATURE),
        stop_token_ids=stop_token_ids,
        **known,
    )
