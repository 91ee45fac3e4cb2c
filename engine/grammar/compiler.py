"""Compiles grammars beside the engine's loop and keeps the compiled ones; the scheduler's `GrammarCompiler`.

A grammar is tried out in a process that can be killed (`CompilerProcess`). What passes there is known to be cheap, so
the engine then compiles it itself, on the same thread beside the loop and without the GIL: nothing that a client could
influence is ever deserialized here, and no library has to be able to serialize. Every backend has as many threads as
processes, so what is slow in one, its own loading too, keeps nobody of another one waiting.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock, Timer
from typing import TYPE_CHECKING, Literal, cast

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Grammar, HostDraws
from sgl.engine.core.grammar import GrammarState
from sgl.engine.grammar.backend import Backend, BackendName, Compiled, Kind, Options, open_backend
from sgl.engine.grammar.limits import Limits
from sgl.engine.grammar.process import MAX_PROCESSES, CompilerPool, CompilerProcess
from sgl.engine.grammar.source import check_at_a_glance
from sgl.engine.grammar.state import ConstrainedState, Group, TokenSet, fill_masks
from sgl.engine.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from sgl.engine.grammar.backends.native import NativeCompiled

logger = logging.getLogger(__name__)

_QUIET_S = 5.0
_MAX_KEPT_BYTES = 256 << 20
"""Of what the kept grammars have found out, all together; one alone keeps some 50 MB at most."""

Choice = Literal["auto", "native", "llguidance", "xgrammar", "outlines", "none"]

_AUTO: Mapping[Kind, tuple[BackendName, ...]] = {
    "json_schema": ("native", "llguidance"),
    "regex": ("native", "llguidance"),
    "ebnf": ("xgrammar",),
    "structural_tag": ("xgrammar",),
}
"""The first that takes a grammar gets it; measured and explained in docs/structured-output.md."""

_KINDS: Mapping[BackendName, tuple[Kind, ...]] = {
    "native": ("json_schema", "regex"),
    "llguidance": ("json_schema", "regex"),
    "xgrammar": ("json_schema", "regex", "ebnf", "structural_tag"),
    "outlines": ("json_schema", "regex"),
}


def backends_for(kind: Kind, choice: Choice) -> tuple[BackendName, ...]:
    """Those that shall be asked for a grammar, in order.

    Raises:
        SglError: 400; the backend that was chosen does not have that kind of grammar.
    """
    if choice == "none":
        raise SglError(f"{kind} needs a grammar backend, but --grammar-backend is none.", param=kind)
    if choice == "auto":
        return _AUTO[kind]
    if kind not in _KINDS[choice]:
        able = " or ".join(["auto", *(name for name, kinds in _KINDS.items() if kind in kinds)])
        raise SglError(f"--grammar-backend {choice} does not support {kind}; {able} does.", param=kind)
    return (choice,)


@dataclass(frozen=True)
class _Ready:
    """A compiled grammar with what belongs to it."""

    backend: Backend
    compiled: Compiled
    banned: TokenSet
    kept_bytes: Callable[[], int] = lambda: 0
    """What the grammar has found out so far, where that grows with its use."""


def _kept_bytes(future: Future[_Ready]) -> int:
    is_there = future.done() and not future.cancelled() and future.exception() is None
    return future.result().kept_bytes() if is_there else 0


def _is_to_keep(future: Future[_Ready]) -> bool:
    """Whether asking again would change nothing: what the engine was at fault for is tried again."""
    if not future.done():
        return True
    if future.cancelled():
        return False
    error = future.exception()
    return error is None or (isinstance(error, SglError) and error.status < 500)


class Ticket:
    """A request's share in a compilation."""

    def __init__(self, future: Future[_Ready], kind: str, ends: Callable[[], TokenSet]) -> None:
        self._future, self._kind, self._ends = future, kind, ends

    def poll(self) -> ConstrainedState | None:
        if not self._future.done():
            return None
        if self._future.cancelled():
            raise SglError("The engine is shutting down.", code="shutdown", status=503)
        ready = self._future.result()
        ends = self._ends()
        return ConstrainedState(ready.backend, ready.compiled.matcher(ends.ids), self._kind, ends, ready.banned)


class Grammars:
    """
    Args:
        vocabulary: makes it, which takes long for a large one; called on the thread beside the loop.
    """

    def __init__(
        self,
        choice: Choice,
        vocabulary: Callable[[], Vocabulary],
        options: Options | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._choice = choice
        self._options = options or Options()
        self._limits = limits or Limits()
        self._make_vocabulary = vocabulary
        self._vocabulary: Vocabulary | None = None
        self._backends: dict[BackendName, Backend] = {}
        self._locks: Mapping[BackendName, Lock] = {name: Lock() for name in _KINDS}  # of what libraries do here
        self._vocabulary_lock = Lock()
        self._pools: Mapping[BackendName, CompilerPool] = {
            name: CompilerPool(partial(self._new_process, name)) for name in _KINDS
        }
        self._kept: OrderedDict[Grammar, Future[_Ready]] = OrderedDict()
        self._group = Group(())
        self._ends = lru_cache(256)(self._token_set)
        self._threads: Mapping[BackendName, ThreadPoolExecutor] = {
            name: ThreadPoolExecutor(MAX_PROCESSES, f"sgl-{name}") for name in _KINDS
        }
        self._timer: Timer | None = None
        self._is_closed = False

    def warm_up(self, num_steps: Callable[[], int]) -> None:
        """Loads the backend that is used most, and the others once the engine makes no steps for a while.

        To import the larger ones takes seconds, in which the GIL is held again and again.
        """
        if self._choice != "none":
            self._timer = Timer(_QUIET_S, self._load_when_quiet, (num_steps,))
            self._timer.daemon = True
            self._timer.start()  # first: to start a thread waits for the GIL, which the other one holds at once
            for name in backends_for("regex", self._choice):
                self._threads[name].submit(self._open, name)

    def compile(self, grammar: Grammar, end_ids: frozenset[int]) -> Ticket:
        future = self._kept.get(grammar)
        if future is None or not _is_to_keep(future):
            future = self._kept[grammar] = Future()
            try:
                self._submit(future, grammar, backends_for(grammar.kind, self._choice))
            except SglError as error:
                future.set_exception(error)
        self._kept.move_to_end(grammar)
        self._forget()
        return Ticket(future, grammar.kind, lambda: self._ends(end_ids))

    def settle(self, states: Sequence[GrammarState], draws: HostDraws) -> int:
        if self._group.states != states:  # most steps are about the same requests
            self._group = Group(cast(Sequence[ConstrainedState], states))
        return self._group.settle(draws)

    def advance(self, states: Sequence[GrammarState], draws: HostDraws) -> None:
        assert self._group.states == states, "what was limited is drawn before anything else is asked"
        self._group.advance(draws)

    def masks(self, states: Sequence[GrammarState]) -> list[bytes | SglError | None]:
        assert self._vocabulary is not None, "a state has come out of a vocabulary"
        return fill_masks(cast(Sequence[ConstrainedState], states), self._vocabulary)

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for future in self._kept.values():
            future.cancel()
        for pool in self._pools.values():
            pool.close()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, future: Future[_Ready], grammar: Grammar, names: Sequence[BackendName]) -> None:
        """Has the first of some backends compile a grammar; on the threads of the last if that needs its processes."""
        threads = self._threads[names[0] if grammar.kind == "regex" else names[-1]]
        threads.submit(self._compile, future, grammar, names)

    def _forget(self) -> None:
        """Drops the grammars that were not asked for longest, refused ones among them; keeps the last in any case."""
        sizes = deque(map(_kept_bytes, self._kept.values()))
        total = sum(sizes)
        while len(self._kept) > self._limits.cached or (total > _MAX_KEPT_BYTES and len(self._kept) > 1):
            self._kept.popitem(last=False)
            total -= sizes.popleft()

    def _load_when_quiet(self, num_steps: Callable[[], int]) -> None:
        before = -1
        while not self._is_closed and (now := num_steps()) != before:
            before = now
            time.sleep(_QUIET_S)
        if not self._is_closed:
            names = dict.fromkeys(name for kinds in _AUTO.values() for name in kinds)
            for name in names if self._choice == "auto" else backends_for("regex", self._choice):
                self._threads[name].submit(self._load, name)

    # ---- on threads beside the loop ----------------------------------------------------------------------------------

    def _load(self, name: BackendName) -> None:
        """Opens a backend that this choice may need, and has a process do so."""
        with suppress(SglError):  # a package that is not installed is missed when somebody needs it
            self._backend(name)
            if name != "native":
                self._pools[name].start()

    def _open(self, name: BackendName) -> None:
        with suppress(SglError):
            self._backend(name)

    def _compile(self, future: Future[_Ready], grammar: Grammar, names: Sequence[BackendName]) -> None:
        """Ends a future, or leaves it to the next backend."""
        found: _Ready | SglError
        try:
            found = self._compile_within_limits(grammar, names)
        except SglError as error:
            found = error
        except Exception:  # what a library does not foresee must not end the loop that asks for the result
            logger.exception("a %s could not be compiled", grammar.kind)
            message = f"An internal error occurred while the {grammar.kind} was compiled; see the log."
            found = SglError(message, code="internal_error", status=500)
        with suppress(InvalidStateError):  # it was cancelled
            if not isinstance(found, SglError):
                future.set_result(found)
            elif len(names) == 1 or found.code == "grammar_too_complex":
                future.set_exception(found)
            else:
                self._submit(future, grammar, names[1:])

    def _compile_within_limits(self, grammar: Grammar, names: Sequence[BackendName]) -> _Ready:
        """By the first of the backends."""
        check_at_a_glance(grammar)  # before a library is loaded for it
        if names[0] == "native":
            return self._compile_natively(grammar, names[-1])
        return self._compile_by(names[0], grammar)

    def _compile_natively(self, grammar: Grammar, process: BackendName) -> _Ready:
        """Nobody tries the automaton out: it grows with the source, and what it does for a token is limited."""
        backend = self._backend("native")
        if grammar.kind == "json_schema":
            with self._pools[process].lend() as worker:
                grammar = worker.lower(grammar)
        compiled = cast("NativeCompiled", backend.compile(grammar))
        return _Ready(backend, compiled, TokenSet.of((), self._loaded_vocabulary()), compiled.kept_bytes)

    def _compile_by(self, name: BackendName, grammar: Grammar) -> _Ready:
        vocabulary = self._loaded_vocabulary()
        self._pools[name].start()
        backend = self._backend(name)
        with self._pools[name].lend() as process:
            checked = process.check(grammar)
        banned = set(vocabulary.special).difference(checked.special_ids) if grammar.kind == "structural_tag" else ()
        with self._locks[name]:
            compiled = backend.compile(checked.grammar)
        return _Ready(backend, compiled, TokenSet.of(banned, vocabulary))

    def _new_process(self, name: BackendName) -> CompilerProcess:
        return CompilerProcess(name, self._loaded_vocabulary(), self._options, self._limits)

    def _backend(self, name: BackendName) -> Backend:
        with self._locks[name]:
            if name not in self._backends:
                self._backends[name] = open_backend(name, self._loaded_vocabulary(), self._options)
            return self._backends[name]

    def _loaded_vocabulary(self) -> Vocabulary:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = self._make_vocabulary()
            return self._vocabulary

    def _token_set(self, token_ids: frozenset[int]) -> TokenSet:
        return TokenSet.of(token_ids, self._loaded_vocabulary())
