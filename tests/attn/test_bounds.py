"""Attention reads nothing behind its cache: the cache ends where a page of memory that cannot be read begins."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgl.kernels.cpu import native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

DIM, PAGE_SIZE, NUM_PAGES = 64, 16, 4


def guarded(num_bytes: int) -> int:
    """The address of so many bytes, a multiple of 4096, behind which nothing can be read."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    address = libc.mmap(None, num_bytes + 4096, 3, 0x22, -1, 0)  # read and write, private and anonymous
    assert libc.mprotect(address + num_bytes, 4096, 0) == 0
    return int(address)


def attend(length: int, is_int8: bool, latent: int) -> None:
    """One head of one request whose first tokens are on the cache's last page."""
    k, v = (guarded(NUM_PAGES * PAGE_SIZE * DIM * (1 if is_int8 else 2)) for _ in "kv")
    v = k if latent else v
    scales = torch.full((NUM_PAGES * PAGE_SIZE,), 0.01)
    scale_places = (scales.data_ptr(), scales.data_ptr()) if is_int8 else (None, None)
    q, out = torch.randn(1, DIM).bfloat16(), torch.zeros(1, DIM, dtype=torch.bfloat16)
    cu_q, lengths = (torch.tensor(values, dtype=torch.int32) for values in ([0, 1], [length]))
    table = torch.arange(NUM_PAGES - 1, -1, -1, dtype=torch.int32)
    native.library().sgl_attention(
        *(q.data_ptr(), DIM, k, v, *scale_places),
        *(cu_q.data_ptr(), lengths.data_ptr(), table.data_ptr(), NUM_PAGES),
        *(1, 1, 1, DIM, PAGE_SIZE, latent, 0.1, 0.0, None, 0, out.data_ptr()),
    )
    assert out.isfinite().all()


@pytest.mark.parametrize("latent", [0, 48])
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("length", [1, 5, 16, 40, 64])
def test_nothing_is_read_behind_the_cache(length: int, is_int8: bool, latent: int) -> None:
    code = f"from tests.attn.test_bounds import attend; attend({length}, {is_int8}, {latent})"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0
