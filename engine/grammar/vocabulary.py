"""The tokens of a model as grammar libraries want them; decides nothing about grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from sgl.engine.base import hub
from sgl.engine.base.config import ModelConfig
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Vocabulary:
    """What every token adds to a text.

    One more token, `end_id`, stands for the end of the output: libraries want one, and which tokens of the model end an
    output differs between requests.

    Args:
        pieces: by token; empty for a token that cannot be part of a text, because it is special or adds nothing.
        special: what special tokens look like in text.
        tokenize: the usual tokens of a text, none of them special; None where nobody knows.
    """

    pieces: tuple[bytes, ...]
    special: Mapping[int, bytes] = field(default_factory=dict)
    tokenize: Tokenize | None = None

    def usual_tokens(self, text: bytes) -> list[int]:
        """What the tokenizer would make of a text; the longest token each time where nobody knows."""
        return self.tokenize(text.decode("utf-8", "replace")) if self.tokenize else list(self._greedy(text))

    def _greedy(self, text: bytes) -> Iterator[int]:
        begin, (ids, longest) = 0, self._ids
        while begin < len(text):
            sizes = range(min(longest, len(text) - begin), 0, -1)
            size = next((size for size in sizes if text[begin : begin + size] in ids), 0)
            if size == 0:
                return
            yield ids[text[begin : begin + size]]
            begin += size

    @cached_property
    def _ids(self) -> tuple[dict[bytes, int], int]:
        """Tokens by their text, and the length of the longest."""
        ids = {piece: token_id for token_id, piece in enumerate(self.pieces) if piece}
        return ids, max(map(len, ids), default=0)

    @property
    def end_id(self) -> int:
        return len(self.pieces)

    @property
    def mask_words(self) -> int:
        """The 32-bit words of a mask, `end_id` included."""
        return len(self.pieces) // 32 + 1


BYTES = Vocabulary(tuple(bytes([byte]) for byte in range(256)))
"""One token for each byte: what a grammar means without any tokenizer."""


def model_vocabulary(config: ModelConfig, size: int) -> Vocabulary:
    """Of the tokenizer that the front uses, read once more."""
    source = config.tokenizer_path or config.model_path
    directory = hub.locate(source, hub.TOKENIZER_FILES, config.revision, config.download_dir)
    tokenizer = load_tokenizer(directory, config.tokenizer_mode, trust_remote_code=config.trust_remote_code)
    return vocabulary_of(tokenizer, size)


def vocabulary_of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Of a tokenizer, for a model with ``size`` logits."""
    known = min(tokenizer.vocab_size, size)
    pieces = [tokenizer.token_bytes(token_id) for token_id in range(known)] + [b""] * (size - known)
    special = {token_id: pieces[token_id] for token_id in tokenizer.special_ids if token_id < known}
    for token_id in special:
        pieces[token_id] = b""

    def tokenize(text: str) -> list[int]:
        ids: list[int] = []
        for token_id in tokenizer.encode(text, add_special_tokens=False):
            if token_id in special:  # the text only looks like it; halves of its name do not
                name = special[token_id].decode("utf-8", "replace")
                ids += tokenizer.encode(name[:1], add_special_tokens=False)
                ids += tokenizer.encode(name[1:], add_special_tokens=False)
            else:
                ids.append(token_id)
        return ids

    return Vocabulary(tuple(pieces), special, tokenize)
