"""Records what an engine does with torch's profiler, as a trace for chrome://tracing or Perfetto. Analyses nothing."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sgl.engine.base import env
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import StepPlan
from sgl.kernels.cpu import native
from sgl.kernels.cpu.marks import Marks, StageTime

logger = logging.getLogger(__name__)

MAX_STEPS = 10_000
"""A profile that nobody stops ends after so many steps: its events are kept in memory."""

SCHEMA = 1
"""Of what the trace says under ``sgl``."""

_ACTIVITIES = {"CPU": torch.profiler.ProfilerActivity.CPU, "GPU": torch.profiler.ProfilerActivity.CUDA}
_EVENTS = b'"traceEvents": ['
_BASE = re.compile(rb'"baseTimeNanoseconds": *(\d+)')


def _moment() -> str:
    """A name that sorts by time: traces of the same second stay in order."""
    now_ns = time.time_ns()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now_ns // 10**9))}-{now_ns // 1000 % 10**6:06d}"


class NoMarks:
    """Where there are no native kernels whose stages could be marked."""

    def start(self) -> None:
        pass

    def stop(self) -> Iterator[StageTime]:
        return iter(())


@dataclass
class _Recording:
    """A profile under way.

    Args:
        steps: what was computed: for every row of every step how many tokens it had and how many more, and how many
            of the rows sampled. The bytes and operations of a step follow from it.
    """

    profile: torch.profiler.profile
    path: Path
    num_steps: int
    steps: list[dict[str, Any]] = field(default_factory=list)


class Profiler:
    """At most one profile at a time, started and ended on the thread that runs the steps.

    Args:
        root: traces are written there or below.
        has_gpu: whether there are device activities to record.
        facts: what a reader of the trace has to know of model and machine.
        computed: how many tokens of a request will have been computed after the steps that are planned.
        unasked: (first, count) of steps to record as if somebody had asked for it.
    """

    def __init__(
        self,
        root: Path,
        *,
        has_gpu: bool,
        facts: Mapping[str, Any] = MappingProxyType({}),
        computed: Callable[[str], int] = lambda rid: 0,
        unasked: tuple[int, int] | None = None,
    ) -> None:
        self._root = root
        self._known = ("CPU", "GPU") if has_gpu else ("CPU",)
        self._marks: Marks | NoMarks = NoMarks() if has_gpu or native.missing() else Marks()
        self._facts = facts
        self._computed = computed
        self._recording: _Recording | None = None
        self._unasked = unasked
        self._num_steps = 0
        self._last_path = ""

    def start(
        self,
        output_dir: str = "",
        num_steps: int | None = None,
        activities: list[str] | None = None,
        with_stack: bool = False,
        record_shapes: bool = False,
    ) -> dict[str, Any]:
        """Records from now on, for ``num_steps`` steps or until `stop`.

        Raises:
            SglError: a profile is being recorded, a value is none, or the directory is not below the root.
        """
        if self._recording is not None:
            raise SglError("Profiling is already in progress. Call /stop_profile first.")
        if num_steps is not None and not 1 <= num_steps <= MAX_STEPS:
            raise SglError(f"num_steps must be between 1 and {MAX_STEPS}, got {num_steps}.", param="num_steps")
        unknown = [name for name in activities or () if name not in _ACTIVITIES]
        if unknown:
            message = f"activities must be of {', '.join(_ACTIVITIES)}, got {unknown[0]!r:.40}."
            raise SglError(message, param="activities")
        chosen = [name for name in activities or self._known if name in self._known]
        path = self._directory(output_dir) / f"{_moment()}-TP-0.trace.json.gz"
        env.hush_profiler()
        profile = torch.profiler.profile(
            activities=[_ACTIVITIES[name] for name in chosen or ("CPU",)],
            with_stack=with_stack,
            record_shapes=record_shapes,
        )
        profile.start()
        self._marks.start()
        self._recording = _Recording(profile, path, num_steps or MAX_STEPS)
        logger.info("Profiling starts; the trace goes to %s.", path.parent)
        return {"directory": str(path.parent)}

    def stop(self) -> dict[str, Any]:
        """Ends the profile and writes its trace.

        Raises:
            SglError: none is being recorded, or the trace cannot be written.
        """
        if self._recording is None:
            raise SglError("Profiling is not in progress. Call /start_profile first.")
        recording, self._recording = self._recording, None
        recording.profile.stop()
        try:
            _write(recording, list(self._marks.stop()), self._facts)
        except (OSError, RuntimeError) as error:
            raise SglError(f"The trace cannot be written to {recording.path}: {error}.", status=500) from None
        self._last_path = str(recording.path)
        logger.info("Profiling done; the trace is %s.", recording.path)
        return {"path": self._last_path}

    def status(self) -> dict[str, Any]:
        """Whether a profile is being recorded, how many steps it has and may still get, and the last trace's file."""
        recording = self._recording
        return {
            "is_recording": recording is not None,
            "num_steps": len(recording.steps) if recording is not None else 0,
            "steps_left": recording.num_steps - len(recording.steps) if recording is not None else 0,
            "path": self._last_path,
        }

    def before(self, plan: StepPlan) -> None:
        """A step that computes something begins."""
        self._num_steps += 1
        if self._recording is not None:
            rows = [[self._computed(row.rid) - row.num_tokens, row.num_tokens] for row in plan.rows]
            sampled = sum(row.kind == "token" for row in plan.rows)
            self._recording.steps.append({"id": plan.step_id, "rows": rows, "num_logits": sampled})

    def after(self) -> None:
        """Between two steps, so that a profile has whole ones: the last one that was asked for ends it."""
        recording = self._recording
        if recording is not None and len(recording.steps) >= recording.num_steps:
            self.close()
        elif recording is None and self._unasked is not None and self._num_steps >= self._unasked[0]:
            count, self._unasked = self._unasked[1], None
            self.start(num_steps=min(max(count, 1), MAX_STEPS), record_shapes="GPU" in self._known)

    def close(self) -> None:
        """Writes what has been recorded, if anything is."""
        if self._recording is not None:
            try:
                self.stop()
            except SglError as error:
                logger.error("%s", error.message)

    def _directory(self, output_dir: str) -> Path:
        """The directory for a trace, which exists when this returns."""
        root = self._root.expanduser().resolve()
        directory = (root / Path(output_dir).expanduser()).resolve()
        if not directory.is_relative_to(root):
            message = f"output_dir {output_dir!r:.200} is not below {root} (SGLANG_TORCH_PROFILER_DIR)."
            raise SglError(message, param="output_dir")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SglError(f"output_dir {directory}: {error.strerror}.", param="output_dir") from None
        return directory


def _write(recording: _Recording, stages: list[StageTime], facts: Mapping[str, Any]) -> None:
    """Torch's trace with the stages among its events and the facts in front."""
    with tempfile.TemporaryDirectory(dir=recording.path.parent) as scratch:
        plain = Path(scratch) / "trace.json"
        recording.profile.export_chrome_trace(str(plain))
        head, _, events = plain.read_bytes().partition(_EVENTS)
    base = _BASE.search(head)
    own = [*_stage_events(stages, 0 if base is None else int(base[1]))]
    told = json.dumps({"schema": SCHEMA, **facts, "steps": recording.steps})
    scratch_path = recording.path.with_suffix(".new")
    with gzip.open(scratch_path, "wb", compresslevel=4) as out:
        out.write(head.replace(b"{", b'{\n  "sgl": ' + told.encode() + b",", 1))
        out.write(_EVENTS)
        out.writelines(json.dumps(event).encode() + b",\n" for event in own)
        out.write(events)
    scratch_path.replace(recording.path)  # whoever waits for the file finds all of it


def _stage_events(stages: Iterable[StageTime], base_ns: int) -> Iterator[dict[str, Any]]:
    """Stages and the layers around them; on the thread whose steps they are part of."""
    offset_ns = time.time_ns() - time.monotonic_ns() - base_ns
    common = {"ph": "X", "pid": os.getpid(), "tid": threading.get_native_id()}

    def event(name: str, category: str, begin_ns: int, end_ns: int, **args: Any) -> dict[str, Any]:
        times = {"ts": (begin_ns + offset_ns) / 1e3, "dur": (end_ns - begin_ns) / 1e3}
        return {**common, "cat": category, "name": name, **times, "args": args}

    layer_begin_ns = 0
    for stage in stages:
        if stage.name == "rotation":
            yield event(stage.name, "native", stage.begin_ns, stage.end_ns)
            continue
        if stage.name == "attention norm":
            layer_begin_ns = stage.begin_ns
        yield event(stage.name, "native", stage.begin_ns, stage.end_ns, layer=stage.layer)
        if stage.name == "down":
            yield event(f"layer {stage.layer}", "layer", layer_begin_ns, stage.end_ns)
