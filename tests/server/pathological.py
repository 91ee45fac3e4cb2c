"""What grammars made to do harm add to gaps of another stream: ``python -m tests.server.pathological ROUNDS``.

A request with such a grammar is sent in a window of its own, and beside it, in turns before and after, lies a window of
the same length in which the same bytes are sent to a path that there is nothing at. What the machine and the sender of
ten megabytes do to a stream they do in both kinds; time that the machine below took away (steal) is subtracted from
every gap.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from sgl.bench.figures import interval_of_median
from tests.server.live import ROOT, Process

DEMO = ROOT / "assets" / "demo"
BOUND_S = 0.05
"""What nobody else is to lose by such a grammar."""

DEEP: dict[str, Any] = {
    "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}},
    "$ref": "#/$defs/a",
}
LARGE = {"type": "object", "properties": {f"p{n}": {"type": "string", "description": "y" * 300} for n in range(30_000)}}


def grammars(number: int) -> dict[str, dict[str, Any]]:
    """Other ones for every number: a refusal is remembered and would cost nothing again."""
    name = f"n{number}"
    return {
        "nested quantifiers": {"regex": f"{name}((a+)+)+{{1000}}"},
        "counted quantifiers": {"regex": f"{name}(((a{{1,200}}){{1,200}}){{1,200}}){{1,200}}"},
        "30,000 parentheses": {"regex": name + "(" * 30_000 + ")" * 30_000},
        "schema of 10 MB": {"json_schema": {**LARGE, "title": name}},
        "schema of 10 MB as text": {"json_schema": json.dumps({**LARGE, "title": name})},
        "regex of 10 MB": {"regex": name + "a|" * (5 << 20)},
        "schema that is nothing but itself": {"json_schema": {**DEEP, "title": name}},
        "schema of 20,000 brackets": {
            "json_schema": '{"title":"' + name + '","allOf":[' + '{"allOf":[' * 10_000 + "{}" + "]}" * 10_001
        },
        "slow automaton": {"json_schema": {"type": "integer", "multipleOf": 999_983 - 2 * number}},
        "rule that is nothing but itself": {"ebnf": f"root ::= {name}\n{name} ::= root"},
    }


Gap = tuple[float, float, float]
"""Of two tokens: when the earlier and the later came, and what the machine below took meanwhile."""


@dataclass(frozen=True)
class Window:
    """A request, and beside it a time of the same length in which its bytes were sent to nobody."""

    name: str
    status: int
    asked: tuple[float, float]
    control: tuple[float, float]

    @property
    def answer_s(self) -> float:
        return self.asked[1] - self.asked[0]


class Stream:
    """Answers that stream, one after the other, to a process of their own."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.server.stream_times", url]
        self._reader = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def gaps(self) -> list[Gap]:
        """Ends the last answer; all gaps."""
        return [(begin_s, end_s, taken_s) for begin_s, end_s, taken_s in json.loads(self._reader.communicate()[0])]


def longest_s(gaps: Sequence[Gap], window: tuple[float, float]) -> float:
    """Of the gaps that touch a time, without what the machine below took."""
    return max((gap_s(gap) for gap in gaps if gap[1] > window[0] and gap[0] < window[1]), default=0.0)


def gap_s(gap: Gap) -> float:
    return gap[1] - gap[0] - gap[2]


def ask(url: str, rounds: int, pause_s: float = 0.1) -> list[Window]:
    """Sends every grammar once a round; the control comes after it in even rounds, and before it in odd ones."""
    found: list[Window] = []
    with httpx.Client(timeout=60) as client:
        for number in range(rounds):
            for name, grammar in grammars(number).items():
                content = json.dumps({"text": "x", "sampling_params": {"max_new_tokens": 8, **grammar}}).encode()
                known_s = next((one.answer_s for one in reversed(found) if one.name == name), 0.2)
                before = _send(client, url, content, known_s) if number % 2 else None
                begin_s = time.perf_counter()
                status = client.post(f"{url}/generate", content=content).status_code
                asked = begin_s, time.perf_counter() + pause_s  # what comes late is its own
                time.sleep(pause_s)
                control = before or _send(client, url, content, asked[1] - asked[0])
                found.append(Window(name, status, asked, control))
    return found


def _send(client: httpx.Client, url: str, content: bytes, length_s: float) -> tuple[float, float]:
    """The time in which a body was sent to nobody, at least as long as said."""
    begin_s = time.perf_counter()
    client.post(f"{url}/nobody", content=content)
    time.sleep(max(begin_s + length_s - time.perf_counter(), 0))
    return begin_s, time.perf_counter()


@contextlib.contextmanager
def served(*options: str) -> Iterator[str]:
    """The demo model behind a URL, with everything loaded that is loaded in the first quiet moments."""
    with tempfile.TemporaryDirectory() as files:
        words = ["-m", "sgl", "serve", str(DEMO), "--port", "0", "--file-storage-path", files, *options]
        with contextlib.closing(Process(*words)) as server:
            url = server.wait_for(r"running on (http://\S+)").group(1)
            server.wait_for("ready to roll")
            time.sleep(20)
            yield url


def report(windows: Sequence[Window], gaps: Sequence[Gap]) -> str:
    """Longest gaps by grammar, the differences with an interval, and how often either kind went over the bound."""
    lines = [f"{'longest gap, ms':36} {'answer s':>8} {'beside it':>10} {'control':>8}"]
    for name in dict.fromkeys(window.name for window in windows):
        own = [window for window in windows if window.name == name]
        beside, control = (
            [1e3 * longest_s(gaps, span) for span in spans]
            for spans in ([window.asked for window in own], [window.control for window in own])
        )
        slowest_s = max(window.answer_s for window in own)
        lines.append(f"{name:36} {slowest_s:8.2f} {max(beside):10.1f} {max(control):8.1f}")
    added = [longest_s(gaps, w.asked) - longest_s(gaps, w.control) for w in windows]
    found = interval_of_median(added)
    between = f"{1e3 * found.low:+.1f} to {1e3 * found.high:+.1f}" if found else "too few"
    median = sorted(added)[len(added) // 2]
    lines.append(f"added to the longest gap, median of {len(added)} pairs: {1e3 * median:+.1f} ms ({between})")
    over, under = sum(one > BOUND_S for one in added), sum(one < -BOUND_S for one in added)
    lines.append(
        f"pairs in which it was longer by more than {1e3 * BOUND_S:.0f} ms: {over}; shorter by as much: {under}"
    )
    for title, spans in (("beside", [w.asked for w in windows]), ("control", [w.control for w in windows])):
        inside = sorted(gap_s(gap) for gap in gaps if any(a < gap[1] and gap[0] < b for a, b in spans))
        shares = [inside[min(int(len(inside) * share), len(inside) - 1)] for share in (0.5, 0.99, 0.999)]
        shown = ", ".join(f"{1e3 * value:.1f}" for value in (*shares, inside[-1]))
        lines.append(f"{title:8} {len(inside)} gaps: median, 99%, 99.9%, longest {shown} ms")
    stolen_s = sum(gap[2] for gap in gaps)
    whole_s = sum(later[0] - earlier[0] for earlier, later in pairwise(gaps))
    lines.append(f"stolen by the machine below: {stolen_s:.2f} s of {whole_s:.0f} s")
    return "\n".join(lines)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with served(*sys.argv[2:]) as url:
        stream = Stream(url)
        time.sleep(2)
        windows = ask(url, rounds)
        print(report(windows, stream.gaps()))


if __name__ == "__main__":
    Path("/proc/stat").exists() or sys.exit("only Linux tells what was stolen")
    main()
