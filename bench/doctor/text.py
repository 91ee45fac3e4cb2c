"""Whether a checkpoint's tokenizer, special tokens and chat template agree with each other, with config.json, with
transformers, and with a checkpoint that is known to be good."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sgl.bench.doctor.fault import Check, Fault, Report, listed
from sgl.engine.base.errors import ModelError, SglError
from sgl.engine.text.template import ChatTemplate, load_template
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = (
    "The capital of Peru is Lima, and 3.14159 is not 22/7.",
    "  def f(x):\n\treturn x  # twice  \n\n",
    "naïve café, 東京 🙂 Ünïcödé ﬁ",
)
CONVERSATION = (
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
)
_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>")
"""What a template writes that can only be meant as one token."""

_STALE = "fetch the tokenizer's files that belong to these weights; this looks like those of another version"


@dataclass(frozen=True)
class Text:
    """A checkpoint's text files.

    Args:
        config: config.json.
    """

    path: Path
    config: Mapping[str, Any]
    tokenizer: Tokenizer
    template: ChatTemplate

    @staticmethod
    def read(path: Path, config: Mapping[str, Any]) -> Text:
        """
        Raises:
            SglError: a file cannot be read.
        """
        tokenizer = load_tokenizer(path)
        return Text(path, config, tokenizer, load_template(tokenizer))

    def object(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint; empty if there is none."""
        file = self.path / name
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found if isinstance(found, dict) else {}

    def render(self, messages: Sequence[Mapping[str, Any]], *, opened: bool) -> str:
        return self.template.render(messages, add_generation_prompt=opened)


def examine(text: Text, good: Text | None, report: Report) -> None:
    """All that can be told without the weights."""
    found = [vocabulary(text), special_ids(text), bos(text)]
    if text.template:
        found.append(template(text))
    try:
        found.append(against_transformers(text, library_tokenizer(text.path)))
    except ModelError as error:
        report.skipped.append(f"tokenizer against transformers: {error.message}")
    if good is not None:
        found.append(against(text, good))
    report.faults += chain.from_iterable(found)
    told = f"tokenizer of {text.tokenizer.vocab_size} tokens, special tokens, BOS"
    report.done.append(f"{told}, chat template" if text.template else f"{told}; there is no chat template")


def vocabulary(text: Text) -> Iterator[Fault]:
    """Ids within the embedding, and every added token under the id that the files give it."""
    rows, size = text.config.get("vocab_size"), text.tokenizer.vocab_size
    if isinstance(rows, int) and size > rows:
        beyond = [f"{text.tokenizer.token_text(i)!r} ({i})" for i in range(rows, min(size, rows + 100))]
        yield Fault(
            "tokenizer",
            "wrong",
            "tokenizer.json against config.json: vocab_size",
            f"ids below {rows}, the rows of the embedding",
            f"{size - rows} tokens beyond: {listed(beyond)}",
            "the weights were truncated or the tokenizer is of another version: take both from one place",
        )
    own = text.object("tokenizer.json")
    known: dict[str, int] = dict(_vocabulary_of(own))
    declared = text.object("tokenizer_config.json").get("added_tokens_decoder") or {}
    by_id = {int(token_id): str(token["content"]) for token_id, token in declared.items()}
    if known:
        moved = [f"{token!r} is {known.get(token)}, not {i}" for i, token in by_id.items() if known.get(token) != i]
        absent = [repr(token) for token in _added(text) if token not in known and token not in by_id.values()]
        if moved:
            expected = "the ids that tokenizer_config.json gives in added_tokens_decoder"
            yield Fault("tokenizer", "wrong", "tokenizer.json", expected, listed(moved), _STALE)
        if absent:
            expected = "every token that tokenizer_config.json names"
            yield Fault("tokenizer", "weak", "tokenizer.json", expected, f"without {listed(absent)}", _STALE)


def special_ids(text: Text) -> Iterator[Fault]:
    """``bos_token_id`` and ``eos_token_id`` of config.json and generation_config.json mean the tokenizer's tokens."""
    named = {"bos_token_id": text.tokenizer.bos_id, "eos_token_id": text.tokenizer.id_of(_named(text, "eos_token"))}
    rows = text.config.get("vocab_size")
    for file in ("config.json", "generation_config.json"):
        content = text.object(file)
        for field, expected in named.items():
            value = content.get(field)
            ids = [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
            outside = [i for i in ids if isinstance(rows, int) and i >= rows]
            if outside:
                told = f"{listed(map(str, outside))}, beyond the vocabulary of {rows}"
                yield Fault("config", "wrong", f"{file}: {field}", "ids of the vocabulary", told, _STALE)
            elif ids and expected is not None and expected not in ids and file == "config.json":
                yield _other_id(text, f"{file}: {field}", expected, ids)


def _other_id(text: Text, place: str, expected: int, ids: Sequence[int]) -> Fault:
    """An ordinary token in the role of a special one comes up in answers; another special one hardly does."""
    told = ", ".join(f"{i} ({text.tokenizer.token_text(i)!r})" for i in ids)
    meant = f"{expected} ({text.tokenizer.token_text(expected)!r}), the tokenizer's"
    is_ordinary = not set(ids) <= text.tokenizer.special_ids
    return Fault("config", "wrong" if is_ordinary else "weak", place, meant, told, _STALE)


def bos(text: Text) -> Iterator[Fault]:
    """What is declared to begin every text does, once, and conversations begin with it, too."""
    bos_id, ids = text.tokenizer.bos_id, text.tokenizer.encode("word")
    if bos_id is None:
        return
    token = _named(text, "bos_token")
    begins = ids[:1] == [bos_id]
    if text.object("tokenizer_config.json").get("add_bos_token") is True and not begins:
        yield Fault(
            "tokenizer",
            "wrong",
            "tokenizer.json: post_processor",
            f"BOS {token!r} ({bos_id}) in front of every text: tokenizer_config.json says add_bos_token",
            f"BOS is missing: a text begins with {ids[:1]}",
            "restore the post_processor of tokenizer.json, or set add_bos_token to false if it was trained without",
        )
    if ids[:2] == [bos_id, bos_id]:
        place = "tokenizer.json: post_processor"
        yield Fault("tokenizer", "wrong", place, f"one BOS {token!r}", "two", "let only one of its parts add BOS")
    if begins and text.template:
        rendered = _rendered(text, CONVERSATION, opened=True)
        if rendered is not None and not rendered.startswith(token):
            yield Fault(
                "template",
                "weak",  # some models were trained on conversations without
                "chat template",
                f"BOS {token!r} at the beginning, as the tokenizer puts it in front of texts",
                f"BOS is missing: {rendered[:40]!r}",
                "begin the template with {{ bos_token }}",
            )


def template(text: Text) -> Iterator[Fault]:
    """It renders, with everything that was said, in tokens that there are, and its turns end with an EOS."""
    try:
        rendered = text.render(CONVERSATION, opened=True)
        closed = text.render(CONVERSATION[:2], opened=False)
    except SglError as error:
        fix = "fetch the template that belongs to this model"
        yield Fault("template", "wrong", "chat template", "a conversation in its words", error.message, fix)
        return
    lost = [message["content"] for message in CONVERSATION if message["content"] not in rendered]
    if lost:
        told = f"without {listed(map(repr, lost))}"
        yield _template_fault("every message in the prompt", told)
    unknown = [token for token in dict.fromkeys(_MARKER.findall(rendered)) if text.tokenizer.id_of(token) is None]
    if unknown:
        told = f"{listed(map(repr, unknown))}, of which the tokenizer makes several tokens"
        yield _template_fault("markers that are tokens of the vocabulary", told)
        return
    behind = text.tokenizer.encode(closed.rpartition("first answer")[2], add_special_tokens=False)
    ends = [i for i in behind if i in text.tokenizer.special_ids]
    if ends and not set(ends) & set(text.tokenizer.eos_ids):
        eos = [text.tokenizer.token_text(i) for i in text.tokenizer.eos_ids]
        yield Fault(
            "config",
            "weak",
            "generation_config.json: eos_token_id",
            f"{ends[0]} ({text.tokenizer.token_text(ends[0])!r}), with which the template ends an answer",
            f"{list(text.tokenizer.eos_ids)} ({listed(eos)}): answers in a chat do not end",
            f"add {ends[0]} to eos_token_id",
        )


def library_tokenizer(path: Path) -> Any:
    """What transformers makes of the files.

    Raises:
        ModelError: nothing.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - it raises many kinds
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"transformers cannot load it: {told:.200}") from None


def against_transformers(text: Text, library: Any) -> Iterator[Fault]:
    """The ids of `TEXTS` and of a conversation are those that transformers makes of the same files."""
    for sample in _samples(text):
        own, theirs = text.tokenizer.encode(sample), list(library.encode(sample))
        if theirs[:2] == [text.tokenizer.bos_id] * 2 and own[:2] != theirs[:2]:
            theirs = theirs[1:]  # of a conversation that has its own
        if own != theirs:
            yield _encoded("tokenizer.json", sample, text, own, theirs, "transformers")
            return


def against(text: Text, good: Text) -> Iterator[Fault]:
    """The same ids and the same prompts as those of the good checkpoint."""
    known, expected = (dict(_vocabulary_of(each.object("tokenizer.json"))) for each in (text, good))
    if known != expected and known and expected:
        wrong = sorted((i, token) for token, i in expected.items() if known.get(token) != i)
        new = [repr(token) for token in known if token not in expected]
        told = [f"{token!r} is {known.get(token, 'missing')}, not {i}" for i, token in wrong]
        told += [f"{token} is new" for token in new]
        yield Fault("tokenizer", "wrong", "tokenizer.json", "the reference's vocabulary", listed(told), _STALE)
    else:
        for sample in _samples(good):
            own, theirs = text.tokenizer.encode(sample), good.tokenizer.encode(sample)
            if own != theirs:
                yield _encoded("tokenizer.json", sample, text, own, theirs, "the reference")
                break
    if good.template and not text.template:
        yield _template_fault("a chat template, as the reference has", "none")
    elif good.template:
        own_text, their_text = (_rendered(each, CONVERSATION, opened=True) for each in (text, good))
        if own_text is not None and own_text != their_text:
            yield _template_fault(f"{their_text!r}, the reference's prompt", repr(own_text))


def _encoded(file: str, sample: str, text: Text, own: list[int], theirs: list[int], whose: str) -> Fault:
    """Where two tokenizations part."""
    place = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
    told = f"{own[place : place + 4]} at token {place} of {sample[:30]!r}"
    bos_id = text.tokenizer.bos_id
    if bos_id is not None and theirs == [bos_id, *own]:
        told = f"BOS is missing: {own[:3]}"
    elif bos_id is not None and own == [bos_id, *theirs]:
        told = f"a BOS that it has not: {own[:3]}"
    return Fault("tokenizer", "wrong", file, f"{theirs[place : place + 4]}, as {whose} encodes it", told, _STALE)


def _template_fault(expected: str, found: str) -> Fault:
    check: Check = "template"
    return Fault(check, "wrong", "chat template", expected, found, "use the template that belongs to this model")


def _samples(text: Text) -> Iterator[str]:
    yield from TEXTS
    rendered = _rendered(text, CONVERSATION, opened=True) if text.template else None
    if rendered is not None:
        yield rendered


def _rendered(text: Text, messages: Sequence[Mapping[str, Any]], *, opened: bool) -> str | None:
    """None where the template refuses."""
    try:
        return text.render(messages, opened=opened)
    except SglError:
        return None


def _named(text: Text, name: str) -> str:
    return text.tokenizer.settings.named.get(name, "")


def _added(text: Text) -> Iterator[str]:
    for token in text.tokenizer.settings.added:
        yield token.content


def _vocabulary_of(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Tokens of a tokenizer.json with their ids."""
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((entry[0], i) for i, entry in enumerate(vocabulary))
    yield from ((token["content"], token["id"]) for token in content.get("added_tokens") or [])
