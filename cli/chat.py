"""``sgl chat``: a conversation in the terminal, or one question from a script."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import env, sources
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.cli.chat_backend import Backend
    from sgl.cli.chat_session import Session


def _option(panel: str, metavar: str, help: str, *flags: str) -> Any:
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


_TALK, _REMOTE = "Conversation", "A model elsewhere"
_PARAM = "Sampling parameter, for example temperature=0.2 or max_tokens=100; repeatable."


@with_config("model", "cache", "schedule", "parallel", "kernel")
def chat(
    values: sources.Values,
    model: ModelArgument = "",
    prompt: Annotated[str, _option(_TALK, "TEXT", "Ask this, print the answer and leave.", "--prompt", "-p")] = "",
    system: Annotated[str, _option(_TALK, "TEXT", "System prompt.")] = "",
    load: Annotated[str, _option(_TALK, "FILE", "Continue a saved conversation.")] = "",
    param: Annotated[list[str] | None, _option(_TALK, "NAME=VALUE", _PARAM, "--param")] = None,
    url: Annotated[str, _option(_REMOTE, "URL", "Chat with this server; --model names one of its models.")] = "",
    api_key: Annotated[str, _option(_REMOTE, "KEY", "Key of that server; OPENAI_API_KEY if not given.")] = "",
) -> None:
    """Chat in the terminal, with a model here or behind any OpenAI-compatible URL.

    With --prompt, or with text piped in, one question is answered: only the answer goes to standard output.
    """
    piped = "" if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    question = "\n\n".join(text for text in (prompt.strip(), piped) if text)
    if not question and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("There is nothing to ask: pass --prompt or pipe text in.", param="--prompt")
    session = _session(system, load, param or [])
    if url:
        sys.exit(asyncio.run(_remote(session, question, url, api_key or env.text("OPENAI_API_KEY"), values, model)))
    backend = _load(sources.configure(with_model(values, model)))
    sys.exit(asyncio.run(_run(session, question, backend)))


command = command_of(chat)


def _session(system: str, load: str, params: list[str]) -> Session:
    from sgl.cli.chat_commands import load_session
    from sgl.cli.chat_session import Session, parse_parameter

    session = load_session(Path(load).expanduser()) if load else Session()
    session.system = system or session.system
    for text in params:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--param must be name=value, for example temperature=0.2, got '{text}'.")
        session.params[name.strip()] = parse_parameter(name.strip(), value.strip())
    return session


def _load(config: Any) -> Backend:
    """Loads the model behind a spinner that leaves nothing on the screen."""
    from sgl.cli.chat_local import LocalBackend

    screen = console.err()
    if not screen.is_terminal:
        return LocalBackend.load(config)
    with screen.status(f"Loading {config.model.served_model_name} ..."):
        return LocalBackend.load(config)


async def _remote(session: Session, question: str, url: str, api_key: str, values: sources.Values, model: str) -> int:
    from sgl.cli.chat_http import HttpBackend

    idle = [given.where for key, given in values.items() if given.source == "flag" and key != "model.model_path"]
    if idle:
        raise ConfigError(f"{', '.join(idle)} cannot be used with --url: that model runs elsewhere.", param=idle[0])
    given = values.get("model.model_path")
    name = model or (str(given.value) if given is not None and given.source == "flag" else "")
    return await _run(session, question, await HttpBackend.connect(url, api_key, name))


async def _run(session: Session, question: str, backend: Backend) -> int:
    """The exit code: 0, 1 if an answer broke off, 130 if it was stopped."""
    from sgl.cli.chat_commands import Desk, completions
    from sgl.cli.chat_loop import Chat, ask, converse
    from sgl.cli.chat_render import renderer_for

    screen = console.out()
    desk = Desk(session, console.err() if question else screen, backend.model)
    chat = Chat(desk, backend, renderer_for(screen))
    try:
        if question:
            await ask(chat, question)
            return {"broken off": 1, "stopped": 130}.get(desk.stats[-1].finish, 0)
        from sgl.cli.chat_input import Input

        desk.note(f"{backend.model} · Enter sends, Alt-Enter makes a new line, /help tells more")
        await converse(chat, Input(env.state_dir() / "chat_history", completions()))
        return 0
    finally:
        await backend.close()
