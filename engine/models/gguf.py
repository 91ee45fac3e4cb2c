"""The tensors of a GGUF file under the names and in the order that a model family gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sgl.engine.base import gguf
from sgl.engine.base.errors import ModelError
from sgl.engine.base.gguf import GgufTensor
from sgl.engine.models.packed import Stored
from sgl.engine.nn.rope import frequencies_of
from sgl.engine.nn.spec import ModelSpec, WeightNames

_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_ROPE_FREQS = "rope_freqs.weight"


def stored(path: Path, names: WeightNames, spec: ModelSpec) -> dict[str, Stored]:
    """The tensors of a file by the names of the model; a quantized one ends in its type instead of ``weight``.

    Raises:
        ModelError: the file is corrupt, or holds frequencies that do not follow from the metadata.
    """
    header = gguf.read(path)
    kind = header.metadata.get("general.architecture")
    own = dict(_names(names, len(spec.layers)))
    found = {}
    for name, tensor in header.tensors.items():
        if name == _ROPE_FREQS:
            _check_frequencies(path, tensor, spec)
            continue
        module, _, suffix = name.rpartition(".")
        renamed = own.get(module, module)
        is_float = tensor.type.name in _FLOATS
        ending = suffix if is_float or suffix != "weight" else tensor.type.name
        shape = tensor.shape if is_float else (*tensor.shape[:-1], tensor.row_bytes)
        dtype = tensor.type.name.upper() if is_float else "U8"
        undo = _undo(kind, module, spec)
        found[f"{renamed}.{ending}"] = Stored(path, f"{renamed}.{ending}", shape, dtype, tensor.offset, undo)
    return found


def tensor(stored: Stored) -> Tensor:
    """Reads a tensor of a GGUF file."""
    assert stored.offset is not None
    dtype = _FLOATS.get(stored.dtype.lower(), torch.uint8)
    count = 1
    for size in stored.shape:
        count *= size
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        data = bytearray(count * dtype.itemsize)
        if file.readinto(data) < len(data):
            raise ModelError(f"{stored.file} is truncated or corrupt ({stored.key}); fetch it again.")
    read = torch.frombuffer(data, dtype=dtype).view(stored.shape)
    return read if stored.undo is None else stored.undo(read)


def _names(names: WeightNames, num_layers: int) -> Iterator[tuple[str, str]]:
    """What a file calls the modules, and what the model does."""
    yield from (("token_embd", names.embedding), ("output_norm", names.norm), ("output", names.head))
    queries = zip(("attn_q", "attn_k", "attn_v"), names.qkv, strict=True)
    layers = {
        **dict(queries),
        "attn_norm": names.attention_norm,
        "attn_output": names.attention_out,
        "ffn_norm": names.mlp_norm,
        "ffn_gate": names.up[0],
        "ffn_up": names.up[-1],
        "ffn_down": names.down,
        "attn_q_norm": names.q_norm,
        "attn_k_norm": names.k_norm,
        "post_attention_norm": names.attention_out_norm,
        "post_ffw_norm": names.mlp_out_norm,
    }
    for index in range(num_layers):
        yield from ((f"blk.{index}.{theirs}", ours.format(index)) for theirs, ours in layers.items() if ours)


def _undo(kind: object, module: str, spec: ModelSpec) -> Callable[[Tensor], Tensor] | None:
    """What a converter did to a tensor, undone."""
    attention = spec.layers[0].attention
    part = module.rpartition(".")[2]
    heads: Mapping[str, int] = {"attn_q": attention.num_heads, "attn_k": attention.num_kv_heads}
    if kind == "llama" and part in heads:
        return partial(_split_pairs, heads[part])
    if spec.norm.offset and part.endswith("norm"):
        return partial(torch.add, other=-spec.norm.offset)
    return None


def _split_pairs(heads: int, rows: Tensor) -> Tensor:
    """Rows of heads in which rotated dimensions stand in pairs, as halves."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _check_frequencies(path: Path, tensor_: GgufTensor, spec: ModelSpec) -> None:
    """The stored divisors are those of Llama 3.1's scaling, which is what config.json was made to say."""
    rope = spec.layers[0].attention.rope
    assert rope is not None
    held = tensor(Stored(path, tensor_.name, tensor_.shape, "F32", tensor_.offset))
    plain = rope.theta ** (-torch.arange(0, rope.head_dim, 2, dtype=torch.float64) / rope.head_dim)
    divisors = plain / frequencies_of(rope)[0].double()
    if held.shape != plain.shape or not torch.allclose(divisors, held.double(), rtol=1e-4):
        raise ModelError(f"{path}: {tensor_.name} holds other frequencies than Llama 3.1's scaling; not supported.")
