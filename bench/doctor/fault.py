"""What the doctor says about a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Check = Literal["tokenizer", "template", "config", "weights", "layers", "answers"]

MAX_LISTED = 5


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be.

    Args:
        severity: ``wrong``: answers are not the model's; ``weak``: they are, but not all that it can do works.
        place: the file, field, tensor, or layer and op.
        fix: what to do about it.
    """

    check: Check
    severity: Literal["wrong", "weak"]
    place: str
    expected: str
    found: str
    fix: str


@dataclass
class Report:
    """
    Args:
        done: what was looked at, in words.
        skipped: what was not, and why.
    """

    faults: list[Fault] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def listed(names: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    found = list(names)
    more = len(found) - MAX_LISTED
    return ", ".join(found[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
