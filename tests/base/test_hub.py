"""Finding a model's files: what a person reads when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from sgl.engine.base import hub
from sgl.engine.base.errors import ModelError


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert hub.locate(str(tmp_path), ()) == tmp_path


@pytest.mark.parametrize("path", ["/no/such", "./no", "~/no-such-model", "a/b/c", "", " "])
def test_a_path_that_is_not_there(path: str) -> None:
    with pytest.raises(ModelError, match="there is no such directory"):
        hub.locate(path, ())


def test_what_is_no_repository_name_is_not_looked_up() -> None:
    with pytest.raises(ModelError, match="neither a directory nor a Hugging Face Hub id"):
        hub.locate("two words", ())


_RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.GatedRepoError("x", response=_RESPONSE), "is gated: accept its licence"),
        (errors.RepositoryNotFoundError("x", response=_RESPONSE), "no such model on the Hub"),
        (errors.RevisionNotFoundError("x", response=_RESPONSE), "no such --revision"),
        (errors.LocalEntryNotFoundError("x"), "is not in the cache and the Hugging Face Hub cannot be reached"),
        (errors.OfflineModeIsEnabled("x"), "is not in the cache and the Hugging Face Hub cannot be reached"),
        (httpx.ConnectError("x"), "is not in the cache and the Hugging Face Hub cannot be reached"),
        (OSError("disk full"), "could not be fetched from the Hugging Face Hub: OSError: disk full."),
    ],
)
def test_every_failure_of_the_hub_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        hub.locate("org/model", ())
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message


def test_only_the_wanted_files_of_the_wanted_revision_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(model: str, **options: Any) -> str:
        asked.append((model, options))
        (tmp_path / "config.json").write_text('{"a": 1}')
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.read_config("org/model", "main", "/cache") == {"a": 1}
    assert asked == [("org/model", {"revision": "main", "cache_dir": "/cache", "allow_patterns": ["config.json"]})]


@pytest.mark.parametrize("content", ["[1]", "{", "\x00"])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        hub.read_config(str(tmp_path))
