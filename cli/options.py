"""Puts the options of the engine's configuration on a subcommand: flags by group, --config, --set, abbreviations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sgl.cli.help import ENGINE, print_help
from sgl.cli.main import CONTEXT
from sgl.engine.base import env, sources
from sgl.engine.base.config import GROUPS, OPTIONS, Given, asks_for_nothing
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.groups import LATER
from sgl.engine.base.options import Option, closest

_USAGE_ERROR: Any = typer.BadParameter.__base__
"""What the parser raises; where its name is depends on typer's version."""

ModelArgument = Annotated[
    str,
    typer.Argument(help="Directory or Hugging Face Hub id; the demo model if not given.", metavar="MODEL"),
]


def command_of(function: Callable[..., None]) -> Any:
    """The command that runs ``function``, with flags that may be abbreviated."""
    app = typer.Typer(context_settings=CONTEXT, add_completion=False)
    app.command(cls=AbbreviatingCommand)(function)
    return typer.main.get_command(app)


def with_parameters(
    run: Callable[..., None], function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """``run`` under the name of ``function``, with parameters that typer reads as options."""
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


Options = Mapping[str, tuple[Any, object]]
"""Flags by the parameter that they set: its annotation, for typer, and its default."""


def option(
    kind: Any, default: object, *flags: str, help: str, metavar: str | None = None, panel: str | None = None
) -> tuple[Any, object]:
    """A flag and its default, for `with_options`."""
    is_nothing = default is None or default is False or default in ("", [])
    shown = False if is_nothing else str(default)
    info = typer.Option(*flags, help=help, metavar=metavar, show_default=shown, rich_help_panel=panel)
    return Annotated[kind, info], default


def with_options(name: str, options: Options) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds options to a function, which receives them as one dict called ``name``."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != name]
        added = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in options.items()
        ]
        parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]

        def run(**arguments: Any) -> None:
            taken = {key: arguments.pop(key) for key in options}
            function(**{name: taken}, **arguments)

        return with_parameters(run, function, parameters)

    return decorate


def with_config(*groups: str, described: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of these groups to a function, which receives what was given anywhere as ``values``.

    Its help names them, and tells what they do if they are to be ``described`` there.
    """
    options = [option for option in OPTIONS if option.group in groups]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "values"]
        parameters = [*own, *(_parameter(option, described) for option in options), *_SOURCES]

        def run(**arguments: Any) -> None:
            flags = {option: arguments.pop(option.name) for option in options}
            file = arguments.pop("config")
            compat = arguments.pop("env_compat") or env.flag("SGL_ENV_COMPAT")
            values = sources.merge(
                {o.key: Given(value, "flag", o.flags[0]) for o, value in flags.items() if value not in (None, [])},
                sources.from_assignments(arguments.pop("assignments") or ()),
                sources.from_environment(env.all_variables(), compat=compat),
                sources.from_file(Path(file)) if file else {},
            )
            function(values=values, **arguments)

        return with_parameters(run, function, parameters)

    return decorate


def with_model(values: Mapping[str, Given], model: str) -> sources.Values:
    """The values with the positional model, or the demo model if none is named.

    Raises:
        ConfigError: --model-path names another one.
    """
    flag = values.get("model.model_path")
    if model and flag is not None and flag.source == "flag" and flag.value != model:
        raise ConfigError(f"Two models are named: {model} and --model-path {flag.value}.", param="--model-path")
    positional = {"model.model_path": Given(model, "flag", "MODEL")} if model else {}
    return sources.with_demo_model(sources.merge(positional, values))


class AbbreviatingCommand(TyperCommand):
    """Accepts every unambiguous beginning of a flag, as argparse does, and names SGLang's flags that are not here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options: list[Any] = [p for p in self.get_params(ctx) if p.param_type_name == "option"]
        flags = {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}
        takes_value = {flag: not option.is_flag for flag, option in flags.items()}
        names = {flag: option.name for flag, option in flags.items()}
        try:
            return super().parse_args(ctx, expand(args, takes_value, names))
        except _USAGE_ERROR as error:
            message = f"{error.format_message().rstrip('.')}. `{ctx.command_path} --help` tells more."
            raise ConfigError(message) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


def expand(args: list[str], takes_value: Mapping[str, bool], names: Mapping[str, str | None]) -> list[str]:
    """Completes abbreviated flags.

    Args:
        args: the command line.
        takes_value: every flag, and whether a value follows it.
        names: flag -> the parameter it sets: two spellings of one parameter are not ambiguous.

    Raises:
        ConfigError: a flag that is unknown, ambiguous, or not supported yet.
    """
    done: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*done, word, *rest]
        flag, equals, value = word.partition("=")
        if flag not in takes_value and asks_for_nothing(flag[2:], value if equals else "".join(rest[:1])):
            rest = rest if equals else rest[1:]
            continue
        if flag.startswith("--") and len(flag) > 2:
            flag = _complete(flag, takes_value, names)
        done.append(flag + equals + value)
        if takes_value.get(flag) and not equals and rest:
            done.append(rest.pop(0))
    return done


def _complete(flag: str, known: Iterable[str], names: Mapping[str, str | None]) -> str:
    """The flag that is meant: itself, or the only one that begins like it."""
    word = flag[2:].replace("-", "_")
    if flag in known:
        return flag
    if word in LATER:
        raise ConfigError(f"{flag} is not supported by this version of sgl.", param=flag)
    candidates = [name for name in known if name.startswith(flag)]
    if len({names.get(name, name) for name in candidates}) == 1:
        return candidates[0]
    if candidates:
        raise ConfigError(f"{flag} is ambiguous: {', '.join(sorted(candidates))}.", param=flag)
    if any(name.startswith(word) for name in LATER):
        raise ConfigError(f"{flag} is not supported by this version of sgl.", param=flag)
    raise ConfigError(f"There is no option {flag}.{closest(flag, known)}", param=flag)


def _parameter(option: Option, described: bool) -> inspect.Parameter:
    panel = f"{option.group.capitalize()}: {GROUPS[option.group].__doc__}".rstrip(".")
    kind: Any = bool if option.kind is bool else list[str] if option.kind is tuple else str
    shown = option.show(option.default)
    info = typer.Option(
        *option.flags,
        help=option.declaration.help,
        metavar=None if option.kind is bool else option.metavar,
        rich_help_panel=panel if described else ENGINE,
        show_default=shown if shown != "-" and option.kind is not bool else False,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


def _source(name: str, kind: Any, default: object, *flags: str, help: str, metavar: str | None) -> inspect.Parameter:
    info = typer.Option(
        *flags, help=help, metavar=metavar, show_default=False, rich_help_panel="Where options come from"
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


_SOURCES = (
    _source(
        "config", str | None, None, "--config", help="YAML file with options, by name or by group.", metavar="FILE"
    ),
    _source(
        "assignments",
        list[str] | None,
        None,
        "--set",
        metavar="NAME=VALUE",
        help="Any option by name, for example cache.page_size=32; repeatable. Before the environment and the file.",
    ),
    _source(
        "env_compat",
        bool,
        False,
        "--env-compat",
        metavar=None,
        help="Also read MODEL_PATH, TENSOR_PARALLEL_SIZE and other bare names; SGL_<OPTION> always counts.",
    ),
)
