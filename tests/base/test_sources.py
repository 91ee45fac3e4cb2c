"""Where values come from: any route gives the same configuration, and precedence decides between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sgl.cli.options import AbbreviatingCommand, with_config
from sgl.engine.base import sources
from sgl.engine.base.config import GROUPS, OPTIONS, EngineConfig, Given, resolve
from sgl.engine.base.errors import ConfigError, ModelError
from sgl.engine.base.options import Option
from tests.base.machines import GPU, LAPTOP

app = typer.Typer()
received: list[sources.Values] = []


@app.command(cls=AbbreviatingCommand)
@with_config(*GROUPS)
def collect(values: sources.Values) -> None:
    """A command with every option."""
    received.append(values)


HF = {"max_position_embeddings": 2**40}
_SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "json_model_override_args": st.dictionaries(st.sampled_from("xyz"), st.integers()).map(json.dumps),
    "tp_size": st.just(1),
    "chunked_prefill_size": st.integers(1, 10**6),
}
_TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=20)


def valid(option: Option) -> st.SearchStrategy[Any]:
    """Values that the option takes, as the flag's text would say them."""
    if option.name in _SPECIAL:
        return _SPECIAL[option.name]
    if option.choices:
        return st.sampled_from(option.choices)
    low, high = option.declaration.minimum or 0, option.declaration.maximum or 10**9
    return {
        bool: st.just(True),
        int: st.integers(int(low), int(high)),
        float: st.floats(low, high).map(lambda x: float(f"{x:.4f}")).filter(lambda x: low <= x <= high),
        tuple: st.lists(st.from_regex(r"[a-z.]+=[a-z0-9]+", fullmatch=True), min_size=1, max_size=3).map(tuple),
        str: _TEXT,
    }[option.kind]


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Values for some options, by name; a model always."""
    options = draw(st.lists(st.sampled_from(OPTIONS), unique=True, max_size=6))
    return {"model_path": "m"} | {option.name: draw(valid(option)) for option in options}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def by_flags(values: dict[str, Any], folder: Path) -> sources.Values:
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if isinstance(value, bool) else [f"{flag}={_text(value)}"]
    return run_flags(words)


def run_flags(words: list[str], **environment: str) -> sources.Values:
    """What a command with every option receives."""
    result = CliRunner().invoke(app, words, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return received.pop()


def by_assignments(values: dict[str, Any], folder: Path) -> sources.Values:
    return sources.from_assignments(f"{name}={_text(value)}" for name, value in values.items())


def by_environment(values: dict[str, Any], folder: Path) -> sources.Values:
    return sources.from_environment({f"SGL_{n.upper()}": _text(v) for n, v in values.items()}, compat=False)


def by_file(values: dict[str, Any], folder: Path) -> sources.Values:
    path = folder / "sgl.yaml"
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    path.write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
    return sources.from_file(path)


def by_call(values: dict[str, Any], folder: Path) -> sources.Values:
    return sources.from_call(values)


@settings(max_examples=60, deadline=None)
@given(values=choices())
def test_every_route_leads_to_the_same_configuration(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("config")
    expected = resolve(by_call(values, folder), HF, GPU)
    for route in (by_flags, by_assignments, by_environment, by_file):
        assert resolve(route(values, folder), HF, GPU) == expected, route.__name__


def test_the_first_of_flag_set_environment_and_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("cache: {page_size: 1}\nport: 1\nhost: file\nlog_level: error\n")
    words = ["--page-size", "4", "--set", "page_size=3", "--set", "port=3", "--config", str(path)]
    environment = {"SGL_PAGE_SIZE": "2", "SGL_PORT": "2", "SGL_HOST": "env"}
    values = run_flags([*words, "--model", "m"], **environment)
    config = resolve(values, HF, LAPTOP)
    assert (config.cache.page_size, config.serve.port, config.serve.host) == (4, 3, "env")
    assert config.observe.log_level == "error"
    found = {key: (origin.source, origin.reason) for key, origin in config.provenance.items()}
    overridden = f"--set page_size, SGL_PAGE_SIZE, cache.page_size in {path}"
    assert found["cache.page_size"] == ("flag", f"--page-size, overrides {overridden}")
    assert found["serve.port"][0] == "set"
    assert found["serve.host"] == ("env", f"SGL_HOST, overrides host in {path}")
    assert found["observe.log_level"] == ("file", f"log_level in {path}")
    assert found["serve.drain_timeout_s"] == ("default", "")


def test_a_bad_value_is_blamed_on_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("port: many\n")
    for values, where in (
        (sources.from_file(path), f"port in {path}"),
        (sources.from_assignments(["port=many"]), "--set port"),
        (sources.from_environment({"SGL_PORT": "many"}, compat=False), "SGL_PORT"),
        (sources.from_call({"port": "many"}), "port"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(values, HF, LAPTOP)
        assert caught.value.message == f"{where} (--port) must be an integer, got 'many'."


def test_bare_variables_count_only_when_asked_for() -> None:
    environment = {
        "MODEL_PATH": "a",
        "DTYPE": "half",
        "TENSOR_PARALLEL_SIZE": "1",
        "SGL_DTYPE": "float",
        "PATH": "/bin",
    }
    assert sources.from_environment(environment, compat=False).keys() == {"model.dtype"}
    values = sources.from_environment(environment, compat=True)
    assert {key: given.value for key, given in values.items()} == {
        "model.model_path": "a", "model.dtype": "float", "parallel.tp_size": "1",
    }  # fmt: skip
    assert run_flags(["--env-compat"], MODEL_PATH="b")["model.model_path"].value == "b"
    assert run_flags([], MODEL_PATH="b", SGL_ENV_COMPAT="1")["model.model_path"].value == "b"
    assert run_flags([], MODEL_PATH="b") == {}


def test_sglangs_own_variable_needs_no_permission() -> None:
    values = sources.from_environment({"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}, compat=False)
    assert values["model.allow_longer_context"].where == "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"


def test_variables_of_images_for_what_is_not_there_yet() -> None:
    idle = {"DISABLE_MLA": "false", "DATA_PARALLEL_SIZE": "1", "QUANTIZATION": ""}
    assert sources.from_environment(idle, compat=True) == {}
    assert sources.from_assignments(["dp_size=1"]) == sources.from_call({"dp_size": 1, "enable_mla": None}) == {}
    with pytest.raises(ConfigError, match="DATA_PARALLEL_SIZE=2 is not supported"):
        sources.from_environment({"DATA_PARALLEL_SIZE": "2"}, compat=True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("cache:\n  page_siz: 1\n", "there is no option called 'cache.page_siz'. Did you mean 'cache.page_size'?"),
        ("lora_paths: [a]\n", "'lora_paths' is not supported by this version of sgl."),
        ("a: [\n", "is not valid YAML"),
        ("- a\n", "must hold options by name, not a list."),
        ("page_size: 1\ncache: {page-size: 2}\n", "names the same option twice: page_size and cache.page-size."),
        ("x: !!python/object/apply:os.system [echo]\n", "is not valid YAML"),
        ("1: 2\n", "there is no option called '1'."),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        sources.from_file(path)
    assert str(path) in caught.value.message
    assert sentence in caught.value.message


def test_unreadable_files_and_empty_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        sources.from_file(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        sources.from_file(tmp_path / "binary")
    (tmp_path / "empty.yaml").write_text("page_size:\n")
    assert sources.from_file(tmp_path / "empty.yaml") == {}


def test_set_wants_name_and_value() -> None:
    with pytest.raises(ConfigError, match="--set must be name=value"):
        sources.from_assignments(["page_size"])
    assert sources.from_assignments(["page_size=1", "cache.page_size=2"])["cache.page_size"].value == "2"


def test_the_demo_model_stands_in_where_none_is_named() -> None:
    values = sources.with_demo_model({})
    config = resolve(values, HF, LAPTOP)
    assert Path(config.model.model_path).parts[-2:] == ("assets", "demo")
    assert config.model.served_model_name == "sgl-demo"
    named = {"model.model_path": Given("m", "flag", "--model-path")}
    assert sources.with_demo_model(named) == named


def test_configure_reads_the_models_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 128}')
    config = sources.configure(sources.from_call({"model_path": str(tmp_path), "device": "cpu"}))
    assert config.model.context_length == 128
    assert isinstance(config, EngineConfig)
    with pytest.raises(ModelError, match=r"there is no config\.json in it"):
        sources.configure(_directory(tmp_path))
    with pytest.raises(ConfigError, match="--model-path is required"):
        sources.configure({})


def _directory(tmp_path: Path) -> sources.Values:
    empty = tmp_path / "empty"
    empty.mkdir()
    return sources.from_call({"model_path": str(empty)})
