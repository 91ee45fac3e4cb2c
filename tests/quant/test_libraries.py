"""bitsandbytes and torchao, where they are installed: what they save is read to the numbers that they read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sgl.quant.formats import torchao
from sgl.quant.formats.bitsandbytes import Codes4, Int8Rows
from sgl.quant.scheme import Scheme
from sgl.quant.stored import Fields, Header

ROWS, INNER = 96, 256
pytestmark = pytest.mark.filterwarnings("ignore")


def _weight() -> torch.Tensor:
    return torch.randn(ROWS, INNER, generator=torch.Generator().manual_seed(0)) * 0.05


def _check(scheme: Scheme, tensors: dict[str, torch.Tensor]) -> None:
    parts = {part.suffix: part for part in scheme.parts(ROWS, INNER)}
    assert set(tensors) <= set(parts)
    for suffix, part in parts.items():
        assert suffix in tensors or part.optional, suffix
        if suffix in tensors:
            assert tensors[suffix].dtype in part.dtypes, suffix
            assert not part.shapes or tuple(tensors[suffix].shape) in part.shapes, suffix


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_4_bits(kind: Any, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(_weight(), quant_type=kind, compress_statistics=nested, blocksize=64)
    tensors = {"weight": packed, **{f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}}
    scheme = Codes4(kind)
    _check(scheme, tensors)
    read = scheme.decode(tensors, ROWS, INNER).dequantize()
    assert torch.equal(read, functional.dequantize_4bit(packed, state))


def test_our_nf4_is_bitsandbytes_own() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(_weight(), quant_type="nf4", blocksize=64)
    ours = Codes4().decode(Codes4().encode(_weight()), ROWS, INNER).dequantize()
    assert torch.equal(ours, functional.dequantize_4bit(packed, state))


def test_bitsandbytes_in_8_bits() -> None:
    """It multiplies by 1 / 127 after the scale: the last bit of float32 may differ."""
    functional = pytest.importorskip("bitsandbytes.functional")
    values, peaks, _ = functional.int8_vectorwise_quant(_weight().half())
    read = Int8Rows().decode({"weight": values, "SCB": peaks}, ROWS, INNER).dequantize()
    torch.testing.assert_close(read, functional.int8_vectorwise_dequant(values, peaks), rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Int8WeightOnlyConfig", {"version": 2}),
        ("Int8DynamicActivationInt8WeightConfig", {"version": 2}),
        ("Float8WeightOnlyConfig", {}),
        ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4, "granularity": 32}),
    ],
)
def test_torchao(name: str, options: dict[str, Any]) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    if "granularity" in options:
        options = {**options, "granularity": quantization.PerGroup(options["granularity"])}
    config = getattr(quantization, name)(**options)
    model = torch.nn.Sequential(torch.nn.Linear(INNER, ROWS, bias=False)).bfloat16()
    quantization.quantize_(model, config)
    flat, _ = flatten_tensor_state_dict(model.state_dict())
    tensors = {key.removeprefix("0."): tensor for key, tensor in flat.items()}
    layout = torchao.read(Fields({"quant_method": "torchao", "quant_type": {"default": config_to_dict(config)}}))
    scheme = layout.scheme_of("0", {key: Header(tuple(part.shape), part.dtype) for key, part in tensors.items()})
    assert scheme is not None
    _check(scheme, tensors)
    read = scheme.decode(tensors, ROWS, INNER).dequantize()
    assert torch.equal(read.bfloat16(), model[0].weight.dequantize())
