"""Renders token log probabilities in the two forms of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from sgl.engine.base.types import TokenLogprob
from sgl.engine.text.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, items: Sequence[TokenLogprob], num_top: int) -> dict[str, Any]:
    """The form of chat completions: one entry for each token, with the ``num_top`` likeliest beside it."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        data = tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {**entry(item.token_id, item.logprob), "top_logprobs": [entry(*pair) for pair in item.top[:num_top]]}
        for item in items
    ]
    return {"content": content}


class LegacyLogprobs:
    """The form of completions, for one choice: parallel lists, with offsets that run on through a stream.

    Args:
        num_top: how many alternatives to show; 0 for none.
        silent_ids: tokens that add nothing to the text of the answer.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int, silent_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._silent_ids = silent_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text_len = 0

    def render(self, items: Sequence[TokenLogprob]) -> dict[str, Any]:
        """``{tokens, token_logprobs, top_logprobs, text_offset}`` of the next tokens."""
        return {
            "tokens": [self._name(item.token_id) for item in items],
            "token_logprobs": [item.logprob for item in items],
            "top_logprobs": [self._top(item) for item in items] if self._num_top else None,
            "text_offset": [self._offset(item.token_id) for item in items],
        }

    def _top(self, item: TokenLogprob) -> dict[str, float] | None:
        """By token; None at the first prompt token, before which there is nothing."""
        if item.logprob is None:
            return None
        pairs = (*item.top[: self._num_top], (item.token_id, item.logprob))
        return {self._name(token_id): logprob for token_id, logprob in reversed(pairs)}

    def _offset(self, token_id: int) -> int:
        offset = self._text_len
        if token_id not in self._silent_ids:
            self._text_len += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return offset

    def _name(self, token_id: int) -> str:
        """The token's text; its bytes where they are a part of a character."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
