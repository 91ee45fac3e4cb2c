"""The canary: a short fixed prompt through a loaded model, whose scores must make sense and be those of before.

It runs as steps of no request while nobody is served, and changes nothing; what follows from a failure others decide.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from sgl.engine.base import env, hub
from sgl.engine.base.errors import ModelError
from sgl.engine.base.types import (
    PageRun,
    PoolingParams,
    Row,
    RowInit,
    RowKind,
    RowOutput,
    SamplingParams,
    StepPlan,
    Wants,
)

if TYPE_CHECKING:
    from sgl.engine.runtime.executor import TorchExecutor
    from sgl.engine.runtime.weights import Source

logger = logging.getLogger(__name__)

NUM_TOKENS = 8
NUM_SCORES = 64
SAME_LIMIT = 0.05
"""How far scores may be from those that the same kernels computed."""

ROUNDED_LIMIT = 0.15
"""The same for other kernels, or another precision: float32 and bfloat16 are 2% apart."""

QUANTIZED_LIMIT = 0.5
"""The same where one side rounds and the other does not: 4% for int8, 30% for nf4. A tensor out of place makes 26% to
147% of the demo model's scores."""

_FIX = "Fetch the checkpoint again; `sgl doctor model` finds the place, and --canary warn serves it anyway."
_CARRIED = " If it was changed on purpose, `sgl doctor model --record-canary` takes what it computes now."
_KEPT = " If something else than the checkpoint has changed, remove that file, and what it computes now is recorded."
_LEAST_SPREAD = 1e-4
_MAX_BYTES = 1 << 20
_MAX_KEPT = 256
_STEP = 2654435761  # a prime: ids from all over any vocabulary

Mode = Literal["refuse", "warn", "off"]
State = Literal["matched", "differs", "recorded", "plausible", "failed", "off"]
Gives = Literal["tokens", "vector", "classes"]
"""What a model's scores are: log probabilities of tokens, a vector that stands for a text, or a score per class."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What scores were computed with.

    Args:
        formats: options that decide what is computed in which format, by name.
        config: which config.json the model was built from, overrides included.
    """

    sgl: str
    isa: str
    formats: dict[str, str]
    kernels: dict[str, str]
    config: str = ""


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Scores that the same prompt gets from the same weights.

    Args:
        token_ids: whose log probabilities they are; none where the model gives no tokens.
        scores: by position of the prompt.
        weights: which they were; empty in a checkpoint, which is its own.
    """

    version: int = 1
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    scores: list[list[float]]
    made: Made
    weights: str = ""


class Outcome(msgspec.Struct, kw_only=True):
    """What came of it.

    Args:
        against: where the scores of before were.
        distance: between both, as a share of how much scores vary.
    """

    state: State = "off"
    told: str = ""
    against: str = ""
    distance: float | None = None
    ms: float = 0.0


@dataclass(frozen=True)
class Extent:
    """What an executor can be asked, and what its scores are.

    Args:
        max_len: longest sequence.
        has_experts: a near tie of two of them may go either way, which changes all scores of a position.
        is_quantized: activations may be rounded as well, on some hardware only.
    """

    vocab_size: int
    max_len: int
    page_size: int
    gives: Gives = "tokens"
    has_experts: bool = False
    is_quantized: bool = False

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return tuple((i + 1) * _STEP % self.vocab_size for i in range(min(NUM_TOKENS, self.max_len)))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Whose scores are compared."""
        if self.gives != "tokens":
            return ()
        return tuple(sorted({(i * _STEP + 1) % self.vocab_size for i in range(min(NUM_SCORES, self.vocab_size))}))

    def plans(self) -> Iterator[StepPlan]:
        """The prompt in two steps, the second of one token: products of matrices, of a vector, and the cache."""
        ids, count, is_pooled = self.prompt_ids, len(self.prompt_ids), self.gives != "tokens"
        wants = Wants(logprobs=True, logprob_start=1, token_logprob_ids=self.token_ids)
        init = RowInit(
            token_ids=ids,
            num_prompt=count,
            params=SamplingParams(temperature=0.0),
            wants=Wants() if is_pooled else wants,
            eos_ids=(),
            pooling=PoolingParams() if is_pooled else None,
        )
        pages = PageRun(0, tuple(range(-(-(count + 1) // self.page_size))))
        first: RowKind = "pool" if is_pooled else "none"
        num_first = count if is_pooled else count - 1
        yield StepPlan(
            0, (Row(rid="", slot=0, num_tokens=num_first, kind=first, init=init, computed=0, new_pages=pages),)
        )
        if not is_pooled:
            yield StepPlan(0, (Row(rid="", slot=0, num_tokens=1, kind="token"),))


class Canary:
    """That of one executor.

    Args:
        made: what it computes with, whatever the checkpoint.
        describe: all of a checkpoint's directory but its weights that decides what is computed.

    Attributes:
        outcome: of the check of the weights that are served.
    """

    def __init__(
        self,
        executor: TorchExecutor,
        extent: Extent,
        made: Made,
        mode: Mode,
        describe: Callable[[Path], Mapping[str, Any]],
    ) -> None:
        self.outcome = Outcome()
        self._executor = executor
        self._extent = extent
        self._made = made
        self._mode = mode
        self._describe = describe

    def check(self, source: Source) -> None:
        """Before anybody is served with weights.

        Raises:
            ModelError: they compute nonsense, or something else than they did.
        """
        made = msgspec.structs.replace(self._made, config=_hash(self._describe(source.directory)))
        if self._mode != "off":
            begin_s = time.perf_counter()
            outcome = self._compared(source, made, self.scores())
            outcome.ms = round(1e3 * (time.perf_counter() - begin_s), 2)
            self._tell(outcome, source)
            self.outcome = outcome
        self._made = made

    def _tell(self, outcome: Outcome, source: Source) -> None:
        if outcome.state == "failed" and self._mode == "refuse":
            is_carried = outcome.against == str(source.directory / hub.CANARY_FILE)
            hint = _CARRIED if is_carried else _KEPT if outcome.against else ""
            raise ModelError(f"the canary failed: {outcome.told}. {_FIX}{hint}")
        if outcome.state == "failed":
            logger.warning("The canary failed, and the weights are served all the same: %s.", outcome.told)
        elif outcome.state == "differs":
            logger.warning("Canary: %s; other hardware or libraries may explain that.", outcome.told)
        else:
            logger.info("Canary: %s (%.1f ms).", outcome.told, outcome.ms)

    def describe(self) -> dict[str, Any]:
        """The outcome."""
        found: dict[str, Any] = msgspec.to_builtins(self.outcome)
        return found

    def golden(self) -> dict[str, Any]:
        """What a checkpoint may carry, so that others can compare."""
        scores = self.scores()
        trouble = implausible(scores, self._extent.gives)
        if trouble:
            raise ModelError(f"These scores are not worth recording: {trouble}.")
        found: dict[str, Any] = msgspec.to_builtins(self._golden(scores, self._made))
        return found

    def scores(self) -> np.ndarray:
        """float64 [positions, tokens]; one row where a text has one vector."""
        outputs = self._executor.run_alone(self._extent.plans())
        if self._extent.gives != "tokens":
            return np.frombuffer(outputs[-1].pooled, "<f4")[None, :NUM_SCORES].astype(np.float64)
        return np.array(list(_rows_of(outputs)), np.float64)

    def _compared(self, source: Source, made: Made, scores: np.ndarray) -> Outcome:
        trouble = implausible(scores, self._extent.gives)
        if trouble:
            return Outcome(state="failed", told=trouble)
        if source.load_format == "dummy":
            return Outcome(state="plausible", told="the scores of random weights vary, which is all to be said of them")
        carried, kept = source.directory / hub.CANARY_FILE, _place(source, made)
        golden = self._read(carried, scores.shape)
        if golden is not None and golden.made.config == made.config:
            return self._judged(golden, made, scores, carried)
        if golden is not None:
            logger.info("%s is that of another config.json, and is not compared.", carried)
        golden = self._read(kept, scores.shape)
        if golden is not None and golden.weights == _identity(source):
            with suppress(OSError):
                os.utime(kept)  # what is asked for often is not what makes room
            return self._judged(golden, made, scores, kept)
        _keep(kept, msgspec.structs.replace(self._golden(scores, made), weights=_identity(source)))
        return Outcome(state="recorded", told="scores are plausible; they are recorded for the next start")

    def _judged(self, golden: Golden, made: Made, scores: np.ndarray, where: Path) -> Outcome:
        before, extent = np.array(golden.scores, np.float64), self._extent
        distance = distance_of(before, scores, extent.gives)
        limit, last = _limits(golden.made, made, extent)
        certain = typical_distance(before, scores) if extent.has_experts and extent.gives == "tokens" else distance
        if distance <= limit:
            apart = "to the last bit" if distance == 0 else f"{distance:.2%} apart, limit {limit:.0%}"
            told = f"{scores.size} scores are those of {where} ({apart})"
            return Outcome(state="matched", told=told, against=str(where), distance=distance)
        state: State = "differs" if certain <= last else "failed"
        bound = limit if state == "differs" else last
        told = f"the model's scores are {distance:.0%} from those of {where} (limit {bound:.0%})"
        return Outcome(state=state, told=told, against=str(where), distance=distance)

    def _golden(self, scores: np.ndarray, made: Made) -> Golden:
        extent = self._extent
        return Golden(
            prompt_ids=extent.prompt_ids,
            token_ids=extent.token_ids,
            scores=[[float(value) for value in row] for row in scores],
            made=made,
        )

    def _read(self, path: Path, shape: tuple[int, ...]) -> Golden | None:
        """None if there is none that was asked the same."""
        try:
            if path.stat().st_size > _MAX_BYTES:
                return None
            golden = msgspec.json.decode(path.read_bytes(), type=Golden)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("%s cannot be used: %s", path, error)
            return None
        asked = golden.version, golden.prompt_ids, golden.token_ids
        is_same = asked == (1, self._extent.prompt_ids, self._extent.token_ids)
        return golden if is_same and [len(row) for row in golden.scores] == [shape[1]] * shape[0] else None


def implausible(scores: np.ndarray, gives: Gives = "tokens") -> str:
    """What is wrong with scores in themselves; empty for nothing."""
    if not np.isfinite(scores).all():
        return f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not numbers"
    if gives == "vector":
        return "" if scores.any() else "the vector is zero"
    if gives == "classes":  # of which there may be one, and all may be as good for a prompt that says nothing
        return ""
    if scores.shape[1] > 1 and float(scores.std(axis=1).max()) < _LEAST_SPREAD:
        return "every token is as likely as any other"
    if len(scores) > 1 and float(_centred(scores).std(axis=0).max()) < _LEAST_SPREAD:
        return "the scores do not depend on the prompt"
    return ""


def distance_of(golden: np.ndarray, scores: np.ndarray, gives: Gives = "tokens") -> float:
    """A difference: of the logits behind log probabilities, or of vectors, as a share of how much those vary.

    That of scores of classes is the largest, and a share only of what is above 1: small ones, as probabilities, say
    nothing by how large they are.
    """
    if gives == "classes":
        return float(np.abs(golden - scores).max()) / max(1.0, float(np.abs(golden).max()))
    if gives == "tokens":  # whose logits are known but for a constant
        golden, scores = _centred(golden), _centred(scores)
    size = float(np.linalg.norm(golden))
    return float(np.linalg.norm(golden - scores)) / size if size else float("inf")


def typical_distance(golden: np.ndarray, scores: np.ndarray) -> float:
    """That of the median position, which the few that went to other experts do not move."""
    golden, scores = _centred(golden), _centred(scores)
    size = float(np.linalg.norm(golden)) / len(golden) ** 0.5
    return float(np.median(np.linalg.norm(golden - scores, axis=1))) / size if size else float("inf")


def _limits(told: Made, here: Made, extent: Extent) -> tuple[float, float]:
    """Up to where scores are the same, and from where they are not; what is between may have a reason elsewhere."""
    if told == here:
        return SAME_LIMIT, ROUNDED_LIMIT
    names = told.formats.keys() - {"dtype"}
    is_same = all(told.formats[name] == here.formats.get(name) for name in names)
    if is_same and not extent.is_quantized and not extent.has_experts:
        return ROUNDED_LIMIT, QUANTIZED_LIMIT
    return QUANTIZED_LIMIT, QUANTIZED_LIMIT


def _centred(scores: np.ndarray) -> np.ndarray:
    centred: np.ndarray = scores - scores.mean(axis=1, keepdims=True)
    return centred


def _rows_of(outputs: Sequence[RowOutput]) -> list[list[float]]:
    entries = [entry for output in outputs for entry in (*output.prompt_logprobs, *output.logprobs)]
    return [[value for _, value in entry.chosen] for entry in entries if entry.logprob is not None]


def _place(source: Source, made: Made) -> Path:
    """Where this machine keeps the scores of these files, computed in this way."""
    name = _hash([str(source.directory.resolve()), msgspec.to_builtins(made)])
    return env.cache_dir() / "canaries" / f"{name}.json"


def _identity(source: Source) -> str:
    """Tells weights from others in the same place."""
    return _hash([source.fingerprint, [(file.name, size, changed) for file, size, changed in source.stamps]])


def _hash(facts: object) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _keep(path: Path, golden: Golden) -> None:
    """For the next start; those that nobody asked for in the longest time make room."""
    with suppress(OSError):  # a cache that cannot be written only means that nothing is compared
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{time.monotonic_ns()}")
        scratch.write_bytes(msgspec.json.encode(golden))
        scratch.replace(path)
        kept = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-_MAX_KEPT]:
            file.unlink(missing_ok=True)
