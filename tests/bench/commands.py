"""What a run of ``sgl bench ...`` in the process of a test gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Bench = Callable[..., Done]
"""Called with the words after ``sgl bench``."""
