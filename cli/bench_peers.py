"""``sgl bench peers``: runs the workloads beside other engines, prints medians and ratios and writes JSON lines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.options import command_of, with_config
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sgl.bench.peers.suite import Setup

Results = Sequence[Mapping[str, Any]]


@with_config("cache", "schedule", "kernel")
def peers(
    values: sources.Values,
    folder: Annotated[
        str, typer.Argument(help="With the models, and the peers' environments (venv-llama, ...).", metavar="FOLDER")
    ] = "",
    make_models: Annotated[
        bool, typer.Option("--make-models", help="Make the models and the peers' formats of them, and stop.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Show what the peers reached on another machine, and stop.")
    ] = False,
    engines: Annotated[
        str, typer.Option("--engines", help="sgl, llama-cpp, openvino, transformers, vllm.", metavar="NAME,...")
    ] = "sgl,llama-cpp,openvino",
    formats: Annotated[str, typer.Option("--formats", help="bf16, int8, int4.", metavar="NAME,...")] = "bf16",
    workloads: Annotated[
        str, typer.Option("--workloads", help="W1 to W6; W3 is W3x8 and W3x32.", metavar="NAME,...")
    ] = "W1,W2,W3,W4,W5,W6",
    model: Annotated[str, typer.Option("--model", help="qwen2-0.5b or llama-135m.", metavar="NAME")] = "qwen2-0.5b",
    repeats: Annotated[
        int, typer.Option("--repeats", help="Of every workload; 6 make intervals sound.", metavar="N", min=1)
    ] = 6,
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts.", metavar="N", min=0)] = 1,
    peer_python: Annotated[
        str,
        typer.Option("--peer-python", help="Interpreters: llama-cpp=/path/python,openvino=...", metavar="PATH,..."),
    ] = "",
    output_file: Annotated[
        str, typer.Option("--output-file", "--result-filename", help="Append every run as JSON.", metavar="FILE")
    ] = "",
) -> None:
    """Measure this engine beside others: the same models and prompts, in turns, on all cores."""
    from sgl.bench.peers import engine, models, prepare, suite
    from sgl.bench.peers.workloads import choose

    if published:
        _print_published()
        return
    if not folder:
        raise ConfigError("sgl bench peers needs a FOLDER with the models; --make-models fills it.", param="FOLDER")
    pythons = engine.parse_python(peer_python)
    if make_models:
        with console.err().status("making models") as status:
            prepare.prepare(Path(folder), pythons, status.update, console.complain)
        return
    if model not in models.SHAPES:
        raise ConfigError(f"--model {model} is unknown; use {', '.join(models.SHAPES)}.", param="--model")
    names = engines.split(",")
    setup = suite.Setup(
        Path(folder), model, names, formats.split(","), choose(workloads), repeats, seed, pythons, values
    )
    setup.check()
    _measure(setup, output_file)


command = command_of(peers)


def _measure(setup: Setup, output_file: str) -> None:
    """Runs everything, records it, and shows what there is at the end or after Ctrl-C."""
    from sgl.bench import provenance
    from sgl.bench.peers.suite import measure

    provenance.check_output(output_file)
    results: list[Mapping[str, Any]] = []
    interrupted = False
    try:
        with console.err().status("loading") as status:
            for result in measure(setup, status.update):
                results.append(result)
                if output_file:
                    provenance.append(output_file, result)
    except KeyboardInterrupt:
        interrupted = True
    if results:
        console.out().print(table_of(results, setup.engines), soft_wrap=False)
        _warn(results)
    if interrupted:
        raise typer.Exit(130)


def table_of(results: Results, names: Sequence[str]) -> RenderableType:
    """Medians by workload and figure, and how the first engine compares with each of the others."""
    from rich.table import Table

    own, *others = names
    table = Table(title="medians (share of bandwidth)", title_justify="left", box=None, pad_edge=False)
    for title in ("weights", "work", "figure"):
        table.add_column(title, header_style="dim", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", header_style="dim")
    for name in others:
        table.add_column(f"{own} / {name}", justify="right", header_style="dim")
    before = ("", "")
    for weights, workload, figure in dict.fromkeys(
        (r["format"], r["workload"], figure) for r in results for figure in r["figures"]
    ):
        group = [r for r in results if (r["format"], r["workload"]) == (weights, workload)]
        cells = [_median(_of(group, name), figure) for name in names]
        ratios = [_ratio(_of(group, own), _of(group, name), figure) for name in others]
        shown = (weights, workload) if before != (weights, workload) else ("", "")
        before = (weights, workload)
        table.add_row(*shown, figure, *cells, *ratios)
    return table


def _of(results: Results, name: str) -> list[Mapping[str, Any]]:
    return [result for result in results if result["engine"] == name]


def _median(group: Results, figure: str) -> str:
    values = [result["figures"][figure] for result in group if figure in result["figures"]]
    if not values:
        return "-"
    shares = [result["share_of_bandwidth"] for result in group if "share_of_bandwidth" in result]
    share = f" ({statistics.median(shares):.0%})" if shares and figure == "decode_tok_s" else ""
    return f"{statistics.median(values):.4g}{share}"


def _ratio(own: Results, other: Results, figure: str) -> str:
    """By repeat: a broken-off run may have one more of one engine."""
    from sgl.bench.intervals import paired_ratio

    a, b = ({r["repeat"]: r["figures"][figure] for r in group if figure in r["figures"]} for group in (own, other))
    both = sorted(a.keys() & b.keys())
    if not both:
        return "-"
    ratio = paired_ratio([a[i] for i in both], [b[i] for i in both])
    return f"{ratio.value:.3f} ({ratio.interval})"


def _warn(results: Results) -> None:
    from sgl.bench.intervals import ENOUGH

    moved = sum(result["bandwidth_moved"] for result in results)
    if moved:
        told = f"The memory bandwidth moved by more than 10% during {moved} of {len(results)} runs"
        console.err().print(f"{told}: others use this machine.", soft_wrap=True)
    if max(result["repeat"] for result in results) + 1 < ENOUGH:
        told = f"Fewer than {ENOUGH} repeats: the intervals have less than 95% confidence."
        console.err().print(told, soft_wrap=True)


def _print_published() -> None:
    from rich.table import Table

    from sgl.bench.peers import published

    table = Table(title=str(published.__doc__).rstrip("."), title_justify="left", box=None, pad_edge=False)
    for title in ("engine", "model", "weights", "work", "GB/s", "share", "figures"):
        table.add_column(title, header_style="dim", justify="right" if title in ("GB/s", "share") else "left")
    for row in published.RESULTS:
        share = "" if row.share is None else f"{'~' if row.drifted else ''}{row.share:.0%}"
        figures = ", ".join(f"{name} {value:g}" for name, value in row.figures.items())
        table.add_row(row.engine, row.model, row.weights, row.workload, f"{row.bandwidth:.1f}", share, figures)
    console.out().print(table, soft_wrap=False)
    versions = ", ".join(f"{engine} {version}" for engine, version in published.VERSIONS.items())
    console.out().print(f"\nVersions: {versions}.\n" + "\n".join(f"- {note}" for note in published.NOTES), markup=False)
