"""Stop strings in pieces of text against a search of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl.engine.text.stop import StopChecker


def search(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The match that begins first, the longest of those: by trying every place."""
    for start in range(len(text)):
        found = [stop for stop in stops if text.startswith(stop, start)]
        if found:
            return start, max(found, key=len)
    return None


def feed(parts: list[str], stops: list[str], keep: bool = False) -> tuple[list[str], str | None]:
    checker = StopChecker(stops, keep=keep)
    return [*(checker.push(part) for part in parts), checker.finish()], checker.matched


@settings(max_examples=400, deadline=None)
@given(
    parts=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    keep=st.booleans(),
)
def test_any_cut_gives_what_a_search_of_the_whole_text_gives(parts: list[str], stops: list[str], keep: bool) -> None:
    text = "".join(parts)
    out, matched = feed(parts, stops, keep)
    found = search(text, stops)
    if found is None:
        assert (matched, "".join(out)) == (None, text)
    else:
        start, stop = found
        assert (matched, "".join(out)) == (stop, text[: start + len(stop)] if keep else text[:start])


@settings(max_examples=200, deadline=None)
@given(text=st.text("abc", max_size=20), stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4))
def test_exactly_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    checker = StopChecker(stops)
    out = ""
    for end, letter in enumerate(text, start=1):
        out += checker.push(letter)
        if checker.matched is not None or search(text[:end], stops) is not None:
            return  # a match, or one that waits for a longer one
        open_ = [n for n in range(end) if any(stop.startswith(text[n:end]) for stop in stops)]
        assert out == text[: min(open_, default=end)]


@pytest.mark.parametrize(
    ("parts", "stops", "text", "matched"),
    [
        (["one tw", "o three"], ["two"], "one ", "two"),
        (["ab", "c"], ["ab", "abc"], "", "abc"),
        (["ab", "d"], ["ab", "abc"], "", "ab"),
        (["ab"], ["ab", "abc"], "", "ab"),
        (["abc", "x"], ["abcd", "bc"], "a", "bc"),
        (["abc", "d"], ["abcd", "bc"], "", "abcd"),
        (["<|im", "_end|", "> more"], ["<|im_end|>"], "", "<|im_end|>"),
        (["aaa", "ab"], ["aab"], "aa", "aab"),
        (["日", "本語"], ["本"], "日", "本"),
        (["abc"], [], "abc", None),
    ],
)
def test_examples(parts: list[str], stops: list[str], text: str, matched: str | None) -> None:
    out, found = feed(parts, stops)
    assert ("".join(out), found) == (text, matched)


def test_nothing_comes_after_a_match() -> None:
    checker = StopChecker(["x"])
    assert checker.push("ax") == "a"
    assert (checker.push("b"), checker.finish()) == ("", "")


def test_what_repeats_itself_costs_no_more() -> None:
    """Every letter continues hundreds of beginnings of each string."""
    stops = ["a" * (1000 + count) + "b" for count in range(24)]
    checker = StopChecker(stops)
    text = "a" * 3000
    assert "".join(map(checker.push, text)) == text[: 3000 - 1023]
    assert (checker.push("b"), checker.matched) == ("", stops[-1])
