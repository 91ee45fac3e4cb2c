"""Tensors on their way to a device: they arrive whole and in order, in whatever pieces and however late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sgl.engine.base.device import CpuDevice
from sgl.engine.models.streaming import streamed
from tests.runtime.lazy import LazyDevice


def items() -> list[tuple[str, torch.Tensor | str]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 33), (), (0, 4), (1,), (64, 64), (5,), (3, 1000)]
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.int8]
    tensors = [torch.randn(shape, generator=generator).mul(50) for shape in shapes]
    found: list[tuple[str, torch.Tensor | str]] = [
        (f"{place}", tensor.to(dtypes[place % 4])) for place, tensor in enumerate(tensors)
    ]
    found.insert(2, ("packed", "left alone"))
    found.append(("transposed", torch.arange(600).view(20, 30).t()))
    return found


@pytest.mark.parametrize("ahead_bytes", [0, 5000, 1 << 30])
@pytest.mark.parametrize("piece_bytes", [64, 1 << 20])
def test_tensors_arrive(piece_bytes: int, ahead_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.models.streaming._AHEAD_BYTES", ahead_bytes)
    device = LazyDevice()
    arrived = list(streamed(items(), device, piece_bytes))
    for (name, item), (wanted_name, wanted) in zip(arrived, items(), strict=True):
        assert name == wanted_name
        if isinstance(wanted, str):
            assert item == wanted
        else:
            assert isinstance(item, torch.Tensor)
            assert item.dtype == wanted.dtype and torch.equal(item, wanted)


def test_a_failure_while_reading_ends_it() -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(5)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="gone"):
        list(streamed(broken(), LazyDevice()))


def test_a_cpu_takes_tensors_as_they_are() -> None:
    given = items()
    assert all(item is own for (_, item), (_, own) in zip(streamed(given, CpuDevice()), given, strict=True))
