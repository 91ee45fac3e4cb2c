"""What an analysis shows, as tables of text for terminals and pages; measures and prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sgl.bench.svg import number
from sgl.profiles.analysis import OTHER, Analysis, Line

MOST_KERNELS = 30
_LONGEST = 60  # characters of a kernel's name: those of templates in C++ have hundreds


@dataclass(frozen=True)
class Table:
    """Rows under titles; the first column is text, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def facts(found: Analysis) -> str:
    """One line on what was recorded."""
    parts = [
        f"{found.num_steps} steps",
        f"{found.step_us / found.num_steps / 1e3:.2f} ms each",
        f"{found.num_tokens} tokens computed" if found.num_tokens else "",
        f"phases account for {found.coverage:.1%} of the steps",
        f"{1 - found.step_us / found.wall_us:.1%} of the time lies between steps" if found.wall_us else "",
    ]
    if found.hidden_us is not None:
        parts.append(f"the device is busy for {found.hidden_us / found.step_us:.0%} of the host's phases (overlap)")
    return " · ".join(filter(None, parts))


def tables(found: Analysis) -> list[Table]:
    """All that there is something to say about."""
    every = [_phases(found), _kernels(found), _host(found), _layers(found)]
    return [table for table in every if table.rows]


def short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _us(found: Analysis, line: Line) -> str:
    return f"{line.total_us / found.num_steps:.1f}"


def _share(found: Analysis, line: Line) -> str:
    return f"{line.total_us / found.step_us:.1%}"


def _simple(found: Analysis, title: str, lines: Sequence[Line], note: str = "") -> Table:
    rows = [(line.name, _us(found, line), _share(found, line)) for line in lines if line.total_us]
    return Table(title, ("", "us/step", "of step"), rows, note)


def _phases(found: Analysis) -> Table:
    return _simple(found, "Phases", found.phases, f"{OTHER} is what a step spends outside of them.")


def _host(found: Analysis) -> Table:
    note = "Python by phase, without the kernels above"
    if found.device == "gpu":
        note = f"{note}; the device is idle for {found.idle_us / found.step_us:.1%} of the steps"
    return _simple(found, "Host code", found.host, f"{note}.")


def _layers(found: Analysis) -> Table:
    return _simple(found, "Layers", found.layers)


def _kernels(found: Analysis) -> Table:
    rows = [_kernel(found, line) for line in found.kernels[:MOST_KERNELS]]
    rest = found.kernels[MOST_KERNELS:]
    note = f"{len(rest)} more take {sum(line.total_us for line in rest) / found.step_us:.1%}. " if rest else ""
    columns = ("", "calls", "us", "share", "MB", "GB/s", "GFLOP/s", "of ceiling", "bound by")
    if not found.ceilings.bandwidth:
        note += "The machine's ceilings are not known; --machine FILE gives them."
    return Table("Kernels", columns, rows, f"Per step. {note}")


def _kernel(found: Analysis, line: Line) -> tuple[str, ...]:
    head = short(line.name), f"{line.count / found.num_steps:.1f}", _us(found, line), _share(found, line)
    if line.work is None or not line.total_us:
        return (*head, "-", "-", "-", "-", "-")
    ceiling = "-" if line.of_ceiling is None else f"{line.of_ceiling:.0%}"
    return (
        *head,
        number(line.work.size_bytes / found.num_steps / 1e6),
        number(line.work.size_bytes / line.total_us / 1e3),
        number(line.work.flops / line.total_us / 1e3),
        ceiling,
        line.bound or "-",
    )


def difference(a: Analysis, b: Analysis) -> list[Table]:
    """Two profiles name by name: microseconds per step, the largest changes first."""
    both = {"Phases": (a.phases, b.phases), "Kernels": (a.kernels, b.kernels), "Host code": (a.host, b.host)}
    made = [_differences(title, _per_step(a, old), _per_step(b, new)) for title, (old, new) in both.items()]
    steps = {"step": a.step_us / a.num_steps}, {"step": b.step_us / b.num_steps}
    return [_differences("Steps", *steps), *made]


def _per_step(found: Analysis, lines: Sequence[Line]) -> dict[str, float]:
    return {line.name: line.total_us / found.num_steps for line in lines}


def _differences(title: str, a: Mapping[str, float], b: Mapping[str, float]) -> Table:
    names = sorted({*a, *b}, key=lambda name: -abs(b.get(name, 0.0) - a.get(name, 0.0)))
    rows = []
    for name in names[:MOST_KERNELS]:
        old, new = a.get(name, 0.0), b.get(name, 0.0)
        change = f"{new / old - 1:+.1%}" if old else "new" if new else "-"
        rows.append((short(name), f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}", change if new else "gone"))
    return Table(title, ("", "A us/step", "B us/step", "difference", "change"), rows)
