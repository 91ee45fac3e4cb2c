"""``sgl batch``: files are answered by a server elsewhere, in one go or after interruptions; wrong lines are named."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl.cli import batch_check, batch_http, batch_run
from sgl.engine.base.errors import ConfigError, SglError
from sgl.server.batches.dispatch import UnreachableError
from tests.server.batches.inputs import entries, ids, jsonl, request, requests
from tests.server.fake import make_config, make_engine
from tests.server.live import ROOT, LiveEcho, live, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEcho]:
    storage = str(tmp_path_factory.mktemp("cli") / "storage")
    with live(serve_api_key="k", serve_file_storage_path=storage) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(requests(120))
    return path


def run(*words: Any) -> int:
    """The exit code of ``sgl batch run`` in this process."""
    with pytest.raises(SystemExit) as ended:
        batch_run.command.main([str(word) for word in words], standalone_mode=False)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def said(path: Path) -> dict[str, str]:
    return {
        entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"] for entry in entries(path)
    }


def test_a_server_answers_every_line(server: LiveEcho, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = source.with_name("out.jsonl")
    assert run(source, "-o", output, "--url", server.url, "--api-key", "k", "--max-in-flight", "7") == 0
    assert said(output) == {f"r{i}": f"<user>say r{i}" for i in range(120)}
    assert len(entries(output)) == 120
    assert sorted(source.parent.iterdir()) == [source, output]
    told = capsys.readouterr().out
    assert "120 lines, 120 completed, 0 failed" in told
    assert "output tokens/s" in told


def test_failures_are_answers_and_change_the_exit_code(
    server: LiveEcho, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = request("wrong", body={"messages": [{"role": "user", "content": "x"}], "temperature": -1})
    mixed = request("text", url="/completions", body={"prompt": "abc"})
    source.write_bytes(jsonl(request("a"), wrong, mixed))
    output = source.with_name("out.jsonl")
    assert run(source, "-o", output, "--url", f"{server.url}/v1", "--api-key", "k") == 1
    found = {entry["custom_id"]: entry["response"] for entry in entries(output)}
    assert {name: response["status_code"] for name, response in found.items()} == {"a": 200, "wrong": 400, "text": 200}
    assert found["text"]["body"]["choices"][0]["text"] == "abc"
    assert "2 completed, 1 failed" in capsys.readouterr().out


def test_an_engine_here_answers_every_line(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, _ = make_engine(make_config())
    monkeypatch.setattr(batch_run, "_load", lambda values, interpreter: engine)
    output = source.with_name("out.jsonl")
    assert run(source, "-o", output) == 0
    assert said(output) == {f"r{i}": f"<user>say r{i}" for i in range(120)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(
    server: LiveEcho, source: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    output, folder = source.with_name("out.jsonl"), source.with_name("out.jsonl.answers")
    words = ["batch", "run", str(source), "-o", str(output), "--url", server.url, "--api-key", "k"]
    before = len(server.client.received)
    most = server.client.num_finished + 60  # that many are answered until it is interrupted
    server.client.limit = lambda: 1 if server.client.num_finished >= most else math.inf
    try:
        command = [sys.executable, "-c", "from sgl.cli.main import program; program()", *words, "--max-in-flight", "5"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: any(path.read_bytes().count(b"batch_req_") > 10 for path in folder.glob("files/*")))
            process.send_signal(number)
            _, told = process.communicate(timeout=60)
            assert process.returncode == (130 if number == signal.SIGINT else -9)
    finally:
        server.client.limit = lambda: math.inf
    if number == signal.SIGINT:
        assert "of 120 answers are kept in" in told
    assert not output.exists()
    assert run(*words[2:]) == 0
    assert "of them by an earlier run" in capsys.readouterr().out
    assert sorted(ids(output)) == sorted(f"r{i}" for i in range(120))
    assert not folder.exists()
    assert len(server.client.received) - before < 120 + 60  # only what was in flight is asked again


def test_answers_to_another_input_are_not_mixed_in(server: LiveEcho, source: Path) -> None:
    output, folder = source.with_name("out.jsonl"), source.with_name("out.jsonl.answers")
    words = (source, "-o", output, "--url", server.url, "--api-key", "k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_http, "_FORBIDDEN", (200,))
        with pytest.raises(UnreachableError):
            run(*words)
    assert folder.is_dir()
    source.write_bytes(requests(3))
    with pytest.raises(ConfigError, match="are to another input"):
        run(*words)
    assert run(*words, "--no-resume") == 0
    assert len(entries(output)) == 3
    assert not folder.exists()


def test_an_output_that_is_there_is_not_overwritten_unless_asked(server: LiveEcho, source: Path) -> None:
    output = source.with_name("out.jsonl")
    output.write_text("precious")
    words = (source, "-o", output, "--url", server.url, "--api-key", "k")
    with pytest.raises(ConfigError, match="is there already"):
        run(*words)
    assert output.read_text() == "precious"
    assert run(*words, "--no-resume") == 0
    assert len(entries(output)) == 120


def test_a_server_that_is_gone_leaves_the_answers(
    server: LiveEcho, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_http, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(batch_http, "_BUSY", (200,))
    with pytest.raises(UnreachableError, match="takes no requests"):
        run(source, "-o", source.with_name("out.jsonl"), "--url", server.url, "--api-key", "k")
    assert "0 of 120 answers are kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("in.jsonl",), "--output is needed"),
        (("in.jsonl", "-o", "."), "must be a file"),
        (("in.jsonl", "-o", "no/where/out"), "in a directory that is there"),
        (("in.jsonl", "-o", "in.jsonl"), "is the input"),
        (("none.jsonl", "-o", "out"), "is not a file"),
        ((".", "-o", "out"), "is not a file"),
        (("in.jsonl", "-o", "out", "--max-in-flight", "-1"), "--max-in-flight must be"),
        (("in.jsonl", "-o", "out", "--max-in-flight", "99999"), "--max-in-flight must be"),
        (("in.jsonl", "-o", "out", "--url", "http://127.0.0.1:9", "--dtype", "half"), "--dtype cannot be used"),
        (("in.jsonl", "-o", "out", "--url", "http://127.0.0.1:9"), "No server answers"),
        (("in.jsonl", "-o", "out", "--url", "ftp://x"), "--url must be like"),
    ],
    ids=range(11),
)
def test_mistakes_are_told_before_anything_is_loaded(
    source: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(source.parent)
    with pytest.raises(SglError, match=sentence):
        batch_run.command.main(list(words), standalone_mode=False)
    assert list(source.parent.iterdir()) == [source]


def test_wrong_lines_are_named_by_both_commands(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_bytes(jsonl(request("a"), request("a"), request("b", url="/x")) + b"nope\n")
    for command, words in ((batch_check, [source]), (batch_run, [source, "-o", source.with_name("out")])):
        with pytest.raises(SystemExit) as ended:
            command.command.main([str(word) for word in words], standalone_mode=False)
        assert ended.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[0] for line in lines] == [f"{source}:{number}" for number in (2, 3, 4)]
        assert "'a' stands in line 1 already" in lines[0]
    assert list(source.parent.iterdir()) == [source]


def test_check_counts_lines(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch_check.command.main([str(source)], standalone_mode=False)
    assert capsys.readouterr().out == f"{source}: 120 lines, all of them fine.\n"
    source.write_bytes(b"".join(json.dumps(request(f"r{i}", body={})).encode() + b"\n" for i in range(50_001)))
    batch_check.command.main([str(source)], standalone_mode=False)
    assert "more than the 50000 which /v1/batches takes" in capsys.readouterr().out
