"""``sgl bench one-batch``: builds the engines, measures, prints a table and writes JSON lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import bench_correct, bench_data, console
from sgl.cli.bench_limit import yardstick_of
from sgl.cli.bench_offline import asked
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import Given
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.engines import BatchEngine, SglEngine
    from sgl.bench.limits import Share
    from sgl.bench.one_batch import Run, Workload
    from sgl.engine.base.config import EngineConfig
    from sgl.engine.base.types import Grammar

SHAPE = typer.Option("--shape", help="Random weights of a well-known shape instead of a model.", metavar="NAME")
INPUT_LEN = typer.Option("--input-len", help="Tokens of each prompt.", metavar="N,...")
SHAPES = Path(__file__).resolve().parent.parent / "bench" / "shapes"


@with_config("model", "cache", "schedule", "parallel", "kernel")
@bench_data.with_constraint
def one_batch(
    values: sources.Values,
    constraint: dict[str, Any],
    model: ModelArgument = "",
    shape: Annotated[str, SHAPE] = "",
    batch_size: Annotated[
        str, typer.Option("--batch-size", "--batch", help="Requests in the batch; several by commas.", metavar="N,...")
    ] = "1",
    input_len: Annotated[str, INPUT_LEN] = "128",
    output_len: Annotated[
        str, typer.Option("--output-len", "--output", help="Tokens of each answer.", metavar="N,...")
    ] = "128",
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts.", metavar="N")] = 1,
    repeats: Annotated[int, bench_data.repeats_option(6)] = 6,
    versus: Annotated[
        str,
        typer.Option(
            "--versus",
            help="Also run this in turns: transformers, llama-cpp, openvino, or a server's URL.",
            metavar="NAME",
        ),
    ] = "",
    peer_model: Annotated[str, bench_data.PEER_MODEL] = "",
    peer_python: Annotated[str, bench_data.PEER_PYTHON] = "",
    min_limit: Annotated[str, bench_data.MIN_LIMIT] = "",
    profile: Annotated[bool, bench_data.PROFILE] = False,
    output_file: Annotated[str, bench_data.OUTPUT_FILE] = "",
    correct: Annotated[
        bool, typer.Option("--correct", help="Measure nothing: compare what the model says with transformers.")
    ] = False,
) -> None:
    """Measure prefill and decode of one batch, against the limit of the machine and beside another engine."""
    from sgl.bench import limits, provenance
    from sgl.bench.constraint import chosen
    from sgl.bench.one_batch import PHASES, Workload, measure
    from sgl.bench.peers.engine import check_peer, parse_python

    grammar = chosen(**constraint)
    if versus and grammar:
        message = "--versus has answers that are kept to no grammar; leave it out, or see `sgl bench compare`."
        raise ConfigError(message, param="--versus")
    pythons = parse_python(peer_python)
    check_peer(versus, peer_model)
    if repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, got {repeats}.", param="--repeats")
    lengths = {"--batch-size": batch_size, "--input-len": input_len, "--output-len": output_len}
    workloads = [Workload(*sizes) for sizes in itertools.product(*itertools.starmap(numbers, lengths.items()))]
    least = limits.parse_least(min_limit, PHASES)
    provenance.check_output(output_file)
    config = sources.configure(with_model({**values, **of_shape(shape)}, model))
    if correct:
        bench_correct.check(config)
        return
    flags = {
        **{name[2:].replace("-", "_"): text for name, text in lengths.items()},
        **constraint,
        "shape": shape,
        "repeats": repeats,
        "versus": versus,
        "peer_model": peer_model,
        "min_limit": min_limit,
        "profile": profile,
        "engine": asked(config),
    }

    def record(run: Run, summary: dict[str, Any]) -> None:
        if output_file:
            head = provenance.head("one-batch", flags, seed, "cold", run.data, grammar)
            peaks = {"peaks": dict(yardstick.rates)} if run.shares else {}
            provenance.append(output_file, {**head, **run.to_dict(), **peaks, **summary})

    series: dict[tuple[Workload, str], list[Run]] = {}
    with _engines(config, grammar, versus, peer_model, pythons, profile=profile) as (own, engines):
        yardstick = yardstick_of(own.engine.info.cost, own.engine.config, required=bool(least))
        runs = measure(engines, workloads, repeats, own.engine.info.vocab_size, yardstick, seed)
        interrupted = _collect(runs, len(engines) * len(workloads), repeats, series, record)
    _print(series)
    bench_data.tell_traces(own.traces)
    _finish(series, least, interrupted)


command = command_of(one_batch)


@contextmanager
def _engines(
    config: EngineConfig,
    grammar: Grammar | None,
    versus: str,
    peer_model: str,
    pythons: Mapping[str, str],
    *,
    profile: bool,
) -> Iterator[tuple[SglEngine, list[BatchEngine]]]:
    """This engine, and all that take turns: with the other one, if one is asked for."""
    from sgl.bench.engines import SglEngine
    from sgl.bench.peers import engine as peers

    engines: list[BatchEngine] = []
    with peers.closing_all(engines):
        if versus:  # first: a peer that does not start is told at once
            engines.append(peers.make_peer(versus, peer_model, pythons, config))
        own = SglEngine(config, profile=profile, grammar=grammar)
        engines.insert(0, own)
        yield own, engines


def of_shape(shape: str) -> dict[str, Given]:
    """The options that make a model of random weights."""
    if not shape:
        return {}
    known = sorted(path.name for path in SHAPES.iterdir())
    if shape not in known:
        raise ConfigError(f"--shape {shape} is unknown; use {', '.join(known)}.", param="--shape")
    given = {"model_path": str(SHAPES / shape), "load_format": "dummy", "skip_tokenizer_init": True}
    return {f"model.{name}": Given(value, "flag", "--shape") for name, value in given.items()}


def numbers(flag: str, text: str) -> list[int]:
    """Positive numbers separated by commas.

    Raises:
        ConfigError: it names the flag.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{flag} takes positive numbers separated by commas, got {text!r}.", param=flag)
    return found


def _collect(
    runs: Iterator[Run],
    num_series: int,
    repeats: int,
    series: dict[tuple[Workload, str], list[Run]],
    record: Callable[[Run, dict[str, Any]], None],
) -> bool:
    """Takes in runs by workload and engine and records them, the last ones with medians; true after Ctrl-C."""
    with console.bar(transient=True) as bar:
        task = bar.add_task("runs", total=num_series * repeats)
        try:
            for run in runs:
                group = series.setdefault((run.workload, run.engine), [])
                group.append(run)
                is_last = len(group) == repeats > 1
                record(run, {"summary": _summary(group)} if is_last else {})
                bar.update(task, advance=1, description=f"{run.engine}, {run.workload}")
        except KeyboardInterrupt:
            if not series:
                raise
            return True
    return False


def _print(series: Mapping[tuple[Workload, str], Sequence[Run]]) -> None:
    from rich.table import Table

    confidence = min((_summary(group)["confidence"] or 0.0 for group in series.values()), default=0.0)
    title = f"medians (intervals of {confidence:.0%} confidence)" if confidence else "one run each"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("batch", "in", "out", "engine", "prefill tok/s", "decode tok/s", "bandwidth"):
        table.add_column(name, header_style="dim", justify="left" if name == "engine" else "right")
    for (work, engine), group in series.items():
        table.add_row(*map(str, (work.batch_size, work.input_len, work.output_len)), engine, *_cells(group))
    console.out().print(table, soft_wrap=False)
    for (work, engine), group in series.items():
        if _shares(group):
            console.out().print(f"{engine}, {work}: {_limit(group)}", soft_wrap=True)
    if any(run.bandwidth_moved for group in series.values() for run in group):
        told = "The memory bandwidth moved by more than 10% during a run: others use this machine."
        console.err().print(told, soft_wrap=True)


def _summary(group: Sequence[Run]) -> dict[str, Any]:
    from sgl.bench.figures import medians

    return medians([run.measured for run in group])


def _cells(group: Sequence[Run]) -> tuple[str, ...]:
    summary = _summary(group)

    def cell(name: str, digits: int) -> str:
        interval = summary["intervals"].get(name)
        between = f" ({interval[0]:.{digits}f} - {interval[1]:.{digits}f})" if interval else ""
        return f"{summary['medians'][name]:.{digits}f}{between}"

    bandwidth = sum(summary["medians"][f"bandwidth_{when}"] for when in ("before", "after")) / 2e9
    return cell("prefill_throughput", 0), cell("median_decode_throughput", 1), f"{bandwidth:.1f} GB/s"


def _shares(group: Sequence[Run]) -> list[Share]:
    """Of every phase the run with the median share; a run may lack one, if its tokens came at the same moment."""
    phases: dict[str, list[Share]] = {}
    for share in (share for run in group for share in run.shares):
        phases.setdefault(share.phase, []).append(share)
    return [sorted(found, key=lambda share: share.value)[len(found) // 2] for found in phases.values()]


def _limit(group: Sequence[Run]) -> str:
    from sgl.bench.limits import sentence

    return sentence(_shares(group))


def _finish(
    series: Mapping[tuple[Workload, str], Sequence[Run]], least: Mapping[str, float], interrupted: bool
) -> None:
    """Ends with 130 after Ctrl-C, and with 1 if this engine is further from the limit than asked.

    Raises:
        typer.Exit: for the two.
    """
    from sgl.bench.limits import below

    if interrupted:
        console.err().print("Interrupted: the figures are of the runs that were over.", soft_wrap=True)
        raise typer.Exit(130)
    for (work, engine), group in series.items():
        shares = {share.phase: share.value for share in _shares(group)}
        missed = below({phase: share for phase, share in least.items() if phase in shares}, shares)
        if missed and engine == "sgl":
            console.complain(f"{missed} ({work})")
            raise typer.Exit(1)
