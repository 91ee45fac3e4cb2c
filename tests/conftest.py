"""Fixtures for all tests."""

import os
import signal

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared: Triton then computes on CPU tensors


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """As at a terminal: what a shell starts in the background ignores Ctrl-C, and so does all that this starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors only wait for each other's threads, most of all where other work shares the cores."""
    torch.set_num_threads(1)
