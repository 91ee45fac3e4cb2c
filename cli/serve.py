"""``sgl serve``: resolves the configuration, runs the server, says what to try."""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import Annotated

import typer

from sgl.cli import console
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import GROUPS, EngineConfig
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.interpreter import Interpreter
from sgl.engine.base.timeline import process_start_s


@with_config(*GROUPS, described=True)
def serve(
    values: sources.Values,
    model: ModelArgument = "",
    explain_config: Annotated[
        bool,
        typer.Option("--explain-config", help="Print every option, where its value came from and why; then leave."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --explain-config: as JSON.")] = False,
) -> None:
    """Serve a model over HTTP, with the APIs of OpenAI, Anthropic and SGLang."""
    if as_json and not explain_config:
        raise ConfigError("--json belongs to --explain-config.", param="--json")
    if explain_config:
        from sgl.cli.explain import print_json, print_tables

        (print_json if as_json else print_tables)(sources.configure(with_model(values, model)))
        return
    with Interpreter() as interpreter:  # first, since nothing takes as long as importing torch there
        config = sources.configure(with_model(values, model))
        from sgl.server.app import run_server

        if "model.model_path" not in values and not model:
            told = f"No model was named: serving the demo model, {config.model.model_path}"
            console.err().print(told, soft_wrap=True)
        run_server(config, ready=lambda url: announce(config, url), interpreter=interpreter)


command = command_of(serve)


def announce(config: EngineConfig, url: str) -> None:
    """Tells a person at a terminal where the server is and what to try; a log file has the ready line already."""
    if not sys.stderr.isatty():
        return
    from rich.markup import escape
    from rich.rule import Rule
    from rich.text import Text

    screen = console.err()
    key = " --api-key YOUR_API_KEY" if config.serve.api_key else ""
    took_s = time.monotonic() - process_start_s()
    title = Text(f"{config.model.served_model_name} on {url}, ready in {took_s:.1f} s")
    screen.print(Rule(title, align="left", style="green"))
    # No box around the commands: they are there to be copied.
    screen.print(f"[dim]Try it:[/]\n\n{escape(curl(config, url))}\n", soft_wrap=True)
    screen.print(f"[dim]Chat with it:[/]\n\nsgl chat --url {url}{key}\n", soft_wrap=True)
    screen.print(Rule(style="green"))


def curl(config: EngineConfig, url: str) -> str:
    """A command line that asks the server something."""
    body = {"model": config.model.served_model_name, "messages": [{"role": "user", "content": "What is 2 + 3?"}]}
    key = ["-H 'Authorization: Bearer YOUR_API_KEY'"] if config.serve.api_key else []
    parts = [f"curl {url}/v1/chat/completions", *key, "-H 'Content-Type: application/json'"]
    return " \\\n  ".join([*parts, f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"])
