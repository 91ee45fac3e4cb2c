"""``sgl bench compare``: two engines by flags, two servers by URL or two result files; prints ratios."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sgl.cli import bench_data, console
from sgl.cli.bench_data import with_constraint, with_data
from sgl.cli.bench_one_batch import INPUT_LEN, SHAPE, numbers, of_shape
from sgl.cli.options import command_of, with_config, with_model
from sgl.engine.base import env, sources
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.compare import Batch, Line
    from sgl.bench.series import Plan
    from sgl.engine.base.types import Grammar

_UNITS = {"request_throughput": "req/s", "throughput": "tok/s", "goodput": "req/s", "latency": "s", "duration": "s"}
"""By how the name of a figure ends; longer endings first."""

GROUPS = ("model", "cache", "schedule", "parallel", "kernel")


@with_config(*GROUPS)
@with_data
def compare(
    values: sources.Values,
    data: dict[str, Any],
    first: Annotated[
        str, typer.Argument(help="A result file, or a server: http://..., or vllm+http://...", metavar="A")
    ] = "",
    second: Annotated[str, typer.Argument(help="Another one.", metavar="B")] = "",
    flags_a: Annotated[
        str | None,
        typer.Option(
            "--a", help="Engine options of A, beside the common ones; --json-schema, --regex, --ebnf.", metavar="FLAGS"
        ),
    ] = None,
    flags_b: Annotated[str | None, typer.Option("--b", help="Those of B.", metavar="FLAGS")] = None,
    shape: Annotated[str, SHAPE] = "",
    batch_size: Annotated[
        str, typer.Option("--batch-size", "--batch", help="Of engines; several by commas.", metavar="N,...")
    ] = "1",
    prompt_len: Annotated[str, INPUT_LEN] = "128",
    answer_len: Annotated[str, typer.Option("--output-len", help="Tokens of each answer.", metavar="N,...")] = "128",
    request_rate: Annotated[
        float, typer.Option("--request-rate", help="To servers, per second; inf: all at once.", metavar="RATE")
    ] = math.inf,
    max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", help="Requests to a server under way at once.", metavar="N")
    ] = None,
    warmup_requests: Annotated[int, bench_data.WARMUP] = 1,
    cache_state: Annotated[str, bench_data.cache_state_option("any")] = "any",
    repeats: Annotated[int, bench_data.repeats_option(6)] = 6,
    across_grammars: Annotated[
        bool,
        typer.Option("--across-grammars", help="Of files: answers may be kept to different grammars; that is asked."),
    ] = False,
    output_file: Annotated[str, bench_data.OUTPUT_FILE] = "",
) -> None:
    """Compare two configurations in turns, A B B A, or two result files: ratios of medians with 95% intervals."""
    from sgl.bench import compare as comparing
    from sgl.bench import provenance
    from sgl.bench.results import read

    kind = _kind((first, second), (flags_a, flags_b))
    if kind == "files":
        a, b = read(Path(first)), read(Path(second))
        compared = comparing.compare(a, b, paired=False, across_grammars=across_grammars)
        _show(compared, first, second, comparing.warnings(a, b))
        return
    provenance.check_output(output_file)
    sides = [_parse(flag, text or "") for flag, text in (("--a", flags_a), ("--b", flags_b))]
    if repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, got {repeats}.", param="--repeats")
    if kind == "servers":
        from sgl.bench.data import DataOptions
        from sgl.bench.load import Traffic
        from sgl.bench.series import Plan

        traffic = Traffic(request_rate, max_concurrency=max_concurrency, seed=data["seed"])
        plan = Plan(DataOptions(**data), (traffic,), repeats, warmup_requests, cache_state)
        plan.check()
        _check_servers((first, second), sides, cache_state)
        names = tuple(" ".join(filter(None, pair)) for pair in ((first, flags_a), (second, flags_b)))
        runs = _servers((first, second), [side.grammar for side in sides], plan)
    else:
        names = (flags_a or "(no options)", flags_b or "(no options)")
        configs = [_configure(values, shape, side) for side in sides]
        batches = _batches(batch_size, prompt_len, answer_len)
        runs = _engines(configs, [side.grammar for side in sides], batches, repeats, data["seed"])
    _collect(runs, names, output_file)


command = command_of(compare)


def _collect(runs: Iterator[dict[str, Any]], names: Sequence[str], output_file: str) -> None:
    """Takes in the runs, records them, and shows what there is at the end or after Ctrl-C.

    Raises:
        typer.Exit: after Ctrl-C.
    """
    from sgl.bench import compare as comparing
    from sgl.bench import provenance

    raws: list[Mapping[str, Any]] = []
    interrupted = False
    try:
        for raw in runs:
            raws.append(raw)
            if output_file:
                provenance.append(output_file, raw)
    except KeyboardInterrupt:
        interrupted = True
    a, b = comparing.split(raws)
    if a:
        compared = comparing.compare(a, b, paired=True, across_grammars=True)
        _show(compared, names[0], names[1], comparing.warnings(a, b))
    if interrupted:
        raise typer.Exit(130)


def _kind(places: Sequence[str], flags: Sequence[str | None]) -> str:
    """What A and B are.

    Raises:
        ConfigError: they are not two of a kind.
    """
    if any(text is not None for text in flags) and not any(places):
        return "engines"
    if not all(places):
        message = "sgl bench compare needs two: A B (result files or URLs of servers), or --a FLAGS --b FLAGS."
        raise ConfigError(message, param="A")
    urls = ["://" in place for place in places]
    if any(urls) and not all(urls):
        raise ConfigError("A and B must both be result files or both be servers.", param="B")
    if any(text is not None for text in flags) and not all(urls):
        raise ConfigError("--a and --b compare engines or servers; leave out the files.", param="--a")
    return "servers" if all(urls) else "files"


class _Side(NamedTuple):
    """What one side has of its own."""

    values: sources.Values
    grammar: Grammar | None


def _configure(values: sources.Values, shape: str, side: _Side) -> Any:
    """The engine's configuration with the common options and those of one side."""
    return sources.configure(with_model({**values, **of_shape(shape), **side.values}, ""))


def _parse(flag: str, text: str) -> _Side:
    """The options of one side, given in one string."""
    from sgl.bench.constraint import chosen

    found: list[_Side] = []

    @with_config(*GROUPS)
    @with_constraint
    def take(values: sources.Values, constraint: dict[str, Any]) -> None:
        own = {key: given for key, given in values.items() if given.source in ("flag", "set", "file")}
        found.append(_Side(own, chosen(**constraint)))

    try:
        words = shlex.split(text)
    except ValueError:
        raise ConfigError(f"{flag}: a quotation is not closed in {text!r}.", param=flag) from None
    command_of(take).main(words, prog_name=flag, standalone_mode=False)
    (side,) = found
    return side


def _check_servers(urls: Sequence[str], sides: Sequence[_Side], cache_state: str) -> None:
    """
    Raises:
        ConfigError: options that only an engine has, or one server whose second run would find the first one's prompts.
    """
    for flag, side in zip(("--a", "--b"), sides, strict=True):
        if side.values:
            message = f"{flag}: a server has its own options; only --json-schema, --regex and --ebnf can be given here."
            raise ConfigError(message, param=flag)
    if urls[0] == urls[1] and cache_state == "any":
        message = "A and B are one server, where B would find the prompts of A; pass --cache-state cold or warm."
        raise ConfigError(message, param="--cache-state")


def _batches(*texts: str) -> list[Batch]:
    from sgl.bench.compare import Batch

    flags = ("--batch-size", "--input-len", "--output-len")
    grid = [numbers(flag, text) for flag, text in zip(flags, texts, strict=True)]
    return [Batch(size, i, o) for size in grid[0] for i in grid[1] for o in grid[2]]


def _engines(
    configs: Sequence[Any], grammars: Sequence[Grammar | None], batches: Sequence[Batch], repeats: int, seed: int
) -> Iterator[dict[str, Any]]:
    from sgl.bench.compare import SIDES, measure
    from sgl.bench.peers.engine import WorkerEngine, closing_all, own_engine

    engines: list[WorkerEngine] = []
    with closing_all(engines), console.err().status("loading") as status:
        kept_to = dict(zip(SIDES, grammars, strict=True))
        engines += [own_engine(config, name, kept_to[name]) for name, config in zip(SIDES, configs, strict=True)]
        sides = dict(zip(SIDES, engines, strict=True))
        yield from measure(sides, batches, repeats, engines[0].vocab_size, seed, status.update, kept_to)


def _servers(names: Sequence[str], grammars: Sequence[Grammar | None], plan: Plan) -> Iterator[dict[str, Any]]:
    from sgl.bench.compare import SIDES, measure_servers
    from sgl.bench.serving import Server, Target

    connected = []
    for name, grammar in zip(names, grammars, strict=True):
        before, plus, after = name.partition("+")
        backend, url = (before, after) if plus else ("sglang", name)
        connected.append(Server.connect(Target(backend, url, api_key=env.text("OPENAI_API_KEY"), grammar=grammar)))
    with console.err().status("connecting") as status:
        yield from measure_servers(dict(zip(SIDES, connected, strict=True)), plan, status.update)


def _titled(figure: str) -> str:
    """A figure with its unit, where its recorded name does not end in one."""
    unit = next((unit for ending, unit in _UNITS.items() if figure.endswith(ending)), "")
    return f"{figure} ({unit})" if unit else figure


def _show(lines: Sequence[Line], a: str, b: str, warnings: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from sgl.bench.intervals import ENOUGH

    screen = console.out()
    screen.print(Text(f"A: {console.printable(a)}\nB: {console.printable(b)}"))
    for work in dict.fromkeys(line.work for line in lines):
        title = Text(f"\n{console.printable(work)}", "bold")
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("figure", header_style="dim", min_width=12, overflow="fold")
        for name in ("A", "B", "A / B", "interval"):
            table.add_column(name, header_style="dim", justify="right", min_width=7, no_wrap=True)
        table.add_column("better", header_style="dim")
        for line in lines:
            if line.work == work:
                cells = (f"{line.a:.4g}", f"{line.b:.4g}", f"{line.ratio.value:.3f}", line.ratio.interval)
                table.add_row(_titled(line.figure), *cells, Text(line.verdict, "bold"))
        screen.print(table, soft_wrap=False)
    for warning in warnings:
        console.err().print(warning, soft_wrap=True)
    if lines and min(line.repeats for line in lines) < ENOUGH:
        told = f"Fewer than {ENOUGH} repeats have no interval of 95%: nothing is called better."
        console.err().print(told, soft_wrap=True)
