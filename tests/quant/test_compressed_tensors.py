"""compressed-tensors' own compressors write what we read and read what we write, to the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sgl.quant.formats import compressed_tensors as ours
from sgl.quant.formats.float8 import Float8
from sgl.quant.formats.int8 import Int8
from sgl.quant.formats.mxfp4 import MXFP4
from sgl.quant.formats.nvfp4 import NVFP4
from sgl.quant.formats.packed import Packed
from sgl.quant.scheme import WritableScheme
from sgl.quant.stored import Fields

pytest.importorskip("compressed_tensors")

ROWS, INNER = 128, 256
SCHEMES: list[WritableScheme] = [
    Float8("tensor", "token"),
    Float8("tensor", "tensor"),
    Float8("channel", "token"),
    Float8("channel", "none"),
    Float8("block", "block"),
    Int8("channel", "token"),
    Int8("channel", "none"),
    Int8(64, "none"),
    *(Packed(4, group, symmetric) for group in (None, 32, 64, 128) for symmetric in (True, False)),
    *(Packed(8, group) for group in (None, 128)),
    NVFP4("none"),
    NVFP4("group"),
    MXFP4(),
]


def named(scheme: WritableScheme) -> str:
    return repr(scheme)


def library(scheme: WritableScheme) -> tuple[Any, Any]:
    """Their compressor and their view of our config group."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = QuantizationScheme(targets=["Linear"], **scheme.entry)
    return BaseCompressor.get_value_from_registry(scheme.format), group


def theirs(scheme: WritableScheme, tensors: dict[str, Tensor]) -> Tensor:
    compressor, group = library(scheme)
    weight: Tensor = compressor.decompress(dict(tensors), group)["weight"]
    return weight


def float_weight(seed: int = 0) -> Tensor:
    weight = torch.randn(ROWS, INNER, generator=torch.Generator().manual_seed(seed)) * 0.05
    weight[:, 7] *= 20
    weight[5] = 0
    return weight


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_they_read_what_we_write(scheme: WritableScheme) -> None:
    stored = scheme.encode(float_weight().bfloat16())
    decoded = scheme.decode({**stored, "input_scale": torch.ones(1)}, ROWS, INNER).dequantize()
    read = theirs(scheme, stored)
    assert torch.equal(decoded.to(read.dtype), read)


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_we_read_what_they_write(scheme: WritableScheme) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    compressor, group = library(scheme)
    weight, ours_first = float_weight(1), scheme.encode(float_weight(1))
    given = {name: tensor for name, tensor in ours_first.items() if name.endswith("global_scale")}
    high, wide = unit(scheme)
    blocks = weight.view(ROWS // high, high, INNER // wide, wide)
    low, peak = blocks.amin((1, 3)), blocks.amax((1, 3))
    scale, zero = calculate_qparams(low, peak, group.weights, global_scale=given.get("weight_global_scale"))
    if high == ROWS and wide == INNER:
        scale, zero = scale.view(1), zero.view(1)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero, **given}
    stored = compressor.compress(state, group)
    stored = {name: tensor.detach() for name, tensor in stored.items()}
    parts = {part.suffix: part for part in scheme.parts(ROWS, INNER)}
    assert set(stored) <= set(parts)
    for name, tensor in stored.items():
        assert tensor.dtype in parts[name].dtypes, name
        assert not parts[name].shapes or tuple(tensor.shape) in parts[name].shapes, name
    decoded = scheme.decode({**stored, "input_scale": torch.ones(1)}, ROWS, INNER).dequantize()
    read = theirs(scheme, stored)
    assert torch.equal(decoded.to(read.dtype), read)


def unit(scheme: WritableScheme) -> tuple[int, int]:
    """Outputs and inputs that share a scale."""
    weights = scheme.entry["weights"]
    if weights["strategy"] == "block":
        return (128, 128)
    size = weights.get("group_size")
    return {"tensor": (ROWS, INNER), "channel": (1, INNER)}.get(weights["strategy"], (1, size))


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
def test_the_config_says_what_was_written(scheme: WritableScheme) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    written = ours.config({"Linear": scheme, "model.layers.1.mlp.down_proj": Int8()}, ["lm_head", "re:.*gate$"])
    QuantizationConfig.model_validate(written)
    layout = ours.read(Fields(written))
    assert layout.scheme_of("model.layers.0.mlp.down_proj", {}) == scheme
    assert layout.scheme_of("model.layers.1.mlp.down_proj", {}) == Int8()
    assert layout.scheme_of("lm_head", {}) is None
    assert layout.scheme_of("model.layers.0.mlp.gate", {}) is None
