"""Prints ``--help``: one panel per group of options, flags never cut off, no slow imports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sgl.cli import console

ENGINE = "Engine, as `sgl serve --help` describes them"
"""Panel of options that are only named: every command that runs an engine takes them, and they fill many screens."""

_WIDTH = 100
_NAMES_WIDTH = 34


def print_help(command: Any, ctx: Any, subcommands: Iterable[tuple[str, str]] = ()) -> None:
    """Prints the help of a typer command, with its subcommands (name, sentence) if it has any."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    groups: dict[str, list[tuple[str, str]]] = {"Commands": list(subcommands)}
    named = []
    for parameter in command.get_params(ctx):
        panel = getattr(parameter, "rich_help_panel", None) or f"{parameter.param_type_name.capitalize()}s"
        if getattr(parameter, "hidden", False):
            continue
        if panel == ENGINE:
            named.append(parameter.opts[0])
        else:
            groups.setdefault(panel, []).append((_names(parameter), _sentence(parameter)))
    screen = console.out()
    screen.width = min(screen.width, _WIDTH)
    screen.print(Text.assemble(("Usage: ", "bold"), _usage(command, ctx)))
    screen.print(f"\n{_reflowed(command.help)}\n", soft_wrap=False, markup=False)
    for title, rows in groups.items():
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="cyan", min_width=27, max_width=_NAMES_WIDTH, overflow="fold")
        table.add_column(ratio=1)
        for names, sentence in rows:
            table.add_row(Text(names), Text(sentence))
        if rows:
            screen.print(Panel(table, title=Text(title), title_align="left", border_style="dim"), soft_wrap=False)
    if named:
        flags = Text(", ".join(named), "cyan")
        screen.print(Panel(flags, title=Text(ENGINE), title_align="left", border_style="dim"), soft_wrap=False)


def _usage(command: Any, ctx: Any) -> str:
    """The usage line; what is required stands without the braces that typer puts around it."""
    pieces = [re.sub(r"^\{(.*)\}(\.\.\.)?$", r"\1\2", piece) for piece in command.collect_usage_pieces(ctx)]
    return " ".join([ctx.command_path, *pieces]).replace("." * 6, "...")  # of a metavar that says so itself


def _reflowed(text: str) -> str:
    """Paragraphs as lines: where they break in the source is not where they break on the screen."""
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in text.split("\n\n"))


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    metavar = "" if parameter.is_flag else f" {parameter.metavar or 'TEXT'}"
    given = [*parameter.opts, *parameter.secondary_opts]  # of a switch: what turns it on, and off
    flags = ", ".join(sorted(given, key=lambda flag: not flag.startswith("--"))) + metavar
    return flags if len(flags) <= _NAMES_WIDTH else ",\n".join(given) + _folded(metavar)


def _folded(metavar: str) -> str:
    """Choices broken behind a bar: they have no space to be broken at."""
    if len(metavar) <= _NAMES_WIDTH:
        return metavar
    lines = ["", ""]
    for choice in re.findall(r"[^|]+\|?", metavar.strip()):
        if len(lines[-1] + choice) > _NAMES_WIDTH:
            lines.append("")
        lines[-1] += choice
    return "\n".join(lines)


def _sentence(parameter: Any) -> str:
    default = parameter.show_default if isinstance(parameter.show_default, str) else ""
    return (parameter.help or "") + (f" [default: {default}]" if default else "")
