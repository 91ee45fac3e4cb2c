"""``sgl bench one-batch --correct``: shows whether the engine and transformers agree about a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from sgl.cli import console
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.correct import Comparison
    from sgl.engine.base.config import EngineConfig

_OUTPUT_LEN = 32


def check(config: EngineConfig) -> None:
    """Answers the built-in prompts and compares.

    Raises:
        ConfigError: there is nothing to compare with.
        typer.Exit: 1; they do not agree.
    """
    model = config.model
    if model.load_format == "dummy" or model.skip_tokenizer_init:
        raise ConfigError("--correct needs a checkpoint with weights and a tokenizer.", param="--correct")

    from sgl.bench import correct
    from sgl.bench.engines import SglEngine

    with console.err().status("answering") as status:
        own = SglEngine(config)
        try:
            spoken = own.speak(correct.PROMPTS, _OUTPUT_LEN)
            status.update("comparing with transformers")
            found = list(correct.compare_all(own.engine, spoken))
        finally:
            own.close()
    tolerance = correct.TOLERANCE[model.dtype]
    _print(found)
    if model.quantization != "none":
        told = f"The weights were rounded ({model.quantization}): differences are shown, not judged."
        console.err().print(told, soft_wrap=True)
    elif all(comparison.agrees(tolerance) for comparison in found):
        console.out().print(f"They agree: no difference is above {tolerance:g}, what {model.dtype} may round away.")
    else:
        console.complain(
            f"They do not agree: a difference is above {tolerance:g}, more than {model.dtype} rounds away."
        )
        _name_the_place(config)
        raise typer.Exit(1)


def _name_the_place(config: EngineConfig) -> None:
    """Says where the doctor sees the first difference; another engine option than the model's may be the cause."""
    from sgl.bench.doctor.model import Subject, examine, overrides

    model = config.model
    with console.err().status("looking for the layer"):
        report = examine(Subject(model.model_path, overrides=overrides(model.json_model_override_args)))
    for fault in report.faults:
        if fault.severity == "wrong":
            console.err().print(console.printable(f"{fault.place}: {fault.found}"), soft_wrap=True, markup=False)


def _print(found: Sequence[Comparison]) -> None:
    from rich.table import Table
    from rich.text import Text

    title = "log probabilities of the engine's tokens, against transformers'"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("prompt and answer", header_style="dim")
    for name in ("largest difference", "not its first choice", "by at most"):
        table.add_column(name, header_style="dim", justify="right")
    for item in found:
        text = Text(item.prompt, "dim") + Text(item.answer)
        table.add_row(text, f"{item.difference:.4f}", f"{item.num_other} of {item.num_tokens}", f"{item.margin:.4f}")
    console.out().print(table)
