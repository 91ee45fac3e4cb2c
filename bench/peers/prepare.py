"""Makes the models and every installed peer's own format of them; what is there stays, what fails is said."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sgl.bench.peers.models import SHAPES, make_models
from sgl.bench.peers.servers import llama_program
from sgl.bench.peers.suite import ENGINES
from sgl.engine.base import env
from sgl.engine.base.errors import SglError

INT4 = ("--sym", "--group-size", "64", "--ratio", "1.0")
OPENVINO = {"fp16": (), "int8": (), "int4": INT4}
LLAMA = ("Q8_0", "Q4_0")

Say = Callable[[str], None]


def prepare(folder: Path, pythons: Mapping[str, str], note: Say, complain: Say) -> None:
    """Fills ``folder``: ``models``, and ``gguf`` and ``ov`` for the peers whose interpreters are there.

    Raises:
        ConfigError: the folder cannot be written.
    """
    make_models(folder, note=note)
    for engine, convert in {"llama-cpp": _to_gguf, "openvino": _to_openvino}.items():
        beside = folder / ENGINES[engine].environment / "bin" / "python"
        python = pythons.get(engine) or str(beside)
        if not Path(python).is_file():
            complain(f"{engine}: no interpreter in {beside.parent} and none named with --peer-python; left out.")
            continue
        for model in SHAPES:
            try:
                convert(folder, model, python, note)
            except SglError as error:
                complain(error.message)


def _to_gguf(folder: Path, model: str, python: str, note: Say) -> None:
    source = folder / "gguf" / f"{model}-BF16.gguf"
    source.parent.mkdir(exist_ok=True)
    script = str(Path(__file__).with_name("to_gguf.py"))
    _make(source, [python, "-I", script, str(folder / "models" / model)], {}, note)
    program, environment = llama_program(python, "llama-quantize")
    for quantization in LLAMA:
        target = source.with_name(f"{model}-{quantization}.gguf")
        _make(target, [program, str(source)], environment, note, quantization)


def _to_openvino(folder: Path, model: str, python: str, note: Say) -> None:
    (folder / "ov").mkdir(exist_ok=True)
    program = str(Path(python).with_name("optimum-cli"))
    export = [program, "export", "openvino", "--model", str(folder / "models" / model)]
    for weights, options in OPENVINO.items():
        words = [*export, "--task", "text-generation-with-past", "--weight-format", weights, *options]
        _make(folder / "ov" / f"{model}-{weights}", words, {}, note)


def _make(target: Path, command: Sequence[str], environment: Mapping[str, str], note: Say, *after: str) -> None:
    """Runs a command with the target as its next word; under another name until it is whole."""
    if target.exists():
        note(f"{target} is there")
        return
    note(f"making {target}")
    partial = target.with_name(f"partial-{target.name}")
    words = [*command, str(partial), *after]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env={**env.all_variables(), **environment})
    except OSError as error:
        raise SglError(f"{words[0]} cannot be run: {error.strerror}.") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise SglError(f"{target} cannot be made: {lines[-1]}")
    partial.rename(target)
