"""Ops by name, their implementations, and the choice between them; holds no arithmetic of its own.

An op is declared by its reference (plain torch, the oracle of the parity tests). Implementations register under the
same name and signature. `bind` chooses one per op for a device, an instruction set and a dtype; the resulting
`Kernels` is an immutable table that is handed to whoever computes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from sgl.engine.base.device import CPU_ISAS
from sgl.engine.base.errors import ConfigError

Fn = TypeVar("Fn", bound=Callable[..., Any])
Check = Callable[[], str]

REFERENCE = "reference"

_PACKAGES = {
    "cpu": ("sgl.kernels.ops", "sgl.kernels.cpu"),
    "cuda": ("sgl.kernels.ops", "sgl.kernels.triton", "sgl.kernels.flashinfer.sampling"),
}
"""What registers implementations for a device; Triton takes a while to import, and a CPU has no use for it."""

_OPS: dict[str, dict[str, Impl]] = {}


def always() -> str:
    return ""


def importable(module: str) -> Check:
    """A requirement: ``module`` is installed."""
    return lambda: "" if find_spec(module) else f"{module} is not installed"


@dataclass(frozen=True, slots=True)
class Impl:
    """One implementation of an op and where it runs; None means anywhere. ``isa`` is the least that it needs."""

    op: str
    name: str
    fn: Callable[..., Any]
    device: str | None = None
    isa: str | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    priority: int = 0
    needs: Check = always

    def why_not(self, device: str, isa: str, dtype: torch.dtype) -> str:
        """Why this implementation cannot be used there; empty if it can."""
        if self.device not in (None, device):
            return f"runs on {self.device}"
        if self.isa is not None and _isa_rank(isa) < _isa_rank(self.isa):
            return f"needs {self.isa}"
        if self.dtypes is not None and dtype not in self.dtypes:
            return "computes " + ", ".join(dtype_name(d) for d in self.dtypes)
        return self.needs()


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A line of ``sgl kernels``: what an op is bound to, and why each alternative is not chosen."""

    op: str
    chosen: str
    alternatives: tuple[tuple[str, str], ...]


class Kernels:
    """An immutable table from op to the function that computes it."""

    def __init__(self, chosen: Mapping[str, Impl], forced: frozenset[str] = frozenset()) -> None:
        self._chosen = MappingProxyType(dict(chosen))
        self.forced = forced  # the ops whose implementation was asked for

    def __getitem__(self, op: str) -> Callable[..., Any]:
        return self._chosen[op].fn

    @property
    def names(self) -> dict[str, str]:
        """Which implementation every op is bound to."""
        return {op: found.name for op, found in sorted(self._chosen.items())}

    def name(self, op: str) -> str:
        """Which implementation ``op`` is bound to."""
        return self._chosen[op].name


def op(name: str) -> Callable[[Fn], Fn]:
    """Declares an op; the decorated function is its reference."""

    def declare(fn: Fn) -> Fn:
        assert name not in _OPS, name
        _OPS[name] = {REFERENCE: Impl(name, REFERENCE, fn)}
        return fn

    return declare


def impl(
    op_name: str,
    name: str,
    *,
    device: str | None = None,
    isa: str | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    priority: int = 10,
    needs: Check = always,
) -> Callable[[Fn], Fn]:
    """Registers the decorated function as implementation ``name`` of an op (see `Impl`)."""

    def register(fn: Fn) -> Fn:
        assert name not in _OPS[op_name], (op_name, name)
        _OPS[op_name][name] = Impl(op_name, name, fn, device, isa, dtypes, priority, needs)
        return fn

    return register


def implementations(device: str = "cpu") -> Iterator[Impl]:
    """Every implementation of every op that there may be for a device, references first."""
    _load(device)
    for op_impls in _OPS.values():
        yield from op_impls.values()


def partner(fn: Callable[..., Any], op: str) -> Callable[..., Any]:
    """The implementation of another op that has the name of ``fn``, its reference if there is none."""
    own = inspect.unwrap(fn)
    name = next((i.name for impls in _OPS.values() for i in impls.values() if i.fn is own), REFERENCE)
    return _OPS[op].get(name, _OPS[op][REFERENCE]).fn


def bind(device: str, isa: str, dtype: torch.dtype, overrides: Sequence[str] = ()) -> Kernels:
    """Chooses an implementation for every op: the override if there is one, else the highest priority that runs.

    Args:
        device: ``cpu`` or ``cuda``.
        isa: one of `CPU_ISAS`, or ``smNN`` on a GPU.
        dtype: of the activations.
        overrides: ``op=impl``, or ``reference`` for all ops; later ones win.

    Raises:
        ConfigError: an override names an unknown op or implementation, or one that does not run here.
    """
    _load(device)
    forced = _parse(overrides)
    return Kernels({op: _choose(op, device, isa, dtype, forced.get(op)) for op in _OPS}, frozenset(forced))


def describe(device: str, isa: str, dtype: torch.dtype, overrides: Sequence[str] = ()) -> list[KernelRow]:
    """What `bind` chooses for the same arguments, and why not the others; raises as `bind` does."""
    kernels = bind(device, isa, dtype, overrides)
    rows = []
    for op, impls in sorted(_OPS.items()):
        others = [i for i in impls.values() if i.name != kernels.name(op)]
        reasons = tuple((i.name, i.why_not(device, isa, dtype) or "not preferred") for i in others)
        rows.append(KernelRow(op, kernels.name(op), reasons))
    return rows


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _load(device: str) -> None:
    if device == "cuda" and find_spec("triton") is None:
        raise ConfigError("device cuda needs triton, which is not installed; install sgl[gpu].", param="device")
    for package in _PACKAGES[device]:
        importlib.import_module(package)


def _choose(op: str, device: str, isa: str, dtype: torch.dtype, forced: str | None) -> Impl:
    impls = _OPS[op]
    if forced is not None:
        reason = impls[forced].why_not(device, isa, dtype)
        if reason:
            here = f"{device} {isa} with {dtype_name(dtype)}"
            raise ConfigError(f"kernel {op}={forced} cannot be used on {here}: it {reason}.", param="kernel")
        return impls[forced]
    usable = [i for i in impls.values() if not i.why_not(device, isa, dtype)]
    return max(usable, key=lambda i: i.priority)


def _parse(overrides: Sequence[str]) -> dict[str, str]:
    forced: dict[str, str] = {}
    for override in overrides:
        if override == REFERENCE:
            forced.update(dict.fromkeys(_OPS, REFERENCE))
            continue
        op, _, name = override.partition("=")
        if op not in _OPS:
            known = ", ".join(sorted(_OPS))
            raise ConfigError(
                f"kernel {override!r} names no op; write op=implementation, op one of: {known}.", param="kernel"
            )
        if name not in _OPS[op]:
            raise ConfigError(
                f"kernel {op} has no implementation {name!r}; use one of: {', '.join(_OPS[op])}.", param="kernel"
            )
        forced[op] = name
    return forced


def _isa_rank(isa: str) -> int:
    return int(isa.removeprefix("sm")) if isa.startswith("sm") else CPU_ISAS.index(isa)
