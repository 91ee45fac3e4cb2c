"""Runs a model through captured forward passes where there are any, and captures them when there is time.

Launching a kernel costs the host microseconds, of which a small step has more than the device needs for its work; a
capture replays thousands of launches for the price of one. Everything here can be left out: what is not captured runs
as it is written. On a CPU a capture is the function itself.
"""

from __future__ import annotations

import inspect
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor

from sgl.engine.attn.backend import AttentionBackend, GraphBackend
from sgl.engine.attn.batch import ForwardBatch, KVLayer
from sgl.engine.base.budget import size as human_size
from sgl.engine.base.device import Device
from sgl.engine.runtime.batch import Fixed, Layout, Step
from sgl.engine.runtime.inputs import Inputs
from sgl.engine.runtime.segments import Forward, Outs, Segments
from sgl.engine.runtime.slots import SlotTable
from sgl.kernels.ops.decode import Refill, refill

logger = logging.getLogger(__name__)

SEGMENT_ROW = 16
"""Numbers of tokens of captures in segments are multiples of this."""

_NUM_MISSES = 3
"""A size that was missed so often is captured in between, where the engine does not come to rest."""

_ROUNDS, _CALLS = 2, 4

_MOST_COMPILED = 1 << 10
"""Sizes that torch may compile one function for; it gives up after a few if nobody says."""

Size = tuple[int, int]
"""Tokens of each row and number of rows; or 0 and a number of tokens, for captures in segments."""


@dataclass(frozen=True)
class GraphOptions:
    """What is captured.

    Args:
        rows: numbers of rows of uniform steps.
        tokens: numbers of tokens of all others.
        is_padded: whether a step may run as a larger one, of which nobody reads the rest.
        min_speedup: a capture that is not so many times as fast as what it replaces is thrown away.
        reserve_bytes: device memory that captures leave free.
        compile_rows: uniform steps of up to so many rows are compiled by torch before they are captured.
    """

    rows: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    is_padded: bool = True
    min_speedup: float = 1.02
    reserve_bytes: int = 1 << 30
    compile_rows: int = 0


class Runner(Protocol):
    """Runs the model on the batch of a step, in one way or another."""

    def find(self, layout: Layout) -> Fixed | None:
        """See `sgl.engine.runtime.batch.FindFixed`."""

    def run(self, step: Step, batch: ForwardBatch) -> Tensor:
        """The hidden states [T, hidden] of a step, valid until the next one is run."""

    def prepare(self) -> bool:
        """Does one thing that makes later steps faster; False if none is left."""


@dataclass(frozen=True)
class Eager:
    """Runs everything as it is written."""

    model: Forward
    kv: Sequence[KVLayer]
    backend: AttentionBackend[Any]

    def find(self, layout: Layout) -> None:
        return None

    def run(self, step: Step, batch: ForwardBatch) -> Tensor:
        return self.model(batch, self.kv, self.backend)

    def prepare(self) -> bool:
        return False


@dataclass
class Graph:
    """A captured uniform step."""

    num_rows: int
    inputs: Inputs
    backend: GraphBackend[Any]
    replay: Callable[[], Tensor]
    views: dict[int, View] = field(default_factory=dict)

    def view(self, count: int) -> View:
        """What a step of ``count`` rows sees of it."""
        if count not in self.views:
            self.views[count] = View(self, self.inputs.batch(count), self.inputs.next_positions(count))
        return self.views[count]


@dataclass(frozen=True)
class View:
    """See `sgl.engine.runtime.batch.Fixed`."""

    graph: Graph
    batch: ForwardBatch
    next_positions: Tensor


class Graphs:
    """See `Runner`. The slot table needs a last slot, and every layer a last page, that no request has.

    Args:
        q_lens: tokens that the rows of uniform steps have.
        refill: the op `decode.refill`.
    """

    def __init__(
        self,
        model: Forward,
        kv: Sequence[KVLayer],
        backend: AttentionBackend[Any],
        table: SlotTable,
        device: Device,
        options: GraphOptions,
        *,
        q_lens: Sequence[int] = (1,),
        refill: Refill = refill,
    ) -> None:
        self._eager = Eager(model, kv, backend)
        self._device = device
        self._options = options
        tokens = options.tokens if device.is_async else ()
        self._sizes: dict[int, list[int]] = {0: sorted(tokens), **{q_len: sorted(options.rows) for q_len in q_lens}}
        # what is captured next comes last: decodes before all else, and of a kind the largest first
        self._wanted = [(q_len, count) for q_len, counts in self._sizes.items() for count in counts]
        self._wanted.sort(key=lambda size: (size[0] > 0, -size[0], size[1]))
        most = {q_len: max(counts) for q_len, counts in self._sizes.items() if counts}
        self._inputs = {
            q_len: Inputs(table, count if q_len else count // SEGMENT_ROW, q_len or SEGMENT_ROW, refill)
            for q_len, count in most.items()
        }
        self._outs = Outs(most.get(0, 0))
        self._captured: dict[Size, Graph | Segments] = {}
        self._missed: Counter[Size] = Counter()
        self._free_bytes, self._spent_s = device.memory().free_bytes, 0.0

    @property
    def sizes(self) -> list[Size]:
        """What has been captured."""
        return sorted(self._captured)

    def find(self, layout: Layout) -> Fixed | None:
        count = len(layout.host.slot_ids)
        graph = self._find(layout.q_len, count)
        if not isinstance(graph, Graph):
            return None
        graph.inputs.fill(layout, graph.num_rows)
        return graph.view(count)

    def run(self, step: Step, batch: ForwardBatch) -> Tensor:
        if isinstance(step.fixed, View) and step.fixed.graph.backend.replan(batch):
            return step.fixed.graph.replay()[: len(batch.input_ids)]
        if batch.embeds is None and batch.token_types is None:
            segments = self._find(0, len(batch.input_ids))
            if isinstance(segments, Segments):
                return segments.run(batch)
        return self._eager.run(step, batch)

    def prepare(self) -> bool:
        if not self._wanted:
            return False
        self._capture(self._wanted[-1])
        if not self._wanted:
            self._report()
        return True

    def _find(self, q_len: int, count: int) -> Graph | Segments | None:
        """The capture of the size that such a step is to run as, if it is there."""
        counts = self._sizes.get(q_len, [])
        place = bisect_left(counts, count)
        if place == len(counts) or (counts[place] != count and not self._options.is_padded):
            return None
        size = q_len, counts[place]
        found = self._captured.get(size)
        if found is None and size in self._wanted:
            self._missed[size] += 1
            if self._missed[size] >= _NUM_MISSES:
                self._capture(size)
                found = self._captured.get(size)
        return found

    def _capture(self, size: Size) -> None:
        """Captures a size if it fits and is worth it. Whatever goes wrong, steps run without."""
        self._wanted.remove(size)
        begun_s, is_short = time.monotonic(), False
        try:
            if self._device.memory().free_bytes < self._options.reserve_bytes:
                raise MemoryError
            captured = self._capture_segments(size[1]) if size[0] == 0 else self._capture_uniform(*size)
            if captured is not None:
                self._captured[size] = captured
        except Exception as error:
            is_short = isinstance(error, MemoryError) or self._device.is_out_of_memory(error)
            if is_short:
                logger.warning(
                    "Too little memory for the %s, which will be slower: %s are free of the budget's line 'CUDA "
                    "graphs'; lower --cuda-graph-max-bs or --mem-fraction-static.",
                    _described(size),
                    human_size(self._device.memory().free_bytes),
                )
            else:
                logger.exception("The %s cannot be captured; steps of its kind run without.", _described(size))
                self._wanted = [other for other in self._wanted if other[0] != size[0]]
        if is_short:  # the failed attempt is forgotten by now
            self._device.trim()
        self._spent_s += time.monotonic() - begun_s

    @torch.inference_mode()
    def _capture_uniform(self, q_len: int, count: int) -> Graph | None:
        inputs, kv = self._inputs[q_len], self._eager.kv
        inputs.clear()
        batch = inputs.batch(count)
        backend = self._eager.backend.graph_buffers(batch)
        if backend is None:
            self._wanted = [other for other in self._wanted if other[0] != q_len]
            return None
        eager = model = self._eager.model
        if count <= self._options.compile_rows:
            model = _compiled(model)
        replay = self._device.capture(lambda: model(batch, kv, backend))
        is_worth = self._is_worth(lambda: eager(batch, kv, backend), replay)
        return Graph(count, inputs, backend, replay) if is_worth else None

    @torch.inference_mode()
    def _capture_segments(self, num_tokens: int) -> Segments | None:
        inputs, eager = self._inputs[0], self._eager
        inputs.clear()
        batch = inputs.batch(num_tokens // SEGMENT_ROW)
        segments = Segments(eager.model, eager.kv, eager.backend, self._device, batch, self._outs)
        is_worth = self._is_worth(lambda: eager.model(batch, eager.kv, eager.backend), lambda: segments.run(batch))
        return segments if is_worth else None

    def _is_worth(self, eager: Callable[[], Any], captured: Callable[[], Any]) -> bool:
        """Whether a capture saves time, all in all: where the device is the slower one, launches are hidden anyway."""
        if self._options.min_speedup <= 0:
            return True
        return self._time_s(eager) >= self._options.min_speedup * self._time_s(captured)

    def _time_s(self, run: Callable[[], Any]) -> float:
        times = []
        for _ in range(_ROUNDS):
            self._device.synchronize()
            begun_s = time.perf_counter()
            for _ in range(_CALLS):
                run()
            self._device.synchronize()
            times.append(time.perf_counter() - begun_s)
        return min(times)

    def _report(self) -> None:
        self._device.trim()
        uniform = [count for q_len, count in self._captured if q_len]
        tokens = [count for q_len, count in self._captured if not q_len]
        taken = self._free_bytes - self._device.memory().free_bytes
        logger.info(
            "CUDA graphs: %d of uniform steps up to %d rows, %d in segments up to %d tokens; %s, %.1f s.",
            len(uniform),
            max(uniform, default=0),
            len(tokens),
            max(tokens, default=0),
            human_size(max(taken, 0)),
            self._spent_s,
        )


def _compiled(model: Forward) -> Forward:
    """The model by torch.compile, for one size; what it cannot compile stays as it is."""

    def forward(batch: ForwardBatch, kv_layers: Sequence[KVLayer], backend: AttentionBackend[Any]) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=_MOST_COMPILED, suppress_errors=True):
            hidden: Tensor = compiled(batch, kv_layers, backend)
            return hidden

    # captures run in inference mode, which torch cannot compile when a decorator of the model enters it once more
    compiled = torch.compile(MethodType(inspect.unwrap(type(model).__call__), model), dynamic=False)
    return forward


def _described(size: Size) -> str:
    q_len, count = size
    return f"CUDA graph of {count} rows of {q_len} tokens" if q_len else f"CUDA graphs of {count} tokens in segments"
