"""``sgl bench tune``: searches what runs a model fastest here, shows what was tried and writes it for the engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sgl
from sgl.cli import console
from sgl.cli.bench_one_batch import SHAPE, of_shape
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import hub, sources, tuned
from sgl.engine.base.config import BY_NAME, EngineConfig, Given
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.machine import describe, detect, hardware_threads

if TYPE_CHECKING:
    from sgl.bench.tune import Load, Runner, Setting, Tuning

QUIET_S = 0.5
"""How long is looked at what others do before the search: a busy machine is refused at once."""

MIN_PAIRS = 6
"""With fewer an interval says more than it knows."""


@with_config("model", "cache", "schedule", "parallel", "kernel")
def tune(
    values: sources.Values,
    model: ModelArgument = "",
    shape: Annotated[str, SHAPE] = "",
    repeats: Annotated[
        int, typer.Option("--repeats", help="Measurements of each of the two settings in a trial.", metavar="N")
    ] = 9,
    output: Annotated[
        str,
        typer.Option("--output", help="Folder to write to, instead of the one that the engine reads.", metavar="DIR"),
    ] = "",
) -> None:
    """Search threads, pinning, chunk and page size for a model on this machine; the engine uses what was found.

    Every change is measured in turns with the best so far and kept if it is faster by more than 2% with 95% certainty.
    Ctrl-C ends the search and keeps the best so far. An option that is given is not searched.
    """
    if repeats < MIN_PAIRS:
        raise ConfigError(
            f"--repeats must be at least {MIN_PAIRS} for a 95% interval, got {repeats}.", param="--repeats"
        )
    values = with_model({**values, **of_shape(shape), "kernel.no_tuned": Given(True, "flag", "sgl bench tune")}, model)
    config = sources.configure(values)

    from sgl.bench.others import Usage
    from sgl.bench.tune import Load, knobs_for, search

    load = Load.for_model(config)
    knobs = knobs_for(config, hardware_threads())
    before = Usage.now()
    time.sleep(QUIET_S)
    before.check(Usage.now())
    with console.err().status("preparing") as status:
        tuning = search(
            knobs,
            lambda setting: _start(values, setting, load),
            repeats,
            note=lambda what: status.update(f"measuring: {what}"),
        )
    before.check(Usage.now())
    _print(tuning)
    if tuning.changes or not tuning.interrupted:  # half a search that found nothing says nothing
        path = _write(config, tuning, Path(output) if output else tuned.folder())
        console.out().print(f"Written to {path}", soft_wrap=True)
    if tuning.interrupted:
        raise typer.Exit(130)


command = command_of(tune)


def _start(values: sources.Values, setting: Setting, load: Load) -> Runner:
    """An engine in a process of its own: threads and pinning belong to a process."""
    from sgl.bench.engines import SglEngine
    from sgl.bench.tune import EngineRunner

    room = {"cache.max_total_tokens": load.max_tokens, "observe.log_level": "warning"}
    given = {key: Given(value, "flag", "sgl bench tune") for key, value in {**room, **setting}.items()}
    engine = SglEngine(sources.configure({**values, **given}), in_process=False)
    return EngineRunner(engine, load, engine.engine.info.vocab_size)


def _print(tuning: Tuning) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Speed against the best before (95% interval)", title_justify="left", box=None, pad_edge=False)
    for title in ("option", "value", "speed", ""):
        table.add_column(title, header_style="dim", justify="right" if title in ("value", "speed") else "left")
    for trial in tuning.trials:
        option = BY_NAME[trial.key]
        speed = "-" if trial.speed is None else "{:.3f}x ({:.3f} - {:.3f})".format(*trial.speed)
        verdict = Text("kept", style="green") if trial.kept else Text(trial.reason, style="dim")
        table.add_row(option.flags[0], option.show(trial.value), speed, verdict)
    if tuning.trials:
        console.out().print(table, soft_wrap=False)
    found = ", ".join(f"{BY_NAME[key].flags[0]} {BY_NAME[key].show(value)}" for key, value in tuning.changes.items())
    told = f"{found}: {tuning.gain:.2f} times as fast as the defaults." if found else "Nothing beats the defaults."
    if tuning.interrupted:
        told = f"Interrupted. {told if found else 'Nothing was found so far.'}"
    console.out().print(told, soft_wrap=True)


def _write(config: EngineConfig, tuning: Tuning, folder: Path) -> Path:
    """Replaces what was found before, also by the news that the defaults are best."""
    from sgl.profiles.tuned import write

    machine, model = detect(config.model.device), config.model
    hf_config = hub.read_config(model.model_path, model.revision, model.download_dir)
    path = folder / tuned.place_of(config, hf_config, machine)
    profile = tuned.Profile(
        machine=describe(machine),
        shape=tuned.shape_of(config, hf_config),
        values={key: value for key, value in tuning.changes.items() if isinstance(value, int)},
        gain=round(tuning.gain, 3),
        sgl_version=sgl.__version__,
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    write(profile, path)
    return path
