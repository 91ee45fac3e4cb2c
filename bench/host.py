"""Measures what the host costs beside the model: prefix cache, scheduling, batch assembly, messages, streaming.

It runs the product's own parts on made-up requests, without a model, a second process or a socket. Times are processor
time of the measuring thread, and every round measures everything once, in turns, so that other programs disturb little.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from sgl.engine.base.types import (
    Output,
    Outputs,
    PageRun,
    Request,
    Row,
    RowInit,
    RowOutput,
    SamplingParams,
    StepPlan,
    Wants,
)
from sgl.engine.client.wire import decode_outbound, encode
from sgl.engine.core.cache import PageCache
from sgl.engine.core.grammar import NoGrammars
from sgl.engine.core.radix import token_key
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig

PAGE_SIZE = 16
VOCAB_SIZE = 150_000
NAMESPACE = ("", "")


@dataclass(frozen=True)
class Sizes:
    """How much is done for one figure; tests take less."""

    prompt_len: int = 4096
    num_prompts: int = 2000  # other prompts in the tree
    num_leaves: int = 50_000
    num_evicted: int = 4000
    running: tuple[int, ...] = (8, 64, 256)
    rows: tuple[int, ...] = (8, 64)
    num_steps: int = 40
    num_streams: int = 64
    num_tokens: int = 48  # of each stream


@dataclass(frozen=True)
class Figure:
    """One quantity, and what it should be.

    Args:
        unit: ``us`` (less is better) or ``tokens/s`` (more is).
        target: None where none is set.
    """

    name: str
    title: str
    unit: str
    target: float | None = None
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return (min if self.unit == "us" else max)(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        return self.median <= self.target if self.unit == "us" else self.median >= self.target


Probe = Callable[[], float]
"""Measures a figure once, in its unit."""


def measure(rounds: int, sizes: Sizes | None = None, note: Callable[[str], None] = lambda what: None) -> list[Figure]:
    """All figures; ``note`` is told what is being done."""
    from sgl.bench.host_stream import StreamProbe

    sizes = sizes or Sizes()
    note("preparing")
    with ExitStack() as stack:
        stream = stack.enter_context(StreamProbe(sizes.num_streams, sizes.num_tokens))
        probes = [*_cache_probes(sizes), *_step_probes(sizes)]
        probes.append((Figure("stream", "front: detokenize and stream", "tokens/s", 50_000), stream))
        for number in range(rounds + 1):  # the first one warms up
            for figure, probe in probes:
                note(f"round {number} of {rounds}: {figure.title}")
                sample = probe()
                if number:
                    figure.samples.append(sample)
    return [figure for figure, _ in probes]


def results(figures: Sequence[Figure]) -> dict[str, Mapping[str, object]]:
    """The figures for a result line."""
    return {
        figure.name: {
            "unit": figure.unit,
            "median": figure.median,
            "best": figure.best,
            "target": figure.target,
            "met": figure.met,
            "samples": figure.samples,
        }
        for figure in figures
    }


def _cache_probes(sizes: Sizes) -> Iterator[tuple[Figure, Probe]]:
    prompt = f"{sizes.prompt_len}-token prompt"
    tree = _Tree(sizes)
    yield Figure("radix_insert", f"prefix cache: insert a {prompt}", "us", 100.0), tree.insert
    yield Figure("radix_match", f"prefix cache: match a {prompt}", "us", 100.0), tree.match
    leaves = f"{sizes.num_leaves // 1000}k leaves" if sizes.num_leaves >= 1000 else f"{sizes.num_leaves} leaves"
    yield Figure("evict", f"prefix cache: evict one of {leaves}", "us", 5.0), _Leaves(sizes).evict


def _step_probes(sizes: Sizes) -> Iterator[tuple[Figure, Probe]]:
    for count in sizes.running:
        title = f"scheduler: a step, per request of {count}"
        yield Figure(f"schedule_{count}", title, "us", 1.5), _Decoding(count, sizes.num_steps).step
    for count in sizes.rows:
        title = f"batch assembly: a step of {count} known rows"
        yield Figure(f"batch_{count}", title, "us"), _Assembly(count, sizes.num_steps).step
    yield Figure("wire", "messages: encode and decode an output", "us"), _wire(sizes.num_streams, sizes.num_steps)


class _Tree:
    """A prefix cache that holds many prompts, among them one in 16 pieces, as other requests have shared its parts."""

    def __init__(self, sizes: Sizes) -> None:
        self._rng = random.Random(0)
        self._len = sizes.prompt_len // PAGE_SIZE * PAGE_SIZE
        pages = sizes.num_prompts * 2 + 4 * self._len // PAGE_SIZE + 64
        self._cache = PageCache(pages, PAGE_SIZE)
        for _ in range(sizes.num_prompts):
            self._add(self._tokens(2 * PAGE_SIZE))
        self._known = self._tokens(self._len)
        for end in range(self._len // 16, self._len + 1, self._len // 16):
            self._add([*self._known[:end], *self._tokens(PAGE_SIZE)])
        self._add(self._known)

    def insert(self) -> float:
        """Includes making the key of the token ids, and takes the pages back outside of the time."""
        tokens = self._tokens(self._len)
        pages = self._cache.take(self._len // PAGE_SIZE)
        assert pages is not None
        begun = time.thread_time()
        key = token_key(tokens)
        node, _ = self._cache.acquire(NAMESPACE, key)
        node, _ = self._cache.publish(node, key, pages, replace=False)
        took_s = time.thread_time() - begun
        self._cache.release(node)
        return 1e6 * took_s

    def match(self) -> float:
        begun = time.thread_time()
        node, pages = self._cache.acquire(NAMESPACE, token_key(self._known))
        took_s = time.thread_time() - begun
        assert len(pages) == self._len // PAGE_SIZE
        self._cache.release(node)
        return 1e6 * took_s

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(VOCAB_SIZE) for _ in range(count)]

    def _add(self, tokens: list[int]) -> None:
        key = token_key(tokens)[: len(tokens) // PAGE_SIZE * PAGE_SIZE * 4]
        node, shared = self._cache.acquire(NAMESPACE, key)
        pages = self._cache.take(len(tokens) // PAGE_SIZE)
        assert pages is not None
        node, _ = self._cache.publish(node, key[len(shared) * PAGE_SIZE * 4 :], pages[len(shared) :], replace=False)
        self._cache.free(pages[: len(shared)])
        self._cache.release(node)


class _Leaves:
    """A full prefix cache: branches of 50 leaves of a page each, half of them used again since."""

    def __init__(self, sizes: Sizes) -> None:
        self._num_evicted = sizes.num_evicted
        self._rng = random.Random(1)
        self._serial = itertools.count()
        branches = -(-sizes.num_leaves // 50)
        self._cache = PageCache(sizes.num_leaves + branches, PAGE_SIZE)
        self._fill()
        keys = self._keys
        for key in self._rng.sample(keys, len(keys) // 2):
            self._cache.release(self._cache.acquire(NAMESPACE, key)[0])

    def evict(self) -> float:
        begun = time.thread_time()
        pages = [page for _ in range(self._num_evicted) for page in self._cache.take(1) or ()]
        took_s = time.thread_time() - begun
        self._cache.free(pages)
        self._fill()
        return 1e6 * took_s / self._num_evicted

    def _fill(self) -> None:
        """Adds branches until no page is free."""
        self._keys: list[bytes] = []
        while self._cache.num_free:
            if len(self._keys) % 50 == 0:
                trunk = token_key([next(self._serial)] * PAGE_SIZE)
            key = trunk + token_key([next(self._serial)] * PAGE_SIZE)
            node, shared = self._cache.acquire(NAMESPACE, key)
            pages = self._cache.take(min(2 - len(shared), self._cache.num_free))
            assert pages is not None
            end = len(shared) + len(pages)
            begin = len(shared) * PAGE_SIZE * 4
            node, _ = self._cache.publish(node, key[begin : end * PAGE_SIZE * 4], pages, replace=False)
            self._cache.release(node)
            self._keys.append(key)


class _Decoding:
    """A scheduler all of whose requests decode; new pages come as they do in life."""

    def __init__(self, count: int, num_steps: int) -> None:
        self._count, self._num_steps = count, num_steps
        config = SchedulerConfig(
            num_pages=1 << 20,
            page_size=PAGE_SIZE,
            max_running=count,
            max_step_tokens=64 * count,
            max_queued=count,
            max_len=1 << 20,
        )
        self._scheduler = Scheduler(config, NoGrammars())
        params = SamplingParams(max_new_tokens=(1 << 19) // count)
        for number in range(count):
            request = Request(rid=f"request-{number}", token_ids=(number,) * 64, params=params, eos_ids=(2,))
            assert not self._scheduler.add(request, 0.0)
        plan = self._scheduler.schedule(0.0)
        assert [row.kind for row in plan.rows] == ["token"] * count, "all prompts fit one step"
        self._results = [RowOutput(token_ids=[7]) for _ in range(count)]
        self._scheduler.update(self._results)

    def step(self) -> float:
        begun = time.thread_time()
        for _ in range(self._num_steps):
            self._scheduler.schedule(0.0)
            self._scheduler.update(self._results)
        return 1e6 * (time.thread_time() - begun) / self._num_steps / self._count


class _Assembly:
    """The slot table and the step builder under decodes that no page is added to."""

    def __init__(self, count: int, num_steps: int) -> None:
        import torch

        from sgl.engine.runtime.batch import StepBuilder
        from sgl.engine.runtime.slots import SlotTable

        self._inference = torch.inference_mode
        self._num_steps = num_steps
        with self._inference():
            self._table = SlotTable(count, 4096, PAGE_SIZE, VOCAB_SIZE, torch.device("cpu"))
            self._builder = StepBuilder(self._table)
            self._build(tuple(self._first(number) for number in range(count)))
        self._rows = tuple(Row(rid=str(number), slot=number, num_tokens=1, kind="token") for number in range(count))

    def step(self) -> float:
        with self._inference():
            begun = time.thread_time()
            for _ in range(self._num_steps):
                self._build((*self._rows,))  # another tuple of the same rows, as from the scheduler
            return 1e6 * (time.thread_time() - begun) / self._num_steps

    def _build(self, rows: tuple[Row, ...]) -> None:
        self._builder.build(StepPlan(0, rows))

    def _first(self, number: int) -> Row:
        init = RowInit(token_ids=(1,) * 64, num_prompt=64, params=SamplingParams(), wants=Wants(), eos_ids=())
        pages = PageRun(0, tuple(range(number * 64, number * 64 + 64)))
        return Row(rid=str(number), slot=number, num_tokens=64, kind="token", init=init, computed=0, new_pages=pages)


def _wire(count: int, num_steps: int) -> Probe:
    outputs = Outputs([Output(rid=f"{number:032x}#{number}", token_ids=[number]) for number in range(count)])

    def probe() -> float:
        begun = time.thread_time()
        for _ in range(num_steps):
            decode_outbound(encode(outputs))
        return 1e6 * (time.thread_time() - begun) / num_steps / count

    return probe
