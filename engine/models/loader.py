"""From a directory with config.json and safetensors to a model that is ready to run; downloads nothing.

Tensors are read through memory maps, one after the other, straight into the layer that waits for them; a layer packs
its weights as soon as it has them all. So the peak is the packed model plus one layer.
"""

from __future__ import annotations

import json
import logging
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgl.engine.base import gguf_folder, hub
from sgl.engine.base.arena import Arena
from sgl.engine.base.device import Device
from sgl.engine.base.errors import ConfigError, ModelError
from sgl.engine.models import gguf
from sgl.engine.models.family import HfConfig
from sgl.engine.models.packed import Found, Stored, StoredParts, find
from sgl.engine.models.pooling import Kind, dense_folders, pooled
from sgl.engine.models.registry import family_of
from sgl.engine.models.streaming import streamed
from sgl.engine.nn.decoder import Model
from sgl.engine.nn.spec import ModelSpec, WeightNames
from sgl.engine.nn.weights import Build, Leaf, WeightSlot
from sgl.kernels.cpu import native
from sgl.kernels.registry import Kernels
from sgl.quant.config import rounding
from sgl.quant.methods import read_layout
from sgl.quant.repack import Repacks
from sgl.quant.scheme import Encoded
from sgl.quant.stored import Layout

logger = logging.getLogger(__name__)

_FLOATS = {"F64", "F32", "F16", "BF16"}
_NUM_LISTED = 10
_NOISE_SIZE = 1_048_573  # a prime, so that rows of dummy weights differ


def read_config(model_dir: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a local directory with some of its fields replaced; raises `ModelError`."""
    return {**hub.read_config(str(model_dir)), **overrides}


def load_model(
    model_dir: Path,
    hf_config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: Device,
    kernels: Kernels,
    load_format: str = "auto",
    quantization: str = "none",
    torchao_config: str = "none",
    allow_repack: bool = False,
    exact_activations: bool = False,
    kv_dtype: torch.dtype | None = None,
    is_embedding: bool = False,
    pooling: Kind | Literal["auto"] = "auto",
    seed: int = 0,
    arena: Arena | None = None,
    like: ModelSpec | None = None,
    is_rehearsal: bool = False,
) -> Model:
    """Builds the model that ``hf_config`` describes and fills it from the directory's safetensors.

    Args:
        dtype: what weights are converted to and computed in.
        load_format: ``dummy`` fills the weights with noise drawn from ``seed`` and reads no file; ``auto`` and
            ``safetensors`` read.
        quantization: what linear layers are rounded to while loading, one of `sgl.quant.config.ONLINE`, or none; of a
            quantized checkpoint its own method may be named.
        torchao_config: the same in torchao's words, one of `sgl.quant.config.TORCHAO`, or none.
        allow_repack: whether formats without a kernel may be rounded once more, to one that has one.
        exact_activations: whether weight-only formats are decoded where their kernel would round activations.
        arena: memory for packed weights; one is made if there is none or it is too small.
        like: what the model must be, if it takes the place of another; nothing is read if it is not.
        kv_dtype: what keys and values are quantised to, None to keep them in ``dtype``.
        is_embedding: whether a model with a head is to answer with embeddings instead.
        is_rehearsal: one layer of each kind is enough.
        pooling: how an embedding model pools, ``auto`` as its checkpoint says.

    Raises:
        ConfigError: the options contradict each other or the checkpoint.
        ModelError: the architecture is not supported, or files or tensors are missing, corrupt or of another shape.
    """
    family = family_of(hf_config)
    layout = read_layout(model_dir, hf_config)
    method = layout.method if layout else None
    _check_format(load_format, method, model_dir)
    rounded = rounding(quantization, torchao_config, family.names.head, method)
    build = Build(
        kernels, dtype, device.torch_device, family.names, rounded, kv_dtype, exact_activations=exact_activations
    )
    build.repacks = Repacks() if allow_repack else None
    with torch.inference_mode():
        spec = pooled(family.spec(HfConfig(hf_config)), model_dir, is_embedding=is_embedding, kind=pooling)
        _check_like(spec, like)
        if is_rehearsal:
            layers = [layer for place, layer in enumerate(spec.layers) if layer not in spec.layers[:place]]
            spec = replace(spec, layers=tuple(layers))
        model = Model(spec, build)
        intake = Intake(model.leaves)
        if device.kind == "cpu":
            most = _most_packed_bytes(intake, dtype)
            arena = arena if arena is not None and len(arena) >= most else Arena(most)
            build.allocate = native.allocator(arena)
        if load_format == "dummy":
            _refuse_dummy(layout)
            _fill(intake, seed, device)
        else:
            _read(model_dir, intake, family.names, spec, layout, device)
        model.finish()
    if arena is not None:
        arena.trim()
    device.trim()
    if build.repacks is not None and build.repacks.done:
        logger.warning("%s", build.repacks.summary())
    return model


def _check_format(load_format: str, method: str | None, model_dir: Path) -> None:
    """Refuses a checkpoint that is stored otherwise than was said."""
    if load_format in ("gguf", "bitsandbytes") and method != load_format:
        told = f" ({method})" if method else "; to round while loading, use --quantization"
        message = f"--load-format {load_format}: {model_dir} is not such a checkpoint{told}."
        raise ConfigError(message, param="--load-format")


def _refuse_dummy(layout: Layout | None) -> None:
    if layout is not None:
        raise ModelError(
            f"--load-format dummy makes weights in floating point, but config.json says {layout.method}; take "
            "quantization_config out with --json-model-override-args '{\"quantization_config\": null}'."
        )


def _check_like(spec: ModelSpec, like: ModelSpec | None) -> None:
    """Refuses a model that is not built like the one it is to replace."""
    if like is None or spec == like:
        return
    pairs = {field.name: (getattr(spec, field.name), getattr(like, field.name)) for field in fields(spec)}
    differences = [
        f"{name} ({found} instead of {served})" if isinstance(served, int | float | str) else name
        for name, (found, served) in pairs.items()
        if found != served
    ]
    raise ModelError(f"the checkpoint is built otherwise than the model that is served: {_listed(differences)}.")


def _most_packed_bytes(intake: Intake, dtype: torch.dtype) -> int:
    """More than the layers can take for their packed weights; what they leave costs addresses only."""
    sizes = [math.prod(slot.shape) * dtype.itemsize for slot in intake.slots.values()]
    return sum(size + size // 8 + (1 << 20) for size in sizes if size > 1 << 12)


class Intake:
    """Hands tensors to the slots that want them and finalises every leaf when it has all of its own."""

    def __init__(self, leaves: list[Leaf]) -> None:
        self._missing = Counter({id(leaf): len(leaf.slots) for leaf in leaves})
        self._wanted: dict[str, list[tuple[WeightSlot, Leaf]]] = defaultdict(list)
        for leaf in leaves:
            for slot in leaf.slots:
                self._wanted[slot.name].append((slot, leaf))
        self._last = [leaf for leaf in leaves if not leaf.slots]

    @property
    def slots(self) -> dict[str, WeightSlot]:
        """The tensors wanted, each with one of the slots that want it."""
        return {name: entries[0][0] for name, entries in self._wanted.items()}

    def put(self, name: str, tensor: Tensor | Encoded) -> None:
        for slot, leaf in self._wanted[name]:
            slot.write(tensor)
            self._missing[id(leaf)] -= 1
            if not self._missing[id(leaf)]:
                leaf.finalize()

    def close(self) -> None:
        """Finalises the leaves that live off others' weights."""
        for leaf in self._last:
            leaf.finalize()


def _fill(intake: Intake, seed: int, device: Device) -> None:
    """Noise that keeps activations near one: matrices of variance 1 / inputs, vectors near zero or one."""
    noise = torch.randn(_NOISE_SIZE, generator=torch.Generator().manual_seed(seed)).to(device.torch_device)
    for name, slot in intake.slots.items():
        if len(slot.shape) == 1:
            scale, mean = 0.02, 0.0 if name.endswith("bias") else 1.0
        else:
            scale, mean = slot.shape[0 if slot.transposed else -1] ** -0.5, 0.0
        period = (noise * scale + mean).to(slot.destination.dtype).roll(zlib.crc32(name.encode()) % _NOISE_SIZE)
        count = math.prod(slot.shape)
        intake.put(name, period.repeat(-(-count // _NOISE_SIZE))[:count].view(slot.shape))
    intake.close()


def _read(
    model_dir: Path, intake: Intake, names: WeightNames, spec: ModelSpec, layout: Layout | None, device: Device
) -> None:
    """Hands every tensor that the model wants to it, in the order in which they lie in files."""
    stored = _everything(model_dir, names, spec)
    wanted = {name: slot.shape for name, slot in intake.slots.items()}
    found = Found() if layout is None else find(layout, wanted, stored)
    plain = {name: shape for name, shape in wanted.items() if name not in found.weights}
    left_out = _unneeded(stored, names, spec, layout) | found.used | set(found.empty)
    _check(model_dir, plain, {name: entry for name, entry in stored.items() if name not in left_out}, found.problems)
    with Files() as files:
        for name in found.empty:
            if bool(files.tensor(stored[name]).any()):
                raise ModelError(f"{name} is not part of the model, but it is not zero.")
        in_order = sorted(wanted, key=lambda name: _place(found.weights.get(name) or stored[name]))

        def weight(name: str) -> Tensor | Encoded:
            parts = found.weights.get(name)
            return files.tensor(stored[name]) if parts is None else files.weight(parts, wanted[name])

        for name, read in streamed(((name, weight(name)) for name in in_order), device):
            intake.put(name, read)
    intake.close()


def _everything(model_dir: Path, names: WeightNames, spec: ModelSpec) -> dict[str, Stored]:
    """All tensors of the checkpoint and of the dense layers beside it, by the name that the model gives them."""
    blocks = model_dir / gguf_folder.WEIGHTS
    stored = gguf.stored(blocks, names, spec) if blocks.is_file() else _stored(model_dir, names)
    for folder in dense_folders(model_dir, spec.pooling):
        stored |= {f"{folder}.{name}": entry for name, entry in _stored(model_dir / folder, names).items()}
    return stored


def _unneeded(stored: Collection[str], names: WeightNames, spec: ModelSpec, layout: Layout | None) -> set[str]:
    """Tensors that may be there without being part of the model: buffers, drafters, a head that is not used."""
    beside = names.ignored if layout is None else f"(?:{names.ignored})|(?:{layout.ignored})"
    drafters = range(len(spec.layers), len(spec.layers) + spec.num_drafters)
    prefixes = tuple(names.drafter.format(layer) for layer in drafters)
    unneeded = {name for name in stored if re.fullmatch(beside, name) or name.startswith(prefixes)}
    if spec.tied_head or spec.pooling is not None:
        unneeded.add(f"{names.head}.weight")
    return unneeded


def _place(stored: Stored | StoredParts) -> Path:
    """The file of a tensor, or of the first of several."""
    return stored.file if isinstance(stored, Stored) else next(iter(stored.parts.values())).file


class Files:
    """The open files of a checkpoint, one at a time but where a weight lies in several."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def tensor(self, stored: Stored, others: Collection[Path] = ()) -> Tensor:
        """Reads a tensor; files but its own and ``others`` are closed."""
        if stored.offset is not None:
            return gguf.tensor(stored)
        with _reading(stored.file):
            if stored.file not in self._open:
                if not others:
                    self._stack.close()
                    self._open = {}
                self._open[stored.file] = self._stack.enter_context(safe_open(stored.file, framework="pt"))
            tensor: Tensor = self._open[stored.file].get_tensor(stored.key)
            return tensor

    def weight(self, stored: StoredParts, shape: tuple[int, ...]) -> Encoded:
        rows, inner = shape
        files = {part.file for part in stored.parts.values()}
        others = files if len(files) > 1 else ()
        tensors = {suffix: self.tensor(part, others) for suffix, part in stored.parts.items()}
        return Encoded(stored.module, stored.scheme, tensors, (rows, inner))


def _stored(model_dir: Path, names: WeightNames) -> dict[str, Stored]:
    """All tensors of the checkpoint by the name that the model gives them."""
    stored = {}
    for file in weight_files(model_dir):
        with _reading(file), safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(key)
                stored[_renamed(key, names)] = Stored(file, key, tuple(part.get_shape()), part.get_dtype())
    return stored


def weight_files(model_dir: Path) -> list[Path]:
    """The files of the checkpoint: those that the index lists, or the single one."""
    index, single = model_dir / "model.safetensors.index.json", model_dir / "model.safetensors"
    if (model_dir / gguf_folder.WEIGHTS).is_file():
        return [model_dir / gguf_folder.WEIGHTS]
    if not index.is_file():
        if single.is_file():
            return [single]
        others = sorted(
            file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in model_dir.glob(pattern)
        )
        hint = f"; {others[0]} is of a format that is not supported" if others else ""
        raise ModelError(f"{model_dir} holds neither model.safetensors nor model.safetensors.index.json{hint}.")
    try:
        file_names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read: {type(error).__name__}: {error}.") from None
    files = [model_dir / name for name in file_names if Path(name).name == name]
    absent = [file.name for file in files if not file.is_file()]
    if absent or len(files) < len(file_names):
        raise ModelError(f"{index} names files that are not in the directory: {_listed(absent or file_names)}.")
    return files


def read_rows(
    model_dir: Path, name: str, count: int, most: int, dtype: torch.dtype
) -> tuple[list[int], list[int], bytes]:
    """The shape of a tensor by its name in the checkpoint, that of its first ``count`` rows, and those in float32.

    Args:
        most: numbers that may be asked for.
        dtype: what the tensor is rounded to first.

    Raises:
        ModelError: there is no such tensor, its file cannot be read, or its rows are more numbers than ``most``.
    """
    for file in weight_files(model_dir):
        if file.suffix == ".gguf":
            raise ModelError(f"{model_dir} is a GGUF file, whose tensors are not shown by name.", param="name")
        with _reading(file), safe_open(file, framework="pt") as tensors:
            if name not in tensors.keys():  # noqa: SIM118 - not a mapping
                continue
            stored = tensors.get_slice(name)
            shape = list(stored.get_shape())
            rows = [min(count, shape[0]), *shape[1:]] if shape else []
            if math.prod(rows) > most:
                message = f"{name} has {math.prod(shape[1:])} numbers a row; {count} rows of it are more than {most}."
                raise ModelError(message, param="truncate_size")
            part = stored[: rows[0]] if shape else tensors.get_tensor(name)
            return shape, rows, part.to(dtype).float().contiguous().numpy().tobytes()
    raise ModelError(f"the checkpoint in {model_dir} has no tensor {name!r:.200}.", param="name")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is truncated or corrupt ({error}); fetch it again.") from None


def _renamed(key: str, names: WeightNames) -> str:
    for pattern, replacement in names.renames:
        key = re.sub(pattern, replacement, key)
    return key


def _check(
    model_dir: Path,
    wanted: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Stored],
    others: Mapping[str, list[str]],
) -> None:
    """Raises one `ModelError` that lists what does not fit."""
    both = [name for name in wanted if name in stored]
    problems: dict[str, list[str]] = {
        "missing": [*(name for name in wanted if name not in stored), *others.get("missing", [])],
        "not part of the model": [name for name in stored if name not in wanted],
        "of another shape than config.json asks for": [
            f"{name} ({list(stored[name].shape)} instead of {list(wanted[name])})"
            for name in both
            if stored[name].shape != wanted[name]
        ],
        "of a dtype that is not supported": [
            f"{name} ({stored[name].dtype})" for name in both if stored[name].dtype not in _FLOATS
        ],
        **{what: names for what, names in others.items() if what != "missing"},
    }
    found = [f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names]
    if found:
        raise ModelError(f"the tensors in {model_dir} do not fit the model. " + ". ".join(found) + ".")


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_LISTED
    return ", ".join(sorted(names)[:_NUM_LISTED]) + (f" and {more} more" if more > 0 else "")
