"""``sgl bench offline``: starts the engine in this process, measures its throughput, prints and records it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.bench_data import Progress, block_of, finish, with_data
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import EngineConfig, Given

ROWS = {
    "Successful requests": "successful_requests",
    "Benchmark duration (s)": "duration",
    "Total input tokens": "total_input_tokens",
    "Total generated tokens": "total_output_tokens",
    "Request throughput (req/s)": "request_throughput",
    "Input token throughput (tok/s)": "input_throughput",
    "Output token throughput (tok/s)": "output_throughput",
    "Total token throughput (tok/s)": "total_throughput",
}


@with_config("model", "cache", "schedule", "parallel", "kernel")
@with_data
def offline(
    values: sources.Values,
    data: dict[str, Any],
    model: ModelArgument = "",
    disable_ignore_eos: Annotated[
        bool, typer.Option("--disable-ignore-eos", help="Let answers end where the model ends them.")
    ] = False,
    warmup_requests: Annotated[
        int, typer.Option("--warmup-requests", help="Requests before the measured ones.", metavar="N", min=0)
    ] = 1,
    output_file: Annotated[
        str, typer.Option("--output-file", "--result-filename", help="Append the result as JSON.", metavar="FILE")
    ] = "",
) -> None:
    """Measure the throughput of the engine in this process on a data set, all requests at once."""
    from sgl.bench import provenance
    from sgl.bench.data import DataOptions, Vocabulary, load, warm_up
    from sgl.bench.load import run_until_interrupt
    from sgl.bench.offline import Offline
    from sgl.engine.api import AsyncEngine

    options = DataOptions(**data)
    options.check()
    provenance.check_output(output_file)
    config = sources.configure(_with_room(with_model(values, model)))
    engine = AsyncEngine.start(config, in_process=True)
    try:
        vocabulary = Vocabulary.of(engine.tokenizer, engine.info.vocab_size)
        samples = load(options, vocabulary)
        with Progress(len(samples)) as run:
            benchmark = Offline(engine, run, ignore_eos=not disable_ignore_eos)
            run_until_interrupt(run, benchmark.measure(samples, warm_up(samples, warmup_requests, vocabulary)))
        result = {"dataset_name": options.dataset_name, **benchmark.result()}
    finally:
        engine.close()
    if output_file:
        flags = {**data, "warmup_requests": warmup_requests, "disable_ignore_eos": disable_ignore_eos}
        flags |= {"engine": _asked(config)}
        provenance.append(output_file, {**result, **provenance.provenance(flags, options.seed, samples)})
    rows = {name: result[key] for name, key in ROWS.items()}
    before, after = result["bandwidth_before"] / 1e9, result["bandwidth_after"] / 1e9
    rows["Memory bandwidth before, after (GB/s)"] = f"{before:.1f}, {after:.1f}"
    if result["bandwidth_moved"]:
        console.err().print("The memory bandwidth moved by more than 10%: others use this machine.", soft_wrap=True)
    finish(result, block_of("Offline Throughput Benchmark Result", rows))


command = command_of(offline)


def _with_room(values: Mapping[str, Given]) -> sources.Values:
    """A queue for all requests: here nobody else waits."""
    return {"schedule.max_queued_requests": Given(2**31 - 1, "call", "offline"), **values}


def _asked(config: EngineConfig) -> dict[str, Any]:
    """The engine's options, of which secrets are hidden."""
    return {name: value for name, value in config.to_flat_dict().items() if value not in (None, "", ())}
