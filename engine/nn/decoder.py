"""The one skeleton that runs every `ModelSpec`; knows no family, no checkpoint and no cache policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.base.cost import Cost
from sgl.engine.base.trace import span
from sgl.engine.nn.attention import Attention
from sgl.engine.nn.cost import cost_of
from sgl.engine.nn.embedding import Inputs, TiedHead
from sgl.engine.nn.fusion import fuse
from sgl.engine.nn.latent import LatentAttention
from sgl.engine.nn.linear import Linear
from sgl.engine.nn.mlp import Mlp
from sgl.engine.nn.moe import Moe
from sgl.engine.nn.norm import NoNorm, Norm
from sgl.engine.nn.pooling import PoolingHead
from sgl.engine.nn.rope import NoRope, Rope, Rotation
from sgl.engine.nn.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RopeSpec
from sgl.engine.nn.taps import Show, tap
from sgl.engine.nn.weights import Build
from sgl.kernels.cpu.decoder import FusedDecoder


class Layer:
    """The two sublayers of a layer and the norms around them: where which is, says `ModelSpec.norms`."""

    def __init__(self, build: Build, index: int, spec: LayerSpec, model: ModelSpec, rotation: Rotation) -> None:
        names = build.names
        self.name = f"layer {index}"
        self.attention_norm = Norm(build, names.attention_norm.format(index), model.norm, model.hidden_size)
        self.attention = _attention(build, index, spec.attention, model.hidden_size, rotation)
        self.mlp_norm = Norm(build, names.mlp_norm.format(index), model.norm, model.hidden_size)
        self.mlp = _feed_forward(build, index, spec.mlp, model.hidden_size)
        self.attention_out_norm: Norm | NoNorm = NoNorm()
        self.mlp_out_norm: Norm | NoNorm = NoNorm()
        if model.norms == "sandwich":
            out_names = (names.attention_out_norm.format(index), names.mlp_out_norm.format(index))
            self.attention_out_norm, self.mlp_out_norm = (
                Norm(build, name, model.norm, model.hidden_size) for name in out_names
            )


class Model:
    """A model whose weights are loaded. Results are inference tensors: change them under `torch.inference_mode`.

    Attributes:
        spec: the architecture.
        kv_specs: what each layer keeps per token.
        pooling: what follows the hidden states, if not a head.
    """

    def __init__(self, spec: ModelSpec, build: Build) -> None:
        names = build.names
        self.spec = spec
        self.leaves = build.leaves
        self._dtype = build.dtype
        self._kernels = build.kernels
        self._inputs = Inputs(build, spec)
        ropes: list[RopeSpec | None] = []
        for layer in spec.layers:
            if layer.attention.rope not in ropes:
                ropes.append(layer.attention.rope)
        self._rotations = [_rotation(build, rope) for rope in ropes]
        self._rotation_of = [ropes.index(layer.attention.rope) for layer in spec.layers]
        self._layers = [
            Layer(build, i, layer, spec, self._rotations[self._rotation_of[i]]) for i, layer in enumerate(spec.layers)
        ]
        self._norm = NoNorm() if spec.norms == "post" else Norm(build, names.norm, spec.norm, spec.hidden_size)
        self._head = None if spec.pooling else self._make_head(build)
        self.pooling = PoolingHead(build, spec.pooling, spec.hidden_size) if spec.pooling else None
        self._fused: FusedDecoder | None = None
        self._attached: Sequence[KVLayer] = ()
        self.kv_specs = tuple(layer.attention.kv_spec for layer in self._layers)

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights as they are computed with, packed copies included."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @torch.inference_mode()
    def __call__(self, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor:
        """Computes a step and stores its keys and values; returns the normed hidden states ``[T, H]``."""
        hidden = self._inputs(batch)
        if self._fused is not None and backend.traits.native_pages:
            return self._norm(self._run_fused(self._fused, hidden, batch, kv_layers))
        run = self._run_post if self.spec.norms == "post" else self._run_layers
        return run(hidden, batch, kv_layers, backend)

    def finish(self) -> None:
        """Called once, when all weights are there: joins experts, and the layers to one call where that is possible."""
        for layer in self._layers:
            if isinstance(layer.mlp, Moe):
                layer.mlp.finish()
        self._fused = fuse(self.spec, self._layers, self._rotations, self._kernels)

    def tap(self, show: Show) -> None:
        """From now on shows what goes through the modules; layers no longer run as one call."""
        self._fused = None
        tap(self.leaves, self._rotations, show)

    @property
    def is_fused(self) -> bool:
        """Whether the layers can run in one native call."""
        return self._fused is not None

    def _run_fused(
        self, fused: FusedDecoder, hidden: Tensor, batch: ForwardBatch, kv_layers: Sequence[KVLayer]
    ) -> Tensor:
        group = kv_layers[0].group
        if kv_layers is not self._attached:
            self._attached = kv_layers
            fused.attach([(kv.k, kv.v, kv.k_scale, kv.v_scale) for kv in kv_layers])
        out_loc, page_table = batch.out_loc[group], batch.page_table[group]
        with span("decoder"):
            return fused.run(hidden, batch.positions, batch.cu_q, batch.seq_lens, out_loc, page_table)

    def _run_layers(
        self, residual: Tensor, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]
    ) -> Tensor:
        """The layers one by one, then the last norm."""
        meta = backend.plan(batch)
        tables = [rotation.tables(batch.positions) for rotation in self._rotations]
        x = self._layers[0].attention_norm(residual)
        following = [layer.attention_norm for layer in self._layers[1:]] + [self._norm]
        for layer, next_norm, rotation, kv in zip(self._layers, following, self._rotation_of, kv_layers, strict=True):
            with span(layer.name):
                with span("attention"):
                    x = layer.attention_out_norm(layer.attention(x, tables[rotation], kv, backend, meta))
                    x, residual = layer.mlp_norm.add(x, residual)
                with span("mlp"):
                    x = layer.mlp_out_norm(layer.mlp(x))
                    x, residual = next_norm.add(x, residual)
        return x

    def _run_post(
        self, x: Tensor, batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]
    ) -> Tensor:
        """The layers one by one, each sum followed by its norm."""
        meta = backend.plan(batch)
        tables = [rotation.tables(batch.positions) for rotation in self._rotations]
        for layer, rotation, kv in zip(self._layers, self._rotation_of, kv_layers, strict=True):
            with span(layer.name):
                with span("attention"):
                    x, _ = layer.attention_norm.add(layer.attention(x, tables[rotation], kv, backend, meta), x)
                with span("mlp"):
                    x, _ = layer.mlp_norm.add(layer.mlp(x), x)
        return x

    def _make_head(self, build: Build) -> Linear | TiedHead:
        spec = self.spec
        if spec.tied_head:
            return TiedHead(build, self._inputs.embedding)
        return Linear(build, (build.names.head,), spec.hidden_size, (spec.vocab_size,), bias=False, form="float32")

    @property
    def cost(self) -> Cost:
        """What steps cost, for those who measure how long they take."""
        return cost_of(self.spec, self.leaves, self._head, self.kv_specs, self._dtype, self._products())

    def _products(self) -> dict[str, list[Linear]]:
        """The linear layers by what they are called in a profile; without those of layers that have others."""
        products: dict[str, list[Linear]] = {}
        for layer in self._layers:
            own = dict(layer.attention.products)
            if isinstance(layer.mlp, Mlp):
                own |= {"up": layer.mlp.up, "down": layer.mlp.down}
            for name, linear in own.items():
                products.setdefault(name, []).append(linear)
        return products

    def activation_bytes(self, num_tokens: int, num_logits: int) -> int:
        """The most that a step of so many tokens needs beside weights and cache: activations and float32 logits."""
        layers = self.spec.layers
        heads = max(layer.attention.width for layer in layers)
        width = 4 * self.spec.hidden_size + heads + 3 * max(layer.mlp.intermediate_size for layer in layers)
        return num_tokens * width * self._dtype.itemsize + 3 * num_logits * self.spec.vocab_size * 4

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: hidden ``[L, H]`` -> float32 ``[L, V]``, not an alias of anything."""
        assert self._head is not None, "a model that pools has no scores of tokens"
        scores = self._head(hidden)
        cap = self.spec.logit_softcap
        return scores if cap is None else scores.div_(cap).tanh_().mul_(cap)


def _attention(
    build: Build, layer: int, spec: AttentionSpec, hidden_size: int, rotation: Rotation
) -> Attention | LatentAttention:
    if spec.latent is None:
        return Attention(build, layer, spec, hidden_size, rotation)
    return LatentAttention(build, layer, spec, spec.latent, hidden_size, rotation)


def _feed_forward(build: Build, layer: int, spec: MlpSpec | MoeSpec, hidden_size: int) -> Mlp | Moe:
    if isinstance(spec, MoeSpec):
        return Moe(build, layer, spec, hidden_size)
    names = (tuple(name.format(layer) for name in build.names.up), build.names.down.format(layer))
    return Mlp(build, names, spec, hidden_size)


def _rotation(build: Build, spec: RopeSpec | None) -> Rotation:
    return NoRope() if spec is None else Rope(build, spec)
