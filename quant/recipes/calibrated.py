"""Quantizes with data, through llmcompressor: layer by layer, each written as soon as it is done.

llmcompressor decides the numbers; where they go is decided here. So these checkpoints are laid out, resumed and
published like those that need no data. The model is in memory as a whole, as llmcompressor wants it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sgl.engine.base.errors import ConfigError, ModelError
from sgl.quant.recipes.plan import KV_SCALES, KV_SCHEME, Plan, layer_of
from sgl.quant.recipes.report import ModuleError, Watcher, measure
from sgl.quant.recipes.source import check_finite
from sgl.quant.scheme import Encoded
from sgl.quant.writer import Writer

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

ALGORITHMS = ("gptq", "awq", "smoothquant")
SMOOTHING_STRENGTH = 0.8  # the share of the difficulty that moves from activations to weights


def check_installed() -> None:
    """
    Raises:
        ConfigError: llmcompressor is missing.
    """
    if find_spec("llmcompressor") is None:
        raise ConfigError(
            "this needs calibration, which llmcompressor runs and which is not installed: pip install 'sgl[quant]'."
        )


def calibrate_all(plan: Plan, sequences: Sequence[Sequence[int]], writer: Writer, watcher: Watcher) -> None:
    """Runs the algorithm over the sequences of tokens and writes every layer that is not complete.

    Raises:
        ModelError: transformers cannot load the checkpoint, or names its tensors otherwise.
        ConfigError: the disk is full, or llmcompressor is missing.
    """
    check_installed()
    model = _load(plan)
    layers = _Layers(plan, model, writer, watcher)
    _copy_rest(plan, writer, layers)
    watcher.begin("calibrating", len(layers.names), sum(layer in writer.units for layer in layers.names))
    if all(layer in writer.units for layer in layers.names):
        return
    with _prepared():
        from llmcompressor import oneshot, reset_session

        try:
            oneshot(
                model=model,
                processor=object(),  # data comes as tokens
                recipe=_modifiers(plan, layers),
                dataset=_loader(sequences),
                num_calibration_samples=len(sequences),
                pipeline="independent" if plan.recipe.algorithm == "smoothquant" else "sequential",
            )
        except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
            told = str(error).strip().split("\n")[0].rstrip(".")
            raise ModelError(f"llmcompressor cannot calibrate this model: {type(error).__name__}: {told}.") from error
        finally:
            reset_session()  # which would keep the model
            writer.save()
    left = [layer for layer in layers.names if layer not in writer.units]
    if left:
        raise ModelError(
            f"no calibration data reached {left[0]}; such a model can be rounded with --algorithm rtn only."
        )


def _load(plan: Plan) -> Any:
    """The model as transformers has it.

    Raises:
        ModelError: it cannot, or its layers are not those of the files.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as bars

    quiet: Any = bars  # the library has no types
    quiet.disable_progress_bar()
    folder = plan.source.folder
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ModelError(f"transformers, which calibration runs on, cannot load {folder}: {error}") from None
    known = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [module for module in plan.schemes if module not in known]
    if unknown:
        raise ModelError(
            f"transformers has no linear layer {unknown[0]}, so it cannot be calibrated: use --algorithm rtn, which "
            "needs no data."
        )
    for name, parameter in model.named_parameters():
        check_finite(name, parameter.data)
    return model


def _loader(sequences: Sequence[Sequence[int]]) -> DataLoader[Any]:
    from torch.utils.data import DataLoader

    rows: Any = [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        for ids in sequences
    ]
    return DataLoader(rows, batch_size=None)


def _modifiers(plan: Plan, layers: _Layers) -> list[Any]:
    """llmcompressor's recipe; what rounds comes last and hands every finished layer on."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    algorithm = plan.recipe.algorithm
    smoothers = {
        "awq": lambda: [AWQModifier(duo_scaling=True)],
        "smoothquant": lambda: [SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH)],
    }
    kind: Any = GPTQModifier if algorithm in ("gptq", "smoothquant") else QuantizationModifier
    groups: dict[Any, list[str]] = {}
    for module, scheme in plan.schemes.items():
        if scheme is not None and layer_of(module) not in layers.writer.units:
            groups.setdefault(scheme, []).append(module)
    options: dict[str, Any] = {
        "config_groups": {
            f"group_{i}": {"targets": names, **scheme.entry} for i, (scheme, names) in enumerate(groups.items())
        }
    }
    if plan.recipe.kv:
        options = {"kv_cache_scheme": dict(KV_SCHEME)}
    return [*smoothers.get(algorithm, list)(), _handing_on(kind, layers)(**options)]


def _handing_on(kind: Any, layers: _Layers) -> Any:
    """The modifier, which now shows ``layers`` what it begins with and what it leaves."""

    class HandingOn(kind):  # type: ignore[misc]
        def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
            layers.restore()
            super().on_calibration_start(state, event, **kwargs)

        def on_sequential_epoch_end(self, state: Any, event: Any, modules: list[nn.Module], **kwargs: Any) -> None:
            layers.remember(modules)
            super().on_sequential_epoch_end(state, event, modules, **kwargs)
            layers.finish(modules)

    HandingOn.__name__ = kind.__name__  # which llmcompressor prints and looks at
    return HandingOn


@dataclass
class _Layers:
    """The numbered layers of a model on their way to the file."""

    plan: Plan
    model: Any
    writer: Writer
    watcher: Watcher
    names: list[str] = field(init=False)
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [name for name in dict.fromkeys(layer_of(tensor) for tensor in self.plan.tensors) if name]
        self._paths = {module: name for name, module in self.model.named_modules()}
        self._waiting = {name: {m for m in self.plan.schemes if layer_of(m) == name} for name in self.names}

    def restore(self) -> None:
        """Gives the model the weights that an earlier process wrote: what follows is rounded behind them.

        AWQ and the measuring of ranges go by exact layers; smoothed ones compute what those that were read do.
        """
        if not self._is_sequential:
            return
        for layer in self.names:
            if layer in self.writer.units:
                for name in self._tensors(layer):
                    if name in self.plan.source.entries and not self._is_rounded(name):
                        self._parameter(name).data.copy_(self.writer.read(name))
                for module in self._waiting[layer]:
                    if self.plan.schemes[module] is not None:
                        self._parameter(f"{module}.weight").data.copy_(self._decoded(module, self._written(module)))

    def remember(self, modules: Iterable[nn.Module]) -> None:
        """Keeps the exact weights of layers that are about to be rounded."""
        for path in self._known(modules):
            if self.plan.schemes[path] is not None:
                self._weights[path] = self._parameter(f"{path}.weight").detach().clone()

    def finish(self, modules: Iterable[nn.Module]) -> None:
        """Writes the layers of which nothing is missing any more."""
        for path in list(self._known(modules)):
            layer = layer_of(path)
            self._waiting[layer].discard(path)
            if not self._waiting[layer] and layer not in self.writer.units:
                self._write(layer)

    def copy(self, layer: str) -> bool:
        """Whether the layer has nothing to be calibrated; then it is copied."""
        return not any(layer_of(module) == layer for module in self.plan.schemes)

    @property
    def _is_sequential(self) -> bool:
        """Whether a layer is rounded behind rounded ones."""
        return self.plan.recipe.algorithm in ("gptq", "smoothquant")

    def _known(self, modules: Iterable[nn.Module]) -> Iterator[str]:
        paths = (self._paths.get(module, "") for module in modules)
        return (path for path in paths if path in self.plan.schemes)

    def _write(self, layer: str) -> None:
        errors = []
        made: dict[str, Tensor] = {}
        for module, scheme in self.plan.schemes.items():
            if layer_of(module) == layer and scheme is not None:
                tensors = _compressed(self.model.get_submodule(module))
                made |= {f"{module}.{suffix}": tensor for suffix, tensor in tensors.items()}
                errors.append(self._error(module, tensors))
        for name in self._tensors(layer):
            planned = self.plan.tensors[name]
            tensor = made[name] if name in made else self._parameter(name).data
            tensor = tensor.detach().to("cpu", planned.dtype).reshape(planned.shape)
            check_finite(name, tensor)
            self.writer.write(name, [tensor])
        self.writer.complete(layer, {"errors": [error.to_dict() for error in errors]})
        self.watcher.step(f"layer {self.names.index(layer) + 1} of {len(self.names)}")

    def _error(self, module: str, tensors: dict[str, Tensor]) -> ModuleError:
        """What rounding did; the layers behind go by what the file holds, to the last bit, as after a restart."""
        scheme = self.plan.schemes[module]
        assert scheme is not None
        decoded = self._decoded(module, tensors)
        if self._is_sequential:
            self._parameter(f"{module}.weight").data.copy_(decoded)
        after = sum(tensor.nbytes for name, tensor in tensors.items() if name != "bias")
        return measure(module, scheme.label, self._weights.pop(module).cpu(), decoded, after)

    def _decoded(self, module: str, tensors: dict[str, Tensor]) -> Tensor:
        scheme = self.plan.schemes[module]
        assert scheme is not None
        rows, inner = self._parameter(f"{module}.weight").shape
        parts = {part.suffix for part in scheme.parts(rows, inner)}
        stored = {suffix: tensor.detach().cpu() for suffix, tensor in tensors.items() if suffix in parts}
        return Encoded(module, scheme, stored, (rows, inner)).dequantize()

    def _written(self, module: str) -> dict[str, Tensor]:
        names = [name for name in self._tensors(layer_of(module)) if name.startswith(f"{module}.")]
        return {name.removeprefix(f"{module}."): self.writer.read(name) for name in names}

    def _tensors(self, layer: str) -> list[str]:
        return [name for name in self.plan.tensors if layer_of(name) == layer]

    def _is_rounded(self, name: str) -> bool:
        return self.plan.schemes.get(name.removesuffix(".weight")) is not None

    def _parameter(self, name: str) -> Any:
        """A parameter or buffer by its path."""
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        if leaf in KV_SCALES or leaf in dict(module.named_parameters(recurse=False)):
            return module.get_parameter(leaf)
        return module.get_buffer(leaf)


def _copy_rest(plan: Plan, writer: Writer, layers: _Layers) -> None:
    """What stands outside the numbered layers stays as it is."""
    for name in plan.tensors:
        if name not in writer.units and (not layer_of(name) or layers.copy(layer_of(name))):
            writer.write(name, plan.source.chunks(name))
            writer.complete(name, {})


def _compressed(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors as compressed-tensors stores them, by suffix."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.utils import get_direct_state_dict

    scheme: Any = module.quantization_scheme
    compressor = BaseCompressor.get_value_from_registry(infer_module_format(type(module), scheme).value)
    found: dict[str, Tensor] = compressor.compress(get_direct_state_dict(module), scheme)
    return found


@contextlib.contextmanager
def _prepared() -> Iterator[None]:
    """llmcompressor without its own bars and log, and able to run where there is no accelerator to pin memory for."""
    with contextlib.redirect_stdout(io.StringIO()):  # where its log goes from now on: it opens it when imported
        from llmcompressor.pipelines.cache import IntermediatesCache
    from loguru import logger
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(tqdm, "__init__", _silent(tqdm.__init__)))
        if not torch.accelerator.is_available():
            stack.enter_context(_replaced(IntermediatesCache, "pin_memory", lambda *_, **__: None))
        for package in ("llmcompressor", "compressed_tensors"):
            logger.disable(package)
            stack.callback(logger.enable, package)
        tracer = logging.getLogger("torch.fx._symbolic_trace")
        stack.callback(tracer.setLevel, tracer.level)
        tracer.setLevel(logging.ERROR)
        yield


def _silent(begin: Callable[..., None]) -> Callable[..., None]:
    """The constructor of bars that never show."""
    return lambda bar, *args, **options: begin(bar, *args, **{**options, "disable": True})


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
