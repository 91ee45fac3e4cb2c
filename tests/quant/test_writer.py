"""The writer against safetensors' own reader, and against everything that may interrupt it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sgl.engine.base.errors import ConfigError
from sgl.quant.writer import JOURNAL, Planned, Writer

TENSORS: dict[str, Tensor] = {
    "a.weight": torch.arange(300, dtype=torch.int32).view(20, 15),
    "b.weight": torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "b.scale": torch.rand(64, 1),
    "c.weight": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16),
    "d.flag": torch.tensor([True, False, True]),
    "e.scalar": torch.tensor(3, dtype=torch.int64),
}
PLAN = {name: Planned.like(tensor) for name, tensor in TENSORS.items()}
FILES = {"config.json": b"{}", "tokenizer.json": b"[]"}


def fill(writer: Writer, *names: str) -> None:
    for name in names or TENSORS:
        writer.write(name, [TENSORS[name].reshape(-1)])
        writer.complete(name, {"of": name})


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors, as the library reads them."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(found: dict[str, Tensor]) -> bool:
    """Whether names, dtypes and bits are those of `TENSORS`."""
    return found.keys() == TENSORS.keys() and all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
        for name, tensor in TENSORS.items()
    )


@pytest.mark.parametrize("shard_bytes", [10**9, 4096, 1])
def test_the_library_reads_what_was_written(tmp_path: Path, shard_bytes: int) -> None:
    writer = Writer(tmp_path / "out", PLAN, "run", shard_bytes=shard_bytes)
    fill(writer)
    assert not (writer.folder / "config.json").exists()
    writer.publish(FILES)
    assert same(stored(tmp_path / "out"))
    assert not writer.folder.exists() and (tmp_path / "out/config.json").read_bytes() == b"{}"
    names = {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    index = tmp_path / "out/model.safetensors.index.json"
    if shard_bytes == 10**9:
        assert names == {"model.safetensors"} and not index.exists()
    else:
        told = json.loads(index.read_text())["weight_map"]
        assert told.keys() == TENSORS.keys() and set(told.values()) == names
        assert all(name in load_file(tmp_path / "out" / file) for name, file in told.items())


def test_files_may_be_named(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "out", PLAN, "run", file_of=lambda name: name[0])
    fill(writer)
    writer.publish(FILES)
    assert {file.stem for file in (tmp_path / "out").glob("*.safetensors")} == set("abcde")
    assert same(stored(tmp_path / "out"))


def test_a_later_process_goes_on(tmp_path: Path) -> None:
    first = Writer(tmp_path / "out", PLAN, "run", shard_bytes=4096)
    fill(first, "a.weight", "b.weight", "b.scale")
    first.save()
    first.close()  # a process that ends lets go of its lock
    with (first.folder / JOURNAL).open("a") as journal:
        journal.write('{"unit": "c.wei')  # and may die within a line
    second = Writer(tmp_path / "out", PLAN, "run", shard_bytes=4096)
    assert second.units == {name: {"of": name} for name in ("a.weight", "b.weight", "b.scale")}
    assert second.read("b.weight").equal(TENSORS["b.weight"])
    fill(second, "c.weight")
    second.save()
    second.close()
    third = Writer(tmp_path / "out", PLAN, "run", shard_bytes=4096)
    assert list(third.units) == ["a.weight", "b.weight", "b.scale", "c.weight"]
    fill(third, "d.flag", "e.scalar")
    third.publish(FILES)
    assert same(stored(tmp_path / "out"))


def test_what_a_killed_gate_or_publication_left_is_not_published(tmp_path: Path) -> None:
    first = Writer(tmp_path / "out", PLAN, "run")
    fill(first)
    first.save()
    (first.folder / "gate").mkdir()
    first.view(first.folder / "gate" / "candidate", FILES)
    (first.folder / "generation_config.json").write_bytes(b"{")
    first.close()
    second = Writer(tmp_path / "out", PLAN, "run")
    assert list(second.units) == list(TENSORS)
    second.publish(FILES)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.safetensors", *FILES}
    assert same(stored(tmp_path / "out"))


def test_another_run_is_refused_until_it_is_thrown_away(tmp_path: Path) -> None:
    first = Writer(tmp_path / "out", PLAN, "run")
    fill(first, "a.weight")
    first.save()
    first.close()
    with pytest.raises(ConfigError, match="--restart"):
        Writer(tmp_path / "out", PLAN, "other")
    again = Writer(tmp_path / "out", PLAN, "other", restart=True)
    assert again.units == {}
    again.close()


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    first = Writer(tmp_path / "out", PLAN, "run")
    with pytest.raises(ConfigError, match="another process"):
        Writer(tmp_path / "out", PLAN, "run")
    fill(first)
    first.publish(FILES)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        Writer(tmp_path / "out", PLAN, "run")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_is_too_small_is_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ConfigError, match="GB free and the checkpoint needs"):
        Writer(tmp_path / "deep/out", PLAN, "run")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="No space left"):
        Writer(tmp_path / "out", PLAN, "run")
    assert not list(tmp_path.iterdir())


def test_a_view_looks_like_the_published_folder(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "out", PLAN, "run", shard_bytes=4096)
    fill(writer)
    writer.save()
    writer.view(tmp_path / "view", FILES)
    assert same(stored(tmp_path / "view"))
    writer.publish(FILES)
    assert {file.name for file in (tmp_path / "view").iterdir()} == {file.name for file in (tmp_path / "out").iterdir()}
