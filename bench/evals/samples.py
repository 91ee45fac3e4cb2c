"""Reads what lm-eval noted of every item: our own runs of its tasks, and those of its own command (--log_samples)."""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sgl.bench.evals import journal
from sgl.bench.evals.items import Record
from sgl.engine.base.errors import ConfigError

_FILE = re.compile(r"samples-(?P<own>.+)\.jsonl|samples_(?P<theirs>.+)_\d{4}-\d\d-\d\dT[\d\-.:]+\.jsonl")
_MAX_TEXT = 2000

_RIGHT = re.compile(
    r"acc|acc_norm|acc_bytes|acc_max|acc_all|acc_mutual_info|accuracy|exact_match|em|math_verify|pass@\d+|pass_at_\d+"
    r"|prompt_level_(strict|loose)_acc"
)
"""Metrics whose 1 is right and whose 0 is wrong. Any other may count what is bad, or mean nothing alone."""

Head = dict[str, Any]
Table = dict[str, Record]
"""Records by what was asked."""


class Sample(msgspec.Struct, kw_only=True):
    """What is read of a line; the figure of each metric stands beside it, under the metric's name."""

    doc_id: int
    metrics: list[str]
    filter: str = "none"
    doc_hash: str = ""
    prompt_hash: str = ""
    target_hash: str = ""
    target: Any = None
    resps: Any = None
    filtered_resps: Any = None


def files(folder: Path) -> dict[str, Path]:
    """The files of a folder by task; of a task that was run several times the last."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("samples*.jsonl")) if folder.is_dir() else ():
        match = _FILE.fullmatch(path.name)
        if match is not None:
            found[match["own"] or match["theirs"]] = path
    return found


def tables(folder: Path) -> Iterator[tuple[Head, Table]]:
    """One for every figure of every task: those with a number for each item.

    Raises:
        ConfigError: a file cannot be read, or was not written by lm-eval.
    """
    head = _head(folder)
    for task, path in files(folder).items():
        columns: dict[str, list[tuple[Record, float]]] = defaultdict(list)
        for sample, line in _read(path):
            for metric in sample.metrics:
                value = line.get(metric)
                if isinstance(value, int | float):
                    columns[f"{metric},{sample.filter}"].append((_record(task, sample), float(value)))
        for column, found in columns.items():
            is_judged = _RIGHT.fullmatch(column.partition(",")[0]) is not None
            yield {**head, "task": f"{task} {column}"}, _table(found, is_judged)


def _head(folder: Path) -> Head:
    """Model and settings, as far as the folder says."""
    with contextlib.suppress(ConfigError):
        head, _ = journal.read(folder)
        return {"model": head.get("model"), "settings": head.get("settings")}
    return {"model": folder.name, "settings": None}


def _read(path: Path) -> Iterator[tuple[Sample, Mapping[str, Any]]]:
    try:
        lines = path.read_bytes().splitlines()
        for line in filter(None, lines):
            yield msgspec.json.decode(line, type=Sample), json.loads(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", param="FILE") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise ConfigError(f"{path} has a line that lm-eval did not write.", param="FILE") from None


def _record(task: str, sample: Sample) -> Record:
    asked = f"{sample.doc_id} {sample.doc_hash} {sample.prompt_hash} {sample.target_hash}"
    text = sample.resps[0] if isinstance(sample.resps, list) and sample.resps else sample.resps
    return Record(
        key=asked,
        id=f"{task}/{sample.doc_id}",
        expected=sample.target,
        got=sample.filtered_resps,
        text=str(text)[:_MAX_TEXT],
    )


def _table(found: Sequence[tuple[Record, float]], is_judged: bool) -> Table:
    """Figures, and right and wrong where they say that and no more."""
    is_judged = is_judged and all(value in (0.0, 1.0) for _, value in found)
    records = [
        replace(record, is_right=bool(value) if is_judged else None, figures={"value": value})
        for record, value in found
    ]
    return {record.key: record for record in records}
