"""``sgl bench``: the benchmarks by name."""

from __future__ import annotations

from collections.abc import Mapping

from sgl.cli.main import Subcommand, group_of

COMMANDS: Mapping[str, Subcommand] = {
    "one-batch": Subcommand("sgl.cli.bench_one_batch", "Prefill and decode speed of one batch, beside transformers."),
}

command = group_of("bench", "Measure how fast a model runs, against this machine's limits and other engines.", COMMANDS)
