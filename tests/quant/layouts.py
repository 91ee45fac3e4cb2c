"""Quantized checkpoints written as each format's documentation describes, from checkpoints of transformers.

A naive second implementation: loops over bits and blocks in numpy, sharing nothing with sgl. Every writer takes a
weight ``[N, K]`` and returns the stored tensors by suffix and the float32 numbers that they stand for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Stored = tuple[dict[str, Tensor], Tensor]
Writer = Callable[[Tensor, int], Stored]
"""Of a weight and a seed."""


def _bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Rows of small integers as rows of 32-bit words: a stream of bits, the lowest first."""
    stream = (values[..., None] >> np.arange(bits)) & 1
    stream = stream.reshape(values.shape[0], -1, 32).astype(np.uint64)
    return (stream << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)


def _round(weight: np.ndarray, bits: int, group: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers ``[N, K]``, fp16 scales and zero points ``[N, G]``."""
    parts = weight.reshape(weight.shape[0], -1, group)
    most = (1 << bits) - 1
    if symmetric:
        scales = (np.abs(parts).max(-1) / (most // 2 or 1)).astype(np.float16)
        zeros = np.full(scales.shape, 1 << bits - 1)
    else:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scales = ((high - low) / most).astype(np.float16)
        zeros = np.clip(np.round(-low / scales.astype(np.float32)), 1, most).astype(int)
    steps = np.round(parts / scales.astype(np.float32)[..., None]) + zeros[..., None]
    return np.clip(steps, 0, most).astype(int).reshape(weight.shape), scales, zeros


def _numbers(values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group_of: np.ndarray) -> Tensor:
    steps = (values - zeros[:, group_of]).astype(np.float32)
    return torch.from_numpy(steps * scales.astype(np.float32)[:, group_of])


def gptq(bits: int, group: int, *, act_order: str, symmetric: bool, version: int) -> Writer:
    """``act_order``: empty, ``shared`` by weights of the same inputs as GPTQ makes it, or each its ``own``."""

    def write(weight: Tensor, seed: int) -> Stored:
        inner = weight.shape[1]
        size = inner if group == -1 else group
        chosen = np.random.default_rng(inner if act_order == "shared" else seed).permutation(inner)
        order = chosen if act_order else np.arange(inner)
        sorted_values, scales, zeros = _round(weight.numpy()[:, order], bits, size, symmetric)
        values, group_of = np.empty_like(sorted_values), np.empty(inner, dtype=np.int32)
        values[:, order], group_of[order] = sorted_values, np.arange(inner) // size
        kept = (zeros.T - (1 if version == 1 else 0)) & ((1 << bits) - 1)
        tensors = {
            "qweight": torch.from_numpy(_bits(values, bits).T.copy()),
            "qzeros": torch.from_numpy(_bits(kept, bits)),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(group_of),
            "bias": torch.zeros(weight.shape[0], dtype=torch.float16),
        }
        return tensors, _numbers(values, scales, zeros, group_of)

    return write


def awq(group: int) -> Writer:
    def words(values: np.ndarray) -> Tensor:
        """``[R, N]`` -> ``[R, N / 8]``: place i of a word holds column (0, 2, 4, 6, 1, 3, 5, 7)[i] of eight."""
        eights = values.reshape(values.shape[0], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return torch.from_numpy(_bits(eights.reshape(values.shape), 4))

    def write(weight: Tensor, seed: int) -> Stored:
        values, scales, zeros = _round(weight.numpy(), 4, group, symmetric=False)
        tensors = {"qweight": words(values.T), "qzeros": words(zeros.T), "scales": torch.from_numpy(scales.T.copy())}
        return tensors, _numbers(values, scales, zeros, np.arange(weight.shape[1]) // group)

    return write


def fp8(block: tuple[int, int] | None, name: str, static: bool = False) -> Writer:
    def write(weight: Tensor, seed: int) -> Stored:
        rows, inner = weight.shape
        high, wide = block or (rows, inner)
        values, exact = torch.empty(rows, inner, dtype=torch.float8_e4m3fn), torch.empty(rows, inner)
        scales = torch.empty(-(-rows // high), -(-inner // wide))
        for r in range(scales.shape[0]):
            for c in range(scales.shape[1]):
                place = (slice(r * high, (r + 1) * high), slice(c * wide, (c + 1) * wide))
                scales[r, c] = weight[place].abs().max() / 448
                values[place] = (weight[place] / scales[r, c]).to(torch.float8_e4m3fn)
                exact[place] = values[place].float() * scales[r, c]
        tensors = {"weight": values, name: scales if block else scales.view(())}
        if static:
            tensors["input_scale"] = torch.tensor(0.1)
        return tensors, exact

    return write


def bnb_int8(weight: Tensor, seed: int) -> Stored:
    peaks = weight.abs().amax(1)
    values = (weight * 127 / peaks[:, None]).round().to(torch.int8)
    tensors = {"weight": values, "SCB": peaks, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, values.float() * (peaks / 127)[:, None]


def bnb_4bit(kind: str, nested: bool) -> Writer:
    def write(weight: Tensor, seed: int) -> Stored:
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(16, generator=generator).sort().values
        codes = torch.randint(0, 16, (weight.numel(),), generator=generator)
        peaks = torch.rand(weight.numel() // 64, generator=generator) * 0.1
        state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
        tensors = {
            "weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8).view(-1, 1),
            "weight.quant_map": table,
            "weight.absmax": peaks,
        }
        if nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
            map_ = torch.linspace(-1, 1, 256)
            places = torch.randint(0, 256, peaks.shape, generator=generator)
            outer = torch.rand(-(-len(peaks) // 256), generator=generator) * 0.01
            peaks = map_[places] * outer[torch.arange(len(peaks)) // 256] + 0.05
            tensors |= {
                "weight.absmax": places.to(torch.uint8),
                "weight.nested_absmax": outer,
                "weight.nested_quant_map": map_,
            }
        raw = bytearray(json.dumps(state).encode())
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.frombuffer(raw, dtype=torch.uint8).clone()
        exact = table[codes] * peaks[torch.arange(weight.numel()) // 64]
        return tensors, exact.view(weight.shape)

    return write


def torchao_int8(weight: Tensor, seed: int) -> Stored:
    scales = weight.abs().amax(1, keepdim=True) / 127
    values = (weight / scales).round().to(torch.int8)
    return {"_weight_qdata": values, "_weight_scale": scales}, values.float() * scales


def torchao_fp8(weight: Tensor, seed: int) -> Stored:
    scales = weight.abs().amax(1, keepdim=True) / 448
    values = (weight / scales).to(torch.float8_e4m3fn)
    return {"_weight_qdata": values, "_weight_scale": scales}, values.float() * scales


def modelopt_nvfp4(weight: Tensor, seed: int) -> Stored:
    magnitudes = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    table = torch.tensor([*magnitudes, *(-value for value in magnitudes)])
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, weight.shape, generator=generator)
    scales = (torch.rand(weight.shape[0], weight.shape[1] // 16, generator=generator) * 100).to(torch.float8_e4m3fn)
    factor = torch.tensor(3e-4)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    exact = table[codes] * (scales.float() * factor).repeat_interleave(16, 1)
    return {"weight": packed, "weight_scale": scales, "weight_scale_2": factor}, exact


def convert(source: Path, path: Path, writer: Writer, config: Mapping[str, Any]) -> Path:
    """Quantizes the linear layers of a checkpoint but for its head. Beside it, in ``exact``, lies what was stored."""
    shutil.copytree(source, path)
    tensors, exact = {}, {}
    floats = load_file(source / "model.safetensors")
    for seed, (name, weight) in enumerate(floats.items()):
        module, _, suffix = name.rpartition(".")
        if weight.dim() != 2 or suffix != "weight" or not ("_proj" in module or ".experts." in module):
            tensors[name] = exact[name] = weight
            continue
        parts, exact[name] = writer(weight.float(), seed)
        stored = {f"{module}.{suffix}": part.contiguous() for suffix, part in parts.items()}
        tensors |= {name: part for name, part in stored.items() if name not in floats or name.endswith("weight")}
    shutil.copytree(source, path / "exact")
    save_file(
        {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in exact.items()},
        path / "exact" / "model.safetensors",
        {"format": "pt"},
    )
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": dict(config)}))
    return path
