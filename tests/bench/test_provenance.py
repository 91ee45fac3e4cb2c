"""Where results go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl.bench.provenance import append, check_output
from sgl.engine.base.errors import ConfigError


def test_looking_whether_a_file_can_be_written_leaves_no_trace(tmp_path: Path) -> None:
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    append(str(old), {"a": 1})
    link.symlink_to("new")
    for file in ("", str(old), str(new), str(link)):
        check_output(file)
    assert old.read_text() == '{"a": 1}\n'
    assert link.is_symlink() and not new.exists()
    append(str(link), {"b": 2})
    assert json.loads(new.read_text()) == {"b": 2}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for file in (tmp_path, tmp_path / "missing" / "x", tmp_path / "loop"):
        with pytest.raises(ConfigError, match=f"--output-file {file} cannot be written"):
            check_output(str(file))
