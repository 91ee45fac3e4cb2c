"""``sgl bench serving``: drives a server over HTTP, prints the block of results and records it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import bench_data, console
from sgl.cli.bench_data import Progress, block_of, finish, limit_row, rows_of, runs_row, warn, with_data
from sgl.cli.options import Options, command_of, option, with_options
from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.limits import Yardstick
    from sgl.bench.load import Traffic
    from sgl.bench.series import Line
    from sgl.bench.serving import Server, Target
    from sgl.engine.base.types import Grammar

LATENCIES = {
    "End-to-End Latency": ("E2E Latency", "e2e_latency"),
    "Time to First Token": ("TTFT", "ttft"),
    "Time per Output Token (excl. 1st token)": ("TPOT", "tpot"),
    "Inter-token Latency": ("ITL", "itl"),
}


OPTIONS: Options = {
    "backend": option(
        str,
        "sglang",
        "--backend",
        help="sglang, sglang-oai, sglang-oai-chat, vllm, vllm-chat, lmdeploy, openai, openai-chat.",
        metavar="NAME",
    ),
    "base_url": option(str, "", "--base-url", help="URL of the server, instead of --host and --port.", metavar="URL"),
    "host": option(str, "127.0.0.1", "--host", help="Where the server is.", metavar="HOST"),
    "port": option(int, 30000, "--port", help="Its port.", metavar="PORT"),
    "model": option(
        str, "", "--model", "--model-path", help="Its name there; else the first of /v1/models.", metavar="NAME"
    ),
    "tokenizer": option(
        str, "", "--tokenizer", help="Directory or Hub id; else what the server or --model says.", metavar="PATH"
    ),
    "api_key": option(str, "", "--api-key", help="Else OPENAI_API_KEY.", metavar="KEY"),
    "request_rate": option(
        str,
        "",
        "--request-rate",
        help="Requests per second; inf: all at once, as if not given but for traces. Several by commas.",
        metavar="RATE,...",
    ),
    "arrival": option(
        str, "poisson", "--arrival", help="Gaps between requests: constant, poisson or gamma.", metavar="NAME"
    ),
    "burstiness": option(float, 0.5, "--burstiness", help="Shape of gamma: below 1 comes in bursts.", metavar="SHAPE"),
    "trace_speed": option(
        float, 1.0, "--trace-speed", help="How much faster a trace is sent than its timestamps.", metavar="FACTOR"
    ),
    "max_concurrency": option(
        str, "", "--max-concurrency", help="Requests under way at once. Several by commas.", metavar="N,..."
    ),
    "disable_ignore_eos": option(
        bool, False, "--disable-ignore-eos", help="Let answers end where the model ends them."
    ),
    "slo": option(str, "", "--slo", help="Goodput within these ms, e.g. ttft:500,tpot:50 (and e2e).", metavar="BOUNDS"),
    "profile": option(
        bool, False, "--profile", help="Have the server record every run, below its $SGLANG_TORCH_PROFILER_DIR."
    ),
    "flush_cache": option(bool, False, "--flush-cache", help="As --cache-state cold."),
}
"""Which server, and how it is asked."""


@with_data
@bench_data.with_constraint
@with_options("given", OPTIONS)
def serving(
    given: dict[str, Any],
    constraint: dict[str, Any],
    data: dict[str, Any],
    repeats: Annotated[int, bench_data.repeats_option(1)] = 1,
    cache_state: Annotated[str, bench_data.cache_state_option("any")] = "any",
    warmup_requests: Annotated[int, bench_data.WARMUP] = 1,
    min_limit: Annotated[str, bench_data.MIN_LIMIT] = "",
    output_file: Annotated[str, bench_data.OUTPUT_FILE] = "",
    output_details: Annotated[bool, bench_data.OUTPUT_DETAILS] = False,
) -> None:
    """Measure latency and throughput of a server: this one, SGLang's or any with OpenAI's API."""
    from sgl.bench import details, limits, provenance, series
    from sgl.bench.constraint import chosen
    from sgl.bench.data import DataOptions, Vocabulary
    from sgl.bench.figures import parse_slo
    from sgl.bench.serving import Server

    if given["flush_cache"] and cache_state == "any":
        cache_state = "cold"
    least = limits.parse_least(min_limit, (limits.RUN,))
    traffics = _traffics(given, data["seed"])
    plan = series.Plan(DataOptions(**data), traffics, repeats, warmup_requests, cache_state, parse_slo(given["slo"]))
    plan.check()
    provenance.check_output(output_file)
    grammar = chosen(**constraint)
    server = Server.connect(_target(given, grammar))
    plan = plan.against(_yardstick(server, required=bool(least)))
    flags = {name: value for name, value in {**data, **given, **constraint}.items() if name != "api_key"}
    flags |= {"repeats": repeats, "cache_state": cache_state, "warmup_requests": warmup_requests}
    flags |= {"min_limit": min_limit}
    lines: list[Line] = []
    with Progress() as progress:
        for line in series.measure(server, plan, Vocabulary.of(server.tokenizer), progress.new_run):
            lines.append(line)
            if output_file:
                head = provenance.head("serving", flags, data["seed"], cache_state, line.data, grammar)
                lists = details.record(line.run.outcomes) if output_details else {}
                provenance.append(output_file, {**head, **line.to_dict(), **lists})
    _print(lines)
    finish(lines, least)


command = command_of(serving)


def _target(given: Mapping[str, Any], grammar: Grammar | None) -> Target:
    from sgl.bench.serving import Target

    url, host, port = given["base_url"], given["host"], given["port"]
    if url and (host, port) != ("127.0.0.1", 30000):
        raise ConfigError("--base-url says where the server is; leave out --host and --port.", param="--base-url")
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, got {port}.", param="--port")
    key = given["api_key"] or env.text("OPENAI_API_KEY")
    names = given["backend"], url or f"http://{host}:{port}", given["model"], given["tokenizer"], key
    return Target(*names, ignore_eos=not given["disable_ignore_eos"], profile=given["profile"], grammar=grammar)


def _traffics(given: Mapping[str, Any], seed: int) -> list[Traffic]:
    """One for every rate and every concurrency.

    Raises:
        ConfigError: not a number, or several of both.
    """
    from sgl.bench.load import Traffic

    rates = [_rate(part) for part in given["request_rate"].split(",")] if given["request_rate"] else [None]
    limits = [_count(part) for part in given["max_concurrency"].split(",")] if given["max_concurrency"] else [None]
    return [
        Traffic(rate, given["arrival"], given["burstiness"], limit, seed, given["trace_speed"])
        for rate in rates
        for limit in limits
    ]


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = f"--request-rate takes numbers separated by commas, or inf, got '{text}'."
        raise ConfigError(message, param="--request-rate") from None


def _count(text: str) -> int:
    if not text.strip().isdigit():
        message = f"--max-concurrency must be at least 1 (several by commas), got '{text}'."
        raise ConfigError(message, param="--max-concurrency")
    return int(text)


def _yardstick(server: Server, *, required: bool) -> Yardstick | None:
    """The limit of a server that says what its model costs and computes on this machine.

    Raises:
        ConfigError: it must be known, and is not.
    """
    from sgl.cli.bench_limit import yardstick

    facts = server.facts
    if not server.is_local or not facts.cost.is_known:
        if required:
            raise ConfigError("--min-limit needs a server of sgl on this machine.", param="--min-limit")
        return None
    from sgl.bench.machine import use_threads
    from sgl.engine.base.machine import cores

    use_threads(facts.cores or cores())
    return yardstick(facts.cost, facts.chunk or 0, required=required)


def _print(lines: Sequence[Line]) -> None:
    """The block of every kind of traffic, and all of them in one table where there are several."""
    last = {line.traffic: line for line in lines}
    for line in last.values():
        typer.echo(block_of("Serving Benchmark Result", _rows(line)))
    warn(*lines)
    if len(last) > 1:
        _print_table(list(last.values()))


def _rows(line: Line) -> dict[str, object]:
    result = line.figures
    cached = result["total_cached_tokens"]
    rows: dict[str, object] = {
        "Backend": result["backend"],
        "Traffic request rate": result["request_rate"],
        "Max request concurrency": result["max_concurrency"] or "not set",
        **runs_row(line),
        **rows_of(line, {"Successful requests": "completed"}),
        "Failed requests": result["failed"],
        **rows_of(line, {"Benchmark duration (s)": "duration", "Total input tokens": "total_input_tokens"}),
        "Total cached input tokens": "not reported" if cached is None else cached,
        **rows_of(line, FIGURES),
    }
    if "goodput" in result:
        rows |= rows_of(line, {"Goodput within the SLO (req/s)": "goodput"})
    rows |= limit_row(line)
    for title, (short, key) in LATENCIES.items():
        rows[title] = None
        names = {f"{name.capitalize()} {short} (ms)": f"{name}_{key}_ms" for name in ("mean", "median", "p99")}
        rows |= rows_of(line, names)
    for turn in result.get("turns", ()):
        rows[f"Median TTFT of question {turn['turn']} (ms)"] = turn["median_ttft_ms"]
    return rows


FIGURES = {
    "Total generated tokens": "total_output_tokens",
    "Total generated tokens (retokenized)": "total_output_tokens_retokenized",
    "Request throughput (req/s)": "request_throughput",
    "Input token throughput (tok/s)": "input_throughput",
    "Output token throughput (tok/s)": "output_throughput",
    "Total token throughput (tok/s)": "total_throughput",
    "Concurrency": "concurrency",
}

COLUMNS = {
    "req/s": "request_throughput",
    "out tok/s": "output_throughput",
    "TTFT ms": "median_ttft_ms",
    "p99": "p99_ttft_ms",
    "TPOT ms": "median_tpot_ms",
    "goodput": "goodput",
    "of limit": "share_of_limit",
}
"""Of the table of a sweep; medians of repeats."""


def _print_table(lines: Sequence[Line]) -> None:
    from rich.table import Table

    columns = {title: key for title, key in COLUMNS.items() if all(key in line.figures for line in lines)}
    table = Table(box=None, pad_edge=False)
    for title in ("rate", "at once", *columns):
        table.add_column(title, header_style="dim", justify="right")
    for line in lines:
        found = {**line.figures, **(line.summary or {}).get("medians", {})}
        cells = [f"{found[key]:.0%}" if key == "share_of_limit" else f"{found[key]:.2f}" for key in columns.values()]
        table.add_row(str(line.figures["request_rate"]), str(line.figures["max_concurrency"] or "all"), *cells)
    console.out().print(table, soft_wrap=False)
