"""Grammars made to do harm, beside an answer that streams: each costs its own request a 400.

How long they hold others up is measured by ``python -m tests.server.pathological``: no test asserts on elapsed time.
"""

from __future__ import annotations

import time

import pytest

from tests.server.pathological import Stream, Window, ask, gap_s, longest_s, report, served


def test_what_the_machine_took_is_nobodys_gap() -> None:
    gaps = [(0.0, 0.001, 0.0), (0.001, 0.101, 0.04), (0.101, 0.102, 0.0)]
    assert gap_s(gaps[1]) == pytest.approx(0.06)
    assert longest_s(gaps, (0.05, 0.0501)) == pytest.approx(0.06)  # what only touches a window counts
    assert longest_s(gaps, (0.1015, 0.2)) == pytest.approx(0.001)
    assert longest_s(gaps, (5.0, 6.0)) == 0.0


def test_a_report_is_of_differences() -> None:
    """Requests that add 60 ms to a machine whose own gaps are 100 ms in every window."""
    gaps, windows = [], []
    for i in range(8):
        asked, control = (2.0 * i, 2.0 * i + 1), (2.0 * i + 1, 2.0 * i + 2)
        gaps += [(asked[0] + 0.2, asked[0] + 0.36, 0.0), (control[0] + 0.2, control[0] + 0.3, 0.0)]
        windows.append(Window("one", 400, asked, control))
    told = report(windows, gaps)
    assert "median of 8 pairs: +60.0 ms (+60.0 to +60.0)" in told
    assert "longer by more than 50 ms: 8; shorter by as much: 0" in told


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_grammar_that_does_harm_costs_its_own_request() -> None:
    with served() as url:
        stream = Stream(url)
        time.sleep(2)
        windows = ask(url, 1)
        gaps = stream.gaps()
    print(report(windows, gaps))
    assert {window.name: window.status for window in windows} == {window.name: 400 for window in windows}
    assert gaps
