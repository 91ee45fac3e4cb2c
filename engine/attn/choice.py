"""Which attention backend computes a model's layers; computes nothing itself.

A backend is imported when it is looked at: those of GPUs import what a CPU does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from sgl.engine.attn.backend import AttentionBackend
from sgl.engine.attn.batch import KVSpec
from sgl.engine.attn.bidirectional import BidirectionalBackend
from sgl.engine.base import env
from sgl.engine.base.device import Device
from sgl.engine.base.errors import ConfigError
from sgl.kernels.registry import Kernels

logger = logging.getLogger(__name__)

_MIN_ISA = 80  # compute capability 8.0: the first with bfloat16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a backend is asked to do."""

    device: Device
    specs: Sequence[KVSpec]
    page_size: int
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend, the kind of device that it is for (None: any), and when it can be used there."""

    kind: str | None
    make: Callable[[Wanted], AttentionBackend[Any]]
    needs: Callable[[Wanted], str]

    def why_not(self, wanted: Wanted) -> str:
        """Why this backend cannot do it; empty if it can."""
        if self.kind not in (None, wanted.device.kind):
            return f"the model runs on {wanted.device.kind}"
        return self.needs(wanted)


def choose_backend(
    name: str, device: Device, specs: Sequence[KVSpec], page_size: int, kernels: Kernels
) -> AttentionBackend[Any]:
    """The backend called ``name``, or for ``auto`` the first that can.

    Raises:
        ConfigError: the backend asked for cannot compute these layers here.
    """
    if not all(spec.is_kept for spec in specs):
        return _bidirectional(name, specs)
    wanted = Wanted(device, specs, page_size, kernels)
    if name == "auto":
        name = _first_usable(wanted)
    reason = CANDIDATES[name].why_not(wanted) if name in CANDIDATES else "it is unknown"
    if reason:
        usable = [other for other, candidate in CANDIDATES.items() if not candidate.why_not(wanted)]
        raise ConfigError(
            f"--attention-backend {name} cannot be used: {reason}; use {', '.join(('auto', *usable))}.",
            param="attention_backend",
        )
    return CANDIDATES[name].make(wanted)


def _first_usable(wanted: Wanted) -> str:
    """By order of preference; says so if plain torch is left."""
    reasons = {name: candidate.why_not(wanted) for name, candidate in CANDIDATES.items()}
    name = next(name for name, reason in reasons.items() if not reason)
    if CANDIDATES[name].kind is None:
        missed = [f"{name}: {reasons[name]}" for name in reasons if CANDIDATES[name].kind == wanted.device.kind]
        logger.warning("Attention runs in plain torch, which is slower (%s).", "; ".join(missed))
    return name


def _bidirectional(name: str, specs: Sequence[KVSpec]) -> AttentionBackend[Any]:
    """Encoders have one backend, whatever they run on."""
    assert not any(spec.is_kept for spec in specs), "layers are causal or not, all alike"
    if name != "auto" or any(spec.quantized for spec in specs):
        param = "kv_cache_dtype" if name == "auto" else "attention_backend"
        raise ConfigError(
            "An encoder has no KV cache: leave --attention-backend and --kv-cache-dtype at auto.", param=param
        )
    return BidirectionalBackend()


def _why_not_cpu(wanted: Wanted) -> str:
    from sgl.engine.attn import cpu

    if "kv.store" in wanted.kernels.forced:
        return "it stores keys and values itself, but another implementation of kv.store was asked for"
    return cpu.why_not(wanted.specs, wanted.page_size)


def _make_cpu(wanted: Wanted) -> AttentionBackend[Any]:
    from sgl.engine.attn.cpu import CpuBackend

    return CpuBackend()


def _why_not_triton(wanted: Wanted) -> str:
    reason = _why_not_package(wanted, "triton")
    if reason:
        return reason
    from sgl.engine.attn import triton

    return triton.why_not(wanted.specs)


def _make_triton(wanted: Wanted) -> AttentionBackend[Any]:
    from sgl.engine.attn.triton import TritonBackend

    return TritonBackend(wanted.device)


def _why_not_flashinfer(wanted: Wanted) -> str:
    reason = _why_not_package(wanted, "triton") or _why_not_package(wanted, "flashinfer")
    if reason:
        return reason
    if env.nvcc() is None and find_spec("flashinfer_jit_cache") is None:
        return "it compiles its kernels with nvcc, which is not there (set CUDA_HOME or install flashinfer-jit-cache)"
    from sgl.engine.attn import flashinfer

    return flashinfer.why_not(wanted.specs)


def _make_flashinfer(wanted: Wanted) -> AttentionBackend[Any]:
    from sgl.engine.attn.flashinfer import FlashInferBackend

    return FlashInferBackend(wanted.device, wanted.specs)


def _why_not_package(wanted: Wanted, package: str) -> str:
    isa = wanted.device.isa
    if int(isa.removeprefix("sm")) < _MIN_ISA:
        return f"it needs a GPU of compute capability {_MIN_ISA / 10}, this one is {isa}"
    return "" if find_spec(package) else f"{package} is not installed (pip install 'sgl[gpu]')"


def _make_torch_native(wanted: Wanted) -> AttentionBackend[Any]:
    from sgl.engine.attn.torch_native import TorchNativeBackend

    return TorchNativeBackend(wanted.device, wanted.kernels)


CANDIDATES = {
    "cpu": Candidate("cpu", _make_cpu, _why_not_cpu),
    "flashinfer": Candidate("cuda", _make_flashinfer, _why_not_flashinfer),
    "triton": Candidate("cuda", _make_triton, _why_not_triton),
    "torch_native": Candidate(None, _make_torch_native, lambda wanted: ""),
}
"""By order of preference."""
