"""The compiler beside the loop: its process, its limits, its cache, and the masks of what it makes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Event
from unittest.mock import Mock

import numpy as np
import pytest

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar
from sgl.engine.grammar.backend import Backend, BackendName, Kind, Options
from sgl.engine.grammar.compiler import Choice, Grammars, Ticket
from sgl.engine.grammar.limits import Limits
from sgl.engine.grammar.process import CompilerPool, CompilerProcess
from sgl.engine.grammar.state import ConstrainedState
from sgl.engine.grammar.vocabulary import BYTES, Vocabulary
from tests.grammar.harness import demo_vocabulary, needs_compiler
from tests.server.live import until

NO_ENDS: frozenset[int] = frozenset()


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    grammars = Grammars("auto", lambda: BYTES)
    yield grammars
    grammars.close()


def waited(ticket: Ticket) -> ConstrainedState:
    while (state := ticket.poll()) is None:
        time.sleep(0.005)
    return state


def compile_now(grammars: Grammars, kind: Kind, source: str, ends: frozenset[int] = NO_ENDS) -> ConstrainedState:
    return waited(grammars.compile(Grammar(kind, source), ends))


def bits(grammars: Grammars, state: ConstrainedState) -> set[int]:
    (mask,) = grammars.masks([state])
    assert isinstance(mask, bytes)
    return {int(bit) for bit in np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))}


def test_an_output_may_end_where_it_is_complete(grammars: Grammars) -> None:
    state = compile_now(grammars, "regex", "a{1,2}", frozenset({7, 9}))
    assert bits(grammars, state) == {97}
    state.accept(97)
    assert bits(grammars, state) == {97, 7, 9} and not state.matcher.finished()
    state.accept(97)
    assert state.matcher.finished()


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "source", "backend"),
    [
        ("regex", "a+", "NativeBackend"),
        ("regex", r"\p{L}", "GuidanceBackend"),
        ("json_schema", '{"type": "integer", "minimum": 3}', "NativeBackend"),
        ("json_schema", '{"type": "integer", "multipleOf": 3}', "GuidanceBackend"),
    ],
)
def test_what_the_automata_do_not_express_goes_to_llguidance(
    grammars: Grammars, kind: Kind, source: str, backend: str
) -> None:
    assert type(compile_now(grammars, kind, source).backend).__name__ == backend


def test_blanks_are_those_that_were_asked_for() -> None:
    grammars = Grammars("auto", lambda: BYTES, Options(whitespace="[ \n]{1,2}"))
    state = compile_now(grammars, "json_schema", '{"type": "object", "properties": {"a": {}}, "required": ["a"]}')
    for byte in b'{ "a" \n:\n1, "b":[\n] }':
        assert byte in bits(grammars, state)
        state.accept(byte)
    assert state.matcher.finished()
    grammars.close()


def test_states_of_one_grammar_are_apart(grammars: Grammars) -> None:
    one, two = (compile_now(grammars, "regex", "ab") for _ in range(2))
    one.accept(97)
    masks = grammars.masks([one, two])
    assert masks[0] != masks[1] and bits(grammars, two) == {97}


@pytest.mark.parametrize(
    ("kind", "source", "word"),
    [
        ("regex", "(a+)+{1000}", "complex"),
        ("regex", "(" * 30_000 + ")" * 30_000, "nest"),
        ("regex", "(", "cannot be compiled"),
        ("regex", "a(?=b)", "cannot be compiled"),
        ("regex", "x" * (10 << 20), "at most"),
        ("json_schema", "{", "JSON"),
        ("json_schema", '{"type": "integer", "multipleOf": 999983}', "more than 0.5 s"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "cannot be compiled"),
        ("json_schema", '{"$ref": "#"}', "no finite value"),
        ("json_schema", '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "no finite value"),
        ("json_schema", '{"$ref": "http://example.com/x"}', "#/$ref"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems at #/uniqueItems"),
        ("json_schema", '{"properties": {"a": {"not": {}}}}', "not at #/properties/a/not"),
        ("json_schema", '{"type": "integr"}', "#/type must be"),
        ("json_schema", "false", "value is valid"),
        ("json_schema", '{"allOf":' * 200 + "{}" + "}" * 200, ""),
        ("json_schema", '{"made-up": 1}', "made-up at #/made-up"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_grammars_are_refused_in_a_sentence(kind: Kind, source: str, word: str) -> None:
    limits = Limits(compile_s=0.5 if "0.5 s" in word else 60.0)
    grammars = Grammars("auto", lambda: BYTES, limits=limits)
    with pytest.raises(SglError) as error:
        compile_now(grammars, kind, source)
    grammars.close()
    assert error.value.status == 400 and word in error.value.message
    assert "\n" not in error.value.message and error.value.message.endswith(".") and len(error.value.message) < 600


def test_after_a_kill_the_next_grammar_is_compiled() -> None:
    grammars = Grammars("auto", lambda: BYTES, limits=Limits(compile_s=1.0))
    with pytest.raises(SglError):
        compile_now(grammars, "json_schema", SLOW % 999983)
    assert bits(grammars, compile_now(grammars, "regex", "b")) == {98}
    grammars.close()


SLOW = '{"type": "integer", "multipleOf": %d}'


def test_a_grammar_that_takes_long_keeps_nobody_waiting() -> None:
    """It ends when the test does: within its own time the others are compiled all the same."""
    grammars = Grammars("llguidance", lambda: BYTES, limits=Limits(compile_s=600.0))
    slow = [grammars.compile(Grammar("json_schema", SLOW % number), NO_ENDS) for number in (999983, 999979)]
    for number in range(4):
        assert bits(grammars, compile_now(grammars, "regex", f"[b-d]{{{number + 1}}}")) == {98, 99, 100}
    assert not any(ticket._future.done() for ticket in slow)
    assert len(grammars._pools["llguidance"]._all) == 3
    grammars.close()


def test_grammars_that_are_quick_share_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.grammar.process._PATIENCE_S", 600.0)
    grammars = Grammars("llguidance", lambda: BYTES)
    tickets = [grammars.compile(Grammar("json_schema", f'{{"const": {number}}}'), NO_ENDS) for number in range(3)]
    for ticket in tickets:
        waited(ticket)
    assert len(grammars._pools["llguidance"]._all) == 1
    grammars.close()


def test_after_a_kill_the_library_loads_while_nobody_waits() -> None:
    grammars = Grammars("llguidance", lambda: BYTES, limits=Limits(compile_s=0.5))
    with pytest.raises(SglError, match=r"more than 0\.5 s"):
        compile_now(grammars, "json_schema", SLOW % 999983)
    (process,) = grammars._pools["llguidance"]._all
    until(process.is_ready)
    grammars.close()


def test_a_process_that_died_while_it_was_idle_is_no_fault_of_the_next_grammar() -> None:
    grammars = Grammars("llguidance", lambda: BYTES)
    compile_now(grammars, "regex", "a")
    (process,) = grammars._pools["llguidance"]._all
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    assert bits(grammars, compile_now(grammars, "regex", "b")) == {98}
    grammars.close()


def no_process(*_: object, **__: object) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_where_a_second_process_cannot_be_started_the_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.grammar.process._PATIENCE_S", 0.0)
    grammars = Grammars("llguidance", lambda: BYTES)
    compile_now(grammars, "regex", "a")
    attempts: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: attempts.append(_) or no_process())
    with grammars._pools["llguidance"].lend():
        ticket = grammars.compile(Grammar("regex", "b"), NO_ENDS)
        until(lambda: len(attempts) >= 2 or ticket._future.done())
        assert not ticket._future.done()
    assert bits(grammars, waited(ticket)) == {98}
    grammars.close()


def test_what_the_engine_was_at_fault_for_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars("llguidance", lambda: BYTES)
    with monkeypatch.context() as context, pytest.raises(SglError, match="Cannot allocate memory") as error:
        context.setattr("subprocess.Popen", no_process)
        compile_now(grammars, "regex", "a")
    assert error.value.status == 500
    assert bits(grammars, compile_now(grammars, "regex", "a")) == {97}
    grammars.close()


@needs_compiler
def test_the_native_automata_wait_for_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many grammars as there are threads wait for a library that takes long to load; it does while this runs."""
    has_loaded, load = Event(), Grammars._backend

    def load_slowly(self: Grammars, name: BackendName) -> Backend:
        assert name != "xgrammar" or has_loaded.wait(60.0)
        return load(self, name)

    monkeypatch.setattr(Grammars, "_backend", load_slowly)
    monkeypatch.setattr(CompilerPool, "start", lambda _: None)
    grammars = Grammars("auto", lambda: BYTES)
    waiting = [grammars.compile(Grammar("ebnf", f'root ::= "{number}"'), NO_ENDS) for number in range(3)]
    assert bits(grammars, compile_now(grammars, "regex", "[ab]")) == {97, 98}
    assert bits(grammars, compile_now(grammars, "json_schema", '{"const": 1}')) == {ord("1")}
    assert not any(ticket._future.done() for ticket in waiting)
    grammars.close()
    has_loaded.set()
    for ticket in waiting:
        with pytest.raises(SglError, match="shutting down"):
            ticket.poll()


def new_pool() -> CompilerPool:
    return CompilerPool(lambda: CompilerProcess("native", BYTES, Options(), Limits()))


def test_processes_beside_the_first_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Mock] = []

    def timer(_: float, action: Callable[[], None]) -> Mock:
        timers.append(Mock(action=action))
        return timers[-1]

    monkeypatch.setattr("sgl.engine.grammar.process.Timer", timer)
    monkeypatch.setattr("sgl.engine.grammar.process._PATIENCE_S", 0.0)
    pool = new_pool()
    with ExitStack() as stack:
        lent = [stack.enter_context(pool.lend()) for _ in range(2)]
        timers[-1].action()
        assert pool._all == lent, "both are in use"
    timers[-1].action()
    assert len(pool._all) == 2, "they have not been idle for long"
    running = [process._process for process in lent]
    monkeypatch.setattr("sgl.engine.grammar.process._IDLE_S", 0.0)
    timers[-1].action()
    assert pool._all == [lent[0]] and len(timers) == 3, "the one used last stays; nothing is left to look for"
    with pool.lend() as last:
        assert last is lent[0]
    pool.close()
    assert not [process for process in running if process is not None and process.poll() is None]


def test_after_the_end_no_process_is_started() -> None:
    pool = new_pool()
    pool.close()
    pool.start()
    assert not pool._all


def test_a_refusal_is_remembered_and_the_oldest_is_forgotten() -> None:
    grammars = Grammars("auto", lambda: BYTES, limits=Limits(cached=2))
    for source in ("(", "a", "b"):
        ticket = grammars.compile(Grammar("regex", source), NO_ENDS)
        while not ticket._future.done():
            time.sleep(0.005)
    assert [grammar.source for grammar in grammars._kept] == ["a", "b"]
    again = grammars.compile(Grammar("regex", "a"), NO_ENDS)
    assert again.poll() is not None
    grammars.close()


@pytest.mark.parametrize(
    ("choice", "kind", "word"),
    [("none", "regex", "is none"), ("outlines", "ebnf", "auto or xgrammar"), ("llguidance", "structural_tag", "auto")],
)
def test_a_kind_that_the_backend_lacks_is_refused(choice: Choice, kind: Kind, word: str) -> None:
    grammars = Grammars(choice, lambda: BYTES)
    with pytest.raises(SglError, match=word):
        compile_now(grammars, kind, "a")
    grammars.close()


def test_special_tokens_are_text_only_where_a_tag_names_them() -> None:
    pieces = (*(bytes([byte]) for byte in range(256)), b"", b"")
    vocabulary = Vocabulary(pieces, {256: b"<call>", 257: b"<other>"})
    grammars = Grammars("auto", lambda: vocabulary)
    tag = (
        '{"format": {"type": "sequence", "elements": [{"type": "any_text", "excludes": ["<call>"]}, '
        '{"type": "tag", "begin": "<call>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</call>"}]}}'
    )
    state = compile_now(grammars, "structural_tag", tag, frozenset({257}))
    assert 256 in bits(grammars, state) and 257 not in bits(grammars, state)
    for token_id in (104, 256, 49, *b"</call>"):
        assert token_id in bits(grammars, state)
        state.accept(token_id)
    assert state.matcher.finished() and 257 in bits(grammars, state)
    grammars.close()


def test_forced_text_comes_in_the_usual_tokens() -> None:
    vocabulary = demo_vocabulary()
    grammars = Grammars("auto", lambda: vocabulary)
    state = compile_now(grammars, "json_schema", '{"const": "a <|im_end|> Paris, and more"}')
    tokens: list[int] = []
    while not state.matcher.finished():
        forced = list(state.forced())
        assert forced and not any(token_id in vocabulary.special for token_id in forced)
        assert bits(grammars, state) == {forced[0]}, "what is forced is all that the mask allows"
        for token_id in forced:
            state.accept(token_id)
        tokens += forced
    assert b"".join(vocabulary.pieces[token_id] for token_id in tokens) == b'"a <|im_end|> Paris, and more"'
    grammars.close()


def test_masks_are_the_same_on_many_threads(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [compile_now(grammars, "json_schema", '{"type": "object"}') for _ in range(8)]
    for count, state in enumerate(states):
        for byte in b'{"ab": [1,'[:count]:
            state.accept(byte)
    alone = grammars.masks(states)
    monkeypatch.setattr("sgl.engine.grammar.backends.llguidance.PARALLEL_FROM", 0)
    assert grammars.masks(states) == alone


def test_what_is_slow_to_load_is_loaded_in_the_first_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.grammar.compiler._QUIET_S", 0.02)
    grammars, looks = Grammars("llguidance", lambda: BYTES), [9, 9, 5, 4]

    def num_steps() -> int:
        assert not grammars._pools["llguidance"]._all, "loaded while the engine was busy"
        return looks.pop()

    grammars.warm_up(num_steps)
    until(lambda: [process for process in grammars._pools["llguidance"]._all if process.is_ready()])
    assert not looks, "it is looked until nothing has happened between two looks"
    grammars.close()
