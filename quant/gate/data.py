"""Text for calibration and, apart from it, for the gate: as sequences of tokens; quantizes and measures nothing.

Every text goes either here or there by its hash, so the two never share one, whichever file, order or run it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl.engine.base import hub
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.text.template import ChatTemplate, load_template
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer
from sgl.quant.gate.documents import DataFacts
from sgl.quant.gate.sample import conversations

BUILTIN = "built-in sample"
HELD_OUT = 0.25
"""The part of a source that the gate has to itself where it serves both."""

_MIN_TOKENS = 8
_MAX_LINE = 1 << 22
_SHUFFLED = 10_000  # of a Hub data set, so that its first rows are not all of one kind
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Messages = list[dict[str, str]]
Item = str | Messages


@dataclass(frozen=True)
class Sequences:
    """Tokens, and where they come from."""

    name: str
    ids: tuple[tuple[int, ...], ...]

    @property
    def hash(self) -> str:
        """Equal for equal tokens."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:16]

    @property
    def facts(self) -> DataFacts:
        return DataFacts(self.name, self.hash, len(self.ids), sum(map(len, self.ids)))


@dataclass(frozen=True)
class DataOptions:
    """Where text comes from, and how much of it.

    Args:
        calibration: a jsonl or txt file, a Hub data set as ``NAME`` or ``NAME:SPLIT``; empty for the built-in sample.
        gate: the same for the gate; empty for the part of ``calibration`` that is kept for it.
        num_calibration, num_gate: sequences, at most.
        max_tokens: of a sequence, at most.
    """

    calibration: str = ""
    gate: str = ""
    num_calibration: int = 256
    num_gate: int = 64
    max_tokens: int = 1024
    seed: int = 0

    def check(self) -> None:
        """
        Raises:
            ConfigError: a number is out of range, or a file is not there.
        """
        limits = {"num_calibration": 100_000, "num_gate": 100_000, "max_tokens": 1 << 20}
        flags = {"num_calibration": "--calibration-samples", "num_gate": "--gate-samples", "max_tokens": "--max-tokens"}
        for name, most in limits.items():
            value, flag = getattr(self, name), flags[name]
            if not 1 <= value <= most:
                raise ConfigError(f"{flag} must be between 1 and {most}, got {value}.", param=flag)
        for source, flag in ((self.calibration, "--calibration"), (self.gate, "--gate-data")):
            if Path(source).suffix in _READERS and not Path(source).is_file():
                raise ConfigError(f"{flag} {source}: there is no such file.", param=flag)


class Data:
    """The sequences of both kinds for one model, read when they are asked for."""

    def __init__(self, options: DataOptions, model: Path) -> None:
        self._options = options
        self._tokenizer: Tokenizer = load_tokenizer(model)
        self._template = load_template(self._tokenizer)
        self._max_tokens = min(options.max_tokens, _positions(hub.read_config(str(model))))

    def calibration(self) -> Sequences:
        """
        Raises:
            ConfigError: the source cannot be read, or has nothing to calibrate with.
        """
        options = self._options
        wanted = (lambda text: True) if options.gate else (lambda text: not _is_held_out(text))
        return self._take(options.calibration, options.num_calibration, "--calibration", wanted)

    def held_out(self) -> Sequences:
        """What calibration never sees.

        Raises:
            ConfigError: the source cannot be read, or has nothing to measure with.
        """
        options = self._options
        if not options.gate:
            return self._take(options.calibration, options.num_gate, "--calibration", _is_held_out)
        used = {_digest(text) for text in self._texts(options.calibration, "--calibration")}
        return self._take(options.gate, options.num_gate, "--gate-data", lambda text: _digest(text) not in used)

    def _take(self, source: str, count: int, flag: str, wanted: Callable[[str], bool]) -> Sequences:
        is_plain = self._texts(source, flag)
        texts = [text for text in is_plain if wanted(text)]
        random.Random(self._options.seed).shuffle(texts)
        found = []
        for text in texts:
            ids = self._tokenizer.encode(text, add_special_tokens=is_plain[text])[: self._max_tokens]
            if len(ids) >= _MIN_TOKENS:
                found.append(tuple(ids))
            if len(found) == count:
                break
        if not found:
            raise ConfigError(
                f"{flag} {source or BUILTIN}: no text of at least {_MIN_TOKENS} tokens is left; give more.", param=flag
            )
        return Sequences(Path(source).name or BUILTIN, tuple(found))

    def _texts(self, source: str, flag: str) -> dict[str, bool]:
        """All different texts of the source, and whether special tokens must be added: a template writes its own."""
        items = conversations() if not source else _read(source, flag, self._options)
        texts = {_render(self._template, item): isinstance(item, str) or not self._template for item in items}
        return {text: is_plain for text, is_plain in texts.items() if text.strip()}


def _positions(hf_config: Mapping[str, Any]) -> int:
    """The longest sequence that the model takes, as far as its config says."""
    names = ("max_position_embeddings", "n_positions")
    return next((hf_config[name] for name in names if isinstance(hf_config.get(name), int)), 1 << 20)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()


def _is_held_out(text: str) -> bool:
    return int.from_bytes(_digest(text), "little") < HELD_OUT * 2**64


def _render(template: ChatTemplate, item: Item) -> str:
    """A conversation as the model was trained on it; without a template as paragraphs."""
    if isinstance(item, str):
        return item
    if not template:
        return "\n\n".join(message["content"] for message in item)
    try:
        return template.render(item, add_generation_prompt=False)
    except SglError:
        return ""  # a template that does not take such roles: the conversation is not usable


def _read(source: str, flag: str, options: DataOptions) -> list[Item]:
    path = Path(source).expanduser()
    if path.is_file():
        reader = _READERS.get(path.suffix, _jsonl)
        try:
            return reader(path, flag)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{flag} {source} cannot be read: {error}.", param=flag) from None
    return _from_hub(source, flag, options)


def _txt(path: Path, flag: str) -> list[Item]:
    """A text a paragraph: paragraphs have an empty line between them."""
    found: list[Item] = [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    if not found:
        raise ConfigError(f"{flag} {path} has no usable line: it is empty.", param=flag)
    return found


def _jsonl(path: Path, flag: str) -> list[Item]:
    """A text or conversation a line."""
    found: list[Item] = []
    problems: dict[str, int] = {}
    total = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            total += 1
            item = _parse(line)
            if isinstance(item, _Problem):
                problems[item.what] = problems.get(item.what, 0) + 1
            else:
                found.append(item)
    if not found:
        told = "; ".join(f"{count} {what}" for what, count in problems.items()) or "it is empty"
        raise ConfigError(f"{flag} {path} has no usable line among {total}: {told}.", param=flag)
    return found


_READERS: Mapping[str, Callable[[Path, str], list[Item]]] = {".jsonl": _jsonl, ".txt": _txt}


@dataclass(frozen=True, slots=True)
class _Problem:
    what: str


def _parse(line: str) -> Item | _Problem:
    if len(line) > _MAX_LINE:
        return _Problem(f"longer than {_MAX_LINE} characters")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return _Problem("not JSON")
    if not isinstance(row, dict):
        return _Problem("not JSON objects")
    return _item(row) or _Problem("without text, messages, conversations, or prompt and response")


def _item(row: Mapping[str, Any]) -> Item | None:
    """What one row says, in any of the usual ways; None if it says nothing."""
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list):
            messages = [_message(part) for part in row[name]]
            return [message for message in messages if message] if all(messages) and messages else None
    for name in ("text", "content"):
        if isinstance(row.get(name), str):
            return row[name].strip() or None
    question = next((row[name] for name in ("prompt", "instruction", "question") if isinstance(row.get(name), str)), "")
    names = ("response", "completion", "answer", "output")
    answer = next((row[name] for name in names if isinstance(row.get(name), str)), "")
    if not question:
        return None
    said = [{"role": "user", "content": question}]
    return [*said, {"role": "assistant", "content": answer}] if answer else said


def _message(part: Any) -> dict[str, str] | None:
    if not isinstance(part, dict):
        return None
    role = _ROLES.get(str(part.get("role") or part.get("from")))
    content = part.get("content", part.get("value"))
    return {"role": role, "content": content} if role and isinstance(content, str) else None


def _from_hub(source: str, flag: str, options: DataOptions) -> list[Item]:
    """Rows of a Hub data set, or of one in a directory, streamed: only what is needed is fetched."""
    name, _, split = source.partition(":")
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError:
        raise ConfigError(
            f"{flag} {source} is no file; Hub data sets need the library datasets: pip install 'sgl[quant]'.",
            param=flag,
        ) from None
    disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what fails is said below, once
    count = 4 * (options.num_calibration + options.num_gate)
    try:
        rows: Iterable[Any] = load_dataset(name, split=split or "train", streaming=True).shuffle(
            seed=options.seed, buffer_size=_SHUFFLED
        )
        items = list(itertools.islice(_usable(rows), count))
    except Exception as error:  # noqa: BLE001 - the library raises the errors of five others
        what = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"{flag} {source}: no such file, and no data set that can be read ({what}).", param=flag
        ) from None
    if not items:
        raise ConfigError(f"{flag} {source} has no row with text, messages, or prompt and response.", param=flag)
    return items


def _usable(rows: Iterable[Any]) -> Iterator[Item]:
    for row in rows:
        item = _item(row) if isinstance(row, Mapping) else None
        if item:
            yield item
