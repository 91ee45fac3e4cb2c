"""Rotary positions: the frequencies of every supported rope_type, and a step's cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from sgl.engine.base.errors import ModelError
from sgl.engine.nn.spec import RopeSpec
from sgl.engine.nn.weights import Build

Tables = tuple[Tensor, ...]


class Rotation(Protocol):
    """Turns heads by their position; the tables are computed once per step and shared by the layers."""

    def tables(self, positions: Tensor) -> Tables: ...

    def apply(self, x: Tensor, tables: Tables) -> Tensor: ...


class NoRope:
    def tables(self, positions: Tensor) -> Tables:
        return ()

    def apply(self, x: Tensor, tables: Tables) -> Tensor:
        return x


class Rope:
    """Rotates the pairs ``(i, i + D/2)`` of a head by ``position * frequency[i]``.

    Interleaved, these are the pairs ``(2i, 2i + 1)`` of what it is given; it answers in the other order all the same,
    since queries and keys only ever meet each other.
    """

    def __init__(self, build: Build, spec: RopeSpec) -> None:
        frequencies, self.scale = frequencies_of(spec)
        self.frequencies = frequencies.to(build.device)  # float32 [D/2]
        # The halves of a head turn by the same angle; the sign of the sine rides on the scale.
        self._both_halves = self.frequencies.repeat(2)
        self._sign = torch.ones(spec.head_dim, device=build.device)
        self._sign[: spec.head_dim // 2] = -1
        self._sign *= self.scale
        self._dtype = build.dtype
        self._interleaved = spec.interleaved
        self.rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = build.kernels["rope.apply"]

    def tables(self, positions: Tensor) -> Tables:
        """(cos, signed sin), each ``[T, 1, D]``, for positions int64 ``[T]``; angles are float32."""
        angles = positions[:, None, None] * self._both_halves
        return (angles.cos() * self.scale).to(self._dtype), (angles.sin() * self._sign).to(self._dtype)

    def apply(self, x: Tensor, tables: Tables) -> Tensor:
        """x ``[T, heads, D]`` rotated, a new contiguous tensor."""
        if self._interleaved:
            x = x.reshape(*x.shape[:-1], -1, 2).transpose(-1, -2).flatten(-2)
        return self.rotate(x, *tables)


def frequencies_of(spec: RopeSpec) -> tuple[Tensor, float]:
    """The angle per position of each pair, float32 ``[D/2]``, and the factor on cosines and sines.

    Raises:
        ModelError: an unknown rope_type, or one whose parameters are missing.
    """
    if spec.kind not in _FREQUENCIES:
        raise ModelError(f"rope_type {spec.kind!r} is not supported; supported are {', '.join(_FREQUENCIES)}.")
    try:
        return _FREQUENCIES[spec.kind](spec, spec.parameters)
    except KeyError as error:
        raise ModelError(f"rope_type {spec.kind!r} needs {error.args[0]!r} in the rope parameters.") from None


def _default(spec: RopeSpec, parameters: Mapping[str, float]) -> tuple[Tensor, float]:
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    return 1.0 / spec.theta**exponents, 1.0


def _linear(spec: RopeSpec, parameters: Mapping[str, float]) -> tuple[Tensor, float]:
    frequencies, scale = _default(spec, parameters)
    return frequencies / parameters["factor"], scale


def _llama3(spec: RopeSpec, parameters: Mapping[str, float]) -> tuple[Tensor, float]:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between interpolated."""
    frequencies, scale = _default(spec, parameters)
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / parameters["factor"]), scale


def _yarn(spec: RopeSpec, parameters: Mapping[str, float]) -> tuple[Tensor, float]:
    """Pairs that turn slowly within the original context are stretched, fast ones kept, with a ramp between."""
    frequencies, _ = _default(spec, parameters)
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or spec.max_positions / original

    def pair_with(turns: float) -> float:
        return spec.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    low = pair_with(parameters.get("beta_fast") or 32)
    high = pair_with(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    width = high - low if high != low else 0.001
    stretched = ((torch.arange(spec.head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies * (1 - stretched) + frequencies / factor * stretched, _yarn_scale(factor, parameters)


def _yarn_scale(factor: float, parameters: Mapping[str, float]) -> float:
    given = parameters.get("attention_factor")
    if given is not None:
        return given
    mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all:
        return _mscale(factor, mscale) / _mscale(factor, mscale_all)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


_FREQUENCIES: dict[str, Callable[[RopeSpec, Mapping[str, float]], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _default,  # it stretches only beyond the trained length, up to which contexts are offered
}
