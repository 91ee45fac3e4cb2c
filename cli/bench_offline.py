"""``sgl bench offline``: starts the engine in this process, measures its throughput, prints and records it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import bench_data
from sgl.cli.bench_data import Progress, block_of, finish, limit_row, rows_of, runs_row, warn, with_data
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import EngineConfig, Given
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.data import Vocabulary
    from sgl.bench.limits import Yardstick
    from sgl.bench.series import Bench, Line
    from sgl.engine.base.types import Grammar

    Opened = tuple[Bench, Vocabulary, Yardstick | None]

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
@bench_data.with_constraint
def offline(
    values: sources.Values,
    data: dict[str, Any],
    constraint: dict[str, Any],
    model: ModelArgument = "",
    disable_ignore_eos: Annotated[
        bool, typer.Option("--disable-ignore-eos", help="Let answers end where the model ends them.")
    ] = False,
    engine_name: Annotated[
        str, typer.Option("--engine", help="sgl, transformers, llama-cpp or openvino.", metavar="NAME")
    ] = "sgl",
    peer_model: Annotated[str, bench_data.PEER_MODEL] = "",
    peer_python: Annotated[str, bench_data.PEER_PYTHON] = "",
    repeats: Annotated[int, bench_data.repeats_option(1)] = 1,
    cache_state: Annotated[str, bench_data.cache_state_option("cold")] = "cold",
    warmup_requests: Annotated[int, bench_data.WARMUP] = 1,
    min_limit: Annotated[str, bench_data.MIN_LIMIT] = "",
    profile: Annotated[bool, bench_data.PROFILE] = False,
    output_file: Annotated[str, bench_data.OUTPUT_FILE] = "",
) -> None:
    """Measure the throughput of the engine in this process on a data set, all requests at once."""
    from sgl.bench import limits, provenance
    from sgl.bench.constraint import chosen
    from sgl.bench.data import DataOptions
    from sgl.bench.series import Plan, measure

    least = limits.parse_least(min_limit, (limits.RUN,))
    plan = Plan(DataOptions(**data), repeats=repeats, warmup_requests=warmup_requests, cache_state=cache_state)
    plan.check()
    provenance.check_output(output_file)
    grammar = chosen(**constraint)
    config = sources.configure(_with_room(with_model(values, model)))
    flags = {
        **data,
        **constraint,
        "disable_ignore_eos": disable_ignore_eos,
        "repeats": repeats,
        "cache_state": cache_state,
        "warmup_requests": warmup_requests,
        "min_limit": min_limit,
        "profile": profile,
        "engine": asked(config),
        "engine_name": engine_name,
        "peer_model": peer_model,
    }
    opened: AbstractContextManager[Opened]
    if engine_name == "sgl":
        opened = _own(config, grammar, ignore_eos=not disable_ignore_eos, profile=profile, required=bool(least))
    else:
        _check_peer(grammar, profile=profile, required=bool(least))
        opened = _peer(engine_name, peer_model, peer_python, config)
    lines: list[Line] = []
    with opened as (bench, vocabulary, yardstick), Progress() as progress:
        for line in measure(bench, plan.against(yardstick), vocabulary, progress.new_run):
            lines.append(line)
            if output_file:
                head = provenance.head("offline", flags, data["seed"], cache_state, line.data, grammar)
                provenance.append(output_file, {**head, **line.to_dict()})
    _print(lines[-1])
    warn(*lines)
    finish(lines, least)


command = command_of(offline)


@contextmanager
def _own(
    config: EngineConfig, grammar: Grammar | None, *, ignore_eos: bool, profile: bool, required: bool
) -> Iterator[Opened]:
    """This engine, held against the limit of this machine; says at the end where profiles are."""
    from sgl.bench.data import Vocabulary
    from sgl.bench.offline import Offline
    from sgl.cli.bench_limit import yardstick_of
    from sgl.engine.api import AsyncEngine

    with closing(AsyncEngine.start(config, in_process=True)) as engine:
        bench = Offline(engine, ignore_eos, profile=profile, grammar=grammar)
        vocabulary = Vocabulary.of(engine.tokenizer, engine.info.vocab_size)
        yield bench, vocabulary, yardstick_of(engine.info.cost, engine.config, required=required)
    bench_data.tell_traces(bench.traces)


@contextmanager
def _peer(name: str, model: str, python: str, config: EngineConfig) -> Iterator[Opened]:
    """Another engine, of which the limit is not known."""
    from sgl.bench.peers import engine
    from sgl.bench.peers.offline import PeerOffline

    with closing(engine.make_local(name, model, engine.parse_python(python), config)) as peer:
        yield PeerOffline(peer), _vocabulary(config), None


def _check_peer(grammar: Grammar | None, *, profile: bool, required: bool) -> None:
    """
    Raises:
        ConfigError: something is asked that only this engine does.
    """
    if profile:
        raise ConfigError("--profile records --engine sgl only.", param="--profile")
    if required:
        raise ConfigError("--min-limit needs --engine sgl, whose cost is known.", param="--min-limit")
    if grammar:
        message = f"--{grammar.kind.replace('_', '-')} needs --engine sgl, which keeps answers to grammars."
        raise ConfigError(message, param="--engine")


def _print(line: Line) -> None:
    rows = {**runs_row(line), **rows_of(line, ROWS), **limit_row(line)}
    before, after = line.figures["bandwidth_before"] / 1e9, line.figures["bandwidth_after"] / 1e9
    rows["Memory bandwidth before, after (GB/s)"] = f"{before:.1f}, {after:.1f}"
    typer.echo(block_of("Offline Throughput Benchmark Result", rows))


def _vocabulary(config: EngineConfig) -> Vocabulary:
    """That of the checkpoint, for engines that do not tell theirs."""
    from sgl.bench.data import Vocabulary
    from sgl.engine.base import hub
    from sgl.engine.text.tokenizer import load_tokenizer

    place = hub.locate(config.model.tokenizer_path or config.model.model_path, hub.TOKENIZER_FILES)
    size = int(hub.read_config(config.model.model_path)["vocab_size"])
    return Vocabulary.of(load_tokenizer(place), size)


def _with_room(values: Mapping[str, Given]) -> sources.Values:
    """A queue for all requests: here nobody else waits."""
    return {"schedule.max_queued_requests": Given(2**31 - 1, "call", "offline"), **values}


def asked(config: EngineConfig) -> dict[str, Any]:
    """The engine's options, of which secrets are hidden."""
    return {name: value for name, value in config.to_flat_dict().items() if value not in (None, "", ())}
