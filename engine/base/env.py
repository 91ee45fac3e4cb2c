"""The one file that reads environment variables (huggingface_hub, torch and rich read their own)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

VARIABLES: Mapping[str, str] = {
    "SGL_DEBUG": "1 shows the traceback of an unexpected error.",
    "SGL_ENV_COMPAT": "1 also reads the bare names of other toolkits' images: MODEL_PATH, TENSOR_PARALLEL_SIZE, ...",
    "HF_TOKEN": "Token for gated models on the Hugging Face Hub.",
    "HF_HOME": "Where Hub downloads are cached.",
    "HF_HUB_OFFLINE": "1 never asks the Hub: only what is cached.",
    "CUDA_VISIBLE_DEVICES": "Which GPUs may be used.",
    "OPENAI_API_KEY": "Key that `sgl chat --url` sends if --api-key is not given.",
    "XDG_STATE_HOME": "Where `sgl chat` keeps its history, in sgl/.",
    "XDG_CACHE_HOME": "Where compiled kernels, measurements and tuned values are kept, in sgl/.",
    "SGL_KERNEL_ISA": "Instruction set of the C++ kernels, if not the best: generic, avx2, avx512, avx512_bf16 or amx.",
    "SGL_KERNEL_SANITIZE": "1 builds the C++ kernels with AddressSanitizer and UBSan; libasan must then be preloaded.",
    "SGLANG_TORCH_PROFILER_DIR": "Directory for the traces of /start_profile; profiles/ in sgl's cache if not given.",
    "SGL_PROFILE_STEPS": "FIRST:COUNT; an engine records those steps with torch's profiler (`sgl profile torch`).",
    "SGL_PROFILE_PY": "Directory; every process of sgl samples its Python code and writes it there (`sgl profile py`).",
    "SGL_NVTX": "1 marks steps and layers as NVTX ranges for nsys (`sgl profile nsys`); needs the package nvtx.",
    "CUDA_HOME": "Where the CUDA toolkit is, with bin/nvcc; /usr/local/cuda and PATH are looked at if not given.",
    "CXX": "C++ compiler for the CPU kernels; c++, g++ or clang++ if not given.",
    "NO_COLOR": "Set to anything: no colours.",
}
"""What is read beside the options' own variables, for the documentation."""


def all_variables() -> Mapping[str, str]:
    """The environment as it is, for sources.py."""
    return os.environ


def text(name: str, default: str = "") -> str:
    """The value of a declared variable."""
    assert name in VARIABLES, name
    return os.environ.get(name, default)


def flag(name: str) -> bool:
    """Whether a declared variable says yes."""
    return text(name).strip().lower() in ("1", "true", "yes", "on")


def visible_gpus() -> list[str] | None:
    """Indices or uuids in CUDA_VISIBLE_DEVICES; None if all are visible."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def state_dir() -> Path:
    """Where history files belong (XDG)."""
    return Path(text("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sgl"


def cache_dir() -> Path:
    """Where things belong that can be made again (XDG)."""
    return Path(text("XDG_CACHE_HOME") or Path.home() / ".cache") / "sgl"


def nvcc() -> Path | None:
    """NVIDIA's compiler: of CUDA_HOME, in PATH, or where it is usually installed."""
    home, found = text("CUDA_HOME") or "/usr/local/cuda", shutil.which("nvcc")
    inside = Path(home) / "bin" / "nvcc"
    return inside if inside.is_file() else Path(found) if found else None


def profile_steps() -> tuple[int, int] | None:
    """(first, count) of the steps to record from the start, None if none are."""
    first, _, count = text("SGL_PROFILE_STEPS").partition(":")
    return (int(first), int(count)) if first.isdecimal() and count.isdecimal() else None


def keep_compiled() -> None:
    """Lets Triton and torch.compile keep what they compile in our cache, where nobody has said otherwise."""
    for name, folder in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        os.environ.setdefault(name, str(cache_dir() / folder))


def hush_profiler() -> None:
    """Has torch's profiler not print its stages, unless somebody wants them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def profiler_dir() -> Path:
    """Where traces are written, and nowhere above."""
    return Path(text("SGLANG_TORCH_PROFILER_DIR") or cache_dir() / "profiles")
