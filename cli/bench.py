"""``sgl bench``: the benchmarks by name."""

from __future__ import annotations

from collections.abc import Mapping

from sgl.cli.main import Subcommand, group_of

COMMANDS: Mapping[str, Subcommand] = {
    "machine": Subcommand("sgl.cli.bench_machine", "What this machine can do: bandwidth, matrix products, call costs."),
    "host": Subcommand("sgl.cli.bench_host", "What the engine's host side costs: caching, scheduling, streaming."),
    "one-batch": Subcommand("sgl.cli.bench_one_batch", "Prefill and decode speed of one batch, beside others."),
    "offline": Subcommand("sgl.cli.bench_offline", "Throughput of the engine in this process on a data set."),
    "serving": Subcommand("sgl.cli.bench_serving", "Latency and throughput of a server, ours or any other."),
    "tune": Subcommand(
        "sgl.cli.bench_tune", "Search the fastest values of some options for a model; they are then used."
    ),
    "compare": Subcommand("sgl.cli.bench_compare", "Ratios of two configurations, servers or result files."),
    "report": Subcommand("sgl.cli.bench_report", "Result files as a table, or as one HTML page."),
    "peers": Subcommand("sgl.cli.bench_peers", "The same work on this engine and on other ones, in turns."),
}

command = group_of("bench", "Measure how fast a model runs, against this machine's limits and other engines.", COMMANDS)
