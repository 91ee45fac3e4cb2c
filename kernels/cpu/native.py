"""Builds the C++ kernels on first use and loads them; holds no kernel of its own.

The library is compiled with whatever C++ compiler is there, for the instruction set at hand, into a cache named by the
hash of everything that went into it. Compiling takes a few seconds, once. Without a compiler `missing` says so and the
kernels that need no compiler are chosen instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from sgl.engine.base import env
from sgl.engine.base.arena import Arena
from sgl.engine.base.device import detect_isa
from sgl.engine.base.machine import cpus
from sgl.kernels.ops.linear import Allocate, fresh

SOURCES = ("attention.cpp", "linear.cpp", "elementwise.cpp", "quantize.cpp", "decoder.cpp", "draw.cpp")
"""The slowest to compile first: a first start waits for it."""

HEADERS = ("common.h", "kernels.h", "codes.h", "tiles.h", "linear_tiles.h", "attention_tiles.h")

# -ffp-contract=fast fixes the use of fused multiply-adds in the source's place; without it the compiler may choose.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-w")
_AVX512_BF16 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni", "-mfma")
ISA_FLAGS = {
    "amx": (*_AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    "avx512_bf16": _AVX512_BF16,
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "generic": (),
}
SANITIZE_FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""Added with SGL_KERNEL_SANITIZE=1; the process must have libasan preloaded."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, Sequence[type]] = {
    "sgl_threads": (_POINTER, _POINTER, _POINTER, _INT),
    "sgl_pack_bf16": (_POINTER, _POINTER, _LONG, _LONG, _POINTER),
    "sgl_activation_bytes": (_POINTER,),
    "sgl_round": (_POINTER, _LONG, _LONG, _INT, _LONG, _POINTER, _POINTER),
    "sgl_pack_groups": (_POINTER,) * 5,
    "sgl_linear": (_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _INT),
    "sgl_linear_f32": (_POINTER, _POINTER, _LONG, _POINTER, _POINTER),
    "sgl_rms_norm": (_POINTER, _LONG, _LONG, _POINTER, _FLOAT, _POINTER),
    "sgl_argmax": (_POINTER, _LONG, _LONG, _POINTER, _POINTER),
    "sgl_mask": (_POINTER, _LONG, _POINTER, _LONG, _POINTER),
    "sgl_draw": (_POINTER, _LONG, _LONG, *[_POINTER] * 7),
    "sgl_locate": (_POINTER, _LONG, _POINTER, _POINTER, _LONG, *[_POINTER] * 4),
    "sgl_place": (_POINTER, _LONG, _LONG, _POINTER, _POINTER, _LONG, _POINTER),
    "sgl_commit": (_POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _POINTER),
    "sgl_kv_store": (_POINTER, _LONG, _POINTER, _LONG, _POINTER, _LONG, *[_INT] * 4, *[_POINTER] * 4),
    "sgl_attention": (
        *(_POINTER, _LONG, *[_POINTER] * 7, _LONG),
        *([_INT] * 6),
        *(_FLOAT, _FLOAT, _POINTER, _INT, _POINTER),
    ),
    "sgl_decoder": (_POINTER, _LONG, *[_POINTER] * 6),
    "sgl_record": (_POINTER, _LONG),
}
_RESULTS: dict[str, type] = {"sgl_activation_bytes": _LONG, "sgl_record": _LONG}
"""Of those that return something."""


@functools.cache
def compiler() -> str | None:
    """The C++ compiler to use, None where there is none."""
    asked = env.text("CXX")
    return next((found for name in (asked, "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)


@functools.cache
def missing() -> str:
    """Why the C++ kernels cannot be had on this machine; empty if they can."""
    if compiler() is None:
        return "no C++ compiler was found (install g++, or set CXX)"
    try:
        library()
    except subprocess.CalledProcessError as error:
        return f"building the C++ kernels failed: {(error.stderr.strip().splitlines() or [str(error)])[0]}"
    except OSError as error:
        return f"building the C++ kernels failed: {error}"
    return ""


def library(isa: str | None = None) -> ctypes.CDLL:
    """The kernels for ``isa`` (default: as `detect_isa` says), compiled if they are not in the cache.

    Raises:
        OSError, subprocess.SubprocessError: they cannot be built or loaded.
    """
    return _load(isa or detect_isa())


@functools.cache
def _load(isa: str) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(_built(isa)))
    for name, arguments in _SIGNATURES.items():
        function = getattr(lib, name)
        function.argtypes = arguments
        function.restype = _RESULTS.get(name)
    set_threads(lib, torch.get_num_threads())
    return lib


def _built(isa: str) -> Path:
    """As `build`; a compiler that is too old for AMX (GCC 10) still makes the next best."""
    try:
        return build(isa)
    except subprocess.CalledProcessError:
        if isa != "amx":
            raise
        return build("avx512_bf16")


def set_threads(lib: ctypes.CDLL, count: int) -> None:
    """Lets the kernels use ``count`` threads of torch's own team: a second team would fight it for the cores."""
    team = ctypes.CDLL(_openmp())
    entries = (team.GOMP_parallel, team.omp_get_thread_num, team.omp_get_num_threads)
    lib.sgl_threads(*(ctypes.cast(entry, _POINTER) for entry in entries), count)


def pin(count: int) -> None:
    """Keeps each of ``count`` threads of the calling thread's team on a core of its own, the caller included."""
    numbers = cpus()
    team = ctypes.CDLL(_openmp())

    def settle(_: object) -> None:
        os.sched_setaffinity(0, {numbers[team.omp_get_thread_num() % len(numbers)]})

    team.GOMP_parallel(ctypes.CFUNCTYPE(None, _POINTER)(settle), None, count, 0)


def allocator(arena: Arena) -> Allocate:
    """Puts packed weights side by side into the arena, and into memory of their own when that is full."""

    def allocate(size_bytes: int) -> torch.Tensor:
        # the sanitizers watch the borders of what malloc gave only
        part = None if env.flag("SGL_KERNEL_SANITIZE") else arena.take(size_bytes)
        return fresh(size_bytes) if part is None else torch.frombuffer(part, dtype=torch.uint8)

    return allocate


def build(isa: str, name: str = "cpu", sources: Sequence[str] = SOURCES, headers: Sequence[str] = HEADERS) -> Path:
    """Path of the compiled library; compiles it if no library of the same content exists."""
    cxx = compiler()
    if cxx is None:
        raise OSError("no C++ compiler")
    folder = Path(__file__).parent
    flags = (*FLAGS, *ISA_FLAGS[isa], *(SANITIZE_FLAGS if env.flag("SGL_KERNEL_SANITIZE") else ()))
    digest = hashlib.sha256()
    digest.update("\0".join([_version(cxx), *flags]).encode())
    for file in (*sources, *headers):
        digest.update((folder / file).read_bytes())
    cache = env.cache_dir() / "kernels"
    target = cache / f"{name}-{isa}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(target):
            if not target.exists():
                _compile([cxx, *flags], [folder / source for source in sources], target)
    return target


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Waits while another process compiles the same: a dozen that start together need it once."""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(command: Sequence[str], sources: Sequence[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / "kernels.so"
        objects = [str(Path(scratch) / f"{source.name}.o") for source in sources]
        steps = [[*command, "-c", str(source), "-o", into] for source, into in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(min(len(steps), len(cpus()))) as pool:
            list(pool.map(_run, steps))
        _run([*command, *objects, "-o", str(built)])
        built.replace(target)


def _version(cxx: str) -> str:
    return _run([cxx, "--version"])


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _openmp() -> str:
    """The OpenMP runtime that torch loaded: libgomp, under whatever name its package gives it."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    beside = sorted(Path(torch.__file__).parent.parent.glob("torch.libs/libgomp*"))
    return str((bundled + beside)[0]) if bundled or beside else "libgomp.so.1"
