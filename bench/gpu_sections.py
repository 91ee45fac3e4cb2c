"""The parts of `sgl.bench.gpu_check`: each checks or measures one thing and knows nothing of the others."""

from __future__ import annotations

import json
import random
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sgl.bench import limits, machine_gpu
from sgl.bench.gpu_engine import GREEDY, Answer, Station, Stopwatch, Strict
from sgl.engine.base.device import Device, open_device
from sgl.engine.base.types import Processor, SamplingParams, Wants

TIE_MARGIN = {"float32": 2e-3, "bfloat16": 0.2}
"""Two tokens whose log probabilities the reference puts so near each other may be taken for one another."""

SHAPES = Path(__file__).parent / "shapes"

_TOP = 20
_CACHED = 32  # steps that a measurement leaves out at the beginning


@dataclass(frozen=True)
class Scale:
    """How large everything is: as on a real GPU, or as a test on a CPU can do."""

    device: str = "cuda"
    sizes: machine_gpu.Sizes = field(default_factory=machine_gpu.Sizes)
    override: str = "{}"
    quantization: str = "fp8"
    decode_tokens: int = 256
    prefill: tuple[int, int] = (8, 2048)
    throughput: tuple[int, int, int] = (256, 1024, 1024)
    batch: int = 64
    num_prompts: int = 8
    max_tokens: int | None = None


TINY = Scale(
    device="cpu",
    sizes=machine_gpu.Sizes(memory_bytes=1 << 16, matmul=32, launches=3, rounds=1),
    override=json.dumps(
        {
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 320,
        }
    ),
    quantization="int8",
    decode_tokens=_CACHED + 8,
    prefill=(2, 64),
    throughput=(3, 16, 8),
    batch=3,
    num_prompts=2,
    max_tokens=4096,
)


@dataclass(frozen=True)
class Context:
    """What a part is given.

    Args:
        deadline_s: of `time.monotonic`; what is not done by then is left out, and the result says so.
        known: results of the parts before.
        keep: takes what is known so far, which is all that is left of a part that has to be ended.
        share: this process's number, and among how many the part is divided.
    """

    scale: Scale
    deadline_s: float
    known: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[Mapping[str, Any]], None] = lambda found: None
    share: tuple[int, int] = (0, 1)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline_s


@dataclass(frozen=True)
class Figure:
    """A measured number and what it is held against; ``least`` of latencies is the most."""

    name: str
    value: float
    unit: str
    least: float
    stretch: float
    is_latency: bool = False


Result = dict[str, Any]


def ceilings(context: Context) -> Result:
    """What the machine can do."""
    device = open_device(context.scale.device)
    found: dict[str, float] = {}
    for _, names, measure in machine_gpu.groups(device, context.scale.sizes):
        found.update(zip(names, measure(), strict=True))
    return {"figures": found, "isa": device.isa, "memory_bytes": device.memory().total_bytes}


class Check(Protocol):
    """See `sgl.kernels.checks.parity` and `sgl.engine.attn.checks`."""

    @property
    def name(self) -> str: ...

    def run(self) -> float: ...


def failure(error: Exception) -> str:
    """What went wrong, and where."""
    return "".join(traceback.format_exception(error))[-1500:]


def parity(context: Context) -> Result:
    """Every implementation that runs on the device against float64.

    After an illegal access nothing works any more in a process: the next one goes on behind the check that broke it.
    """
    device = open_device(context.scale.device)
    result: Result = {"is_ok": False, "num_run": 0, "failed": {}, "skipped": {}, "worst": {}}
    result |= context.known.get("parity", {})
    result |= {"goes_on": False, "num_not_reached": 0}
    number, count = context.share
    for check in islice(_checks(device), number + count * result["num_run"], None, count):
        if context.is_late:
            result["num_not_reached"] += 1
            continue
        result |= {"num_run": result["num_run"] + 1, "running": check.name}
        context.keep(result)
        if not _passes(check, result) and _is_broken(device):
            result["goes_on"] = True
            break
    result |= {"num_failed": len(result["failed"]), "num_skipped": len(result["skipped"]), "running": ""}
    return result | {"is_ok": not (result["failed"] or result["num_not_reached"] or result["goes_on"])}


def _passes(check: Check, result: Result) -> bool:
    """Whether it does; adds what came of it."""
    try:
        error = check.run()
    except NotImplementedError as reason:
        result["skipped"][check.name] = str(reason)
        return True
    except Exception as error_:  # noqa: BLE001 - any failure is a finding
        result["failed"][check.name] = failure(error_)
        return False
    kind = "-".join(check.name.split("-")[:2])
    result["worst"][kind] = max(result["worst"].get(kind, 0.0), error)
    if not error <= 1:
        result["failed"][check.name] = f"error {error:.3g} times what is tolerated"
    return error <= 1


def _is_broken(device: Device) -> bool:
    """Whether nothing can be computed any more."""
    try:
        device.synchronize()
    except RuntimeError:
        return True
    return False


def _checks(device: Device) -> Iterator[Check]:
    """The first of every kind, then the second of every kind, and so on: most of their time is compilation, and what
    is not reached should be more of the same. FlashInfer's come last, whose kernels take a minute each to compile."""
    import torch

    from sgl.engine.attn.checks import parity as attention
    from sgl.kernels.checks.parity import checks

    is_gpu = device.kind != "cpu"
    dtypes = (torch.float32, torch.float16, torch.bfloat16) if is_gpu else (torch.float32, torch.bfloat16)
    seen: Counter[tuple[str, str]] = Counter()
    ranked: list[tuple[bool, int, Check]] = []
    found: list[Check] = [*attention(device.torch_device, seed=1)]
    found += checks(device.kind, device.isa, dtypes=dtypes, seed=1, large=is_gpu)
    for check in found:
        kind = check.name.rpartition("-")[0].partition(" ")[0], check.name.rpartition("-")[2]
        ranked.append((check.name.startswith("attention-flashinfer-"), seen[kind], check))
        seen[kind] += 1
    yield from (check for *_, check in sorted(ranked, key=lambda entry: entry[:2]))


def tokens(context: Context) -> Result:
    """Greedy answers of the demo model against those of the CPU: alone and together, with everything on and off."""
    scale = context.scale
    rng = random.Random(5)
    stem = [rng.randrange(300) for _ in range(40)]
    prompts = [
        stem[: rng.choice([0, 16, 40])] + [rng.randrange(300) for _ in range(rng.randint(1, 60))]
        for _ in range(scale.num_prompts)
    ]
    wants = Wants(logprobs=True, top_logprobs=_TOP)
    reference = Station(device="cpu", dtype="float32", max_total_tokens=4096, context_length=512)
    expected = reference.run(prompts, 32, wants=wants)
    reference.close()
    runs = []
    for variant in _variants(scale.device):
        if context.is_late:
            runs.append({**variant, "is_ok": False, "error": "not reached in time"})
            continue
        try:
            runs.append({**variant, **_compare(context, variant, prompts, expected)})
        except Exception as error:  # noqa: BLE001 - any failure is a finding
            runs.append({**variant, "is_ok": False, "error": failure(error)})
        context.keep({"is_ok": False, "runs": runs})
    return {"is_ok": all(run["is_ok"] for run in runs), "runs": runs, "tie_margin": TIE_MARGIN}


def _variants(device: str) -> Iterator[dict[str, Any]]:
    """Options of engines; what is tried first matters most."""
    for dtype in ("bfloat16", "float32"):
        for is_eager in (False, True):
            for is_serial in (False, True):
                yield {"dtype": dtype, "disable_cuda_graph": is_eager, "disable_overlap_schedule": is_serial}
    if device == "cuda":
        for backend in ("triton", "torch_native", *(("flashinfer",) if find_spec("flashinfer") else ())):
            yield {"dtype": "bfloat16", "attention_backend": backend}


def _compare(
    context: Context, variant: Mapping[str, Any], prompts: Sequence[Sequence[int]], expected: Sequence[Answer]
) -> Result:
    options = {"cuda_graph_max_bs": len(prompts)} if context.scale.device == "cuda" else {}
    station = Station(device=context.scale.device, max_total_tokens=4096, context_length=512, **options, **variant)
    station.prepare()
    together = station.run(prompts, 32, deadline_s=context.deadline_s)
    alone = [station.run([prompt], 32, deadline_s=context.deadline_s)[0] for prompt in prompts]
    station.close()
    margin = TIE_MARGIN[variant["dtype"]]
    verdicts = [
        _verdict(one, wanted, margin) for got in (together, alone) for one, wanted in zip(got, expected, strict=True)
    ]
    wrong = [verdict for verdict in verdicts if verdict not in ("same", "tie")]
    counts = {"num_same": verdicts.count("same"), "num_ties": verdicts.count("tie")}
    return {"is_ok": not wrong, **counts, "wrong": wrong}


def _verdict(got: Answer, wanted: Answer, margin: float) -> str:
    """Whether two greedy answers are the same up to where the reference might as well have gone the other way."""
    for place, (token, other) in enumerate(zip(got.token_ids, wanted.token_ids, strict=True)):
        if token != other:
            entry = wanted.logprobs[place]
            gap = (entry.logprob or 0.0) - dict(entry.top).get(token, float("-inf"))
            return "tie" if gap <= margin else f"token {place} is {token} instead of {other}, {gap:.3g} less likely"
    return "same"


FEATURES = {
    "greedy": (GREEDY, Wants(logprobs=True, top_logprobs=2)),
    "sampled": (
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=1, ignore_eos=True),
        Wants(logprobs=True, logprob_start=0, top_logprobs=3, token_logprob_ids=(1, 5)),
    ),
    "penalties": (
        SamplingParams(
            temperature=1.0,
            frequency_penalty=0.5,
            presence_penalty=0.2,
            repetition_penalty=1.2,
            seed=2,
            ignore_eos=True,
        ),
        Wants(),
    ),
    "edits": (SamplingParams(temperature=0.0, logit_bias=((5, 2.0),), min_new_tokens=3, ignore_eos=True), Wants()),
    "processor": (
        SamplingParams(temperature=0.0, processor=Processor("ban_tokens", '{"token_ids": [5]}'), ignore_eos=True),
        Wants(hidden=True),
    ),
}
"""What steps may be asked for beside tokens, and how they come about."""


def waits(context: Context) -> Result:
    """No step waits for the device: torch raises an error where one does."""
    device = open_device(context.scale.device)
    found: dict[str, str] = {}
    num_steps = 0
    for is_eager in (True, False):
        options = {} if device.kind == "cpu" else {"cuda_graph_max_bs": 4, "disable_cuda_graph": is_eager}
        station = Station(
            device=context.scale.device, max_total_tokens=4096, context_length=512, canary="off", **options
        )
        station.prepare()
        watches: list[Strict] = []

        def watched(executor: Any, watches: list[Strict] = watches) -> Strict:
            watches.append(Strict(executor, device))
            return watches[-1]

        station.run([[1, 2, 3]] * 2, 4)  # what is compiled or allocated once may wait
        for params, wants in FEATURES.values():
            station.run([[7, 8, 9]] * 3, 4, params, wants)
        station.wrap(watched)
        for name, (params, wants) in FEATURES.items():
            try:
                station.run([[7 + place, 8, 9] * (1 + place) for place in range(3)], 6, params, wants)
            except Exception as error:  # noqa: BLE001 - any failure is a finding
                found[f"{name}, {'eager' if is_eager else 'graphs'}"] = failure(error)
        num_steps += watches[0].num_steps
        station.close()
    return {"is_ok": not found, "found": found, "num_steps": num_steps}


@dataclass(frozen=True)
class Model:
    """A part that measures one model."""

    shape: str
    quantization: str = "none"
    decode: tuple[str, float, float] | None = None  # name, at least, stretch
    has_prefill: bool = False
    has_steps: bool = False
    throughput: tuple[str, float, float] | None = None

    def __call__(self, context: Context) -> Result:
        scale = context.scale
        quantization = scale.quantization if self.quantization != "none" else "none"
        rows = scale.throughput[0] if self.throughput else scale.batch if self.has_steps else 4
        begun_s = time.monotonic()
        station = Station(
            cuda_graph_max_bs=rows,
            model_path=str(SHAPES / self.shape),
            load_format="dummy",
            device=scale.device,
            dtype="bfloat16",
            context_length=4096 if scale.device == "cuda" else 256,
            json_model_override_args=scale.override,
            quantization=quantization,
            max_total_tokens=scale.max_tokens,
            random_seed=1,
            canary="off",  # wrong numbers are found by other parts; how fast they come is still worth knowing
        )
        started_s = time.monotonic()
        station.prepare()
        result: Result = {
            "start_s": started_s - begun_s,
            "start": _phases(begun_s, station.startup),
            "capture_s": time.monotonic() - started_s,
            "figures": [],
        }
        measures: list[tuple[bool, Callable[[Context, Station, Result], None]]] = [
            (self.decode is not None, self._decode),
            (self.has_prefill, self._prefill),
            (self.has_steps, self._steps),
            (self.throughput is not None, self._throughput),
        ]
        failed: dict[str, str] = {}
        for measure in [measure for is_wanted, measure in measures if is_wanted]:
            name = measure.__name__.strip("_")
            try:
                if context.is_late:
                    raise TimeoutError("not reached in time")
                measure(context, station, result)
            except Exception as error:  # noqa: BLE001 - any failure is a finding
                failed[name] = failure(error)
            context.keep({**result, "is_ok": False, "failed": failed})
        station.close()
        return {**result, "is_ok": not failed, "failed": failed}

    def _decode(self, context: Context, station: Station, result: Result) -> None:
        assert self.decode is not None
        count = context.scale.decode_tokens
        station.run(_prompts(1, 128 if count > 64 else 16), 8)
        times = station.timed(_prompts(1, 128 if count > 64 else 16), count).tokens[0]
        rate = (len(times) - 1 - _CACHED) / (times[-1] - times[_CACHED])
        bandwidth = context.known.get("ceilings", {}).get("figures", {}).get("gpu_read_bandwidth")
        result["decode_bytes"] = station.cost.weight_bytes
        if bandwidth:
            result["decode_share_of_floor"] = rate * station.cost.weight_bytes / bandwidth
        name, least, stretch = self.decode
        result["figures"].append(Figure(name, rate, "tok/s", least, stretch))

    def _prefill(self, context: Context, station: Station, result: Result) -> None:
        count, length = context.scale.prefill
        station.run(_prompts(count, length), 1)
        timing = station.timed(_prompts(count, length), 1)
        seconds = timing.prefilled_s - timing.start_s
        chunk = station.config.schedule.chunked_prefill_size or length
        steps = limits.prefill(station.cost, [limits.Row(0, length)] * count, chunk)
        operations = sum(sum(work.operations.values()) for work in steps)
        result["prefill_s"], result["prefill_operations_per_s"] = seconds, operations / seconds
        peak = context.known.get("ceilings", {}).get("figures", {}).get("gpu_matmul_bf16")
        if peak:
            share = 100 * operations / seconds / peak
            result["figures"].append(Figure(f"prefill {count} x {length}, 8B shape", share, "% of GEMM peak", 60, 75))

    def _steps(self, context: Context, station: Station, result: Result) -> None:
        device, batch = open_device(context.scale.device), context.scale.batch
        watches: list[Stopwatch] = []

        def watched(executor: Any) -> Stopwatch:
            watches.append(Stopwatch(executor, device))
            return watches[-1]

        station.run(_prompts(batch, 32), 8)
        station.wrap(watched)
        station.run(_prompts(batch, 32), context.scale.decode_tokens)
        times = watches[0].times(skip=_CACHED)
        idle_s, step_s = statistics.fmean(times.idle_s), statistics.fmean(times.step_s)
        result["step_ms"], result["host_ms"] = 1e3 * step_s, 1e3 * statistics.fmean(times.host_s)
        result["figures"] += [
            Figure(f"host time per step not hidden, batch {batch}", 1e3 * idle_s, "ms", 0.3, 0.1, is_latency=True),
            Figure(f"GPU idle between steps, batch {batch}", 100 * idle_s / step_s, "%", 3, 1, is_latency=True),
        ]

    def _throughput(self, context: Context, station: Station, result: Result) -> None:
        assert self.throughput is not None
        count, num_in, num_out = context.scale.throughput
        station.run(_prompts(min(count, 8), 64), 4)
        timing = station.timed(_prompts(count, num_in), num_out, context.deadline_s)
        name, least, stretch = self.throughput
        result["figures"].append(Figure(name, timing.end_s - timing.start_s, "s", least, stretch, is_latency=True))


def _phases(begun_s: float, marks: Sequence[tuple[str, float]]) -> dict[str, float]:
    ends = [begun_s, *(at_s for _, at_s in marks)]
    return {name: end - begin for (name, end), begin in zip(marks, ends, strict=False)}


_RNG = random.Random(11)


def _prompts(count: int, length: int) -> list[list[int]]:
    """Of which no two begin alike, but by chance."""
    return [[_RNG.randrange(300) for _ in range(length)] for _ in range(count)]
