"""Says what of a JSON schema structured output would enforce, before anybody asks a model for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.grammar.backend import BackendName, Options
from sgl.engine.grammar.keywords import DIALECTS
from sgl.engine.grammar.limits import Limits, check_source
from sgl.engine.grammar.process import CompilerProcess
from sgl.engine.grammar.schema import Finding, analyse
from sgl.engine.grammar.vocabulary import BYTES

Choice = Literal["auto", "native", "llguidance", "xgrammar", "outlines"]


@dataclass(frozen=True)
class SchemaReport:
    """
    Args:
        findings: one for each keyword that says which values are valid, in the order of the schema.
        max_tokens: no output has more of them, whatever the tokenizer; None if there is no such number.
        error: why the library refuses the schema although it knows all keywords; empty if it does not.
    """

    backend: BackendName
    findings: Sequence[Finding]
    max_tokens: int | None
    error: str

    @property
    def is_supported(self) -> bool:
        return not self.error and all(finding.status != "unsupported" for finding in self.findings)


def check_schema(source: str, choice: Choice = "auto") -> SchemaReport:
    """Analyses a schema and compiles it for trial in a process of its own, which takes a second or more.

    Raises:
        SglError: 400; it is no JSON schema, or the backend is not installed.
    """
    if choice not in get_args(Choice):
        message = f"backend must be one of {', '.join(get_args(Choice))}, got {choice!r:.40}."
        raise SglError(message, param="backend")
    check_source(source, "schema")
    backend: BackendName = "llguidance" if choice == "auto" else choice
    analysis = analyse(source, DIALECTS[backend])
    if any(finding.status == "unsupported" for finding in analysis.findings):
        return SchemaReport(backend, analysis.findings, analysis.max_bytes, "")
    return SchemaReport(backend, analysis.findings, analysis.max_bytes, _trial(source, backend))


def _trial(source: str, backend: BackendName) -> str:
    """What the library has against a schema; empty if it has nothing."""
    process = CompilerProcess(backend, BYTES, Options(), Limits())
    try:
        grammar = Grammar("json_schema", source)
        if backend == "native":
            process.lower(grammar)
        else:
            process.check(grammar)
    except SglError as error:
        if error.status >= 500 or error.code == "missing_package":
            raise
        return error.message
    finally:
        process.kill()
    return ""
