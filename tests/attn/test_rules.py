"""Softcap and sinks: both backends against the formulas of transformers, and through a whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as softcapped
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

from sgl.engine.attn.batch import KVLayer
from sgl.engine.attn.choice import choose_backend
from sgl.engine.base.device import detect_isa, open_device
from sgl.engine.models.llama import FAMILY
from sgl.engine.models.loader import Intake
from sgl.engine.nn.decoder import Model
from sgl.engine.nn.weights import Build
from sgl.kernels.cpu import native
from sgl.kernels.ops.attention import Rules
from sgl.kernels.registry import bind
from tests.attn.scenes import make_batch
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged

HEADS, KV_HEADS, DIM, PAGE = 6, 2, 64, 16
NEW, PAST = [1, 20, 3], [37, 0, 90]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
BACKENDS = [("torch_native", torch.float32), pytest.param("cpu", torch.bfloat16, marks=needs_compiler)]


def formula(softcap: float | None, sinks: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What transformers answers to the last ``len(q)`` tokens; all float32."""
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False, sinks=sinks)
    past = len(k) - len(q)
    mask = torch.full((len(q), len(k)), float("-inf")).triu(past + 1)[None, None]
    tensors = (x.transpose(0, 1)[None] for x in (q, k, v))
    options: dict[str, Any] = {"scaling": DIM**-0.5, "dropout": 0.0}
    if sinks is None:
        return softcapped(module, *tensors, mask, softcap=softcap, **options)[0][0]
    return with_sinks(module, *tensors, mask, **options)[0][0]


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
@pytest.mark.parametrize(("softcap", "has_sinks"), [(1.5, False), (None, True)])
def test_equals_transformers(name: str, dtype: torch.dtype, softcap: float | None, has_sinks: bool) -> None:
    torch.manual_seed(0)
    kernels = bind("cpu", detect_isa(), dtype)
    backend = choose_backend(name, open_device("cpu"), (), PAGE, kernels)
    lengths = [n + p for n, p in zip(NEW, PAST, strict=True)]
    table = torch.randperm(8 * len(NEW)).int().view(len(NEW), 8)
    cache = KVLayer(*(torch.full((table.numel(), KV_HEADS, PAGE, DIM), torch.nan, dtype=dtype) for _ in "kv"))
    k, v = (torch.randn(sum(lengths), KV_HEADS, DIM).to(dtype) for _ in "kv")
    backend.store(k, v, cache, backend.plan(make_batch(lengths, [0] * len(NEW), table, PAGE)))
    q, sinks = torch.randn(sum(NEW), HEADS, DIM).to(dtype) * 2, torch.randn(HEADS) * 2 if has_sinks else None
    meta = backend.plan(make_batch(NEW, PAST, table, PAGE))
    got = backend.run(q, cache, meta, Rules(DIM**-0.5, None, softcap, sinks))
    rows = zip(*(x.float().split(sizes) for x, sizes in ((q, NEW), (k, lengths), (v, lengths))), strict=True)
    wanted = torch.cat([formula(softcap, sinks, *row) for row in rows])
    torch.testing.assert_close(got.float(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    plain = backend.run(q, cache, meta, Rules(DIM**-0.5))
    assert (plain.float() - wanted).abs().max() > 0.1


def with_rules(path: Path, backend: str, overrides: tuple[str, ...] = (), softcap: float | None = 2.0) -> Paged:
    """A llama whose layers also have both rules, with random weights, over a cache of its own."""
    paged = Paged(path, torch.bfloat16, page_size=PAGE, overrides=overrides, backend=backend)
    attention = replace(paged.model.spec.layers[0].attention, softcap=softcap, sinks=True)
    layers = tuple(replace(layer, attention=attention) for layer in paged.model.spec.layers)
    names = replace(FAMILY.names, sinks="model.layers.{}.self_attn.sinks")
    kernels = bind("cpu", detect_isa(), torch.bfloat16, overrides)
    build = Build(kernels, torch.bfloat16, torch.device("cpu"), names)
    with torch.inference_mode():
        model = Model(replace(paged.model.spec, layers=layers), build)
        intake, generator = Intake(model.leaves), torch.Generator().manual_seed(1)
        for name, slot in sorted(intake.slots.items()):
            scale = 3.0 if name.endswith("sinks") else slot.shape[-1] ** -0.5 * (4 if "q_proj" in name else 1)
            intake.put(name, torch.randn(slot.shape, generator=generator) * scale + ("norm" in name))
        intake.close()
        model.finish()
    paged.model = model
    return paged


@needs_compiler
def test_a_model_with_both_rules_answers_the_same_on_every_path(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path, tokenizer=False)
    prompt = [(7 * i) % 200 for i in range(90)]
    torch_native = with_rules(path, "torch_native").prompt(prompt, chunk=40)
    joined, apart = with_rules(path, "cpu"), with_rules(path, "cpu", ("norm.rms=reference",))
    assert joined.model.is_fused and not apart.model.is_fused
    size = torch_native.abs().max()
    for paged in (joined, apart):
        assert (paged.prompt(prompt) - torch_native).abs().max() < 0.05 * size
    assert torch.equal(joined.prompt(prompt, chunk=40), joined.prompt(prompt))
    without = with_rules(path, "torch_native", softcap=None).prompt(prompt)
    assert (without - torch_native).abs().max() > 0.1 * size
