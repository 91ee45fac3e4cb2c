"""Prints the resolved configuration with the origin of every value."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sgl.cli import console
from sgl.engine.base import hub
from sgl.engine.base.budget import size
from sgl.engine.base.config import GROUPS, EngineConfig, explain
from sgl.engine.base.estimate import estimate
from sgl.engine.base.machine import detect

_COLOURS = {"default": "dim", "resolved": "cyan", "tuned": "cyan"}


def print_tables(config: EngineConfig) -> None:
    """One table per group, and one of the memory."""
    screen = console.out()
    for group in GROUPS:
        table = Table(title=group.capitalize(), title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("option", header_style="dim", no_wrap=True)
        for name in ("value", "from", "why"):
            table.add_column(name, header_style="dim", overflow="fold")
        for option, value, origin in explain(config):
            if option.group == group:
                source = Text(origin.source, style=_COLOURS.get(origin.source, "green"))
                table.add_row(Text(option.flags[0]), Text(option.show(value)), source, Text(origin.reason))
        screen.print(table, soft_wrap=False)
        screen.print()
    _print_budget(config)


def _print_budget(config: EngineConfig) -> None:
    """The memory as it will about be divided, if the model's files are here."""
    folder = Path(config.model.model_path).expanduser()
    if config.model.load_format == "dummy" or not folder.is_dir():
        return
    budget = estimate(config, hub.read_config(str(folder)), folder, detect(config.model.device))
    if budget is None:
        return
    title = "Memory (estimated: settled once the weights are loaded)"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    for line in budget.lines:
        table.add_row(Text(line.name), Text(size(line.size_bytes), justify="right"), Text(line.reason, style="dim"))
    table.add_row(
        Text("tokens"),
        Text(str(budget.max_total_tokens), justify="right"),
        Text(budget.reasons.get("cache.max_total_tokens", ""), style="dim"),
    )
    console.out().print(table, soft_wrap=False)


def print_json(config: EngineConfig) -> None:
    """``{option: {value, source, reason}}``."""
    flat = config.to_flat_dict()
    rows = {
        option.name: {"value": flat[option.name], "source": origin.source, "reason": origin.reason}
        for option, _, origin in explain(config)
    }
    console.out().print_json(json.dumps(rows))
