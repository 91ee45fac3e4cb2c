"""What is logged and dumped about requests, and what never is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sgl.engine.api import GenerateRequest
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError, SglError
from sgl.server.request_log import CONTENT, HIDDEN, METADATA, PARAMETERS, Redactor, RequestLog
from sgl.server.state import ServerState
from tests.server.conftest import Serve
from tests.server.fake import make_config
from tests.server.scripted import die_in_a_stream
from tests.server.served import Served

LONG = ", ".join(["100"] * 1500)
SECRETS = {"cache_salt": "pepper"}


def _log(served: Served) -> RequestLog:
    state: ServerState = served.app.state.server
    return state.request_log


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sgl.server.request_log"]


def _ask(serve: Serve, caplog: pytest.LogCaptureFixture, body: dict[str, Any], **options: Any) -> list[str]:
    caplog.set_level(logging.INFO, "sgl.server")
    serve(observe_log_requests=True, **options).answer("/generate", body)
    return _lines(caplog)


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        (0, ["finish_reason='length'"], ["sampling", "top_k", "100, 100"]),
        (1, ["'top_k': 3"], ["100, 100"]),
        (2, ["'top_k': 3", "100, 100", "..."], [LONG]),
        (3, ["'top_k': 3", LONG], ["..."]),
    ],
)
def test_levels(
    serve: Serve, caplog: pytest.LogCaptureFixture, level: int, shown: list[str], hidden: list[str]
) -> None:
    params = {"top_k": 3, "max_new_tokens": 5}
    body = {"input_ids": [100] * 1500, "rid": "r7", "sampling_params": params, **SECRETS}
    received, finished = _ask(serve, caplog, body, observe_log_requests_level=level)
    assert received.startswith("Receive: rid='r7' ") and finished.startswith("Finish: rid='r7' ")
    assert "prompt_tokens=1500 completion_tokens=5" in finished
    for part in shown:
        assert part in received + finished
    for part in ("pepper", *hidden):
        assert part not in received + finished


def test_a_long_text_is_cut() -> None:
    redactor = Redactor("")
    assert redactor.short("x" * 3000) == "x" * 2048 + "..."
    assert redactor.short("x" * 2048) == "x" * 2048
    assert redactor.whole("x" * 3000) == "x" * 3000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk-abcdefghijklmnop1234 here", "key [redacted] here"),
        ("Authorization: Bearer abc.def-1", "Authorization: [redacted]"),
        ("see data:image/png;base64,iVBORw0KGgo= there", "see [redacted] there"),
        ("hf_abcdefghijklmnopqrstuv", "[redacted]"),
        ("a sketch, a task-force, data: none", "a sketch, a task-force, data: none"),
        ("my number is 555-1234", "my number is [redacted]"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    redactor = Redactor(r"\d{3}-\d{4}")
    assert redactor.whole(text) == redactor.short(text) == shown


def test_a_secret_that_reaches_beyond_the_cut_is_hidden() -> None:
    text = "x" * 2040 + " data:image/png;base64," + "A" * 100_000
    assert "AAAA" not in Redactor("").short(text)


def test_redaction_reaches_prompts_and_answers(serve: Serve, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    options = {"observe_log_redact": "hush", "observe_dump_requests_folder": str(tmp_path)}
    lines = _ask(serve, caplog, {"text": "say hush now"}, **options)
    assert all("hush" not in line and "[redacted]" in line for line in lines)


def test_every_field_of_a_request_was_thought_of() -> None:
    """A new field is shown somewhere, or is among those that never are."""
    assert sorted(GenerateRequest.__struct_fields__) == sorted((*METADATA, *PARAMETERS, *CONTENT, *HIDDEN))


def test_a_bad_expression_is_a_bad_option() -> None:
    with pytest.raises(ConfigError, match="--log-redact"):
        Redactor("(")


def test_configuring(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sgl.server")
    served = serve()
    served.answer("/generate", {"text": "quiet"})
    _log(served).configure(log_requests=True, log_requests_level=2)
    served.answer("/generate", {"text": "loud"})
    _log(served).configure(log_requests=False)
    served.answer("/generate", {"text": "quiet"})
    assert [line.split(":")[0] for line in _lines(caplog)] == ["Receive", "Finish"]
    assert "quiet" not in caplog.text and "loud" in caplog.text


def test_time_cost(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sgl.server")
    serve(observe_show_time_cost=True).answer("/generate", {"text": "abc", "rid": "r"})
    [line] = _lines(caplog)
    assert line.startswith("Time cost: rid='r' index=0 queue_s=")
    assert "first_token_s=" in line and "total_s=" in line


def test_aborts_are_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sgl.server")
    served = serve(observe_log_requests=True)
    die_in_a_stream(served)
    served.events("/generate", {"text": "x" * 100, "rid": "r"})
    assert _lines(caplog)[-1] == "Abort: rid='r' reason='engine'"


def _dumped(folder: Path) -> list[Any]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]


def test_dumping(serve: Serve, tmp_path: Path) -> None:
    served = serve(observe_dump_requests_folder=str(tmp_path), observe_dump_requests_threshold=2)
    for i in range(5):
        body = {"text": f"abc{i}", "sampling_params": {"top_k": 3}, **SECRETS}
        served.answer("/generate", body)
    _log(served).close()
    lines = _dumped(tmp_path)
    assert [line["answer"]["text"] for line in lines] == [f"abc{i}" for i in range(5)]
    assert lines[0]["request"]["text"] == "abc0"
    assert lines[0]["request"]["sampling"]["top_k"] == 3
    assert "pepper" not in json.dumps(lines)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_client_chooses_only_folders_below(serve: Serve, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    served = serve(observe_dump_requests_folder=str(root))
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to("circle")
    log = _log(served)
    for folder in ("..", str(outside), "../outside", "link", "link/x", "/etc", "a\0b", "x" * 300, "circle/x"):
        with pytest.raises(SglError) as caught:
            log.configure(dump_requests_folder=folder)
        assert caught.value.param == "dump_requests_folder"
    log.configure(dump_requests_folder="run/1")
    served.answer("/generate", {"text": "abc"})
    log.configure(dump_requests_folder="")
    served.answer("/generate", {"text": "def"})
    assert [line["request"]["text"] for line in _dumped(root / "run" / "1")] == ["abc"]
    assert not list(outside.iterdir())


def test_dumping_needs_a_folder_of_the_operators(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(SglError, match="--dump-requests-folder"):
        _log(serve()).configure(dump_requests_folder=str(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"log_requests_level": 4},
        {"log_requests_level": -1},
        {"dump_requests_threshold": 0},
        {"dump_requests_threshold": 10**9},
    ],
    ids=str,
)
def test_values_out_of_range_change_nothing(serve: Serve, values: dict[str, int]) -> None:
    log = _log(serve())
    with pytest.raises(SglError) as caught:
        log.configure(log_requests=True, **values)
    assert caught.value.param == next(iter(values))
    assert not log.is_on


def test_a_full_disk_is_said_and_stops_nothing(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(observe_dump_requests_folder=str(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    served.answer("/generate", {"text": "abc"})
    _log(served).close()
    assert "1 requests could not be dumped" in caplog.text


def test_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--dump-requests-folder"):
        ServerState(make_config(observe_dump_requests_folder=str(tmp_path / "file" / "x")))
    assert not RequestLog(EngineConfig().observe).is_on
