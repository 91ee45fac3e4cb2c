"""Interpreters that are started before anybody knows what they shall do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sgl.engine.base.interpreter import Interpreter

ROOT = Path(__file__).parents[2]


def test_one_that_is_not_needed_ends() -> None:
    with Interpreter(()) as interpreter:
        assert interpreter.process.poll() is None
    assert interpreter.process.returncode is not None
    interpreter.close()


def test_one_without_orders_ends_without_a_word() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sgl.engine.worker", "json", "no.such.module"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_orders_for_one_that_died_are_no_error() -> None:
    with Interpreter(()) as interpreter:
        interpreter.process.kill()
        interpreter.process.wait()
        interpreter.order(b"x" * 100_000)
        assert interpreter.process.stdin is not None and interpreter.process.stdin.closed
