"""Checks and measures on a GPU whatever only a GPU can show: `python -m sgl.bench.gpu_check`, see docs/gpu/README.md.

Every part runs in a process of its own with a time limit, so that neither a failure nor a hanging device takes the
others with it. Needs no network and no package beyond those of the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sgl
from sgl.bench.provenance import describe, versions

SCHEMA = 1
NOT_REACHED = "not reached"
TOTAL_S = 530.0
"""All parts together; what is left of it when a part begins is its limit, too."""

_GRACE_S = 10.0
"""Between a part's own deadline and the end of its process."""

_MOST_OUTPUT = 8000
"""Characters of a failed part's output that are kept: its last."""


@dataclass(frozen=True)
class Part:
    """One process, or several that share the work: ``run`` is called there with a `gpu_sections.Context`."""

    name: str
    title: str
    limit_s: float
    run: Callable[[], Callable[[Any], dict[str, Any]]]
    num_processes: int = 1


def _section(name: str, module: str = "gpu_sections") -> Callable[[], Callable[[Any], dict[str, Any]]]:
    def load() -> Callable[[Any], dict[str, Any]]:
        found: Callable[[Any], dict[str, Any]] = getattr(import_module(f"sgl.bench.{module}"), name)
        return found

    return load


def _model(shape: str, **options: Any) -> Callable[[], Callable[[Any], dict[str, Any]]]:
    def load() -> Callable[[Any], dict[str, Any]]:
        from sgl.bench.gpu_sections import Model

        return Model(shape, **options)

    return load


PARTS: tuple[Part, ...] = (
    Part("ceilings", "what the machine can do", 25, _section("ceilings")),
    Part("tokens", "greedy tokens against the CPU", 90, _section("tokens")),
    Part("waits", "steps wait for nothing", 30, _section("waits")),
    Part("parity", "kernels and attention against float64", 100, _section("parity"), num_processes=8),
    Part("memory", "out of memory while loading, capturing and computing", 30, _section("memory", "gpu_memory")),
    Part(
        "llama-3.1-8b",
        "Llama-3.1-8B shape",
        75,
        _model(
            "llama-3.1-8b", decode=("Llama-3.1-8B shape, 1 request, decode", 230, 250), has_prefill=True, has_steps=True
        ),
    ),
    Part(
        "qwen3-0.6b",
        "Qwen3-0.6B shape",
        35,
        _model("qwen3-0.6b", decode=("Qwen3-0.6B shape, 1 request, decode", 1200, 2000)),
    ),
    Part(
        "qwen3-8b",
        "Qwen3-8B shape",
        90,
        _model("qwen3-8b", throughput=("Qwen3-8B shape, 256 requests 1024 in / 1024 out", 30.9, 26)),
    ),
    Part(
        "llama-2-7b",
        "Llama-2-7B shape",
        35,
        _model("llama-2-7b", decode=("Llama-2-7B shape, 1 request, decode", 225, 275)),
    ),
    Part(
        "llama-3.1-8b-fp8",
        "Llama-3.1-8B shape in fp8",
        40,
        _model("llama-3.1-8b", quantization="fp8", decode=("Llama-3.1-8B shape, fp8, 1 request", 380, 450)),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.part:
        return run_part(options)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = options.only.split(",") if options.only else [part.name for part in PARTS]
    unknown = sorted(set(wanted) - {part.name for part in PARTS})
    if unknown:
        known = ", ".join(part.name for part in PARTS)
        _tell(f"--only: there is no part {unknown[0]!r}; parts are {known}.")
        return 2
    if not options.dry_run and (problem := _problem()):
        _tell(problem)
        return 2
    file = folder / ("dry-run" if options.dry_run else "gpu-check")

    def keep(report: Mapping[str, Any]) -> None:
        file.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        file.with_suffix(".md").write_text(table(report))

    parts = [part for part in PARTS if part.name in wanted]
    report = check(parts, dry_run=options.dry_run, total_s=options.total_s, keep=keep)
    sys.stdout.write(table(report))
    return 0 if all(part["status"] == "ok" for part in report["parts"].values()) else 1


def _tell(text: str) -> None:
    """Progress and problems; the table alone goes to standard output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sgl.bench.gpu_check", description=__doc__)
    parser.add_argument("--out", default="docs/gpu", help="folder for the JSON and the table")
    parser.add_argument("--only", default="", help="parts to run, with commas between")
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="time for all parts")
    parser.add_argument(
        "--dry-run", action="store_true", help="the whole program on a CPU, on toys; says nothing about speed"
    )
    for hidden in ("--part", "--result", "--known"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--limit-s", type=float, default=TOTAL_S, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _problem() -> str:
    """Why nothing can be checked here; empty if it can."""
    from sgl.engine.base.device import open_device
    from sgl.engine.base.errors import SglError

    try:
        open_device("cuda")
    except SglError as error:
        return f"{error.message} (--dry-run runs the program on a CPU.)"
    return ""


def check(
    parts: Sequence[Part],
    *,
    dry_run: bool,
    total_s: float = TOTAL_S,
    keep: Callable[[Mapping[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Runs the parts one after the other; a report that names everything that went wrong.

    Args:
        keep: takes the report after every part, so that what is known stays should the whole be cut short.
    """
    begun_s = time.monotonic()
    deadline_s = begun_s + total_s
    told = _circumstances(dry_run)
    found = {part.name: {"title": part.title, "status": NOT_REACHED, "seconds": 0.0, "result": {}} for part in parts}
    report = {**told, "seconds": 0.0, "parts": found, "figures": []}
    keep(report)
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            left_s = min(part.limit_s, deadline_s - time.monotonic())
            _tell(f"{part.title} ...")
            known = {name: one["result"] for name, one in found.items() if one["status"] == "ok"}
            found[part.name] = {"title": part.title, **_run_apart(part, left_s, known, Path(scratch), dry_run)}
            _tell(f"  {found[part.name]['status']}, {found[part.name]['seconds']:.0f} s")
            report |= {"seconds": time.monotonic() - begun_s, "figures": _figures(found)}
            keep(report)
    return report


def _circumstances(dry_run: bool) -> dict[str, Any]:
    """What a report says beside its results."""
    return {
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "is_dry_run": dry_run,
        "sgl_version": sgl.__version__,
        "commit": _commit(),
        "machine": describe(),
        "versions": {**versions(), "triton": _version("triton"), "flashinfer": _version("flashinfer-python")},
    }


def _figures(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [figure for one in parts.values() for figure in one["result"].get("figures", []) if _is_figure(figure)]


def _run_apart(part: Part, limit_s: float, known: Mapping[str, Any], scratch: Path, dry_run: bool) -> dict[str, Any]:
    count = 1 if dry_run else part.num_processes

    def run(number: int) -> dict[str, Any]:
        folder = scratch / f"{part.name}-{number}"
        folder.mkdir()
        return _run_share(part, limit_s, known, folder, [f"--share={number}/{count}", *(["--dry-run"] * dry_run)])

    with ThreadPoolExecutor(count) as threads:
        return joined(list(threads.map(run, range(count))))


def _run_share(
    part: Part, limit_s: float, known: Mapping[str, Any], scratch: Path, flags: Sequence[str]
) -> dict[str, Any]:
    """Again where it left off because the device broke down under its process."""
    end_s, seconds, outputs = time.monotonic() + limit_s, 0.0, ""
    found: dict[str, Any] = {"status": NOT_REACHED, "seconds": 0.0, "result": {}}
    while "--dry-run" in flags or end_s - time.monotonic() >= 2 * _GRACE_S:
        found = _run_once(part, end_s - time.monotonic(), known, scratch, flags)
        seconds += found["seconds"]
        outputs += found.pop("output", "")
        known = {**known, part.name: found["result"]}
        if not found["result"].get("goes_on"):
            break
    return {**found, "seconds": seconds, **({"output": outputs[-_MOST_OUTPUT:]} if outputs else {})}


def _run_once(
    part: Part, limit_s: float, known: Mapping[str, Any], scratch: Path, flags: Sequence[str]
) -> dict[str, Any]:
    result, facts = scratch / "result.json", scratch / "known.json"
    facts.write_text(json.dumps(known))
    command = [sys.executable, "-m", "sgl.bench.gpu_check", "--part", part.name, "--result", str(result)]
    command += ["--known", str(facts), "--limit-s", str(limit_s - _GRACE_S), *flags]
    begun_s = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        status = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = "timeout"
    content = _read(result)
    if status == "ok" and not content.get("is_ok", True):
        status = "failed"
    told = {} if status == "ok" else {"output": output[-_MOST_OUTPUT:]}
    return {"status": status, "seconds": time.monotonic() - begun_s, "result": content, **told}


def joined(shares: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What came of a part of which several processes had a share each: counts add up, findings stand side by side."""
    if len(shares) == 1:
        return shares[0]
    statuses = [share["status"] for share in shares]
    status = next((bad for bad in ("timeout", "failed", NOT_REACHED) if bad in statuses), "ok")
    result: dict[str, Any] = {}
    for key in {key: None for share in shares for key in share["result"]}:
        values = [share["result"][key] for share in shares if key in share["result"]]
        if isinstance(values[0], bool):
            result[key] = all(values)
        elif isinstance(values[0], dict):
            result[key] = {name: _worst([v[name] for v in values if name in v]) for v in values for name in v}
        else:
            result[key] = sum(values) if isinstance(values[0], int) else [value for value in values if value]
    outputs = [share["output"] for share in shares if "output" in share]
    told = {"output": "\n".join(output[-_MOST_OUTPUT // len(outputs) :] for output in outputs)} if outputs else {}
    return {"status": status, "seconds": max(share["seconds"] for share in shares), "result": result, **told}


def _worst(values: Sequence[Any]) -> Any:
    return max(values) if isinstance(values[0], float) else values[0]


def _read(result: Path) -> dict[str, Any]:
    """What a part wrote; nothing if it ended before or while it did."""
    try:
        content: dict[str, Any] = json.loads(result.read_text())
    except (OSError, ValueError):
        return {}
    return content


def run_part(options: argparse.Namespace) -> int:
    """One part, in this process: writes what came of it."""
    from sgl.bench.gpu_sections import TINY, Context, Scale

    part = next(part for part in PARTS if part.name == options.part)
    facts = json.loads(Path(options.known).read_text()) if options.known else {}

    def keep(found: Mapping[str, Any]) -> None:
        scratch = Path(f"{options.result}.new")
        scratch.write_text(json.dumps(found, default=_plain))
        scratch.replace(options.result)

    faulthandler.enable()
    faulthandler.dump_traceback_later(options.limit_s + _GRACE_S / 2)  # where it hangs, before it is ended
    number, count = map(int, options.share.split("/"))
    scale = TINY if options.dry_run else Scale()
    keep(part.run()(Context(scale, time.monotonic() + options.limit_s, facts, keep, (number, count))))
    return 0


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def _is_figure(value: object) -> bool:
    return isinstance(value, dict) and "least" in value


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed" if find_spec(package.partition("-")[0]) is None else "unknown"


def _commit() -> str:
    root = Path(sgl.__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def table(report: Mapping[str, Any]) -> str:
    """The report for people, in Markdown."""
    machine, found = report["machine"], report["versions"]
    known = ", ".join(f"{name} {version}" for name, version in found.items())
    lines = [
        "# GPU check" + (" (dry run on a CPU: the figures mean nothing)" if report["is_dry_run"] else ""),
        "",
        f"{report['time']}, {machine['device_name']}, commit {report['commit'][:12] or 'unknown'}; {known}.",
        "",
    ]
    if found["flashinfer"] == "not installed":
        lines += ["flashinfer is not installed: attention and sampling ran on the Triton kernels alone.", ""]
    lines += ["| part | outcome | seconds |", "|---|---|---|"]
    for one in report["parts"].values():
        lines.append(f"| {one['title']} | {_outcome(one)} | {one['seconds']:.0f} |")
    lines += ["", "| figure | measured | at least | stretch | |", "|---|---|---|---|---|"]
    for figure in report["figures"]:
        unit = figure["unit"]
        bounds = f"{figure['least']:g} {unit} | {figure['stretch']:g} {unit}"
        lines.append(f"| {figure['name']} | {figure['value']:.4g} {unit} | {bounds} | {_verdict(figure)} |")
    return "\n".join(lines) + "\n"


def _outcome(part: Mapping[str, Any]) -> str:
    result = part["result"]
    counts = [
        f"{result[key]} {label}"
        for key, label in (("num_run", "checks"), ("num_failed", "failed"), ("num_not_reached", "not reached"))
        if result.get(key)
    ]
    return ", ".join([part["status"], *counts])


def _verdict(figure: Mapping[str, Any]) -> str:
    sign = -1 if figure["is_latency"] else 1
    value, least, stretch = (sign * figure[key] for key in ("value", "least", "stretch"))
    return "stretch" if value >= stretch else "reached" if value >= least else "missed"


if __name__ == "__main__":
    sys.exit(main())
