"""The command itself: help without heavy imports, errors in one sentence, exit codes."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

import sgl
from sgl.cli import help, main
from sgl.engine.base.errors import EngineDiedError, SglError

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "starlette",
    "uvicorn",
    "rich.markdown",
    "prompt_toolkit",
    "httpx",
    "yaml",
)


def sgl_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m sgl`` as a program of its own, with nothing on its standard input."""
    command = [sys.executable, "-m", "sgl", *words]
    env = {"PATH": "/usr/bin:/bin", "COLUMNS": "80", **environment}
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env, check=False)


def imported_by(*words: str) -> set[str]:
    """Modules that the command has imported when it ends."""
    command = [sys.executable, "-X", "importtime", "-m", "sgl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command line, in this process."""
    monkeypatch.setattr("sys.argv", ["sgl", *words])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_end_does_not_wait_for_a_thread_that_computes() -> None:
    """The interpreter's own end would abort: a thread that comes back from C++ then finds no interpreter."""
    code = """
import sys, threading, torch
torch.set_num_threads(1)
matrix, computes = torch.randn(1500, 1500), threading.Event()
def compute():
    while True:
        computes.set()
        torch.tanh(matrix @ matrix)
threading.Thread(target=compute, daemon=True).start()
computes.wait()
sys.argv = ["sgl", "--version"]
from sgl.cli.main import program
program()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sgl {sgl.__version__}\n", "")


def test_ctrl_c_during_the_imports_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = sgl_command("version", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_full_disk_is_not_a_bug() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sgl", "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device.\n")


def test_closed_streams_are_no_bug() -> None:
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&-"):
        command = f"{sys.executable} -m sgl schema check - {closed}"
        done = subprocess.run(["bash", "-c", command], input="{}", capture_output=True, text=True, check=False)
        assert done.returncode == (2 if closed == "<&-" else 0), done.stderr
        assert "Traceback" not in done.stderr and "bug" not in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("serve", "--help"), ("chat", "--help")])
def test_help_comes_without_heavy_imports(words: tuple[str, ...]) -> None:
    assert not imported_by(*words) & set(HEAVY)


def test_help_lists_every_subcommand() -> None:
    done = sgl_command("--help")
    assert done.returncode == 0
    for name, known in main.COMMANDS.items():
        assert name in done.stdout
        assert known.help.split()[0] in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_subcommand_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"Usage: sgl {name}")
    assert importlib.import_module(main.COMMANDS[name].module).command.help


def test_flags_are_whole_on_a_narrow_terminal() -> None:
    done = sgl_command("serve", "--help", COLUMNS="50")
    assert all(len(line) <= 50 for line in done.stdout.splitlines())
    assert "--json-model-override-args" in done.stdout
    assert "…" not in done.stdout


def test_engine_options_are_described_by_serve_and_named_by_others() -> None:
    named, described = sgl_command("chat", "--help").stdout, sgl_command("serve", "--help").stdout
    assert "--quantization" in named and "--quantization" in described
    assert "Round the linear layers" in described and "Round the linear layers" not in named
    assert "MODEL  " in named and "[MODEL]  " not in named
    broken = [line for line in described.splitlines() if line.startswith("│ ") and "|" in line.split()[1]]
    assert broken and not any(line.split()[1].startswith("|") for line in broken)


def test_usage_says_what_is_repeated_and_names_nothing_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def copy(
        files: Annotated[list[str], typer.Argument(metavar="FILE")],
        secret: Annotated[str, typer.Option("--secret", hidden=True, rich_help_panel=help.ENGINE)] = "",
        shown: Annotated[str, typer.Option("--shown", rich_help_panel=help.ENGINE)] = "",
    ) -> None:
        """Copy."""

    command = typer.main.get_command(app)
    help.print_help(command, command.make_context("copy", [], resilient_parsing=True))
    told = capsys.readouterr().out
    assert told.startswith("Usage: copy [OPTIONS] FILE...\n")
    assert sgl_command("bench", "report", "--help").stdout.startswith("Usage: sgl bench report [OPTIONS] FILE...\n")
    assert "--shown" in told and "--secret" not in told


def test_a_pipe_has_whole_tables() -> None:
    command = [sys.executable, "-m", "sgl", "serve", "--explain-config"]
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("--model-path ")]
    assert "assets/demo " in line and "no model was named: the demo model" in line


def test_version() -> None:
    assert sgl_command("--version").stdout == f"sgl {sgl.__version__}\n"
    assert sgl.__version__ in sgl_command("version").stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["srve"], "Error: There is no command 'srve'. Did you mean 'serve'? `sgl --help` lists them."),
        (["serve", "--lora-paths", "x"], "Error: --lora-paths is not supported by this version of sgl."),
        (["serve", "--no-such"], "Error: There is no option --no-such."),
        (["serve", "/no/such"], "Error: --model-path /no/such: there is no such directory."),
        (["serve", "--port", "x"], "Error: --port must be an integer, got 'x'."),
        (["chat", "--url", "ftp://x", "-p", "q"], "Error: --url must be like http://127.0.0.1:30000, got 'ftp://x'."),
        (["kernels", "--dtype", "int3"], "Error: --dtype must be one of"),
        (["serve", "--port"], "Error: Option '--port' requires an argument. `sgl serve --help` tells more."),
        (["verify"], "Error: Missing argument 'RECEIPT'. `sgl verify --help` tells more."),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert run(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert err.startswith(sentence)
    assert err.count("\n") == 1
    assert out == ""


def run_main(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code when a command raises ``error``."""

    def fail(**options: str) -> None:
        raise error

    monkeypatch.setattr(main, "app", fail)
    return run(monkeypatch)


def test_a_bug_says_so_and_how_to_get_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SGL_DEBUG", raising=False)
    assert run_main(monkeypatch, ZeroDivisionError("oops")) == 1
    told = capsys.readouterr().err
    assert "this is a bug in sgl: ZeroDivisionError: oops" in told
    assert "SGL_DEBUG=1" in told
    assert "Traceback" not in told
    monkeypatch.setenv("SGL_DEBUG", "1")
    assert run_main(monkeypatch, ZeroDivisionError("oops")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_other_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, SglError("Do [this] instead.")) == 2
    assert capsys.readouterr().err == "Error: Do [this] instead.\n"
    assert run_main(monkeypatch, EngineDiedError("It died.")) == 1
    assert capsys.readouterr().err == "Error: It died.\n"
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130
    monkeypatch.setattr(main.console, "drop_stdout", lambda: None)
    assert run_main(monkeypatch, BrokenPipeError()) == 1
    assert capsys.readouterr().err == ""
