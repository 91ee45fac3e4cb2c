"""What a profile says: time by phase, layer and kernel, what the device waits for, and what is hidden behind it.

A step is one round of the engine's loop that computed something. On a CPU the thread that steps is also the one that
computes, so its events without those within are the kernels, and what is left of a phase is host code. On a GPU kernels
are the device's, and belong to the phase and layer in which they were launched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sgl.engine.base.cost import Cost
from sgl.engine.base.errors import SglError
from sgl.profiles.trace import Event, Trace
from sgl.profiles.tree import Node, Places, grow
from sgl.profiles.work import UNKNOWN, Ceilings, Work, cost_of, of_op, stages, steps_of

STEP = "step"
COMPUTES = "forward"
"""The span that a round of the loop has only if it computes."""
OTHER = "other"
HOST = "host code"
NATIVE_SPANS = frozenset({"decoder", "logits"})
"""Spans around one native call, which profilers do not see: what they spend by themselves is a kernel's. Of the joined
decoder it is the start and the end of its threads."""

_LAYER = re.compile(r"layer (\d+)")


@dataclass
class Line:
    """Time under one name, over all steps.

    Args:
        count: how often.
        work: what it did, where that is known.
        floor_us: the least time for that on this machine; 0 if it is not known.
        bound: what the floor is needed for.
    """

    name: str
    total_us: float = 0.0
    count: int = 0
    work: Work | None = None
    floor_us: float = 0.0
    bound: str = ""

    @property
    def of_ceiling(self) -> float | None:
        """Which part of the machine's ceiling was reached; above 1 where a cache was read in place of memory."""
        return self.floor_us / self.total_us if self.floor_us and self.total_us else None

    def add(self, duration_us: float) -> None:
        self.total_us += duration_us
        self.count += 1


@dataclass
class Analysis:
    """See the module. Times are of all steps together.

    Args:
        wall_us: from the beginning of the first step to the end of the last one.
        phases: what steps are made of; they sum to the steps with `other`.
        layers: by number.
        kernels: longest first.
        host: time in which the stepping thread ran Python and no kernel, by phase, longest first.
        idle_us: during steps, in which the device did nothing.
        hidden_us: of the host's phases, while the device was busy; None where there is no device to hide behind.
        middle: the step of median duration.
    """

    path: str
    device: str
    num_steps: int
    step_us: float
    wall_us: float
    num_tokens: int
    phases: list[Line]
    layers: list[Line]
    kernels: list[Line]
    host: list[Line]
    idle_us: float
    hidden_us: float | None
    middle: Node
    cost: Cost
    ceilings: Ceilings
    notes: list[str] = field(default_factory=list)

    @property
    def host_us(self) -> float:
        return sum(line.total_us for line in self.host)

    @property
    def coverage(self) -> float:
        """Which part of the steps the phases account for."""
        known = sum(line.total_us for line in self.phases if line.name != OTHER)
        return known / self.step_us if self.step_us else 0.0


def analyse(trace: Trace, ceilings: Ceilings = UNKNOWN) -> Analysis:
    """
    Raises:
        SglError: the trace has no step of ours.
    """
    threads = _threads(trace.events)
    track = _stepping(trace)
    steps = [node for node in threads[track] if node.name == STEP and _computes(node)]
    if not steps:
        raise SglError(f"{trace.path} has no whole step of an engine of sgl.", param="trace")
    device = [event for event in trace.events if event.kind == "device"]
    step_us = sum(node.event.duration_us for node in steps)
    cost = cost_of(trace.facts)
    told = steps_of(trace.facts)[: len(steps)]
    found = Analysis(
        path=trace.path,
        device="gpu" if device else "cpu",
        num_steps=len(steps),
        step_us=step_us,
        wall_us=steps[-1].event.end_us - steps[0].event.begin_us,
        num_tokens=sum(step.num_tokens for step in told),
        phases=_phases(steps),
        layers=[],
        kernels=[],
        host=_host(steps),
        idle_us=0.0,
        hidden_us=None,
        middle=sorted(steps, key=lambda node: node.event.duration_us)[len(steps) // 2],
        cost=cost,
        ceilings=ceilings,
    )
    if device:
        _of_device(found, device, threads, trace.events, steps)
    else:
        found.layers = _layers(node for step in steps for node in step.walk())
        found.kernels = _kernels(steps)
        found.idle_us = found.host_us
        for name, work in stages(cost, told).items():
            _measure(found.kernels, name, work, ceilings)
    if len(told) != len(steps):
        found.notes.append("The trace does not say what every step computed: bytes and operations may be missing.")
    return found


def _threads(events: Iterable[Event]) -> dict[str, list[Node]]:
    by_track: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind != "device":
            by_track[event.track].append(event)
    return {track: grow(found) for track, found in by_track.items()}


def _stepping(trace: Trace) -> str:
    """The thread that runs the steps; of several engines the busiest one's."""
    totals: dict[str, float] = defaultdict(float)
    for event in trace.events:
        if event.kind == "span" and event.name == STEP:
            totals[event.track] += event.duration_us
    if not totals:
        raise SglError(f"{trace.path} has no steps of an engine of sgl.", param="trace")
    return max(totals, key=totals.__getitem__)


def _computes(step: Node) -> bool:
    return any(child.name == COMPUTES for child in step.children)


def _sorted(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: -line.total_us)


def _phases(steps: Sequence[Node]) -> list[Line]:
    """In the order in which they come, `OTHER` last."""
    lines: dict[str, Line] = {}
    other = Line(OTHER)
    for step in steps:
        for child in step.children:
            lines.setdefault(child.name, Line(child.name)).add(child.event.duration_us)
        other.add(step.self_us)
    return [*lines.values(), other]


def _layers(nodes: Iterable[Node]) -> list[Line]:
    lines: dict[int, Line] = {}
    for node in nodes:
        match = _LAYER.fullmatch(node.name)
        if match:
            lines.setdefault(int(match[1]), Line(node.name)).add(node.event.duration_us)
    return [lines[number] for number in sorted(lines)]


def _is_kernel(node: Node) -> bool:
    return node.event.kind in ("op", "native") or node.name in NATIVE_SPANS


def _kernels(steps: Sequence[Node]) -> list[Line]:
    """On a CPU: operations by themselves, without those that they are made of."""
    lines: dict[str, Line] = {}
    for step in steps:
        for node in step.walk():
            if _is_kernel(node):
                lines.setdefault(node.name, Line(node.name)).add(node.self_us)
    return _sorted(lines.values())


def _host(steps: Sequence[Node]) -> list[Line]:
    """Spans by themselves, by the phase that they are in."""
    lines: dict[str, Line] = {}
    for step in steps:
        for phase in step.children:
            own_us = sum(node.self_us for node in phase.walk() if not _is_kernel(node))
            lines.setdefault(phase.name, Line(phase.name)).add(own_us)
        lines.setdefault(OTHER, Line(OTHER)).add(step.self_us)
    return _sorted(lines.values())


def _measure(kernels: Sequence[Line], name: str, work: Work, ceilings: Ceilings) -> None:
    """Puts what a kernel did beside the time it took."""
    for line in kernels:
        if line.name == name:
            floor_s, bound = ceilings.floor(work)
            line.work, line.floor_us, line.bound = work, 1e6 * floor_s, bound


# ---- a device beside the thread --------------------------------------------------------------------------------------


def _of_device(
    found: Analysis,
    device: Sequence[Event],
    threads: dict[str, list[Node]],
    events: Iterable[Event],
    steps: Sequence[Node],
) -> None:
    """Kernels where they were launched, the device's idle time, and what of the host went on beside it."""
    begin_us, end_us = steps[0].event.begin_us, steps[-1].event.end_us
    device = [event for event in device if event.end_us > begin_us and event.begin_us < end_us]
    launches = {event.correlation: event for event in events if event.kind == "launch" and event.correlation}
    places = {track: Places(roots) for track, roots in threads.items()}
    kernels: dict[str, Line] = {}
    layers: dict[int, Line] = {}
    works: dict[str, Work] = {}
    for event in device:
        kernels.setdefault(event.name, Line(event.name)).add(event.duration_us)
        launch = launches.get(event.correlation)
        place = places[launch.track].at(launch.begin_us) if launch is not None else None
        for node in place.path() if place is not None else ():
            match = _LAYER.fullmatch(node.name)
            if match:
                layers.setdefault(int(match[1]), Line(node.name)).add(event.duration_us)
            work = of_op(node.name, node.event.args)
            if work is not None:
                works.setdefault(event.name, Work()).add(work.size_bytes, work.flops, work.format)
    found.kernels = _sorted(kernels.values())
    found.layers = [layers[number] for number in sorted(layers)]
    for name, work in works.items():
        _measure(found.kernels, name, work, found.ceilings)
    busy = union((event.begin_us, event.end_us) for event in device)
    stepping = [(node.event.begin_us, node.event.end_us) for node in steps]
    found.idle_us = found.step_us - shared(busy, stepping)
    host = union((phase.event.begin_us, phase.event.end_us) for step in steps for phase in step.children)
    found.hidden_us = shared(busy, host)


Range = tuple[float, float]


def union(ranges: Iterable[Range]) -> list[Range]:
    """The same time as ranges that do not overlap, in order."""
    joined: list[Range] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def shared(some: Sequence[Range], others: Sequence[Range]) -> float:
    """How much time is in both; each in order and without overlaps."""
    total, i, j = 0.0, 0, 0
    while i < len(some) and j < len(others):
        total += max(min(some[i][1], others[j][1]) - max(some[i][0], others[j][0]), 0.0)
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return total
