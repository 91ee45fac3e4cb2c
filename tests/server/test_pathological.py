"""Grammars made to do harm, beside an answer that streams: each costs its own request a 400, in time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live import ROOT, Process

DEMO = ROOT / "assets" / "demo"

MAX_ANSWER_S = 2.0
MAX_GAP_S = 0.05
"""Between two tokens of somebody else's answer, beyond what the machine does to them anyway."""

DEEP: dict[str, Any] = {
    "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}},
    "$ref": "#/$defs/a",
}
LARGE = {"type": "object", "properties": {f"p{n}": {"type": "string", "description": "y" * 300} for n in range(30_000)}}
GRAMMARS: dict[str, dict[str, Any]] = {
    "nested quantifiers": {"regex": "((a+)+)+{1000}"},
    "counted quantifiers": {"regex": "(((a{1,200}){1,200}){1,200}){1,200}"},
    "30,000 parentheses": {"regex": "(" * 30_000 + ")" * 30_000},
    "schema of 10 MB": {"json_schema": LARGE},
    "schema of 10 MB as text": {"json_schema": json.dumps(LARGE)},
    "regex of 10 MB": {"regex": "a|" * (5 << 20)},
    "schema that is nothing but itself": {"json_schema": DEEP},
    "schema of 20,000 brackets": {"json_schema": '{"allOf":[' * 10_000 + "{}" + "]}" * 10_000},
    "slow automaton": {"json_schema": {"type": "integer", "multipleOf": 999_983}},
    "rule that is nothing but itself": {"ebnf": "root ::= root"},
}


class Stream:
    """Answers that stream, one after the other, to a process of their own."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.server.stream_times", url]
        self._reader = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def gaps(self) -> list[tuple[float, float]]:
        """Ends the last answer; when two tokens of one answer came, for all that followed each other."""
        return [(begin_s, end_s) for begin_s, end_s in json.loads(self._reader.communicate(timeout=60)[0])]


def longest(gaps: list[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Of the gaps that touch a time."""
    return max(later - earlier for earlier, later in gaps if later > begin_s and earlier < end_s)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = ["--port", "0", "--file-storage-path", str(tmp_path_factory.mktemp("files"))]
    with contextlib.closing(Process("-m", "sgl", "serve", str(DEMO), *options)) as server:
        url = server.wait_for(r"running on (http://\S+)").group(1)
        yield url


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_grammar_that_does_harm_costs_its_own_request(url: str) -> None:
    time.sleep(20)  # what is loaded in the first quiet moment is
    stream = Stream(url)
    time.sleep(3)
    quiet = (time.perf_counter(), time.perf_counter() + 10)
    time.sleep(10)
    found = {}
    for name, grammar in GRAMMARS.items():
        content = json.dumps({"text": "x", "sampling_params": {"max_new_tokens": 8, **grammar}}).encode()
        begin_s = time.perf_counter()
        response = httpx.post(f"{url}/generate", content=content, timeout=30)
        found[name] = (response.status_code, begin_s, time.perf_counter())
        time.sleep(0.5)
    gaps = stream.gaps()
    usual_s = longest(gaps, *quiet)
    took = {name: (end_s - begin_s, longest(gaps, begin_s, end_s)) for name, (_, begin_s, end_s) in found.items()}
    for name, (answer_s, gap_s) in took.items():
        print(f"{name:36} {found[name][0]} after {answer_s:5.2f} s, gap {1e3 * gap_s:5.1f} ms")
    print(f"{'nothing':36} gap {1e3 * usual_s:5.1f} ms")
    assert {status for status, _, _ in found.values()} == {400}
    assert max(answer_s for answer_s, _ in took.values()) < MAX_ANSWER_S
    assert max(gap_s for _, gap_s in took.values()) < MAX_GAP_S + usual_s
