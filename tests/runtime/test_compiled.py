"""Steps that torch compiles: they answer as those that it does not, and a second start finds them compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models.checkpoints import make_checkpoint


def run(path: Path, cache: Path) -> dict[str, Any]:
    """What the program says in a process of its own with this cache."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "tests.runtime.compiled", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_steps_answer_alike_and_are_kept(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path / "llama", tokenizer=False)
    first, second = run(path, tmp_path / "cache"), run(path, tmp_path / "cache")
    assert first["compiled"] > 0 and first["cached"] == 0
    assert second["compiled"] == 0 and second["cached"] == first["compiled"]
    assert second["seconds"] < first["seconds"]
