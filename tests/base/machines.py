"""Machines and values that tests resolve configurations for."""

from __future__ import annotations

from sgl.engine.base.config import EngineConfig, Given, Machine, resolve

GIB = 2**30
LAPTOP = Machine(cores=4, memory_bytes=16 * GIB, memory_free_bytes=8 * GIB, device="cpu", isa="avx2", entropy=7)
GPU = Machine(cores=16, memory_bytes=80 * GIB, memory_free_bytes=79 * GIB, device="cuda", isa="avx512", entropy=7)
LLAMA = {"max_position_embeddings": 4096, "torch_dtype": "bfloat16"}


def resolved(machine: Machine = LAPTOP, hf: dict[str, object] | None = None, **flags: object) -> EngineConfig:
    """The configuration for flags by ``group__field``."""
    given = {key.replace("__", "."): value for key, value in ({"model__model_path": "m"} | flags).items()}
    return resolve({key: Given(value, "flag", f"--{key}") for key, value in given.items()}, hf or LLAMA, machine)
