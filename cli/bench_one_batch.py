"""``sgl bench one-batch``: builds the engines, measures, prints a table and writes JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import Given
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.engines import BatchEngine
    from sgl.bench.one_batch import Run

SHAPES = Path(__file__).resolve().parent.parent / "bench" / "shapes"


@with_config("model", "cache", "schedule", "parallel", "kernel")
def one_batch(
    values: sources.Values,
    model: ModelArgument = "",
    shape: Annotated[
        str, typer.Option("--shape", help="Random weights of a well-known shape instead of a model.", metavar="NAME")
    ] = "",
    batch_size: Annotated[
        str, typer.Option("--batch-size", "--batch", help="Requests in the batch; several by commas.", metavar="N,...")
    ] = "1",
    input_len: Annotated[str, typer.Option("--input-len", help="Tokens of each prompt.", metavar="N,...")] = "128",
    output_len: Annotated[str, typer.Option("--output-len", help="Tokens of each answer.", metavar="N,...")] = "128",
    repeats: Annotated[int, typer.Option("--repeats", help="Measured runs; the median is shown.", metavar="N")] = 5,
    versus: Annotated[
        str, typer.Option("--versus", help="Also run this engine in turns: transformers.", metavar="ENGINE")
    ] = "",
    output_file: Annotated[
        str, typer.Option("--output-file", "--result-filename", help="Append every run as JSON.", metavar="FILE")
    ] = "",
) -> None:
    """Measure prefill and decode of one batch, as a share of the memory bandwidth, beside another engine."""
    if versus not in ("", "transformers"):
        raise ConfigError(f"--versus {versus} is unknown; use transformers.", param="--versus")
    grid = [
        _numbers("--batch-size", batch_size),
        _numbers("--input-len", input_len),
        _numbers("--output-len", output_len),
    ]
    config = sources.configure(with_model({**values, **_of_shape(shape)}, model))

    from sgl.bench.engines import SglEngine, TransformersEngine
    from sgl.bench.one_batch import ModelCost, Workload, measure

    own = SglEngine(config)
    engines: list[BatchEngine] = [own]
    try:
        if versus:
            engines.append(TransformersEngine(config))
        info = own.engine.info
        workloads = [Workload(b, i, o) for b in grid[0] for i in grid[1] for o in grid[2]]
        runs: list[Run] = []
        with console.err().status("measuring") as status:
            cost = ModelCost(info.step_bytes, info.kv_bytes_per_token)
            for run in measure(engines, workloads, repeats, info.vocab_size, cost, note=status.update):
                runs.append(run)
                if output_file:
                    with Path(output_file).open("a") as file:
                        file.write(json.dumps(run.to_dict()) + "\n")
    finally:
        for engine in engines:
            engine.close()
    _print(runs, [engine.name for engine in engines])


command = command_of(one_batch)


def _of_shape(shape: str) -> dict[str, Given]:
    """The options that make a model of random weights."""
    if not shape:
        return {}
    known = sorted(path.name for path in SHAPES.iterdir())
    if shape not in known:
        raise ConfigError(f"--shape {shape} is unknown; use {', '.join(known)}.", param="--shape")
    given = {"model_path": str(SHAPES / shape), "load_format": "dummy", "skip_tokenizer_init": True}
    return {f"model.{name}": Given(value, "flag", "--shape") for name, value in given.items()}


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{flag} takes positive numbers separated by commas, got {text!r}.", param=flag)
    return numbers


def _print(runs: Sequence[Run], names: Sequence[str]) -> None:
    from rich.table import Table

    table = Table(title="medians (least - greatest)", title_justify="left", box=None, pad_edge=False)
    for title in ("batch", "in", "out", "engine", "prefill tok/s", "decode tok/s", "bandwidth", "share of it"):
        table.add_column(title, header_style="dim", justify="left" if title == "engine" else "right")
    for key in dict.fromkeys((run.batch_size, run.input_len, run.output_len) for run in runs):
        for name in names:
            group = [r for r in runs if (r.engine, r.batch_size, r.input_len, r.output_len) == (name, *key)]
            table.add_row(*map(str, key), name, *_cells(group))
    console.out().print(table, soft_wrap=False)


def _cells(runs: Sequence[Run]) -> tuple[str, ...]:
    from sgl.bench.one_batch import medians

    prefill, decode = medians(runs, lambda r: r.prefill_throughput), medians(runs, lambda r: r.median_decode_throughput)
    bandwidth = medians(runs, lambda r: (r.bandwidth_before + r.bandwidth_after) / 2e9)[0]
    share = medians(runs, lambda r: r.decode_share_of_bandwidth)[0]
    drift = ", drifted" if any(run.drifted for run in runs) else ""
    return (
        f"{prefill[0]:.0f} ({prefill[1]:.0f} - {prefill[2]:.0f})",
        f"{decode[0]:.1f} ({decode[1]:.1f} - {decode[2]:.1f})",
        f"{bandwidth:.0f} GB/s{drift}",
        f"{share:.0%}",
    )
