"""What a step of a model costs, as data: multiplications, bytes and attention; computes nothing."""

from __future__ import annotations

import msgspec


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Linear layers whose weights are kept in one format.

    Args:
        format: ``bf16``, ``fp32``, ``fp16``, ``int8`` or ``int4``.
        params: multiply-adds for a token.
        size_bytes: read by a step, however many tokens it has.
    """

    format: str
    params: int
    size_bytes: int


class AttentionCost(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that attend alike.

    Args:
        flops_per_pair: of one layer, for a query token and a token that it sees: scores and weighted sum of all heads.
        kv_bytes_per_token: of one layer.
        window: tokens that a token sees, itself included; None is all.
    """

    num_layers: int
    flops_per_pair: int
    kv_bytes_per_token: int
    window: int | None = None


class Product(Weights, frozen=True, kw_only=True):
    """The linear layers of one name, as one of them is on average.

    Args:
        name: as in profiles.
        activation_bytes_per_token: read and written.
    """

    name: str
    activation_bytes_per_token: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model. Without linear layers it says nothing, as that of a server that does not know its cost.

    Args:
        linears: those of the layers, by format.
        head: read and multiplied only where scores are wanted, for these rows only.
        attention: one entry for each kind of layer.
        other_bytes: norms and the like, read by every step.
        format: of the activations.
        activation_bytes_per_token: what a token must carry from layer to layer, written and read once for each.
        logits_bytes_per_row: scores, written and read once.
        products: parts of ``linears`` that profiles tell apart.
    """

    linears: tuple[Weights, ...] = ()
    head: Weights = Weights(format="", params=0, size_bytes=0)
    attention: tuple[AttentionCost, ...] = ()
    other_bytes: int = 0
    format: str = ""
    activation_bytes_per_token: int = 0
    logits_bytes_per_row: int = 0
    products: tuple[Product, ...] = ()

    @property
    def is_known(self) -> bool:
        return bool(self.linears)

    @property
    def weight_bytes(self) -> int:
        """All that one step with scores reads beside keys and values."""
        return sum(weights.size_bytes for weights in self.linears) + self.head.size_bytes + self.other_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Of all layers together."""
        return sum(part.num_layers * part.kv_bytes_per_token for part in self.attention)
