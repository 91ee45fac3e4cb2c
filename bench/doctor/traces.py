"""One sequence through this engine's layers and through transformers', with everything that both compute on the way.

Both sides name modules as the checkpoint does, so that what one shows can be found on the other. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.attn.choice import choose_backend
from sgl.engine.base.device import detect_isa, open_device
from sgl.engine.base.errors import ModelError
from sgl.engine.models.loader import load_model
from sgl.engine.nn.decoder import Model
from sgl.engine.nn.norm import Norm, RmsQKNorm
from sgl.engine.nn.taps import ROPE, Side
from sgl.kernels.registry import bind

Values = dict[tuple[str, Side], Tensor]
"""What went in or came out of a module, ``[T, ...]``, in the order of computation; of several calls the first."""

PAGE_SIZE = 16
_EPSILONS = ("eps", "variance_epsilon")  # what transformers' norms call it


@dataclass(frozen=True)
class Trace:
    """
    Args:
        logits: float32 ``[T, V]``.
        epsilons: of the norms by their modules.
        rope: how positions turn heads, in words; empty where they do not.
    """

    values: Values
    logits: Tensor
    epsilons: Mapping[str, float]
    rope: str = ""


def load_own(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Model:
    """This engine's model on the CPU, with the kernels that it has there.

    Raises:
        ModelError: it cannot be loaded.
    """
    kernels = bind("cpu", detect_isa(), dtype)
    return load_model(path, config, dtype=dtype, device=open_device("cpu"), kernels=kernels)


def run_own(model: Model, token_ids: Sequence[int], dtype: torch.dtype) -> Trace:
    """Computes a sequence in one step; the model shows what it does for the rest of its life."""
    values: Values = {}
    model.tap(lambda name, side, value: _keep(values, (name, side), value))
    num_pages = -(-len(token_ids) // PAGE_SIZE)
    kernels = bind("cpu", detect_isa(), dtype)
    name = "torch_native" if dtype is torch.float32 else "auto"  # kernels for a CPU's attention compute bfloat16
    backend = choose_backend(name, open_device("cpu"), model.kv_specs, PAGE_SIZE, kernels)
    kv = [KVLayer.make(spec, num_pages, PAGE_SIZE, _zeros) for spec in model.kv_specs]
    logits = model.logits(model(_batch(token_ids, num_pages), kv, backend))
    norms = [leaf for leaf in model.leaves if isinstance(leaf, Norm | RmsQKNorm)]
    epsilons = {slot.name.rpartition(".")[0]: norm.eps for norm in norms for slot in norm.slots}
    ropes = (layer.attention.rope for layer in model.spec.layers)
    told = next((_rope(rope.theta, rope.kind) for rope in ropes if rope is not None), "")
    return Trace(values, logits, epsilons, told)


def load_reference(path: Path, dtype: torch.dtype) -> Any:
    """transformers' model of a checkpoint.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    quiet: Any = logging  # the library has no types
    quiet.disable_progress_bar()
    before = quiet.get_verbosity()
    quiet.set_verbosity_error()
    try:  # its own attention: others know no softcap
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"transformers cannot load {path}: {' '.join(str(error).split())}.") from None
    finally:
        quiet.set_verbosity(before)
    return model.eval()


def run_reference(model: Any, token_ids: Sequence[int], names: Sequence[str]) -> Trace:
    """Computes a sequence and keeps what goes through the modules of these names, as far as it has them."""
    values: Values = {}
    modules = dict(model.named_modules())
    with _hooked(modules, names, values), torch.inference_mode():
        logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits[0].float()
    fields = {name: vars(modules[name]) for name in names if name in modules}
    epsilons = {
        name: found[attribute] for name, found in fields.items() for attribute in _EPSILONS if attribute in found
    }
    rope = vars(model.config).get("rope_parameters") or {}
    told = _rope(rope["rope_theta"], rope.get("rope_type", "default")) if "rope_theta" in rope else ""
    return Trace(values, logits, epsilons, told)


def _rope(theta: float, kind: str) -> str:
    return f"rope_theta {theta:g}, {kind}"


def scores(model: Any, token_ids: Sequence[int]) -> Tensor:
    """transformers' log probabilities behind every token but the last, float32 ``[T - 1, V]``."""
    with torch.inference_mode():
        found: Tensor = model(torch.tensor([list(token_ids)]), use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return found


@contextmanager
def _hooked(modules: Mapping[str, Any], names: Sequence[str], values: Values) -> Iterator[None]:
    handles = [
        modules[name].register_forward_hook(partial(_keep_both, values, name)) for name in names if name in modules
    ]
    ropes = [module for name, module in modules.items() if name.rpartition(".")[2] == ROPE]
    handles += [module.register_forward_hook(partial(_keep_rope, values)) for module in ropes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep_both(values: Values, name: str, module: Any, given: tuple[Any, ...], result: Any) -> None:
    if given and isinstance(given[0], Tensor):
        _keep(values, (name, "input"), given[0].clone())
    if isinstance(result, Tensor):
        _keep(values, (name, "output"), result.clone())


def _keep_rope(values: Values, module: Any, given: tuple[Any, ...], result: Any) -> None:
    if isinstance(result, Tensor):  # as complex numbers, one for a pair
        result = tuple(part.repeat(1, 1, 2) for part in (result.real, result.imag))
    cos, sin = result
    _keep(values, (ROPE, "cos"), cos.clone())
    _keep(values, (ROPE, "sin"), sin.clone())


def _keep(values: Values, key: tuple[str, Side], value: Tensor) -> None:
    values.setdefault(key, value)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _batch(token_ids: Sequence[int], num_pages: int) -> ForwardBatch:
    count = len(token_ids)
    places = torch.arange(count)
    return ForwardBatch(
        input_ids=torch.tensor(list(token_ids)),
        positions=places,
        cu_q=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=torch.tensor([count], dtype=torch.int32),
        slots=torch.zeros(1, dtype=torch.int64),
        out_loc=(places,),
        page_table=(torch.arange(num_pages, dtype=torch.int32)[None],),
        logit_indices=places,
        q_lens=(count,),
    )
