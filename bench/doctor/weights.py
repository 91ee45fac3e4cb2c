"""Whether a checkpoint's tensors are what its config.json asks for, and those of a checkpoint known to be good."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgl.bench.doctor.fault import Fault, listed
from sgl.engine.base.device import detect_isa
from sgl.engine.base.errors import ModelError
from sgl.engine.models.family import Family, HfConfig
from sgl.engine.models.loader import Intake, weight_files
from sgl.engine.models.registry import family_of
from sgl.engine.nn.decoder import Model
from sgl.engine.nn.weights import Build
from sgl.kernels.registry import bind

_COSMETIC = re.compile(
    r"(_name_or_path|transformers_version|architectures|model_type|dtype|torch_dtype|use_cache|.*dropout|pretraining_tp"
    r"|initializer_range|attn_implementation)(\..*)?"
)
"""Fields of config.json that no answer depends on."""

_FLOATING = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(self.key)
            return found


@dataclass(frozen=True)
class Checkpoint:
    """
    Args:
        config: its config.json.
        tensors: by the names that the model gives them.
    """

    path: Path
    config: Mapping[str, Any]
    family: Family
    tensors: Mapping[str, Stored]

    @staticmethod
    def read(path: Path, config: Mapping[str, Any]) -> Checkpoint:
        """
        Raises:
            ModelError: the architecture is not supported or a file cannot be read.
        """
        family, tensors = family_of(config), {}
        for file in weight_files(path):
            try:
                with safe_open(file, framework="pt") as opened:
                    for key in opened.keys():  # noqa: SIM118 - not a mapping
                        name = key
                        for pattern, replacement in family.names.renames:
                            name = re.sub(pattern, replacement, name)
                        part = opened.get_slice(key)
                        tensors[name] = Stored(file, key, tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{file} is truncated or corrupt ({error}); fetch it again.") from None
        return Checkpoint(path, config, family, tensors)

    def wanted(self) -> dict[str, tuple[int, ...]]:
        """The tensors that config.json asks for, with their shapes.

        Raises:
            ModelError: config.json does not describe a model.
        """
        build = Build(bind("cpu", detect_isa(), torch.float32), torch.float32, torch.device("cpu"), self.family.names)
        model = Model(self.family.spec(HfConfig(self.config)), build)
        return {name: slot.shape for name, slot in Intake(model.leaves).slots.items()}


def against_config(own: Checkpoint) -> Iterator[Fault]:
    """Names and shapes."""
    wanted, names = own.wanted(), own.family.names
    ignored = re.compile(names.ignored)
    head = f"{names.head}.weight"
    missing = [name for name in wanted if name not in own.tensors]
    extra = [n for n in own.tensors if n not in wanted and n != head and not ignored.fullmatch(n)]
    if missing:
        told = "they are missing" if len(missing) > 1 else "it is missing"
        yield _weights_fault(listed(missing), "in the checkpoint, as config.json asks", told)
    if extra:
        yield _weights_fault(listed(extra), "no tensors but those of config.json's model", "not part of the model")
    for name, shape in wanted.items():
        stored = own.tensors.get(name)
        if stored is not None and stored.shape != shape:
            yield _shape_fault(own, name, shape, stored.shape)


def numbers(own: Checkpoint) -> Iterator[Fault]:
    """All of them are numbers, and the dtype that is to be computed in has room for them."""
    for name, stored in own.tensors.items():
        if stored.dtype in _FLOATING and not bool(stored.read().isfinite().all()):
            yield _weights_fault(name, "numbers", "NaN or infinite values")


def against(own: Checkpoint, good: Checkpoint) -> Iterator[Fault]:
    """The same configuration, and the same numbers under the same names."""
    if own.family != good.family:
        expected, fix = f"a model of {good.family.name}, as the reference is", "name a reference of the same family"
        yield Fault("config", "wrong", "config.json: architectures", expected, own.family.name, fix)
        return
    yield from _configs(own, good)
    both = [name for name in good.tensors if name in own.tensors]
    wrong = [name for name in both if not _equal(own.tensors[name], good.tensors[name])]
    if len(wrong) > max(len(both) // 2, 8):
        told = f"{len(wrong)} of {len(both)} differ, {listed(wrong)}"
        yield _weights_fault(
            "all layers", "the reference's weights", f"{told}: this is another model or a fine-tuned one"
        )
        return
    origins = _origins(own, good) if wrong else {}
    for name in wrong:
        mine, theirs = own.tensors[name], good.tensors[name]
        if mine.shape != theirs.shape and mine.shape != theirs.shape[::-1]:
            told = f"{list(mine.shape)}"
            yield _weights_fault(name, f"{list(theirs.shape)}, as in the reference", told)
        else:
            yield _weights_fault(name, "the reference's numbers", _told(name, mine, theirs, origins))


def _told(name: str, mine: Stored, theirs: Stored, origins: Mapping[str, str]) -> str:
    """What a tensor holds instead of its numbers."""
    value = mine.read()
    origin = origins.get(_digest(value))
    if origin is not None and origin != name:
        return f"those of {origin}: they are swapped"
    reference = theirs.read().to(value.dtype)
    if value.dim() == 2:
        origin = origins.get(_digest(value.t()))
        if origin is not None:
            return f"the transpose of {'them' if origin == name else origin}"
        for shift in (1, -1):
            rows = (value[:-1], reference[1:]) if shift > 0 else (value[1:], reference[:-1])
            if value.shape == reference.shape and torch.equal(*rows):
                return f"its rows one too {'early' if shift > 0 else 'late'}: row {shift % len(value)} comes first"
    gap = (value.float() - reference.float()).abs()
    return f"others: the largest difference is {float(gap.max()):.3g}, in {int((gap > 0).sum())} of {gap.numel()}"


def _origins(own: Checkpoint, good: Checkpoint) -> dict[str, str]:
    """The reference's tensors by their digest in the dtype of their namesakes."""
    found = {}
    for name, stored in good.tensors.items():
        if name in own.tensors:
            dtype = own.tensors[name].read().dtype
            found[_digest(stored.read().to(dtype))] = name
    return found


def _digest(tensor: Tensor) -> str:
    content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest() + str(tuple(tensor.shape))


def _equal(mine: Stored, theirs: Stored) -> bool:
    if mine.shape != theirs.shape:
        return False
    a, b = mine.read(), theirs.read()
    return torch.equal(a, b.to(a.dtype))


def _configs(own: Checkpoint, good: Checkpoint) -> Iterator[Fault]:
    """Fields that both state and that differ, where the models that they describe do, too."""
    mine, theirs = dict(_flat(own.config)), dict(_flat(good.config))
    if own.family.spec(HfConfig(own.config)) != good.family.spec(HfConfig(good.config)):
        for field in sorted(mine.keys() | theirs.keys()):
            if mine.get(field) != theirs.get(field) and not _COSMETIC.fullmatch(field):
                expected, found = theirs.get(field, "not given"), mine.get(field, "not given")
                fix = f"set {field} as the reference has it"
                yield Fault(
                    "config", "wrong", f"config.json: {field}", f"{expected}, as in the reference", f"{found}", fix
                )


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _shape_fault(own: Checkpoint, name: str, wanted: tuple[int, ...], found: tuple[int, ...]) -> Fault:
    names, rows = own.family.names, own.config.get("vocab_size")
    told = f"{list(found)}"
    if wanted == found[::-1]:
        told += ": transposed"
    elif name in (f"{names.embedding}.weight", f"{names.head}.weight") and wanted[1:] == found[1:]:
        told += f": the vocabulary is {'truncated' if found[0] < wanted[0] else 'longer'}, vocab_size is {rows}"
    return _weights_fault(name, f"{list(wanted)} by config.json", told)


def _weights_fault(place: str, expected: str, found: str) -> Fault:
    return Fault("weights", "wrong", place, expected, found, "fetch the weights again, or correct config.json")
