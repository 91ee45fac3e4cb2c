"""An architecture as data: what `engine.nn.decoder` runs. Free of torch, of checkpoints and of any family's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sgl.engine.base.errors import ModelError


@dataclass(frozen=True, slots=True)
class NormSpec:
    """``offset`` is added to the stored weight: some checkpoints keep how far it is from one."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0


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
    that takes a share of its attention and adds nothing. Without ``causal`` a token sees all of its sequence, so the
    sequence is computed in one step and no keys and values are kept.
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
    causal: bool = True

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
class MoeSpec:
    """A mixture of experts: every token takes the ``top_k`` that the softmax of a router's scores finds best.

    Attributes:
        renormalize: whether the scores of the chosen are made to add up to one.
        shared: what every token takes besides, None for nothing.
        shared_gate: whether a learned gate says how much of it.
    """

    num_experts: int
    top_k: int
    expert: MlpSpec
    renormalize: bool = True
    shared: MlpSpec | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ModelError(f"A token cannot take {self.top_k} of {self.num_experts} experts.")

    @property
    def intermediate_size(self) -> int:
        """Of all that a token takes."""
        return self.top_k * self.expert.intermediate_size + (self.shared.intermediate_size if self.shared else 0)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    mlp: MlpSpec | MoeSpec


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """A small linear layer behind the pooling: its name in the checkpoint, outputs, and what follows it."""

    name: str
    size: int
    bias: bool = True
    activation: Literal["none", "tanh", "relu"] = "none"


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """One vector per sequence in place of scores of tokens.

    Attributes:
        task: whether the vector is an embedding or holds scores of classes.
        kind: the last token's hidden state, the first one's, or the mean of all.
        layers: what the pooled state goes through.
        activation: of the result.
        normalize: whether the result is scaled to length one.
        max_tokens: the longest sequences that it is meant for, None for all.
        end_id: a token that every sequence must end with, None for no such token.
    """

    task: Literal["embed", "classify"]
    kind: Literal["last", "cls", "mean"]
    layers: tuple[DenseSpec, ...] = ()
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    normalize: bool = False
    max_tokens: int | None = None
    end_id: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Layers that add attention and mlp to x, between an embedding and a head or pooling.

    Attributes:
        norms: where a layer norms. ``pre``: before attention and mlp; ``sandwich``: before and after both; each with
            a last norm behind all layers. ``post``: after each sum, and no last norm.
        learned_positions: whether a table is added to the token embeddings; its first ``position_offset`` rows belong
            to no position.
        num_token_types: rows of a table that is added by the segment of a token, 0 for no such table.
        embedding_norm: whether the sum of these is normed.
        embedding_scale: what token embeddings are multiplied by.
        logit_softcap: bounds the scores of tokens by a tanh.
        pooling: what takes the place of the head.
    """

    vocab_size: int
    hidden_size: int
    max_positions: int
    norm: NormSpec
    layers: tuple[LayerSpec, ...]
    tied_head: bool = False
    learned_positions: bool = False
    position_offset: int = 0
    norms: Literal["pre", "sandwich", "post"] = "pre"
    num_token_types: int = 0
    embedding_norm: bool = False
    embedding_scale: float | None = None
    logit_softcap: float | None = None
    pooling: PoolingSpec | None = None

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only what is before it, so that prompts may be split and prefixes shared."""
        return all(layer.attention.causal for layer in self.layers)


@dataclass(frozen=True, slots=True)
class WeightNames:
    """What a checkpoint calls the modules of a model; ``{}`` stands for the layer's index, a second for the expert's.

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
    token_types: str = ""
    embedding_norm: str = ""
    attention_out_norm: str = ""
    mlp_out_norm: str = ""
    q_norm: str = ""
    k_norm: str = ""
    sinks: str = ""
    router: str = ""
    expert_up: tuple[str, ...] = ()
    expert_down: str = ""
    shared_up: tuple[str, ...] = ()
    shared_down: str = ""
    shared_gate: str = ""
    transposed: bool = False  # linear weights of the layers are stored [in, out]
    qkv_grouped: bool = False  # the single qkv holds, for one key-value head after the other, its queries, key, value
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) applied to a checkpoint's names
    ignored: str = r"$^"  # pattern of tensors that the model does not need
