"""``sgl quantize show``: prints what a quantized checkpoint says of its making."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgl.cli import console
from sgl.cli.options import command_of
from sgl.cli.quantize_run import MB, show_layers, show_verdicts

if TYPE_CHECKING:
    from sgl.quant.gate.documents import DataFacts, Evidence


def show(
    folder: Annotated[str, typer.Argument(help="Directory that `sgl quantize` wrote.", metavar="DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the file as it is.")] = False,
) -> None:
    """Show how a checkpoint was quantized and what it was measured to be worth."""
    import msgspec

    from sgl.quant.gate.documents import read_evidence

    evidence = read_evidence(Path(folder).expanduser())
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(evidence), indent=2))
        return
    for name, value in _facts(evidence).items():
        console.out().print(f"[dim]{name:<12}[/dim] ", end="", soft_wrap=True)
        console.out().print(console.printable(value), markup=False, soft_wrap=True)
    show_layers(evidence.layers)
    if evidence.gate is None:
        console.out().print("It passed no gate: none was asked for.")
    else:
        show_verdicts(evidence.gate.verdicts)


command = command_of(show)


def _facts(evidence: Evidence) -> dict[str, str]:
    """By title; what is not known is left out."""
    recipe, source, size = evidence.recipe, evidence.source, evidence.size_bytes
    gate = evidence.gate
    found = {
        "method": " ".join(str(recipe.get(name) or "") for name in ("method", "algorithm", "scheme")).strip(),
        "made from": f"{source.get('name')} ({source.get('identity')})",
        "time": evidence.time,
        "size": f"{size.get('before', 0) / MB:.2f} MB -> {size.get('after', 0) / MB:.2f} MB",
        "kept as is": ", ".join(map(str, recipe.get("ignore") or [])),
        "wider": ", ".join(f"{name} ({label or 'as is'})" for name, label in (recipe.get("wider") or {}).items()),
        "calibration": _data(evidence.calibration),
        "gate data": "" if gate is None else _data(gate.data) + (f", {gate.looks} looks" if gate.looks > 1 else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in evidence.versions.items()),
    }
    return {name: value for name, value in found.items() if value}


def _data(facts: DataFacts | None) -> str:
    if facts is None:
        return ""
    return f"{facts.name}: {facts.num_sequences} sequences, {facts.num_tokens} tokens, hash {facts.hash}"
