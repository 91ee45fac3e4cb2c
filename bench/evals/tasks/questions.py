"""What question-and-answer tasks share: their files, their options, and how a prompt becomes a conversation."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl.bench.evals.asks import Ask
from sgl.engine.base.errors import ConfigError

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Args:
        chat: whether they are turns of a conversation instead of texts to go on with.
        system_prompt: what the conversation begins with; makes it one.
        max_tokens: of an answer; None for what the task usually takes.
    """

    chat: bool = False
    system_prompt: str = ""
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 1

    def ask(self, prompt: str, max_tokens: int, stop: tuple[str, ...] = ()) -> Ask:
        """
        Args:
            max_tokens: where none was asked for.
            stop: where a text to go on with would go on with the next question.
        """
        most = self.max_tokens or max_tokens
        seed = self.seed if self.temperature else None
        if not (self.chat or self.system_prompt):
            return Ask(prompt=prompt, max_tokens=most, stop=stop, temperature=self.temperature, seed=seed)
        system = ({"role": "system", "content": self.system_prompt},) if self.system_prompt else ()
        messages = (*system, {"role": "user", "content": prompt.rstrip()})
        return Ask(messages=messages, max_tokens=most, temperature=self.temperature, seed=seed)

    def settings(self) -> dict[str, Any]:
        return {
            "chat": self.chat or bool(self.system_prompt),
            "system_prompt": self.system_prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }


def at_least(flag: str, value: int | None, least: int) -> None:
    """
    Raises:
        ConfigError: it is less.
    """
    if value is not None and value < least:
        raise ConfigError(f"{flag} must be at least {least}, got {value}.", param=flag)


def read_text(path: Path, flag: str = "--data") -> str:
    """
    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{flag} {path} is larger than 1 GiB.", param=flag)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{flag} {path} cannot be read: {reason}.", param=flag) from None


def read_objects(path: Path, fields: tuple[str, ...], flag: str = "--data") -> list[dict[str, Any]]:
    """The objects of a JSONL file, all with these fields.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line is none.
    """
    found = []
    for number, line in enumerate(read_text(path, flag).splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict) or not all(field in content for field in fields):
            wanted = ", ".join(fields)
            raise ConfigError(f"Line {number} of {path} is no JSON object with {wanted}.", param=flag)
        found.append(content)
    if not found:
        raise ConfigError(f"{flag} {path} has no lines.", param=flag)
    return found


def read_rows(path: Path, width: int, flag: str = "--data") -> Iterator[list[str]]:
    """The rows of a CSV file.

    Raises:
        ConfigError: the file cannot be read, or a row has another number of cells.
    """
    for number, row in enumerate(csv.reader(read_text(path, flag).splitlines(keepends=True)), 1):
        if len(row) != width:
            raise ConfigError(f"Row {number} of {path} has {len(row)} cells instead of {width}.", param=flag)
        yield row


def from_hub(name: str, config: str, split: str) -> list[dict[str, Any]]:
    """The rows of a data set of the Hugging Face Hub.

    Raises:
        ConfigError: the library is not installed, or there is no such data set within reach.
    """
    try:
        import datasets
    except ImportError:
        message = f"To read {name} from the Hub: pip install 'sgl[eval]'; or give the file with --data."
        raise ConfigError(message, param="--data") from None
    try:
        return [dict(row) for row in datasets.load_dataset(name, config, split=split)]
    except (OSError, ValueError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{name} cannot be read from the Hub ({told:.200}); give a file with --data."
        raise ConfigError(message, param="--data") from None
