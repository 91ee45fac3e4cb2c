"""How fast a machine could at best run a model: floors from bytes and operations, and how near a run came to them.

A step takes at least as long as reading what it must read, and at least as long as its multiplications at the best rate
that this machine reaches in their format: its floor is the longer of the two. The floor of a phase is the sum over its
steps. It counts the weights once a step, the head only where scores are wanted, keys and values once for every row that
sees them, and of the activations what goes from layer to layer; norms, softmax and sampling count as free. So a floor
is never too high, but for a model so small that the processor's caches hold it. Pure functions: nothing is measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sgl.bench.figures import Outcome
from sgl.engine.base.cost import Cost, Weights
from sgl.engine.base.errors import ConfigError

MEMORY = "memory"
RUN = "run"
"""The phase of benchmarks in which prompts and answers share steps."""

RATES: Mapping[str, tuple[str, ...]] = {
    "fp32": ("matmul_fp32", "gemm_fp32"),
    "bf16": ("matmul_bf16", "gemm_bf16"),
    "int8": ("matmul_int8", "gemm_int8"),
    "int4": ("matmul_int8", "gemm_int8", "gemm_int4"),  # multiplied as int8: no processor has products of 4 bits
}
"""The figures of `sgl bench machine` whose best is the ceiling of a format; fp16 has none."""


def rates_of(figures: Mapping[str, float]) -> dict[str, float]:
    """From the figures of `sgl.bench.machine`."""
    found = {name: [figures[key] for key in keys if key in figures] for name, keys in RATES.items()}
    return {name: max(values) for name, values in found.items() if values}


@dataclass(frozen=True)
class Ceiling:
    """What a machine can do: bytes per second, and operations per second by weight format."""

    bandwidth: float
    rates: Mapping[str, float]

    def lacks(self, cost: Cost) -> str:
        """Why there is no limit for a model; empty if there is one."""
        if not cost.is_known:
            return "it is not known what the model costs"
        needed = {cost.format, cost.head.format, *(weights.format for weights in cost.linears)}
        missing = sorted(needed - set(self.rates))
        return f"the machine's peak for {', '.join(missing)} is not known" if missing else ""


@dataclass(frozen=True)
class Yardstick:
    """What a run is held against.

    Args:
        cost: of the model.
        rates: operations per second by weight format.
        chunk: prompt tokens that the engine computes at once.
    """

    cost: Cost
    rates: Mapping[str, float]
    chunk: int

    @property
    def missing(self) -> str:
        """Why there is no limit; empty if there is one."""
        return Ceiling(1.0, self.rates).lacks(self.cost)

    def ceiling(self, bandwidth: float) -> Ceiling:
        return Ceiling(bandwidth, self.rates)


@dataclass(frozen=True)
class Row:
    """What a request does in a step: ``new`` tokens behind ``past`` ones."""

    past: int
    new: int


@dataclass
class Work:
    """Bytes that must be read or written, and operations by (format, what)."""

    size_bytes: float = 0.0
    operations: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def multiply(self, weights: Weights, num_tokens: float) -> None:
        self.operations[weights.format, "GEMM"] += 2 * weights.params * num_tokens

    def read(self, weights: Weights, times: float = 1.0) -> None:
        self.size_bytes += weights.size_bytes * times

    def seconds(self, ceiling: Ceiling) -> dict[str, float]:
        """How long each resource is busy at least."""
        units = {
            f"{format} {what}": operations / ceiling.rates[format]
            for (format, what), operations in self.operations.items()
        }
        return {MEMORY: self.size_bytes / ceiling.bandwidth, **units}

    def floor(self, ceiling: Ceiling) -> Floor:
        """The longer of memory and all arithmetic, and what takes most of it."""
        units = self.seconds(ceiling)
        memory_s = units.pop(MEMORY)
        arithmetic_s = sum(units.values())
        if memory_s >= arithmetic_s:
            return Floor(memory_s, MEMORY)
        return Floor(arithmetic_s, max(units, key=units.__getitem__))


@dataclass(frozen=True)
class Floor:
    """The least time, and what it is needed for."""

    seconds: float
    bound: str


@dataclass(frozen=True)
class Share:
    """How near a phase came to its floor."""

    phase: str
    floor: Floor
    measured_s: float

    @property
    def value(self) -> float:
        return self.floor.seconds / self.measured_s if self.measured_s > 0 else 0.0

    def to_dict(self) -> dict[str, float | str]:
        of = "" if self.phase == RUN else f"{self.phase}_"
        return {
            f"{of}floor_s": self.floor.seconds,
            f"{of}share_of_limit": self.value,
            f"{of}bound_by": self.floor.bound,
        }


def step(cost: Cost, rows: Iterable[Row], num_logits: int) -> Work:
    """What one step does for these rows, of which ``num_logits`` tokens get scores."""
    rows = list(rows)
    work = _tokens(cost, sum(row.new for row in rows), num_logits)
    for weights in cost.linears:
        work.read(weights)
    if num_logits:
        work.read(cost.head)
    work.size_bytes += cost.other_bytes
    for part in cost.attention:
        pairs, cached = 0, 0
        for row in rows:
            pairs += num_pairs(row, part.window)
            cached += row.new + (row.past if part.window is None else min(row.past, part.window - 1))
        work.operations[cost.format, "attention"] += part.num_layers * part.flops_per_pair * pairs
        work.size_bytes += part.num_layers * part.kv_bytes_per_token * cached
    return work


def prefill(cost: Cost, prompts: Sequence[Row], chunk: int) -> list[Work]:
    """The steps that compute prompts (``past`` tokens of them cached), at most ``chunk`` tokens in one."""
    steps: list[list[Row]] = [[]]
    ends = [0]  # how many prompts end in each step: only their last tokens get scores
    room = chunk
    for prompt in prompts:
        done = 0
        while done < prompt.new:
            if not room:
                steps.append([])
                ends.append(0)
                room = chunk
            taken = min(room, prompt.new - done)
            steps[-1].append(Row(prompt.past + done, taken))
            done, room = done + taken, room - taken
        ends[-1] += 1
    return [step(cost, rows, count) for rows, count in zip(steps, ends, strict=True)]


def decode(cost: Cost, context_lens: Sequence[int], num_steps: int) -> list[Work]:
    """``num_steps`` steps that give every row a token; ``context_lens`` count what is there before the first."""
    return [step(cost, [Row(past + i, 1) for past in context_lens], len(context_lens)) for i in range(num_steps)]


def floor(steps: Iterable[Work], ceiling: Ceiling) -> Floor:
    """Of steps one after the other; bound by what binds for most of the time."""
    by_bound: dict[str, float] = defaultdict(float)
    for work in steps:
        one = work.floor(ceiling)
        by_bound[one.bound] += one.seconds
    return Floor(sum(by_bound.values()), max(by_bound, key=by_bound.__getitem__)) if by_bound else Floor(0.0, MEMORY)


@dataclass(frozen=True)
class Answered:
    """A request of a run: its prompt, how much of that was cached, and the tokens of its answer."""

    input_len: int
    cached_len: int
    output_len: int


def traffic(cost: Cost, answers: Sequence[Answered], chunk: int, concurrency: float) -> Work:
    """What a whole run does at least, when prompts and answers share steps.

    The weights are read once a step, and there are as many steps as the answers need at ``concurrency`` requests at
    once, or as the prompts need in chunks, if that is more. Prompts then come for their arithmetic alone.
    """
    num_new = sum(answer.input_len - answer.cached_len for answer in answers)
    num_later = sum(max(answer.output_len - 1, 0) for answer in answers)
    work = _tokens(cost, num_new + num_later, len(answers) + num_later)
    num_steps = max(math.ceil(num_new / chunk), num_later / max(concurrency, 1.0))
    for weights in (*cost.linears, cost.head):
        work.read(weights, num_steps)
    work.size_bytes += cost.other_bytes * num_steps
    for part in cost.attention:
        pairs, cached = 0, 0
        for answer in answers:
            later = num_pairs(Row(answer.input_len, max(answer.output_len - 1, 0)), part.window)
            pairs += num_pairs(Row(answer.cached_len, answer.input_len - answer.cached_len), part.window) + later
            cached += answer.input_len + later  # a decode step reads what it sees; a prompt is written or read once
        work.operations[cost.format, "attention"] += part.num_layers * part.flops_per_pair * pairs
        work.size_bytes += part.num_layers * part.kv_bytes_per_token * cached
    return work


def of_run(cost: Cost, outcomes: Sequence[Outcome], chunk: int, ceiling: Ceiling) -> Share:
    """How near a run came to the floor of its prompts and answers, at the concurrency that it had.

    Time in which no request was under way does not count.
    """
    done = [outcome for outcome in outcomes if not outcome.error]
    answers = [Answered(one.input_len, one.cached_len or 0, one.output_len) for one in done]
    decoding = [(one.arrivals[0][0], one.end_s) for one in done if one.arrivals and one.output_len > 1]
    decoding_s = union_s(decoding)
    concurrency = sum(end - start for start, end in decoding) / decoding_s if decoding_s else 1.0
    busy_s = union_s([(one.start_s, one.end_s) for one in done])
    return Share(RUN, traffic(cost, answers, chunk, concurrency).floor(ceiling), busy_s)


def union_s(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans."""
    total_s, end_s = 0.0, -math.inf
    for start, end in sorted(spans):
        total_s += max(0.0, end - max(start, end_s))
        end_s = max(end_s, end)
    return total_s


def num_pairs(row: Row, window: int | None) -> int:
    """How many tokens the new ones see, summed: the i-th sees ``past + i``, at most ``window``."""
    if window is None:
        return row.new * row.past + row.new * (row.new + 1) // 2
    growing = min(max(window - row.past, 0), row.new)
    return growing * row.past + growing * (growing + 1) // 2 + (row.new - growing) * window


def sentence(shares: Sequence[Share]) -> str:
    """``decode 71% of limit, bound by memory; prefill 58%, bound by bf16 GEMM``."""
    parts = [f"{share.phase} {share.value:.0%}, bound by {share.floor.bound}" for share in shares]
    return "; ".join(parts).replace("%,", "% of limit,", 1)


def parse_least(text: str, phases: Sequence[str]) -> dict[str, float]:
    """``0.7`` for all phases, or ``decode=0.7,prefill=0.5``; empty for empty.

    Raises:
        ConfigError: not of that form, or a phase that this benchmark does not have.
    """
    least: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        phase, equals, value = part.strip().rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not 0.0 < share <= 1.0 or (equals and phase not in phases):
            example = ",".join(f"{name}=0.7" for name in phases)
            message = f"--min-limit must be a share like 0.7, or {example}, got '{part}'."
            raise ConfigError(message, param="--min-limit")
        least |= {phase: share} if equals else dict.fromkeys(phases, share)
    return least


def below(least: Mapping[str, float], shares: Mapping[str, float]) -> str:
    """One sentence on the phases that miss their least share; empty if none does."""
    missed = [
        f"{phase} reached {shares[phase]:.1%} of its limit, less than {bound:.0%}"
        for phase, bound in least.items()
        if shares[phase] < bound
    ]
    return f"--min-limit: {'; '.join(missed)}." if missed else ""


def _tokens(cost: Cost, num_tokens: float, num_logits: float) -> Work:
    """What tokens do wherever they stand."""
    work = Work(cost.activation_bytes_per_token * num_tokens + cost.logits_bytes_per_row * num_logits)
    for weights in cost.linears:
        work.multiply(weights, num_tokens)
    work.multiply(cost.head, num_logits)
    return work
