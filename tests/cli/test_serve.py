"""``sgl serve`` up to the server, and the explanation of its configuration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sgl.server.app
from sgl.cli import console, serve
from sgl.engine.base.config import OPTIONS, EngineConfig
from tests.base.machines import resolved
from tests.cli.test_main import sgl_command


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 256, "torch_dtype": "float32"}')
    return str(tmp_path)


def test_every_value_is_explained(model: str) -> None:
    done = sgl_command("serve", model, "--explain-config", "--set", "port=1", SGL_HOST="h")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("--")}
    assert lines.keys() == {option.flags[0] for option in OPTIONS}
    assert lines["--port"][1:4] == ["1", "set", "--set"]
    assert lines["--host"][1:4] == ["h", "env", "SGL_HOST"]
    assert lines["--context-length"][1:3] == ["256", "resolved"]
    assert lines["--page-size"][1:3] == ["16", "default"]
    assert "\x1b" not in done.stdout


def test_the_memory_is_explained_where_the_weights_are_here(model: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 100}
    Path(model, "config.json").write_text(json.dumps(sizes | {"max_position_embeddings": 256}))
    assert "Memory" not in sgl_command("serve", model, "--explain-config").stdout
    save_file({"model.norm.weight": np.zeros(2**19, np.float32)}, Path(model, "model.safetensors"))
    shown = sgl_command("serve", model, "--explain-config", "--max-total-tokens", "512").stdout
    rows = [line.split()[:3] for line in shown[shown.index("Memory") :].splitlines()]
    assert ["weights", "-1.1", "MiB"] in rows
    assert ["tokens", "512"] in [row[:2] for row in rows]


def test_the_explanation_as_json_hides_secrets(model: str) -> None:
    done = sgl_command("serve", model, "--explain-config", "--json", "--api-key", "hunter2")
    rows = json.loads(done.stdout)
    assert rows["dtype"] == {"value": "float32", "source": "resolved", "reason": "the checkpoint's"}
    assert rows["api_key"] == {"value": "********", "source": "flag", "reason": "--api-key"}
    assert rows.keys() == {option.name for option in OPTIONS}
    assert "hunter2" not in done.stdout
    assert sgl_command("serve", model, "--json").returncode == 2


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """Configurations that the server was run with; it says it is ready and ends."""
    configs: list[EngineConfig] = []

    def run_server(config: EngineConfig, *, ready: Callable[[str], None], **options: Any) -> None:
        configs.append(config)
        ready("http://127.0.0.1:1234")

    monkeypatch.setattr(sgl.server.app, "run_server", run_server)
    return configs


def test_the_model_may_be_named_by_position_or_flag(model: str, served: list[EngineConfig]) -> None:
    serve.command.main([model, "--dtype", "half"], standalone_mode=False)
    serve.command.main(["--model", model, "--port", "0"], standalone_mode=False)
    assert [config.model.model_path for config in served] == [model, model]
    assert [config.model.dtype for config in served] == ["float16", "float32"]


def test_a_terminal_is_told_what_to_try(
    model: str, served: list[EngineConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    serve.command.main([model], standalone_mode=False)
    assert capsys.readouterr().err == ""  # not a terminal: the log has its ready line
    monkeypatch.setattr(serve.sys.stderr, "isatty", lambda: True, raising=False)
    serve.command.main([model], standalone_mode=False)
    told = capsys.readouterr().err
    assert "curl http://127.0.0.1:1234/v1/chat/completions" in told
    assert "sgl chat --url http://127.0.0.1:1234" in told


def test_the_curl_is_a_valid_command_with_a_valid_body() -> None:
    config = resolved(model__served_model_name="it's", serve__api_key="hunter2")
    words = shlex.split(serve.curl(config, "http://h:1").replace("\\\n", ""))
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    assert "Authorization: Bearer YOUR_API_KEY" in words
    assert json.loads(words[-1])["model"] == "it's"
    assert "Authorization" not in serve.curl(resolved(), "http://h:1")


def test_output_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not console.out().is_terminal
    assert console.out().soft_wrap
