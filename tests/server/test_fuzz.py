"""Requests made up from `/openapi.json` by schemathesis: whatever they ask for, none is a server error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.live import live


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_a_server_error(mode: str, tmp_path: Path) -> None:
    with live(observe_enable_metrics=True, serve_file_storage_path=str(tmp_path)) as server:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--mode", mode, "--checks", "not_a_server_error"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"),
            *("--suppress-health-check", "all", "--continue-on-failure", "--no-color"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-20_000:]
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        assert not server.engine.num_active
