"""Fixtures for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from sgl.engine.base import env

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared: Triton then computes on CPU tensors


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """As at a terminal: what a shell starts in the background ignores Ctrl-C, and so does all that this starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave nothing in the user's cache and find nothing there, but for what is compiled."""
    theirs, ours = env.cache_dir(), tmp_path_factory.mktemp("cache")
    (ours / "sgl").mkdir()
    for name in ("kernels", "triton", "inductor"):
        (theirs / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (ours / "sgl" / name).symlink_to(theirs / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(ours))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors only wait for each other's threads, most of all where other work shares the cores."""
    torch.set_num_threads(1)
