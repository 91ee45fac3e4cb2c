"""Builds and loads the automata that constrain output (grammar_automaton.cpp); knows no request and no schema."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sgl.engine.base.device import detect_isa
from sgl.kernels.cpu import native

SOURCES = ("grammar_text.cpp", "grammar_nfa.cpp", "grammar_automaton.cpp")
HEADERS = ("common.h", "grammar.h", "grammar_tree.h", "grammar_vocabulary.h", "grammar_automaton.h")

Usual = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)
"""(text, size) -> the first of its usual tokens, or -1."""

_WIDEST = {"amx": "avx512", "avx512_bf16": "avx512"}
"""Instructions that this library has no use for, and that an old compiler may not know."""

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, tuple[type | None, Sequence[type]]] = {
    "sgl_vocabulary_new": (_POINTER, (ctypes.c_char_p, _POINTER, _LONG, _POINTER, _POINTER, Usual)),
    "sgl_vocabulary_free": (None, (_POINTER,)),
    "sgl_grammar_new": (_POINTER, (_POINTER, ctypes.c_char_p, _LONG, _INT, _INT, _POINTER, _LONG)),
    "sgl_grammar_free": (None, (_POINTER,)),
    "sgl_grammar_kept_bytes": (_LONG, (_POINTER,)),
    "sgl_matcher_new": (_POINTER, (_POINTER, _POINTER, _LONG)),
    "sgl_matcher_free": (None, (_POINTER,)),
    "sgl_matcher_flags": (_INT, (_POINTER,)),
    "sgl_matcher_accept": (_INT, (_POINTER, ctypes.c_int32)),
    "sgl_matcher_forced": (_LONG, (_POINTER, _POINTER, _LONG)),
    "sgl_matchers_settle": (_LONG, (_POINTER, _LONG, _POINTER, _POINTER, _POINTER, _LONG, _POINTER)),
    "sgl_matchers_advance": (None, (_POINTER, _LONG, _POINTER, _POINTER, _POINTER)),
    "sgl_matchers_fill": (None, (_POINTER, _LONG, _POINTER, _POINTER)),
}


@functools.cache
def missing() -> str:
    """Why there are no automata on this machine; empty if there are."""
    if native.compiler() is None:
        return "no C++ compiler was found (install g++, or set CXX)"
    try:
        library()
    except (OSError, subprocess.SubprocessError) as error:
        return f"building the grammar automata failed: {error}"
    return ""


def build(isa: str) -> Path:
    """As `native.build`."""
    return native.build(_WIDEST.get(isa, isa), "grammar", SOURCES, HEADERS)


@functools.cache
def library() -> ctypes.CDLL:
    """
    Raises:
        OSError, subprocess.SubprocessError: it cannot be built or loaded.
    """
    found = ctypes.CDLL(str(build(detect_isa())))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    return found
