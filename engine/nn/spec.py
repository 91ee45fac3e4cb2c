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
    """Rotary positions. ``kind`` and ``parameters`` are a checkpoint's rope_type and its scaling fields.

    ``interleaved``: the pairs that turn are neighbours, not half a head apart.
    """

    head_dim: int
    theta: float
    max_positions: int
    kind: str = "default"
    parameters: Mapping[str, float] = field(default_factory=dict)
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Keys and values of all heads follow from one short vector per token, its latent: multi-head latent attention
    (DeepSeek-AI 2024). What is kept of a token is its latent and one rotated key that the heads share.

    Attributes:
        rank: of the latent, which is normed.
        key_dim: of the part of a head's key that follows from it.
        rope_dim: of the shared part, which alone has positions.
        value_dim: of a head's value.
        q_rank: of the vector that the queries follow from in turn; None if they come from the hidden state itself.
        eps: of the norms of these vectors.
        bias: of the layers that make them.
    """

    rank: int
    key_dim: int
    rope_dim: int
    value_dim: int
    q_rank: int | None
    eps: float = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        if self.bias and self.q_rank is None:
            raise ModelError("attention_bias is supported only where queries have a q_lora_rank.")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention.

    ``window`` counts the tokens that a token sees, itself included; None is all. ``qk_norm_eps`` asks for an RMS norm
    of every query and key head. ``softcap`` bounds the scores by a tanh. ``sinks`` gives every head a learned score
    that takes a share of its attention and adds nothing. Without ``causal`` a token sees all of its sequence, so the
    sequence is computed in one step and no keys and values are kept.

    With ``latent`` this describes how attention is computed over what is kept: every head's query meets one key of
    ``head_dim`` numbers, the latent and the shared key, of which the latent is the value, too.
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
    latent: LatentSpec | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly."
            )

    @property
    def flops_per_pair(self) -> int:
        """Of a query token and a token that it sees: scores and weighted sum of all heads."""
        value_dim = self.head_dim if self.latent is None else self.latent.rank
        return 2 * self.num_heads * (self.head_dim + value_dim)

    @property
    def width(self) -> int:
        """Numbers that are there at once for a token while its attention is computed."""
        if self.latent is None:
            return 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        own = self.latent.key_dim + self.latent.rope_dim + self.latent.value_dim
        return self.num_heads * (own + self.head_dim + self.latent.rank) + 2 * self.head_dim


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))`` if gated; ``activation`` is a checkpoint's hidden_act."""

    intermediate_size: int
    activation: str
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """How a router's logits choose experts.

    Attributes:
        scoring: how they become scores: all experts' together, or each by itself.
        renormalize: whether the scores of the chosen are made to add up to one.
        factor: what they are multiplied by at last.
        groups: experts stand in so many groups,
        top_groups: and a token takes those of its best groups only.
        corrected: whether a learned bias per expert takes part in the choice, but not in the scores. A group then
            counts as much as its two best experts, otherwise as its best one.
    """

    scoring: Literal["softmax", "sigmoid"] = "softmax"
    renormalize: bool = True
    factor: float = 1.0
    groups: int = 1
    top_groups: int = 1
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts: every token takes the ``top_k`` that a router finds best.

    Attributes:
        shared: what every token takes besides, None for nothing.
        shared_gate: whether a learned gate says how much of it.
    """

    num_experts: int
    top_k: int
    expert: MlpSpec
    routing: RoutingSpec = RoutingSpec()
    shared: MlpSpec | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        routing = self.routing
        if self.num_experts % routing.groups or routing.top_groups > routing.groups:
            raise ModelError(
                f"{self.num_experts} experts cannot stand in {routing.groups} groups of which a token takes "
                f"{routing.top_groups}."
            )
        size = self.num_experts // routing.groups
        if self.top_k > size * routing.top_groups:
            raise ModelError(f"A token cannot take {self.top_k} of {size * routing.top_groups} experts.")
        if routing.corrected and routing.groups > 1 and size < 2:
            raise ModelError("Groups of experts that count by their two best must have two.")

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
        num_drafters: layers behind the last that a checkpoint has for drafting tokens.
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
    num_drafters: int = 0

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
    q_down: str = ""  # of latent attention, whose qkv are queries and latent where queries have none of their own
    q_down_norm: str = ""
    q_up: str = ""
    kv_down: str = ""
    kv_down_norm: str = ""
    kv_up: str = ""
    router: str = ""
    router_bias: str = ""
    expert_up: tuple[str, ...] = ()
    expert_down: str = ""
    shared_up: tuple[str, ...] = ()
    shared_down: str = ""
    shared_gate: str = ""
    transposed: bool = False  # linear weights of the layers are stored [in, out]
    qkv_grouped: bool = False  # the single qkv holds, for one key-value head after the other, its queries, key, value
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) applied to a checkpoint's names
    drafter: str = ""  # of a layer that drafts: these stand behind the others, and the model does not need them
    ignored: str = r"$^"  # pattern of tensors that the model does not need
