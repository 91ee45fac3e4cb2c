"""Reads the result files of all benchmarks, each with names of its own, as results that can be set side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sgl.bench.data import DataOptions
from sgl.bench.peers.workloads import LESS_IS_BETTER
from sgl.engine.base.errors import ConfigError

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """One line of a result file.

    Args:
        source: the file, or what else it came from.
        kind: the benchmark.
        engine: what was measured.
        work: what it had to do.
        figures: by name; see `is_time` for which of them are better small.
        cache_state: of prefixes when it began; empty if not said.
        data: names the prompts; empty if not said.
        raw: the line.
    """

    source: str
    kind: str
    engine: str
    work: str
    figures: Mapping[str, float]
    cache_state: str
    data: str
    raw: Raw

    @property
    def machine(self) -> str:
        found = self.raw.get("machine")
        return str(found.get("fingerprint", "")) if isinstance(found, dict) else ""

    @property
    def model(self) -> str:
        return str(self.raw.get("model") or _flags(self.raw).get("model_path") or "")

    @property
    def constraint(self) -> str:
        """What the answers were kept to; empty if to nothing."""
        found = self.raw.get("constraint")
        return f"{found.get('kind')} {found.get('hash')}" if isinstance(found, dict) else ""

    @property
    def num_written(self) -> int | None:
        """Tokens of all answers, where they are recorded."""
        found = self.raw.get("total_output_tokens")
        return found if isinstance(found, int) else None

    @property
    def spoiled(self) -> str:
        """Why it must not be compared; empty if it may."""
        if self.raw.get("interrupted"):
            return "was broken off"
        failed = self.raw.get("failed")
        return f"has {failed} failed requests" if failed else ""


def is_time(figure: str) -> bool:
    """Whether less is better: a duration or latency, not a rate or a share."""
    return figure in LESS_IS_BETTER or figure == "duration" or figure.endswith(("latency", "_ms"))


LATENCIES = tuple(f"{s}_{m}_ms" for m in ("ttft", "tpot", "itl", "e2e_latency") for s in ("median", "p99"))
FIGURES: Mapping[str, Sequence[str]] = {
    "one-batch": (
        *("prefill_latency", "prefill_throughput", "median_decode_latency", "median_decode_throughput"),
        *("total_latency", "overall_throughput", "prefill_share_of_limit", "decode_share_of_limit"),
    ),
    "offline": (
        *(
            "duration",
            "request_throughput",
            "input_throughput",
            "output_throughput",
            "total_throughput",
            "share_of_limit",
        ),
    ),
    "serving": (
        *("duration", "request_throughput", "input_throughput", "output_throughput", "goodput", *LATENCIES),
        "share_of_limit",
    ),
}
"""What can be compared, by benchmark; the others have a ``figures`` object of their own."""


def read(path: Path) -> list[Result]:
    """The results in a file, one JSON object a line.

    Raises:
        ConfigError: it cannot be read, is empty, or has lines that no benchmark wrote.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}.", param="FILE") from None
    found = [_result(line, str(path), number) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{path} has no results.", param="FILE")
    return found


def of(raw: Raw, source: str) -> Result | None:
    """A result from what a benchmark recorded; None if it is not one."""
    kind = _kind(raw)
    if not kind:
        return None
    named = raw["figures"] if kind not in FIGURES else {name: raw.get(name) for name in FIGURES[kind]}
    figures = {name: float(value) for name, value in named.items() if isinstance(value, int | float)}
    told = str(raw.get("cache_state") or "")
    return Result(
        source, kind, _engine(raw, kind), _WORK[kind](raw), figures, told, str(raw.get("dataset_hash") or ""), raw
    )


def _result(line: str, path: str, number: int) -> Result:
    try:
        raw = json.loads(line)
    except ValueError:
        raw = None
    result = of(raw, path) if isinstance(raw, dict) else None
    if result is None:
        raise ConfigError(f"Line {number} of {path} is not a result of `sgl bench`.", param="FILE")
    return result


def _kind(raw: Raw) -> str:
    kind = str(raw.get("kind"))
    return kind if kind in FIGURES or (kind in _WORK and isinstance(raw.get("figures"), dict)) else ""


def _engine(raw: Raw, kind: str) -> str:
    name = str(raw.get("engine") or raw.get("backend") or "sgl")
    weights = raw.get("format") or (_flags(raw).get("quantization") if name == "sgl" else "")
    weights = "" if weights == "none" else weights
    constraint = raw.get("constraint")
    kept_to = constraint.get("kind") if isinstance(constraint, dict) and kind != "compare" else ""
    return " ".join(str(part) for part in (name, weights, kept_to and f"({kept_to})") if part)


def _flags(raw: Raw) -> Raw:
    """The engine's options as they were recorded."""
    flags = raw.get("flags")
    inner = flags.get("engine", flags) if isinstance(flags, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _batch(raw: Raw) -> str:
    return f"batch {raw.get('batch_size')}, {raw.get('input_len')} in, {raw.get('output_len')} out"


def _traffic(raw: Raw) -> str:
    parts = [_data_name(raw), f"rate {raw.get('request_rate')}"]
    limit = raw.get("max_concurrency")
    return ", ".join([*parts, f"at most {limit} at once"] if limit else parts)


def _data_set(raw: Raw) -> str:
    return f"{_data_name(raw)}, {raw.get('successful_requests')} requests"


def _data_name(raw: Raw) -> str:
    name, flags = str(raw.get("dataset_name") or "data"), raw.get("flags")
    if name != "random" or not isinstance(flags, dict):
        return name
    return f"random {flags.get('random_input')} in, {flags.get('random_output')} out"


def _named(raw: Raw) -> str:
    return str(raw.get("workload") or "")


_WORK = {
    "one-batch": _batch,
    "offline": _data_set,
    "serving": _traffic,
    "peers": lambda raw: f"{raw.get('model')} {_named(raw)}",
    "compare": _named,
}


def groups(results: Sequence[Result]) -> Iterator[tuple[tuple[str, str, str], list[Result]]]:
    """Results of the same benchmark, work and engine, in the order of their first; without those broken off.

    The same work has the same data, apart from its seed, and the same state of the cache.
    """
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if not result.raw.get("interrupted"):
            found.setdefault((result.kind, result.work, result.engine, _conditions(result.raw)), []).append(result)
    for (kind, work, engine, _), group in found.items():
        yield (kind, work, engine), group


def _conditions(raw: Raw) -> str:
    flags = raw.get("flags")
    names = [field.name for field in fields(DataOptions) if field.name != "seed"]
    given = {name: flags.get(name) for name in names} if isinstance(flags, dict) else {}
    return json.dumps([given, raw.get("cache_state"), raw.get("constraint")], sort_keys=True)
