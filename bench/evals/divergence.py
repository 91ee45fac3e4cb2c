"""How far a model's distributions are from a reference's on given sequences; loads no model and reads no text.

Distributions of the reference are written to disk first, so that only one of the two models must be in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl.bench.evals.estimates import Estimate, bootstrap
from sgl.bench.evals.local import Local
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 1 << 30
META = "recording.json"
_LOGPROBS, _IDS, _NEXT = "logprobs.f32", "ids.i32", "next.f32"
_FORMAT = 1

Documents = Sequence[Sequence[int]]


def _ignore() -> None:
    pass


@dataclass(frozen=True)
class Recording:
    """What a reference thinks of documents, in a directory.

    Args:
        model: its name.
        documents: token ids; all but the last token of each have a distribution.
        num_kept: likeliest tokens that are kept of each distribution; ``vocab_size`` if all are.
    """

    directory: Path
    model: str
    vocab_size: int
    num_kept: int
    documents: tuple[tuple[int, ...], ...]

    @property
    def num_positions(self) -> int:
        return sum(len(document) - 1 for document in self.documents)

    @property
    def is_exact(self) -> bool:
        return self.num_kept == self.vocab_size

    @staticmethod
    def open(directory: Path) -> Recording:
        """
        Raises:
            ConfigError: there is no recording, or not a whole one.
        """
        try:
            told = json.loads((directory / META).read_text(encoding="utf-8"))
            documents = tuple(tuple(ids) for ids in told["documents"])
            found = Recording(directory, told["model"], told["vocab_size"], told["num_kept"], documents)
            complete = told["format"] == _FORMAT and (directory / _NEXT).stat().st_size == 4 * found.num_positions
        except (OSError, ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            raise ConfigError(f"{directory} holds no recording of a reference's distributions.", param="--reference")
        return found

    def blocks(self, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Of one document: log probabilities ``[T - 1, K]``, their tokens unless all are there, and its own."""
        import numpy as np

        start = sum(len(document) - 1 for document in self.documents[:index])
        rows, shape = slice(start, start + len(self.documents[index]) - 1), (self.num_positions, self.num_kept)
        kept = np.memmap(self.directory / _LOGPROBS, np.float32, "r", shape=shape)[rows]
        ids = None if self.is_exact else np.memmap(self.directory / _IDS, np.int32, "r", shape=shape)[rows]
        return kept, ids, np.memmap(self.directory / _NEXT, np.float32, "r")[rows]


@dataclass(frozen=True)
class Divergence:
    """A candidate beside its reference; intervals are of 95%, by a bootstrap over documents.

    Args:
        kl: mean KL(reference || candidate), in nats per token.
        kl_p99, kl_max: the same at single positions.
        top1_agreement: where both have the same likeliest token.
        perplexity_ratio: the candidate's by the reference's.
        is_exact: whether ``kl`` is over the whole vocabulary. Otherwise the reference's unlikely tokens are one
            outcome, and ``kl`` is a lower bound of what it would be.
        tail_mass: the reference's mean probability of those.
    """

    reference: str
    candidate: str
    num_documents: int
    num_positions: int
    documents_hash: str
    kl: Estimate
    kl_p99: float
    kl_max: float
    top1_agreement: Estimate
    perplexity_reference: Estimate
    perplexity_candidate: Estimate
    perplexity_ratio: Estimate
    is_exact: bool
    tail_mass: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def record(
    model: Local,
    documents: Documents,
    directory: Path,
    *,
    max_bytes: int = MAX_BYTES,
    on_document: Callable[[], None] = _ignore,
) -> Recording:
    """Writes a reference's distributions: all of them, or of each the likeliest tokens that fit ``max_bytes``.

    Raises:
        ConfigError: a document has fewer than two tokens.
        SglError: the engine refuses a document, of more tokens than its context perhaps.
    """
    for index, document in enumerate(documents):
        if len(document) < 2:
            message = f"Document {index} has {len(document)} tokens; to compare models it needs at least 2."
            raise ConfigError(message, param="documents")
    if not documents:
        raise ConfigError("There are no documents to compare models on.", param="documents")
    vocab_size = model.engine.info.vocab_size
    num_positions = sum(len(document) - 1 for document in documents)
    is_exact = 4 * num_positions * vocab_size <= max_bytes
    num_kept = vocab_size if is_exact else max(min(max_bytes // (8 * num_positions), vocab_size - 1), 1)
    found = Recording(directory, model.identity.name, vocab_size, num_kept, tuple(map(tuple, documents)))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / META).unlink(missing_ok=True)
    model.run(_record(model, found, on_document))
    meta = {"format": _FORMAT, **asdict(found), "directory": None}
    (directory / META).write_text(json.dumps(meta), encoding="utf-8")
    return found


async def _record(model: Local, recording: Recording, on_document: Callable[[], None]) -> None:
    import numpy as np

    with (
        (recording.directory / _LOGPROBS).open("wb") as kept_file,
        (recording.directory / _IDS).open("wb") as ids_file,
        (recording.directory / _NEXT).open("wb") as next_file,
    ):
        for document in recording.documents:
            async for rows, following in _predictions(model, document):
                if not recording.is_exact:
                    ids = np.argpartition(rows, -recording.num_kept, axis=1)[:, -recording.num_kept :]
                    ids_file.write(ids.astype(np.int32).tobytes())
                    kept_file.write(np.take_along_axis(rows, ids, 1).tobytes())
                else:
                    kept_file.write(rows.tobytes())
                next_file.write(np.take_along_axis(rows, following[:, None], 1).tobytes())
            on_document()


def compare(
    recording: Recording, model: Local, *, seed: int = 0, on_document: Callable[[], None] = _ignore
) -> Divergence:
    """Runs a candidate over a recording's documents.

    Raises:
        ConfigError: it has another vocabulary.
        SglError: the engine refuses a document.
    """
    if model.engine.info.vocab_size != recording.vocab_size:
        raise ConfigError(
            f"{model.identity.name} has {model.engine.info.vocab_size} tokens and the reference {recording.model} "
            f"{recording.vocab_size}: distributions over different vocabularies have no divergence.",
            param="--model-path",
        )
    return _summary(recording, model.identity.name, model.run(_compare(model, recording, on_document)), seed)


@dataclass(frozen=True)
class _Document:
    """Of one document, by position."""

    kl: np.ndarray
    agrees: np.ndarray
    tail: np.ndarray
    reference_nll: np.ndarray
    candidate_nll: np.ndarray

    def sums(self) -> tuple[float, ...]:
        parts = (self.kl, self.agrees, self.reference_nll, self.candidate_nll)
        return (*(float(part.sum(dtype="f8")) for part in parts), float(len(self.kl)))


async def _compare(model: Local, recording: Recording, on_document: Callable[[], None]) -> list[_Document]:
    import numpy as np

    found: list[_Document] = []
    for index, document in enumerate(recording.documents):
        kept, ids, reference = recording.blocks(index)
        parts: list[tuple[np.ndarray, ...]] = []
        done = 0
        async for rows, following in _predictions(model, document):
            span = slice(done, done + len(rows))
            done += len(rows)
            chosen = np.take_along_axis(rows, following[:, None], 1)[:, 0]
            divergence = _kl(kept[span], None if ids is None else ids[span], rows)
            parts.append((*divergence, -reference[span], -chosen))
        found.append(_Document(*(np.concatenate(column) for column in zip(*parts, strict=True))))
        on_document()
    return found


def _kl(kept: np.ndarray, ids: np.ndarray | None, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL of each position, whether both have the same first choice, and the reference's mass beyond what was kept."""
    import numpy as np

    log_p = kept.astype(np.float64)
    log_q = (rows if ids is None else np.take_along_axis(rows, ids, 1)).astype(np.float64)
    p = np.exp(log_p)
    kl = np.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
    first = kept.argmax(1) if ids is None else np.take_along_axis(ids, kept.argmax(1)[:, None], 1)[:, 0]
    agrees = first == rows.argmax(1)
    tail = np.zeros(len(kl))
    if ids is not None:
        tail = np.clip(1.0 - p.sum(1), 0.0, 1.0)
        rest = np.clip(1.0 - np.exp(log_q).sum(1), np.finfo(np.float32).tiny, 1.0)
        kl += np.where(tail > 0, tail * np.log(np.where(tail > 0, tail, 1.0) / rest), 0.0)
    return np.maximum(kl, 0.0), agrees, tail


def _summary(recording: Recording, candidate: str, found: Sequence[_Document], seed: int) -> Divergence:
    import numpy as np

    units = [document.sums() for document in found]
    every = np.concatenate([document.kl for document in found])

    def perplexity(column: int) -> Estimate:
        return bootstrap(units, lambda sums: np.exp(sums[..., column] / sums[..., 4]), seed)

    return Divergence(
        reference=recording.model,
        candidate=candidate,
        num_documents=len(found),
        num_positions=len(every),
        documents_hash=hashlib.blake2b(json.dumps(recording.documents).encode(), digest_size=8).hexdigest(),
        kl=bootstrap(units, lambda sums: sums[..., 0] / sums[..., 4], seed),
        kl_p99=float(np.quantile(every, 0.99)),
        kl_max=float(every.max()),
        top1_agreement=bootstrap(units, lambda sums: sums[..., 1] / sums[..., 4], seed),
        perplexity_reference=perplexity(2),
        perplexity_candidate=perplexity(3),
        perplexity_ratio=bootstrap(units, lambda sums: np.exp((sums[..., 3] - sums[..., 2]) / sums[..., 4]), seed),
        is_exact=recording.is_exact,
        tail_mass=float(np.concatenate([document.tail for document in found]).mean()),
    )


async def _predictions(model: Local, document: Sequence[int]) -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of distributions, each with the tokens that followed; the last token's own has none."""
    import numpy as np

    done = 0
    async for rows in model.next_token_logprobs(document):
        following = np.asarray(document[done + 1 : done + 1 + len(rows)], np.int64)
        done += len(rows)
        if len(following):
            yield rows[: len(following)], following


def windows(token_ids: Sequence[int], length: int) -> Iterator[tuple[int, ...]]:
    """A long text as documents of a length; a rest of a single token is dropped."""
    for start in range(0, len(token_ids), length):
        part = tuple(token_ids[start : start + length])
        if len(part) > 1:
            yield part
