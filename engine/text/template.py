"""Renders a conversation to the text that a model was trained on; knows nothing of tokens.

Templates come with checkpoints, so they run sandboxed and within limits of size and time, which are looked at between
the pieces of output: a loop that prints nothing is bounded by jinja's own limit on ranges only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl.engine.base.errors import ConfigError, ModelError, SglError
from sgl.engine.text.builtin import BUILTIN, DESCRIBED, SEP_STYLES
from sgl.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

MAX_PROMPT_CHARS = 64 * 2**20
MAX_RENDER_S = 10.0
_FLAG = "--chat-template"
_JSON_KEYS = {"name", "system", "system_message", "user", "assistant", "sep_style", "sep", "sep2", "stop_str"}


@dataclass(frozen=True)
class ChatTemplate:
    """One template, or several of which the one called ``tool_use`` serves requests with tools.

    Args:
        sources: jinja by name, at least ``default``; none for a model without a template.
        constants: variables of every rendering: special tokens by name, ...
        stop: strings that end the assistant's turn, beside the model's own end tokens.
        stop_token_ids: the same for those that are single tokens.
        origin: where it came from, for error sentences.
    """

    sources: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    origin: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to render with."""
        return bool(self.sources)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation; encode it without adding special tokens.

        Args:
            messages: as in OpenAI's API: text parts are joined, arguments of tool calls may be JSON text.
            tools: as in OpenAI's API.
            add_generation_prompt: whether the assistant's turn is opened.
            variables: further ones that the template may know (``enable_thinking``).

        Raises:
            SglError: there is no template, or it refuses the messages; the sentence is the template's own.
        """
        if not self.sources:
            choices = ", ".join(BUILTIN)
            message = f"The model has no chat template; give one with {_FLAG} (a file or one of {choices})."
            raise SglError(message, code="no_chat_template", param="messages")
        given = {
            "messages": [_prepare(message) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        taken = sorted(given.keys() & dict(variables or {}).keys())
        if taken:
            raise SglError(f"chat_template_kwargs must not set {', '.join(taken)}.", param="chat_template_kwargs")
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        return _render(self._compiled[name], {**self.constants, **(variables or {}), **given})

    @cached_property
    def _compiled(self) -> Mapping[str, jinja2.Template]:
        environment = _environment()
        return {name: environment.from_string(source) for name, source in self.sources.items()}


def load_template(tokenizer: Tokenizer, override: str = "") -> ChatTemplate:
    """The tokenizer's template, or the one that ``--chat-template`` asks for.

    Args:
        tokenizer: whose settings hold the templates and special tokens.
        override: one of the tokenizer's by name, a built-in one by name, a .jinja or .json file, or jinja source.

    Raises:
        ConfigError: ``override`` is none of these.
        ModelError: a template is not valid jinja.
    """
    template = _find(tokenizer, override)
    try:
        template._compiled  # noqa: B018 - compiles
    except Exception as error:  # noqa: BLE001 - jinja raises its own errors and, for deep nesting, Python's
        message = f"The chat template of {template.origin} is not valid jinja: {error}; {_FLAG} replaces it."
        raise (ConfigError(message, param=_FLAG) if override else ModelError(message)) from None
    return template


def _find(tokenizer: Tokenizer, override: str) -> ChatTemplate:
    own, constants = tokenizer.settings.templates, dict(tokenizer.settings.named)
    if not override:
        sources = dict(own)
        if own and "default" not in own:
            sources["default"] = next(iter(own.values()))
        return ChatTemplate(sources, constants, origin="the model")
    if override in own:
        return ChatTemplate({"default": own[override]}, constants, origin=f"the model ({override})")
    if override in BUILTIN:
        builtin = BUILTIN[override]
        return _with_stop(
            ChatTemplate({"default": builtin.source}, constants, origin=override), builtin.stop, tokenizer
        )
    path = Path(override).expanduser()
    if path.suffix in (".jinja", ".jinja2", ".j2", ".json") or (len(override) < 4096 and path.is_file()):
        return _from_file(path, constants, tokenizer)
    if "{{" in override or "{%" in override:
        return ChatTemplate({"default": override}, constants, origin=_FLAG)
    known = ", ".join([*(name for name in own if name != "default"), *BUILTIN])
    raise ConfigError(f"{_FLAG} {override}: no such file, and no template of that name ({known}).", param=_FLAG)


def _from_file(path: Path, constants: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{_FLAG} {path} cannot be read: {reason}.", param=_FLAG) from None
    if path.suffix != ".json":
        return ChatTemplate({"default": text}, constants, origin=str(path))
    try:
        described = json.loads(text)
        style = SEP_STYLES[described["sep_style"]]
        unknown = sorted(described.keys() - _JSON_KEYS)
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}")
        end, stop = described.get("sep", "\n"), described.get("stop_str") or ()
        strings = {
            **{key: str(described[key]) for key in ("system", "user", "assistant")},
            "end": end + style.after_sep,
            "end_2": described.get("sep2", end) + style.after_sep,
        }
    except (KeyError, TypeError, ValueError) as error:
        expected = "{name, system, user, assistant, sep_style, sep, stop_str}, sep_style one of " + ", ".join(
            SEP_STYLES
        )
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{_FLAG} {path} must hold {expected} ({problem}).", param=_FLAG) from None
    template = ChatTemplate(
        {"default": DESCRIBED}, {**constants, "described": strings, "style": style}, origin=str(path)
    )
    return _with_stop(template, (stop,) if isinstance(stop, str) else tuple(stop), tokenizer)


def _with_stop(template: ChatTemplate, stop: Sequence[str], tokenizer: Tokenizer) -> ChatTemplate:
    """Special tokens do not show in the text, so those among the stop strings are matched by id."""
    ids = {text: tokenizer.id_of(text) for text in stop}
    return ChatTemplate(
        template.sources,
        template.constants,
        tuple(text for text, token_id in ids.items() if token_id is None),
        tuple(token_id for token_id in ids.values() if token_id is not None),
        template.origin,
    )


def _prepare(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the form that templates expect: content as text, arguments of calls as objects."""
    prepared = dict(message)
    content = message.get("content")
    if content is None:
        prepared["content"] = ""
    elif isinstance(content, list) and all(_is_text(part) for part in content):
        prepared["content"] = "\n".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        prepared["tool_calls"] = [_prepare_call(call) for call in calls]
    return prepared


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _prepare_call(call: Any) -> Any:
    """The call with its arguments as an object, where they are JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    pieces: list[str] = []
    size, deadline_s = 0, time.monotonic() + MAX_RENDER_S
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_PROMPT_CHARS or time.monotonic() > deadline_s:
                limits = f"{MAX_PROMPT_CHARS} characters and {MAX_RENDER_S:g} seconds"
                raise SglError(f"The chat template went beyond its limits of {limits}.", param="messages")
    except SglError:
        raise
    except TemplateError as error:
        raise SglError(str(error), code="chat_template_error", param="messages") from None
    except Exception as error:  # noqa: BLE001 - a template can raise whatever its expressions raise
        problem = f"{type(error).__name__}: {error}"
        message = f"The chat template cannot render these messages ({problem})."
        raise SglError(message, code="chat_template_error", param="messages") from None
    return "".join(pieces)


def _environment() -> jinja2.Environment:
    """What templates of Hugging Face checkpoints rely on."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; here it is transparent."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own form

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
