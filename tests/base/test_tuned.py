"""Tuned values: found for the same machine and model shape only, below everything that somebody gave."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sgl.engine.base import sources, tuned
from sgl.engine.base.config import EngineConfig, Given, resolve
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.machine import Machine, describe
from sgl.profiles.tuned import write
from tests.base.machines import LAPTOP

HF: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
VALUES: dict[str, int | bool] = {"cache.page_size": 64, "kernel.cpu_threads": 3, "kernel.cpu_pin": True}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder; profiles are kept under the same temporary directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HF))
    return folder


def configure(model: Path, machine: Machine = LAPTOP, **options: object) -> EngineConfig:
    return sources.configure(sources.from_call({"model_path": str(model), **options}), machine)


def store(model: Path) -> Path:
    """Writes `VALUES` for the laptop."""
    profile = tuned.Profile(machine=describe(LAPTOP), shape={}, values=VALUES, gain=1.1, sgl_version="0", time="")
    path = tuned.folder() / tuned.place_of(configure(model), HF, LAPTOP)
    write(profile, path)
    return path


def test_tuned_values_are_defaults_that_say_where_they_come_from(model: Path) -> None:
    path = store(model)
    config = configure(model)
    assert (config.cache.page_size, config.kernel.cpu_threads, config.kernel.cpu_pin) == (64, 3, True)
    for key in ("cache.page_size", "kernel.cpu_threads", "kernel.cpu_pin"):
        assert (config.provenance[key].source, config.provenance[key].reason) == ("tuned", str(path))
    assert config.schedule.chunked_prefill_size == 512  # which was not tuned
    assert "page_size=64" in config.describe()


def test_everything_that_is_given_counts_more(model: Path, tmp_path: Path) -> None:
    store(model)
    file = tmp_path / "sgl.yaml"
    file.write_text("page_size: 32\n")
    for values in (
        sources.from_file(file),
        sources.from_assignments(["page_size=32"]),
        sources.from_environment({"SGL_PAGE_SIZE": "32"}, compat=False),
        {"cache.page_size": Given("32", "flag", "--page-size")},
    ):
        config = sources.configure({**sources.from_call({"model_path": str(model)}), **values}, LAPTOP)
        assert config.cache.page_size == 32
        assert config.provenance["cache.page_size"].source != "tuned"
        assert config.kernel.cpu_threads == 3


def test_it_can_be_switched_off(model: Path) -> None:
    store(model)
    assert configure(model, no_tuned=True).cache.page_size == 16


@pytest.mark.parametrize("other", [{"cores": 8}, {"isa": "avx512"}, {"device_name": "another"}])
def test_another_machine_has_other_values(model: Path, other: dict[str, Any]) -> None:
    store(model)
    assert configure(model, dataclasses.replace(LAPTOP, **other)).cache.page_size == 16
    assert configure(model, dataclasses.replace(LAPTOP, memory_free_bytes=2**30, entropy=9)).cache.page_size == 64


def test_another_model_or_format_has_other_values(model: Path) -> None:
    store(model)
    assert configure(model, dtype="float32").cache.page_size == 16
    assert configure(model, quantization="int8").cache.page_size == 16
    assert configure(model, dtype="bfloat16", context_length=64).cache.page_size == 64
    (model / "config.json").write_text(json.dumps(HF | {"hidden_size": 128}))
    assert configure(model).cache.page_size == 16
    (model / "config.json").write_text(json.dumps(HF | {"rope_theta": 7.0, "bos_token_id": 3}))  # costs nothing
    assert configure(model).cache.page_size == 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"values": {"cache.page_size": 64}}',
        b'{"machine":{},"shape":{},"values":{"cache.page_size":0},"gain":1.0,"sgl_version":"0","time":""}',
        b'{"machine":{},"shape":{},"values":{"cache.page_size":64,"serve.port":1},"gain":1.0,"sgl_version":"0","time":""}',
        b'{"machine":{},"shape":{},"values":{"nothing":1},"gain":1.0,"sgl_version":"0","time":""}',
        b'{"machine":{},"shape":{},"values":{"kernel.cpu_threads":"many"},"gain":1.0,"sgl_version":"0","time":""}',
    ],
)
def test_a_file_that_cannot_be_used_is_warned_of_once(
    model: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = store(model)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        config = configure(model)
    assert config == configure(model, no_tuned=True).replace({"kernel.no_tuned": (False, "")})
    (record,) = caplog.records
    assert str(path) in record.getMessage()


def test_a_folder_in_the_file_s_place_is_warned_of_too(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = store(model)
    path.unlink()
    path.mkdir()
    assert configure(model).cache.page_size == 16
    assert len(caplog.records) == 1


def test_resolution_takes_them_as_an_argument(model: Path) -> None:
    values = {**sources.from_call({"model_path": "m"}), "cache.page_size": Given(64, "tuned", "somewhere")}
    config = resolve(values, HF, LAPTOP)
    assert config.cache.page_size == 64 and config.provenance["cache.page_size"].source == "tuned"
    assert EngineConfig.from_json(config.to_json()).provenance == config.provenance


def test_a_profile_that_cannot_be_written_is_an_error_of_the_user_s(model: Path) -> None:
    path = store(model)
    profile = tuned.Profile(machine={}, shape={}, values={}, gain=1.0, sgl_version="0", time="")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        write(profile, path / "below" / "a.json")
