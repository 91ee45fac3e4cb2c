"""An architecture as data: what `engine.nn.decoder` runs. Free of torch, of checkpoints and of any family's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sgl.engine.base.errors import ModelError


@dataclass(frozen=True, slots=True)
class NormSpec:
    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions. ``kind`` and ``parameters`` are a checkpoint's rope_type and its scaling fields."""

    head_dim: int
    theta: float
    max_positions: int
    kind: str = "default"
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention.

    ``window`` counts the tokens that a token sees, itself included; None is all. ``qk_norm_eps`` asks for an RMS norm
    of every query and key head. ``softcap`` bounds the scores by a tanh. ``sinks`` gives every head a learned score
    that takes a share of its attention and adds nothing.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    rope: RopeSpec | None = None
    qk_norm_eps: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly."
            )


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))`` if gated; ``activation`` is a checkpoint's hidden_act."""

    intermediate_size: int
    activation: str
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    mlp: MlpSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder whose layers add attention(norm(x)) and mlp(norm(x)) to x, with a norm before the head.

    ``learned_positions`` tells whether a table of ``max_positions`` rows is added to the token embeddings.
    """

    vocab_size: int
    hidden_size: int
    max_positions: int
    norm: NormSpec
    layers: tuple[LayerSpec, ...]
    tied_head: bool = False
    learned_positions: bool = False


@dataclass(frozen=True, slots=True)
class WeightNames:
    """What a checkpoint calls the modules of a model; ``{}`` stands for the layer's index.

    The names of a tuple are stacked along the output: queries, keys, values; gate, up. A single name holds them all.
    """

    embedding: str
    head: str
    norm: str
    attention_norm: str
    qkv: tuple[str, ...]
    attention_out: str
    mlp_norm: str
    up: tuple[str, ...]
    down: str
    positions: str = ""
    q_norm: str = ""
    k_norm: str = ""
    sinks: str = ""
    transposed: bool = False  # linear weights of the layers are stored [in, out]
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) applied to a checkpoint's names
    ignored: str = r"$^"  # pattern of tensors that the model does not need
