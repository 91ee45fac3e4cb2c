"""``sgl replay``: recorded requests sent again, compared, and recorded step plans executed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl.cli.main import CONTEXT, Commands, Subcommand

COMMANDS: Mapping[str, Subcommand] = {
    "run": Subcommand("sgl.cli.replay_run", "Send recorded requests to a server again; `sgl replay DIR` does it, too."),
    "diff": Subcommand("sgl.cli.replay_diff", "Compare two recordings or replays: answers and latencies."),
    "plans": Subcommand("sgl.cli.replay_plans", "Execute recorded step plans again and compare bit for bit."),
}


class Replays(Commands):
    """Takes what is no subcommand for the arguments of the first."""

    table = COMMANDS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_plain = args and args[0] not in (*self.table, *CONTEXT["help_option_names"])
        parsed: list[str] = super().parse_args(ctx, ["run", *args] if is_plain else args)
        return parsed


command = Replays(
    name="replay",
    help="Send recorded requests again with their timing, and compare what came of it: `sgl replay DIR`.",
    no_args_is_help=True,
    context_settings=CONTEXT,
)
