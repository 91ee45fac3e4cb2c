"""Fixtures for all tests."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors only wait for each other's threads, most of all where other work shares the cores."""
    torch.set_num_threads(1)
