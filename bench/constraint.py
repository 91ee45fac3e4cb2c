"""What keeps the answers of a benchmark to a grammar, and whether they had all their tokens; compiles nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sgl.bench.contamination import ContaminatedError
from sgl.bench.data import Sample
from sgl.bench.figures import Outcome
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.types import Grammar


def chosen(json_schema: str = "", regex: str = "", ebnf: str = "") -> Grammar | None:
    """The one that was given: files of the first and the last, the second itself.

    Raises:
        ConfigError: several of them, or a file that cannot be read.
    """
    if sum(map(bool, (json_schema, regex, ebnf))) > 1:
        raise ConfigError("Give one of --json-schema, --regex and --ebnf.", param="--regex")
    if json_schema:
        return Grammar("json_schema", _text("--json-schema", json_schema))
    if ebnf:
        return Grammar("ebnf", _text("--ebnf", ebnf))
    return Grammar("regex", regex) if regex else None


def described(grammar: Grammar | None) -> dict[str, Any]:
    """What results say of it: equal hashes are equal grammars."""
    if grammar is None:
        return {}
    digest = hashlib.sha256(grammar.source.encode()).hexdigest()[:16]
    return {"constraint": {"kind": grammar.kind, "hash": digest}}


def check_lengths(asked: int, written: int) -> None:
    """Holds the tokens of constrained answers against those that were asked for.

    Raises:
        ContaminatedError: answers ended early; what is left of them says nothing beside answers of full length.
    """
    if written < asked:
        raise ContaminatedError(
            f"The grammar let answers end early ({written} tokens where {asked} were asked for); nothing is reported. "
            "Take one that can go on as long as the answers, such as a string or an array without an upper bound, or "
            "ask for shorter ones."
        )


def check_run(samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> None:
    """As `check_lengths`, of a whole run; failed and missing answers are told elsewhere."""
    asked = [turn.output_len for sample in samples for turn in (sample, *sample.later)]
    if len(outcomes) == len(asked) and not any(outcome.error for outcome in outcomes):
        check_lengths(sum(asked), sum(outcome.output_len for outcome in outcomes))


def _text(flag: Literal["--json-schema", "--ebnf"], name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{flag} {name} cannot be read: {reason}.", param=flag) from None
