"""Main program of the grammar compiler: tries grammars out within limits, so that a bad one kills this and no engine.

It answers what its standard input asks for, one after the other, and ends with it. It keeps no grammar.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from typing import BinaryIO

import numpy as np

from sgl.engine.base.errors import SglError
from sgl.engine.grammar.backend import Backend, Matcher, Options, open_backend, refusal
from sgl.engine.grammar.protocol import (
    Check,
    Checked,
    Load,
    Loaded,
    Lower,
    Refused,
    Reply,
    Request,
    decode_request,
    frame_of,
    read_frame,
)
from sgl.engine.grammar.source import lowered, prepare
from sgl.engine.grammar.vocabulary import Vocabulary

_PR_SET_PDEATHSIG = 1
_TRIAL_TOKENS = 40
_NICENESS = 5  # whoever waits for a grammar waits a little longer, and nobody else at all


class Worker:
    """What it has been told to load, and nothing of earlier grammars."""

    def __init__(self) -> None:
        self._load: Load | None = None
        self._backend: Backend | None = None
        self._vocabulary = Vocabulary(())

    def reply(self, frame: bytes) -> bytes:
        """The frame to answer one with; what a grammar does to this process short of killing it is an answer too."""
        try:
            return frame_of(self._answer(decode_request(frame)))
        except SglError as error:
            message = error.message.encode(errors="backslashreplace").decode()  # it may quote what is no text
            refused = Refused(message, error.code, error.param, error.status)
        except MemoryError:
            refused = Refused("The grammar needs too much memory.", "grammar_too_complex")
        except RecursionError:
            refused = Refused("The grammar is nested too deeply.", "grammar_too_complex")
        except (ValueError, OverflowError) as error:  # UnicodeError among them
            refused = Refused(f"The grammar has what cannot be read: {error!a:.200}.", "invalid_grammar")
        return frame_of(refused)

    def _answer(self, request: Request) -> Reply:
        match request:
            case Load():
                return self._open(request)
            case Lower(grammar):
                assert self._load is not None, "Load comes first"
                return Checked(lowered(grammar, self._load.whitespace))
        return self._check(request)

    def _open(self, request: Load) -> Reply:
        self._load, self._vocabulary = request, Vocabulary(request.pieces, request.special)
        if request.backend != "native":  # whose automata need nobody to try them out
            self._backend = open_backend(request.backend, self._vocabulary, Options(request.whitespace))
        limit = _data_bytes() + request.memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        return Loaded()

    def _check(self, request: Check) -> Reply:
        assert self._load is not None and self._backend is not None, "Load comes first"
        prepared = prepare(request.grammar, self._load.backend)
        matcher = self._backend.compile(prepared.grammar).matcher()
        self._try(prepared.grammar.kind, matcher, request)
        named = [token_id for token_id, name in self._load.special.items() if name.decode() in prepared.literal_text]
        return Checked(prepared.grammar, tuple(named))

    def _try(self, kind: str, matcher: Matcher, request: Check) -> None:
        """Follows the grammar for a while, always by the token in the middle of those allowed.

        Raises:
            SglError: it allows nothing, or a mask takes too long.
        """
        assert self._backend is not None
        masks = np.zeros((1, self._vocabulary.mask_words), np.int32)
        for number in range(_TRIAL_TOKENS):
            begin_s = time.process_time()
            self._backend.fill([matcher], masks)
            took_s = time.process_time() - begin_s
            error = matcher.error()
            if error is not None or took_s > request.mask_s:
                raise _too_complex(kind, error or "its masks take too long to compute")
            allowed = np.flatnonzero(np.unpackbits(masks.view(np.uint8)[0], bitorder="little"))
            texts = allowed[allowed < self._vocabulary.end_id]
            if not len(texts) and self._vocabulary.end_id not in allowed:
                raise refusal(request.grammar, "it allows no output" if not number else "it leads nowhere")
            if not len(texts):
                return
            matcher.accept(int(texts[len(texts) // 2]))
            if matcher.finished():
                return


def _too_complex(kind: str, reason: str) -> SglError:
    return SglError(f"The {kind} is too complex: {reason}.", code="grammar_too_complex", param=kind)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts, so far."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    out: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the frames
    worker = Worker()
    while frame := read_frame(sys.stdin.buffer):
        out.write(worker.reply(frame))
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
