"""Perplexity: how well does a model foresee the tokens of a text?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl.bench.evals.asks import Json, Model, Passage, Reply, Scores
from sgl.bench.evals.estimates import bootstrap
from sgl.bench.evals.items import Item, Judgement, Record
from sgl.bench.evals.tasks.questions import at_least, read_objects, read_text
from sgl.engine.base.errors import ConfigError

WINDOW = 512


class Perplexity:
    """
    Args:
        data: a text, or JSONL with ``text`` in every line: each is a document of its own.
        window: tokens that are read at once. What a window begins with is foreseen from little.
        stride: tokens from one window to the next; less than a window scores each token once, behind more context.
        num_windows: None for all.
    """

    name = "perplexity"
    seed = 0

    def __init__(
        self, data: str, *, window: int = WINDOW, stride: int | None = None, num_windows: int | None = None
    ) -> None:
        at_least("--window", window, 2)
        at_least("--stride", stride, 1)
        at_least("--num-questions", num_windows, 1)
        if not data:
            raise ConfigError("perplexity needs --data, a text file or JSONL with text.", param="--data")
        if stride is not None and stride > window:
            raise ConfigError(f"--stride {stride} leaves out tokens between windows of {window}.", param="--stride")
        self.data = data
        self._window, self._stride, self._num_windows = window, stride or window, num_windows
        self.settings: dict[str, Any] = {"window": window, "stride": self._stride}

    def items(self, model: Model) -> list[Item]:
        found: list[Item] = []
        for number, text in enumerate(texts_of(Path(self.data))):
            ids = model.tokenizer.encode(text)
            for start, passage in _windows(ids, self._window, self._stride):
                found.append(Item(f"perplexity/{number}/{start}", passage))
        if not found:
            raise ConfigError(f"--data {self.data} has no text of two tokens.", param="--data")
        return found[: self._num_windows]

    def judge(self, item: Item, found: Reply | Scores) -> Judgement:
        assert isinstance(found, Scores)
        return Judgement(None, figures={"nll": -math.fsum(found.logprobs), "num_tokens": float(len(found.logprobs))})

    def figures(self, records: Sequence[Record]) -> Json:
        import numpy as np

        units = [(record.figures["nll"], record.figures["num_tokens"]) for record in records]
        found = bootstrap(units, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))
        return {
            "perplexity": found.value,
            "perplexity_low": found.low,
            "perplexity_high": found.high,
            "num_tokens": int(sum(unit[1] for unit in units)),
            "nats_per_token": math.log(found.value),
        }


def texts_of(path: Path) -> list[str]:
    """The documents of a file: the ``text`` of each line of JSONL, or all of it.

    Raises:
        ConfigError: it cannot be read.
    """
    if path.suffix in (".jsonl", ".ndjson"):
        return [str(row["text"]) for row in read_objects(path, ("text",))]
    return [read_text(path)]


def _windows(ids: Sequence[int], window: int, stride: int) -> list[tuple[int, Passage]]:
    """Passages that score a token at most once: all but the first of a text, or of a window where none overlap."""
    found: list[tuple[int, Passage]] = []
    done = 1
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        begin = max(done, start + 1)
        if end > begin:
            found.append((start, Passage(tuple(ids[start:end]), begin - start)))
            done = end
        if end == len(ids):
            break
    return found
