"""The commands of the chat that begin with a slash, as a table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgl.cli.chat_session import PARAMETERS, ChatError, Session, parse_parameter
from sgl.cli.console import printable
from sgl.engine.base.options import closest


@dataclass(frozen=True)
class AnswerStats:
    """One answer in numbers; None where the backend does not tell."""

    finish: str
    ttft_s: float | None
    duration_s: float
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of decoding: without the first token, which waits for the prompt."""
        if self.completion_tokens is None or self.ttft_s is None or self.completion_tokens < 2:
            return None
        span_s = self.duration_s - self.ttft_s
        return (self.completion_tokens - 1) / span_s if span_s > 0 else None


@dataclass
class Desk:
    """What the commands work on."""

    session: Session
    console: Console
    model: str
    stats: list[AnswerStats] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Says something about the conversation."""
        self.console.print(Text(printable(text), style="dim"))

    def complain(self, text: str) -> None:
        """Says what went wrong."""
        self.console.print(Text.assemble(("Error: ", "bold red"), printable(text)))


class Command(NamedTuple):
    """``run`` gets the desk and what follows the name; it may return a question to ask next."""

    usage: str
    help: str
    run: Callable[[Desk, str], str | None]


def execute(desk: Desk, line: str) -> str | None:
    """Runs a line that begins with a slash.

    Raises:
        ChatError: no such command, or it cannot do what it was asked.
        EOFError: the chat is over.
    """
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ChatError(f"There is no command {name}.{closest(name, COMMANDS)} /help lists them.")
    return command.run(desk, argument.strip())


def _help(desk: Desk, argument: str) -> None:
    table = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"{name} {command.usage}".rstrip(), style="cyan"), command.help)
    for key, what in _KEYS:
        table.add_row(Text(key, style="cyan"), what)
    desk.console.print(table)


_KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, \\ Enter", "new line; pasted lines stay together"),
    ("Ctrl-C", "stop the answer; at the prompt, clear the line"),
    ("Ctrl-D", "leave"),
    ("//text", "send a message that begins with a slash"),
)


def _system(desk: Desk, argument: str) -> None:
    if argument == "off":
        desk.session.system = ""
    elif argument:
        desk.session.system = argument
    desk.note(f"System prompt: {desk.session.system}" if desk.session.system else "There is no system prompt.")


def _reset(desk: Desk, argument: str) -> None:
    desk.session.reset()
    desk.note("The conversation starts afresh" + (", with the same system prompt." if desk.session.system else "."))


def _set(desk: Desk, argument: str) -> None:
    if not argument:
        table = Table.grid(padding=(0, 2))
        for name, parameter in PARAMETERS.items():
            value = desk.session.params.get(name, "-")
            table.add_row(Text(name, style="cyan"), Text(str(value)), Text(parameter.help, style="dim"))
        desk.console.print(table)
        return
    name, equals, value = (part.strip() for part in argument.partition("="))
    if not equals:
        raise ChatError("/set wants name=value, for example /set temperature=0.2; /set name= returns to the default.")
    if value:
        desk.session.params[name] = parse_parameter(name, value)
        desk.note(f"{name} = {desk.session.params[name]}")
    else:
        desk.session.params.pop(name, None)
        desk.note(f"{name} is as the model has it.")


def _stats(desk: Desk, argument: str) -> None:
    if not desk.stats:
        desk.note("There is no answer yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("answer", "prompt", "cached", "new tokens", "TTFT", "tokens/s", "ended by"):
        table.add_column(title, justify="right")
    for number, stats in list(enumerate(desk.stats, 1))[-10:]:
        ttft = "-" if stats.ttft_s is None else f"{stats.ttft_s * 1000:.0f} ms"
        speed = "-" if stats.tokens_per_s is None else f"{stats.tokens_per_s:.1f}"
        counts = (stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens)
        table.add_row(str(number), *("-" if n is None else str(n) for n in counts), ttft, speed, stats.finish)
    desk.console.print(table)


def _save(desk: Desk, argument: str) -> None:
    path = _path(argument, "/save")
    if path.exists():
        Session.from_json(_read(path), f"{path} exists and")  # only a saved chat is overwritten
    content = desk.session.to_json(desk.model)
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as error:
        raise ChatError(f"{path} cannot be written: {error.strerror}.") from None
    desk.note(f"Saved {len(desk.session.messages)} messages to {path}")


def load_session(path: Path) -> Session:
    """Reads a saved chat.

    Raises:
        ChatError: there is none, or it is damaged.
    """
    return Session.from_json(_read(path), str(path))


def _load(desk: Desk, argument: str) -> None:
    path = _path(argument, "/load")
    desk.session = load_session(path)
    desk.note(f"Loaded {len(desk.session.messages)} messages from {path}")


def _regenerate(desk: Desk, argument: str) -> str:
    question = desk.session.take_back()
    if not question:
        raise ChatError("There is nothing to answer again.")
    return question


def _undo(desk: Desk, argument: str) -> None:
    question = desk.session.take_back()
    desk.note(f"Forgotten: {question.splitlines()[0]}" if question else "There is nothing to take back.")


def _exit(desk: Desk, argument: str) -> None:
    raise EOFError


COMMANDS: Mapping[str, Command] = {
    "/help": Command("", "what you can type", _help),
    "/system": Command("[TEXT|off]", "show, set or remove the system prompt", _system),
    "/set": Command("[NAME=VALUE]", "show or set sampling parameters", _set),
    "/stats": Command("", "speed and tokens of the last answers", _stats),
    "/regenerate": Command("", "answer the last question again", _regenerate),
    "/undo": Command("", "forget the last question and its answer", _undo),
    "/reset": Command("", "forget the whole conversation", _reset),
    "/save": Command("FILE", "write the conversation to a JSON file", _save),
    "/load": Command("FILE", "continue a saved conversation", _load),
    "/exit": Command("", "leave", _exit),
}


def completions() -> Sequence[tuple[str, str]]:
    """Every command with its help, for the prompt."""
    return [(name, command.help) for name, command in COMMANDS.items()]


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise ChatError(f"{command} wants a file, for example {command} talk.json")
    return Path(argument).expanduser()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ChatError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ChatError(f"{path} cannot be read: it is not text.") from None
