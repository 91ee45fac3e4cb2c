"""The encoding of what the front and the engine process say to each other, and their handshake; opens no sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from sgl.engine.base.cost import Cost
from sgl.engine.base.errors import ConfigError, EngineDiedError, ModelError, OverloadedError, SglError
from sgl.engine.base.types import Abort, Add, Call, Outputs, Reply, Shutdown, Stats

LOOP = "sgl.engine.assembly:build_loop"
"""What makes the loop of an engine: ``module:function``, called with (config, inbox, outbox)."""


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that answers with one vector per sequence.

    ``size`` are the vector's entries. An encoder takes two texts as a pair; ``has_segments`` if it tells them apart.
    A sequence of tokens ends with ``end_id``, if there is one.
    """

    task: Literal["embed", "classify"]
    size: int
    is_encoder: bool = False
    has_segments: bool = False
    end_id: int | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the front must know about the engine, settled once the model is loaded.

    ``tool_parser`` and ``reasoning_parser`` are those of the model's family, empty if it has none.
    ``context_len`` counts prompt and answer; ``max_req_input_len`` is where ``--allow-auto-truncate`` cuts.
    ``cost`` is what its steps cost; ``startup`` when the phases of its start ended (`Timeline.marks`). ``kernels`` says
    which implementation computes every op, on ``isa``.
    """

    model_path: str = ""
    tokenizer_path: str = ""
    is_generation: bool = True
    pooling: PoolingInfo | None = None
    context_len: int
    vocab_size: int
    hidden_size: int = 0
    max_total_num_tokens: int
    max_req_input_len: int
    eos_ids: tuple[int, ...] = ()
    tool_parser: str = ""
    reasoning_parser: str = ""
    cost: Cost = Cost()
    startup: tuple[tuple[str, float], ...] = ()
    kernels: dict[str, str] = {}
    isa: str = ""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process reads from its standard input. ``config`` is `EngineConfig.to_json`."""

    config: msgspec.Raw
    inbound: str
    outbound: str
    parent_pid: int
    loop: str = LOOP


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """First message of an engine process that can work."""

    info: ModelInfo


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Only message of an engine process that cannot work. ``kind`` is the class of the error."""

    kind: str
    message: str
    param: str | None = None

    @classmethod
    def from_error(cls, error: SglError) -> Failed:
        return cls(type(error).__name__, error.message, error.param)

    def to_error(self) -> SglError:
        """The error as the engine process raised it."""
        error = _ERRORS.get(self.kind, EngineDiedError)(self.message)
        error.param = self.param
        return error


_ERRORS: Mapping[str, type[SglError]] = {
    cls.__name__: cls for cls in (SglError, ConfigError, ModelError, OverloadedError, EngineDiedError)
}

encode = msgspec.msgpack.Encoder().encode
decode_inbound = msgspec.msgpack.Decoder(Add | Abort | Call | Shutdown).decode
decode_outbound = msgspec.msgpack.Decoder(Outputs | Reply | Stats | Ready | Failed).decode


def to_info(found: Mapping[str, object]) -> ModelInfo:
    """The loop's ``info`` as a checked struct; further keys are ignored."""
    return msgspec.convert(found, ModelInfo)
