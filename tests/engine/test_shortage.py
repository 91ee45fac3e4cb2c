"""Too little memory while an engine is put together: the error names the line of the budget and the flag that helps."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from sgl.engine import assembly
from sgl.engine.base import sources
from sgl.engine.base.errors import OutOfMemoryError


class Nobody:
    """Inbox and outbox of an engine that never runs."""

    def drain(self, timeout_s: float) -> list[Any]:
        return []

    def send(self, message: object) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("what", "line", "flag"),
    [
        ("_load", "weights", "--quantization int8"),
        ("_backend", "attention workspace", "--attention-backend triton"),
        ("_executor", "KV cache", "--mem-fraction-static"),
    ],
)
def test_says_what_the_memory_was_for(what: str, line: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise MemoryError("can't allocate memory")

    given = {"no_tuned": True, "skip_tokenizer_init": True, "device": "cpu", "context_length": 128}
    config = sources.configure(sources.with_demo_model(sources.from_call(given)))
    monkeypatch.setattr(assembly, what, fail)
    with pytest.raises(OutOfMemoryError, match=rf"budget's line '{line}': .* are free; .*{flag}"):
        assembly.build_loop(config, Nobody(), Nobody())
