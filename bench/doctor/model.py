"""Examines a checkpoint: its text files, its weights, and what this engine computes with it beside transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl.bench.doctor import text as texts
from sgl.bench.doctor.fault import Fault, Report
from sgl.bench.doctor.text import TEXTS, Text
from sgl.engine.base import gguf_folder, hub
from sgl.engine.base.errors import ConfigError, ModelError, SglError

MAX_TOKENS = 64
_FETCH = "fetch the checkpoint again"


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Args:
        model: a directory, a GGUF file, or a Hub id.
        reference: another checkpoint that is known to be good; empty for none.
        overrides: fields that this engine reads in place of config.json's.
        dtype: what the layers of both sides are computed in.
        serve_dtype: what the model is going to be served in; auto for what config.json says.
    """

    model: str
    reference: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    serve_dtype: str = "auto"


def examine(subject: Subject, on_stage: Callable[[str], None] = lambda stage: None) -> Report:
    """
    Args:
        on_stage: told what is done next.

    Raises:
        SglError: there is no such model, or the reference cannot be read.
    """
    path = _locate(subject.model)
    good_path = _locate(subject.reference) if subject.reference else None
    stored = hub.read_config(str(path))
    config = {**stored, **subject.overrides}
    report = Report()
    on_stage("reading the tokenizer and the template")
    text = _texts(path, good_path, config, report)
    if stored.get("quantization_config") or (path / gguf_folder.WEIGHTS).is_file():
        report.skipped.append("weights and layers: they are quantized, so transformers computes with other numbers")
        return report
    on_stage("reading the weights")
    if not _weights(path, good_path, config, report):
        return report
    on_stage("computing with this engine and with transformers")
    _layers(subject, path, good_path, config, text, report)
    return report


def _locate(model: str) -> Path:
    return hub.locate(model, (*hub.TOKENIZER_FILES, *hub.WEIGHT_FILES))


def _texts(path: Path, good_path: Path | None, config: Mapping[str, Any], report: Report) -> Text | None:
    try:
        text = Text.read(path, config)
    except SglError as error:
        report.faults.append(Fault("tokenizer", "wrong", str(path), "a tokenizer", error.message, _FETCH))
        return None
    good = Text.read(good_path, hub.read_config(str(good_path))) if good_path is not None else None
    texts.examine(text, good, report)
    return text


def _weights(path: Path, good_path: Path | None, config: Mapping[str, Any], report: Report) -> bool:
    """Whether a model can be made of them."""
    from sgl.bench.doctor import weights

    try:
        own = weights.Checkpoint.read(path, config)
        found = [*weights.against_config(own), *weights.numbers(own)]
    except ModelError as error:
        report.faults.append(Fault("weights", "wrong", str(path), "a model that loads", error.message, _FETCH))
        return False
    told = f"{len(own.tensors)} tensors against config.json"
    fits = not found
    if good_path is not None:
        good = weights.Checkpoint.read(good_path, hub.read_config(str(good_path)))
        found += weights.against(own, good)
        fits = fits and own.family == good.family
        told += " and against the reference's"
    places: set[str] = set()
    for fault in found:  # of one tensor, config.json's word is enough
        if fault.place not in places:
            report.faults.append(fault)
        places.add(fault.place)
    report.done.append(told)
    return fits


def _layers(
    subject: Subject, path: Path, good_path: Path | None, config: Mapping[str, Any], text: Text | None, report: Report
) -> None:
    from sgl.bench.doctor import layers, traces
    from sgl.engine.base.dtypes import torch_dtype
    from sgl.engine.models.registry import family_of

    dtype = torch_dtype(subject.dtype)
    try:
        model = traces.load_own(path, config, dtype)
    except SglError as error:
        report.faults.append(Fault("layers", "wrong", str(path), "a model that loads", error.message, _FETCH))
        return
    if model.pooling is not None:
        report.skipped.append("layers: this model gives vectors; only those that give text are compared")
        return
    ids = _token_ids(text, config)
    own = traces.run_own(model, ids, dtype)
    names = family_of(config).names
    if _served_in(subject, config) == "float16":
        report.faults += layers.overflow(own, names)
    try:
        reference = traces.load_reference(good_path or path, dtype)
    except ModelError as error:
        report.skipped.append(f"layers: {error.message}")
        return
    other = traces.run_reference(reference, ids, list(dict.fromkeys(name for name, _ in own.values)))
    found = layers.compare(own, other, model.spec, names)
    report.faults += found
    shared = sum(key in other.values for key in own.values)
    whose = "the reference" if good_path is not None else "transformers"
    report.done.append(
        f"{shared} values of {len(model.spec.layers)} layers against {whose}, {len(ids)} tokens, {subject.dtype}"
    )
    if not found and text is not None:
        _answers(subject, path, reference, report)


def _answers(subject: Subject, path: Path, reference: Any, report: Report) -> None:
    """The whole engine, once its layers are known to agree."""
    from sgl.bench.doctor import answers, traces

    try:
        spoken = answers.speak(path, subject.overrides, subject.dtype)
    except SglError as error:
        report.faults.append(Fault("answers", "wrong", str(path), "an engine that starts", error.message, _FETCH))
        return
    for said in spoken:
        found = answers.compare(said, traces.scores(reference, said.token_ids), subject.dtype)
        report.faults += found
        if found:
            break
    report.done.append(f"{len(spoken)} prompts and answers of the whole engine, token by token")


def _served_in(subject: Subject, config: Mapping[str, Any]) -> str:
    if subject.serve_dtype != "auto":
        return subject.serve_dtype
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def _token_ids(text: Text | None, config: Mapping[str, Any]) -> list[int]:
    """Text that every model reads, or what takes its place where there is no tokenizer."""
    rows = int(config.get("vocab_size") or 1)
    most = min(MAX_TOKENS, int(config.get("max_position_embeddings") or config.get("n_positions") or MAX_TOKENS))
    ids = text.tokenizer.encode(" ".join(TEXTS)) if text is not None else list(range(most))
    return [token_id for token_id in ids if token_id < rows][:most] or [0]


def overrides(given: str) -> dict[str, Any]:
    """The fields of ``--json-model-override-args``.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        message = f'--json-model-override-args {given}: it must be a JSON object, such as {{"rope_theta": 10000}}.'
        raise ConfigError(message, param="--json-model-override-args")
    return found
