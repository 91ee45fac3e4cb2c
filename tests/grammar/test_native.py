"""The native automata against Python's regular expressions, against llguidance, and at their limits."""

from __future__ import annotations

import ctypes
import json
import random
import re
import string
import time
from typing import Any, cast

import numpy as np
import pytest

from sgl.engine.base.device import CPU_ISAS
from sgl.engine.base.errors import SglError
from sgl.engine.base.types import LIMITED, UNSETTLED, Grammar, HostDraws
from sgl.engine.grammar.backend import Backend, Compiled
from sgl.engine.grammar.backends.native import NativeBackend, NativeCompiled
from sgl.engine.grammar.compiler import Grammars
from sgl.engine.grammar.state import ConstrainedState, TokenSet, fill_masks
from sgl.engine.grammar.vocabulary import BYTES, Vocabulary
from sgl.kernels.cpu import grammar as automata
from tests.grammar.harness import (
    accepts,
    allowed,
    backend,
    compiled,
    demo_tokenizer,
    demo_vocabulary,
    needs_compiler,
    sample,
    settled,
)

pytestmark = needs_compiler

ATOMS = (
    "a",
    "b",
    "[ab]",
    "[^a]",
    ".",
    "é",
    "[а-я]",
    "\\d",
    "(?:ab|c)",
    "(x|)",
    "\\.",
    "[\\w-]",
    "\\s",
    "日",
    "[😀-😎]",
)
REPEATS = ("", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?")
LETTERS = ("a", "b", "c", "x", "é", "д", "7", ".", "-", " ", "日", "😀", "\n", "_")


def random_pattern(rng: random.Random, depth: int = 2) -> str:
    parts = []
    for _ in range(rng.randint(1, 4)):
        atom = f"({random_pattern(rng, depth - 1)})" if depth and rng.random() < 0.3 else rng.choice(ATOMS)
        parts.append(atom + rng.choice(REPEATS))
    return "|".join(["".join(parts), *([random_pattern(rng, depth - 1)] if depth and rng.random() < 0.2 else [])])


@pytest.mark.parametrize("seed", range(8))
def test_a_text_fits_as_python_has_it(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(25):
        pattern = random_pattern(rng)
        grammar, expected = compiled("native", "regex", pattern, demo=True), re.compile(pattern)
        for _ in range(2):
            text = sample("native", grammar, rng, max_tokens=40)
            assert text is None or expected.fullmatch(text.decode()), (pattern, text)
        for _ in range(6):
            word = "".join(rng.choices(LETTERS, k=rng.randint(0, 6)))
            tokens = demo_tokenizer().encode(word, add_special_tokens=False)
            fits = expected.fullmatch(word) is not None
            assert accepts("native", grammar, tokens, demo=True) == fits, (pattern, word)


@pytest.mark.parametrize("demo", [False, True], ids=["bytes", "demo"])
def test_masks_are_those_of_llguidance(demo: bool) -> None:
    rng = random.Random(7)
    for _ in range(40):
        pattern = random_pattern(rng)
        for name, same in (("\\w", "0-9A-Z_a-z"), ("\\s", "[ \\n]"), ("\\d", "[0-9]")):  # Unicode has versions
            pattern = pattern.replace(name, same)
        same_all_along(rng, "regex", pattern, demo=demo)


SCHEMAS: list[Any] = [
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "array", "items": {"type": "integer", "minimum": -20, "maximum": 150}, "minItems": 1, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "null"}, "ab": {"enum": ["x", 1, [2, {"y": None}]]}}},
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "number"}, "c": {"const": "d"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    {"type": "string", "pattern": '^[a-c"]+-?.$'},
    {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2}}, "$ref": "#/$defs/n"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_schemas_mean_what_they_mean_to_llguidance(schema: Any) -> None:
    rng = random.Random(3)
    for _ in range(4):
        same_all_along(rng, "json_schema", json.dumps(schema), demo=False)


def same_all_along(rng: random.Random, kind: Any, source: str, *, demo: bool) -> None:
    """Along a random text the masks of both are the same, but for DEL, which llguidance keeps out of strings."""
    mine, theirs = (compiled(name, kind, source, demo=demo).matcher() for name in ("native", "llguidance"))
    for _ in range(25):
        one, two = allowed("native", mine, demo=demo) - {0x7F}, allowed("llguidance", theirs, demo=demo) - {0x7F}
        if demo and 1 in (len(one), len(two)) and one != two:
            return  # where text is forced either may look further ahead
        assert one == two, (source, one ^ two)
        tokens = sorted(one - {(demo_vocabulary().end_id if demo else 256)})
        if not tokens:
            return
        token_id = rng.choice(tokens)
        mine.accept(token_id)
        theirs.accept(token_id)


@pytest.mark.parametrize(
    "pattern", ["a(?=b)", "(a)\\1", "\\bword", "(?i)a", "a++", "[[:alpha:]]", "\\p{L}", "a{2}{3}", "(", "a)", "[b-a]"]
)
def test_what_others_read_otherwise_is_refused(pattern: str) -> None:
    with pytest.raises(SglError) as error:
        compiled("native", "regex", pattern)
    assert error.value.status == 400


TOO_MUCH = {
    "states": "((a{500}){500}){500}",
    "brackets": "(" * 5000 + ")" * 5000,
    "count": "a{100001}",
    "nothing": "[^\\s\\S]",
    "classes": "\\w" * 30_000,
    "members": "[" + "\\w" * 8000 + "]",
    "calls": "(?:" + "|".join(["[^\\x00-\\x7f]"] * 1000) + "){100000}",
    "nothings": "(?:" + "|".join(["[^\\s\\S]"] * 20_000) + "|a){100000}",
}


@pytest.mark.parametrize("pattern", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_costs_too_much_or_allows_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(SglError) as error:
        compiled("native", "regex", pattern, demo=True)
    assert error.value.status == 400


@pytest.mark.parametrize("width", [3072, 3000, 3090])
def test_the_likeliest_of_those_that_may_come_is_chosen(width: int) -> None:
    rng, numbers = random.Random(width), np.random.default_rng(width)
    grammar = compiled("native", "regex", "([a-z]{1,4}[ ,]){3,5}", demo=True)
    end_id = demo_vocabulary().end_id
    ends = frozenset({7, 11})
    for length in range(12):
        matchers = [grammar.matcher(ends) for _ in range(3)]
        tokens: list[int] = []
        for _ in range(length):
            choices = sorted(allowed("native", matchers[0], demo=True) - {end_id})
            if not choices:
                break
            tokens.append(rng.choice(choices))
            for matcher in matchers:
                matcher.accept(tokens[-1])
        logits = np.round(numbers.normal(size=(3, width)), 1).astype(np.float32)  # with equal ones
        logits[1, :2000] = -np.inf
        logits[2, 7] = 50  # an end is likeliest by far
        mask = allowed("native", matchers[0], demo=True)
        may_come = sorted((mask - {end_id} | (ends if end_id in mask else set())) & set(range(width)))
        expected = [int(may_come[int(row[may_come].argmax())]) if may_come else -1 for row in logits]
        expected = [token if token >= 0 and np.isfinite(logits[i, token]) else -1 for i, token in enumerate(expected)]
        likeliest = [int(row.argmax()) for row in logits]
        assert settled("native", matchers, likeliest, logits, demo=True) == expected


@pytest.mark.parametrize("width", [3072, 3000, 3090, 40])
def test_what_is_drawn_at_random_is_limited_to_what_the_mask_allows(width: int) -> None:
    rng, numbers = random.Random(width), np.random.default_rng(width)
    grammar = compiled("native", "regex", "([a-z]{1,4}[ ,]){3,5}|Paris", demo=True)
    end_id, ends = demo_vocabulary().end_id, frozenset({7, 11, 3089})
    matcher = grammar.matcher(ends)
    while not matcher.finished():
        mask = allowed("native", matcher, demo=True)
        may_come = [token in mask - {end_id} or (end_id in mask and token in ends) for token in range(width)]
        logits = numbers.normal(size=(1, width)).astype(np.float32)
        expected = np.where(may_come, logits, -np.inf).astype(np.float32)
        (found,) = settled("native", [matcher], [UNSETTLED], logits, demo=True)
        if len(mask) == 1:
            assert mask == {found}, "nothing is drawn where only one may come"
            continue
        assert found == (LIMITED if any(may_come) else UNSETTLED)
        assert np.array_equal(logits, expected)
        token = rng.choice(sorted(mask - {end_id}))
        if found == LIMITED:
            tokens = (ctypes.c_int64 * 1)(token)
            backend("native", demo=True).advance([matcher], HostDraws(tokens, range(1)))
        else:
            matcher.accept(token)
        assert matcher.error() is None


def test_only_what_was_limited_goes_on_with_what_was_drawn() -> None:
    grammar = compiled("native", "regex", "[ab]{2}c?", demo=True)
    drawn, likely, at_end = (grammar.matcher({9}) for _ in range(3))
    a, b, c = (demo_tokenizer().encode(letter, add_special_tokens=False)[0] for letter in "abc")
    for token in (a, b):
        at_end.accept(token)
    logits = np.zeros((3, 3072), np.float32)
    assert settled("native", [drawn, likely, at_end], [-1, b, -1], logits, demo=True) == [LIMITED, b, LIMITED]
    backend("native", demo=True).advance([drawn, likely, at_end], HostDraws((ctypes.c_int64 * 3)(a, b, 9), range(3)))
    assert allowed("native", drawn, demo=True) == allowed("native", likely, demo=True)
    assert allowed("native", at_end, demo=True) == {c, demo_vocabulary().end_id}, "an end leads nowhere"


def test_without_a_finite_logit_nothing_is_limited_to() -> None:
    matcher = compiled("native", "regex", "[ab]+", demo=True).matcher()
    logits = np.full((1, 3072), -np.inf, np.float32)
    logits[0, 5] = np.nan
    before = allowed("native", matcher, demo=True)
    assert settled("native", [matcher], [-1], logits, demo=True) == [UNSETTLED]
    assert allowed("native", matcher, demo=True) == before


def test_after_a_token_that_does_not_fit_only_the_end_is_allowed() -> None:
    matcher = compiled("native", "regex", "ab").matcher()
    matcher.accept(ord("x"))
    assert matcher.error() is not None and allowed("native", matcher) == {256} and matcher.forced() == []


COSTLY = "(?:[a-h]{1,3}|!(?:" + "|".join([*(f"[!-~]{i}" for i in range(12_000)), *string.ascii_letters]) + "))"
"""Behind the ! are 12000 places, from each of which nearly every byte leads on to another."""


def state_of(grammar: Compiled, vocabulary: Vocabulary, of: Backend, text: bytes) -> ConstrainedState:
    ends = TokenSet.of({0}, vocabulary)
    state = ConstrainedState(of, grammar.matcher(ends.ids), "regex", ends, TokenSet.of((), vocabulary))
    for byte in text:
        state.accept(byte)
    return state


def bits_of(tokens: set[int]) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(BYTES.mask_words * 4, "little")


def test_a_mask_that_takes_too_long_is_an_error_and_not_an_end() -> None:
    grammar = compiled("native", "regex", COSTLY)
    costly, other = (state_of(grammar, BYTES, backend("native"), text) for text in (b"!", b"a"))
    assert settled("native", [costly.matcher, other.matcher], [-1, -1]) == [-1, -1]
    failed, mask = fill_masks([costly, other], BYTES)
    assert isinstance(failed, SglError) and failed.code == "grammar_too_complex", "all the work of a call was its own"
    assert costly.matcher.error() is not None
    assert mask == bits_of({0, *b"abcdefgh"}), "the end is token 0 here"
    assert other.matcher.error() is None, "nobody fails for what came before him"
    assert cast(NativeCompiled, grammar).kept_bytes() < 48 << 20


def test_the_work_of_a_call_is_bounded_and_its_texts_take_turns() -> None:
    """Every other mask takes nearly all the work of a call: few are found in each, none fails, all come in time."""
    native = backend("native")
    ends = TokenSet.of({0}, BYTES)

    def costly(number: int) -> ConstrainedState:
        words = "|".join(
            [*(f"[!-~]{i}" for i in range(number, number + (200, 1600)[number % 2])), *string.ascii_letters]
        )
        return state_of(native.compile(Grammar("regex", f"a|!(?:{words})")), BYTES, native, b"!")

    states = [costly(number) for number in range(24)]
    ordinary = ConstrainedState(native, compiled("native", "regex", "[a-c]+").matcher(), "regex", ends, ends)
    found: dict[int, int] = {}
    for call in range(200):
        waiting = [row for row in range(len(states)) if row not in found]
        if not waiting:
            break
        *masks, own = fill_masks([*(states[row] for row in waiting), ordinary], BYTES)
        assert isinstance(own, bytes), "what takes next to nothing is never put off"
        assert not [mask for mask in masks if isinstance(mask, SglError)]
        come = {row: call for row, mask in zip(waiting, masks, strict=True) if mask is not None}
        assert len(come) <= 12
        found |= come
    assert len(found) == len(states) and max(found.values()) >= 2


@pytest.mark.parametrize("isa", sorted({*CPU_ISAS} - {"amx", "avx512_bf16"}))
def test_the_automata_compile_also_where_they_cannot_run(isa: str) -> None:
    assert automata.build(isa).is_file()


def test_what_has_become_known_stays_so_and_makes_what_failed_possible() -> None:
    """Each attempt goes on from where the one before it ran out of work."""
    grammar = compiled("native", "regex", COSTLY)
    for _ in range(40):
        matcher = grammar.matcher()
        matcher.accept(ord("!"))
        mask = allowed("native", matcher)
        if matcher.error() is None:
            break
    assert mask == set(range(ord("!"), ord("~") + 1))


def test_what_no_token_can_go_on_with_is_an_error() -> None:
    vocabulary = Vocabulary((b"a", b"b"))
    native = NativeBackend(vocabulary)
    state = state_of(native.compile(Grammar("regex", "b+|a(?:c|d)")), vocabulary, native, bytes([0]))
    (failed,) = fill_masks([state], vocabulary)
    assert isinstance(failed, SglError) and failed.code == "grammar_too_complex"


def test_a_grammar_forgets_what_it_knew_and_goes_on() -> None:
    """Of n letters, whether the one 19 before the end was an a: so many states that they cannot all be kept."""
    pattern = "[ab]*a[ab]{18}"
    grammar = cast(NativeCompiled, compiled("native", "regex", pattern))
    rng, text, most, was_forgotten = random.Random(5), "", 0, False
    matcher, other = grammar.matcher(), grammar.matcher()
    for byte in b"abba":
        other.accept(byte)
    for step in range(150_000):
        letter = rng.choice("ab")
        text = (text + letter)[-40:]
        matcher.accept(ord(letter))
        if step % 1000 == 0:
            kept = grammar.kept_bytes()
            was_forgotten |= kept < most
            most = max(most, kept)
            assert kept < 20 << 20
            assert (256 in allowed("native", matcher)) == bool(re.fullmatch(pattern, text))
    assert was_forgotten
    assert 256 not in allowed("native", other)
    for byte in b"b" * 14:
        other.accept(byte)
    assert 256 not in allowed("native", other)
    other.accept(ord("b"))
    assert 256 in allowed("native", other), "abba and 15 b: the first of 19"


def test_the_grammars_that_are_kept_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.engine.grammar.compiler._MAX_KEPT_BYTES", 1)
    grammars = Grammars("native", lambda: BYTES)
    tickets = [grammars.compile(Grammar("regex", pattern), frozenset()) for pattern in ("a+", "b+", "c+")]
    while any(ticket.poll() is None for ticket in tickets):
        time.sleep(0.005)
    grammars.compile(Grammar("regex", "b+"), frozenset())
    assert [grammar.source for grammar in grammars._kept] == ["b+"]
    grammars.close()


def test_things_may_be_freed_in_any_order() -> None:
    grammar: Compiled = compiled("native", "regex", "[a-z]+")
    matcher = grammar.matcher()
    del grammar
    matcher.accept(97)
    assert allowed("native", matcher) == {*range(97, 123), 256}


def test_tokens_of_equal_text_are_allowed_together() -> None:
    pieces = (b"a", b"ab", b"b", b"a", b"", b"ab", b"abc")
    native = backend("native").__class__(Vocabulary(pieces))  # type: ignore[call-arg]
    matcher = native.compile(Grammar("regex", "ab[^c]?")).matcher()
    masks = np.zeros((1, 1), np.int32)
    native.fill([matcher], masks)
    assert masks[0, 0] == 0b0101011
    matcher.accept(5)
    native.fill([matcher], masks)
    assert masks[0, 0] == 0b10001101
