"""The prompts of a benchmark, from a file or made from a seed; sends nothing and measures nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgl.engine.base.errors import ConfigError
from sgl.engine.text.tokenizer import Tokenizer

SHORTEST = 4
"""Conversations with fewer tokens on either side say nothing about speed and are passed over."""


@dataclass(frozen=True)
class Sample:
    """One request: its prompt, and how many tokens to answer with.

    Args:
        text: of ``input_ids``; empty where ids were drawn.
        later: the other questions of a conversation, each asked behind the answer to the one before.
        due_s: when to send it, in seconds after the first of a trace; None where the traffic decides.
        past_ids: what was said before: questions and answers.
        past: the same as texts.
    """

    input_ids: tuple[int, ...]
    output_len: int
    text: str = ""
    later: tuple[Sample, ...] = ()
    due_s: float | None = None
    past_ids: tuple[int, ...] = ()
    past: tuple[str, ...] = ()

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return (*self.past_ids, *self.input_ids)

    def follow(self, answer_ids: Sequence[int], answer: str) -> Sample | None:
        """The next question of the conversation, behind this one and its answer; None if this was the last."""
        if not self.later:
            return None
        past_ids, past = (*self.prompt_ids, *answer_ids), (*self.past, self.text, answer)
        return replace(self.later[0], later=self.later[1:], past_ids=past_ids, past=past)


@dataclass(frozen=True)
class Vocabulary:
    """What prompts are made of.

    Args:
        ids: tokens to draw from.
        encode: text to ids.
    """

    ids: Sequence[int]
    encode: Callable[[str], list[int]]

    @staticmethod
    def of(tokenizer: Tokenizer, size: int | None = None) -> Vocabulary:
        """The tokenizer's ordinary tokens; without a tokenizer every id below the model's ``size``."""
        known = tokenizer.vocab_size or size or 0
        ids = [i for i in range(min(known, size or known)) if i not in tokenizer.special_ids]
        return Vocabulary(ids, tokenizer.encode)


@dataclass(frozen=True)
class DataOptions:
    """Which data set, and how much of it.

    Args:
        dataset_name: one of `DATASETS`.
        dataset_path: the file of sharegpt and jsonl.
        num_prompts: how many; None is 100, or all that generated-shared-prefix makes.
        turns: questions of a conversation, at most so many in sharegpt; the others have one.
        random_input, random_output: the greatest lengths of random prompts and answers.
        random_range_ratio: the least length as a part of the greatest.
        output_len: tokens of every answer of a file; None is what the file says.
        prefix_groups, prompts_per_group: of generated-shared-prefix.
        prefix_len, question_len, prefix_output_len: tokens of the shared part, of the rest and of the answer.
    """

    dataset_name: str = "random"
    dataset_path: str = ""
    num_prompts: int | None = None
    seed: int = 1
    turns: int = 1
    random_input: int = 1024
    random_output: int = 128
    random_range_ratio: float = 0.0
    output_len: int | None = None
    prefix_groups: int = 8
    prompts_per_group: int = 16
    prefix_len: int = 1024
    question_len: int = 128
    prefix_output_len: int = 128

    @property
    def count(self) -> int:
        return 100 if self.num_prompts is None else self.num_prompts

    def check(self) -> None:
        """Refuses what cannot be made, before a model is loaded for it.

        Raises:
            ConfigError: it names the flag.
        """
        name = self.dataset_name
        if name not in DATASETS:
            raise ConfigError(f"--dataset-name {name} is unknown; use {', '.join(DATASETS)}.", param="--dataset-name")
        if name in FILES and not self.dataset_path:
            raise ConfigError(f"--dataset-name {name} needs --dataset-path, its file.", param="--dataset-path")
        if name in FILES:
            _check_readable(Path(self.dataset_path))
        if name not in FILES and self.dataset_path:
            names = " or ".join(FILES)
            raise ConfigError(f"--dataset-path needs --dataset-name {names}, got {name}.", param="--dataset-path")
        if not 0.0 <= self.random_range_ratio <= 1.0:
            message = f"--random-range-ratio must be between 0 and 1, got {self.random_range_ratio:g}."
            raise ConfigError(message, param="--random-range-ratio")
        if self.turns > 1 and name not in CONVERSATIONS:
            raise ConfigError(
                f"--turns needs --dataset-name {' or '.join(CONVERSATIONS)}, got {name}.", param="--turns"
            )
        for field, flag in COUNTS.items():
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"{flag} must be at least 1, got {value}.", param=flag)
        made = self.prefix_groups * self.prompts_per_group
        if name == "generated-shared-prefix" and self.num_prompts not in (None, made):
            message = f"--num-prompts {self.num_prompts} is not the {self.prefix_groups} x {self.prompts_per_group} of "
            raise ConfigError(f"{message}--gsp-num-groups and --gsp-prompts-per-group.", param="--num-prompts")


COUNTS: Mapping[str, str] = {
    "num_prompts": "--num-prompts",
    "turns": "--turns",
    "random_input": "--random-input",
    "random_output": "--random-output",
    "output_len": "--sharegpt-output-len",
    "prefix_groups": "--gsp-num-groups",
    "prompts_per_group": "--gsp-prompts-per-group",
    "prefix_len": "--gsp-system-prompt-len",
    "question_len": "--gsp-question-len",
    "prefix_output_len": "--gsp-output-len",
}
"""Options that are at least 1, with their flags."""


def load(options: DataOptions, vocabulary: Vocabulary) -> list[Sample]:
    """The samples, the same for the same options, file and vocabulary.

    Raises:
        ConfigError: an option or the file cannot be used.
    """
    options.check()
    if not vocabulary.ids and options.dataset_name not in FILES:
        raise ConfigError("The model's tokenizer has no tokens to make prompts of; pass another --tokenizer.")
    return DATASETS[options.dataset_name](options, vocabulary, random.Random(options.seed))


def num_requests(samples: Sequence[Sample]) -> int:
    """All questions of all conversations."""
    return sum(1 + len(sample.later) for sample in samples)


def num_shared(samples: Sequence[Sample]) -> int:
    """How many prompt tokens a perfect prefix cache that starts empty could find, whatever the order of the samples.

    Every node of the prompts' prefix tree must be computed once. Later questions find all that was said before.
    """
    ordered = sorted(sample.input_ids for sample in samples)
    first = sum(_num_common(a, b) for a, b in itertools.pairwise(ordered))
    for sample in samples:
        said = 0
        for question, following in itertools.pairwise((sample, *sample.later)):
            said += len(question.input_ids) + question.output_len
            first += said + len(following.input_ids) - 1
    return first


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def digest(samples: Sequence[Sample]) -> str:
    """Names what was asked: equal for equal prompts, answer lengths and times, in order."""

    def fields(sample: Sample) -> list[Any]:
        more = [list(map(fields, sample.later)), sample.due_s]
        return [sample.input_ids, sample.output_len, *(more if any(more) else [])]

    content = json.dumps(list(map(fields, samples)), separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def warm_up(samples: Sequence[Sample], count: int, vocabulary: Vocabulary) -> list[Sample]:
    """Requests like the first ones that share no prefix with them, so that nothing of the data set is cached."""
    rng = random.Random(-1)
    chosen = [samples[i % len(samples)] for i in range(count)]
    return [Sample(_draw(rng, vocabulary, len(sample.input_ids)), min(sample.output_len, 16)) for sample in chosen]


def _draw(rng: random.Random, vocabulary: Vocabulary, length: int) -> tuple[int, ...]:
    return tuple(rng.choices(vocabulary.ids, k=length))


def _random(options: DataOptions, vocabulary: Vocabulary, rng: random.Random) -> list[Sample]:
    def length(greatest: int) -> int:
        return rng.randint(max(1, int(greatest * options.random_range_ratio)), greatest)

    lengths = [(length(options.random_input), length(options.random_output)) for _ in range(options.count)]
    samples = [Sample(_draw(rng, vocabulary, input_len), output_len) for input_len, output_len in lengths]
    for i, sample in enumerate(samples):
        later = [
            Sample(_draw(rng, vocabulary, length(options.random_input)), length(options.random_output))
            for _ in range(options.turns - 1)
        ]
        samples[i] = replace(sample, later=tuple(later))
    return samples


def _shared_prefix(options: DataOptions, vocabulary: Vocabulary, rng: random.Random) -> list[Sample]:
    """Groups of prompts that begin alike, in mixed order: neighbours in time seldom share."""
    samples = []
    for _ in range(options.prefix_groups):
        prefix = _draw(rng, vocabulary, options.prefix_len)
        for _ in range(options.prompts_per_group):
            ids = prefix + _draw(rng, vocabulary, options.question_len)
            samples.append(Sample(ids, options.prefix_output_len))
    rng.shuffle(samples)
    return samples


def _sharegpt(options: DataOptions, vocabulary: Vocabulary, rng: random.Random) -> list[Sample]:
    """The first questions of each conversation, in an order drawn from the seed, answered as long as they were."""
    path = Path(options.dataset_path)
    talks = [talk for entry in _conversations(path) if (talk := _questions(entry, options.turns))]
    rng.shuffle(talks)
    samples: list[Sample] = []
    for talk in talks:
        if len(samples) == options.count:
            break
        turns: list[Sample] = []
        for question, answer in talk:
            ids = tuple(vocabulary.encode(question))
            turns.append(Sample(ids, options.output_len or len(vocabulary.encode(answer)), question))
        if all(len(turn.input_ids) >= SHORTEST and turn.output_len >= SHORTEST for turn in turns):
            samples.append(replace(turns[0], later=tuple(turns[1:])))
    return _enough(samples, options, "conversations")


def _conversations(path: Path) -> list[Any]:
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"--dataset-path {path} is not JSON: {error}.", param="--dataset-path") from None
    if not isinstance(content, list):
        raise ConfigError(f"--dataset-path {path} must be a list of conversations.", param="--dataset-path")
    return content


def _questions(entry: Any, most: int) -> list[tuple[str, str]]:
    """The first questions with their answers, until one is missing."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    said = [turn.get("value") if isinstance(turn, dict) else "" for turn in turns] if isinstance(turns, list) else []
    pairs: list[tuple[str, str]] = []
    for question, answer in zip(said[::2], said[1::2], strict=False):
        if len(pairs) == most or not (isinstance(question, str) and isinstance(answer, str) and question and answer):
            break
        pairs.append((question, answer))
    return pairs


def _jsonl(options: DataOptions, vocabulary: Vocabulary, rng: random.Random) -> list[Sample]:
    """The first lines, in their order: {"prompt": text or ids, "output_len": tokens}.

    With a "timestamp" in seconds or a "timestamp_ms" on every line they are a trace, and sorted by it.
    """
    path = Path(options.dataset_path)
    samples: list[Sample] = []
    for number, line in _lines(path):
        if options.num_prompts is not None and len(samples) == options.num_prompts:
            break
        samples.append(_sample(line, f"line {number} of {path}", options, vocabulary))
    if not samples:
        raise ConfigError(f"--dataset-path {path} has no prompts.", param="--dataset-path")
    timed = [sample for sample in samples if sample.due_s is not None]
    if timed and len(timed) < len(samples):
        message = f"{path}: {len(samples) - len(timed)} of {len(samples)} lines have no timestamp, the others have one."
        raise ConfigError(message, param="--dataset-path")
    if timed:
        start_s = min(sample.due_s or 0.0 for sample in timed)
        samples = [replace(sample, due_s=(sample.due_s or 0.0) - start_s) for sample in timed]
        samples.sort(key=lambda sample: sample.due_s or 0.0)
    return samples if options.num_prompts is None else _enough(samples, options, "prompts")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(_read(path).splitlines(), 1) if line.strip())


def _sample(line: str, where: str, options: DataOptions, vocabulary: Vocabulary) -> Sample:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    is_ids = isinstance(prompt, list) and all(type(item) is int for item in prompt)
    if not prompt or not (is_ids or isinstance(prompt, str)):
        message = f'{where} must be {{"prompt": text or token ids, "output_len": tokens}}.'
        raise ConfigError(message, param="--dataset-path")
    output_len = options.output_len or entry.get("output_len")
    if type(output_len) is not int or output_len < 1:
        message = f'{where} has no "output_len" of at least 1; add it, or pass --sharegpt-output-len for all.'
        raise ConfigError(message, param="--sharegpt-output-len")
    due_s = _timestamp(entry, where)
    if is_ids:
        return Sample(tuple(prompt), output_len, due_s=due_s)
    return Sample(tuple(vocabulary.encode(prompt)), output_len, prompt, due_s=due_s)


def _timestamp(entry: Mapping[str, Any], where: str) -> float | None:
    """Seconds, from either spelling."""
    for name, unit_s in (("timestamp", 1.0), ("timestamp_ms", 1e-3)):
        value = entry.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f'{where}: "{name}" must be a number, got {value!r}.', param="--dataset-path")
        return float(value) * unit_s
    return None


def _enough(samples: list[Sample], options: DataOptions, what: str) -> list[Sample]:
    if len(samples) < options.count:
        message = f"--dataset-path {options.dataset_path} has {len(samples)} usable {what}"
        raise ConfigError(f"{message}, fewer than --num-prompts {options.count}.", param="--num-prompts")
    return samples


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error.strerror) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not UTF-8 text") from None


def _unreadable(path: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"--dataset-path {path} cannot be read: {reason}.", param="--dataset-path")


FILES = ("sharegpt", "jsonl")
CONVERSATIONS = ("random", "sharegpt")
DATASETS: Mapping[str, Callable[[DataOptions, Vocabulary, random.Random], list[Sample]]] = {
    "random": _random,
    "sharegpt": _sharegpt,
    "generated-shared-prefix": _shared_prefix,
    "jsonl": _jsonl,
}
