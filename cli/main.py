"""The ``sgl`` command: finds the subcommand, runs it, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import sgl
from sgl.cli import console
from sgl.cli.help import print_help
from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError, EngineDiedError, SglError
from sgl.engine.base.options import closest
from sgl.engine.base.sampler import sampling


class Subcommand(NamedTuple):
    """A subcommand by the module that has it as ``command``, imported only when it is run."""

    module: str
    help: str


COMMANDS: Mapping[str, Subcommand] = {
    "serve": Subcommand("sgl.cli.serve", "Serve a model over HTTP, with the APIs of OpenAI, Anthropic and SGLang."),
    "chat": Subcommand("sgl.cli.chat", "Chat in the terminal, with a model here or behind any OpenAI-compatible URL."),
    "batch": Subcommand("sgl.cli.batch", "Answer a file of requests, all at once and to the end, or check one."),
    "bench": Subcommand("sgl.cli.bench", "Measure how fast a model runs, against this machine and other engines."),
    "quantize": Subcommand(
        "sgl.cli.quantize", "Make a smaller checkpoint, and measure with the engine whether it is still good."
    ),
    "profile": Subcommand("sgl.cli.profile", "Record where the time goes, with torch's profiler or nsys, and read it."),
    "explain": Subcommand("sgl.cli.explain_request", "Show where the time of one request to a server went, and why."),
    "replay": Subcommand("sgl.cli.replay", "Send recorded requests to a server again, and compare the answers."),
    "eval": Subcommand("sgl.cli.eval", "Measure whether a model's answers are right."),
    "doctor": Subcommand("sgl.cli.doctor", "Report what this machine and installation have, and what is missing."),
    "kernels": Subcommand("sgl.cli.kernels", "Show which implementation of every kernel runs on this machine."),
    "prove-determinism": Subcommand(
        "sgl.cli.prove_determinism", "Show that answers do not depend on what the engine does meanwhile."
    ),
    "verify": Subcommand("sgl.cli.verify", "Compute an answer again from its receipt."),
    "schema": Subcommand("sgl.cli.schema", "Say what of a JSON schema structured output enforces."),
    "version": Subcommand("sgl.cli.version", "Show versions and the machine, for bug reports."),
}

CONTEXT = {"help_option_names": ["-h", "--help"]}


class Commands(TyperGroup):
    """Lists its subcommands without importing them."""

    table: Mapping[str, Subcommand] = COMMANDS

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = self.table.get(cmd_name)
        return TyperCommand(cmd_name, help=known.help) if known else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, *rest = args
        if name not in self.table:
            if ctx.resilient_parsing:  # a shell asks what could follow
                return None, None, []
            path = ctx.command_path
            raise ConfigError(f"There is no command '{name}'.{closest(name, self.table)} `{path} --help` lists them.")
        return name, importlib.import_module(self.table[name].module).command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx, [(name, known.help) for name, known in self.table.items()])


def group_of(name: str, help: str, table: Mapping[str, Subcommand]) -> Commands:
    """A command that has subcommands of its own."""
    group = Commands(name=name, help=help, no_args_is_help=True, context_settings=CONTEXT)
    group.table = table
    return group


app = typer.Typer(cls=Commands, no_args_is_help=True, context_settings=CONTEXT, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sgl {sgl.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve, benchmark, quantize, profile, evaluate and chat with large language models."""


def main() -> None:
    """Runs the command line; the process ends with 0, 2 for a mistake of the user's, 130 for Ctrl-C, 1 for ours."""
    try:
        app(prog_name="sgl")
    except SglError as error:
        console.complain(error.message)
        sys.exit(1 if isinstance(error, EngineDiedError) else 2)
    except BrokenPipeError:
        console.drop_stdout()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last place that can say it kindly
        _report(error)
        sys.exit(1)


def _report(error: Exception) -> None:
    """Says that it is our fault, and how to tell us more; but for a full disk."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        console.complain(f"{error.strerror}.")
    elif env.flag("SGL_DEBUG"):
        traceback.print_exc()
    else:
        what = "".join(traceback.format_exception_only(error)).strip()
        console.complain(
            f"this is a bug in sgl: {what}",
            "Run it again with SGL_DEBUG=1 for the traceback, and please report it.",
        )


def _open_closed() -> None:
    """Has streams that whoever started us has closed (``>&-``) lead nowhere; Python has None in their place."""
    nowhere = Path(os.devnull)
    sys.stdin = sys.stdin or nowhere.open()
    sys.stdout = sys.stdout or nowhere.open("w")
    sys.stderr = sys.stderr or nowhere.open("w")


def program() -> NoReturn:
    """`main` as a whole process, which ends here and now.

    To take the interpreter down takes seconds once torch is loaded, and aborts if a thread still computes.
    """
    code: object = 0
    _open_closed()
    try:
        with sampling("front"):
            main()
    except SystemExit as end:
        code = end.code or 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or 1
    except OSError as error:
        _report(error)
        code = code or 1
    logging.shutdown()
    os._exit(code if isinstance(code, int) else 1)
