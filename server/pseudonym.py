"""Takes what was said out of recorded requests and answers and leaves their shape: lengths, and which begin alike."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Any

from sgl.engine.api.exchange import Choice, Exchange, Json

TEXT = "text"
"""What `Exchange.hidden` says of a request whose texts are made up."""

_PLAIN = frozenset({"model", "role", "type", "stream", "finish_reason", "reasoning_effort", "tool_choice", "detail"})
"""Fields whose texts are names that an API defines."""
_PLAIN_NUMBERS = frozenset({"stop_token_ids", "token_ids_logprob", "logprob_start_len", "top_logprobs_num"})
_LEFT_OUT = frozenset(
    (
        *("tools", "functions", "response_format", "json_schema", "regex", "ebnf", "structural_tag", "output_config"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "custom_params", "custom_logit_processor"),
        *("chat_template", "chat_template_kwargs", "input_embeds", "cache_salt", "session_params", "metadata", "user"),
    )
)
"""Fields whose content cannot be made up so that they still mean something."""
_PIECES = re.compile(r"\s+|\S+")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Pseudonyms:
    """Puts letters in place of every word, drawn from a keyed hash of all that stands before its end.

    So texts that begin alike still do, whatever was said cannot be read from how often a word comes, and without the
    key, which is only in memory, cannot be guessed either.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def hide(self, exchange: Exchange) -> Exchange:
        """The same with made-up texts and token ids."""
        left_out: list[str] = []
        exchange.body = self._object(exchange.body, left_out)
        exchange.hidden += [TEXT, *dict.fromkeys(left_out)]
        if exchange.answer.error:
            exchange.answer.error = "hidden"
        for choice in exchange.answer.choices:
            self._hide_choice(choice)
        return exchange

    def text(self, text: str) -> str:
        """As long as the text, with its white space."""
        state = self._key
        pieces = []
        for piece in _PIECES.findall(text):
            state = self._next(state, piece.encode("utf-8", "surrogatepass"))
            pieces.append(piece if piece.isspace() else _letters(state, len(piece)))
        return "".join(pieces)

    def ids(self, token_ids: Sequence[int]) -> list[int]:
        """As many ids, none of them larger than the largest."""
        most, state, hidden = max(token_ids, default=0), self._key, []
        for token_id in token_ids:
            state = self._next(state, b"%d" % token_id)
            hidden.append(int.from_bytes(state[:8], "little") % (most + 1))
        return hidden

    def _next(self, state: bytes, piece: bytes) -> bytes:
        return hashlib.blake2b(piece, key=state, digest_size=32).digest()

    def _hide_choice(self, choice: Choice) -> None:
        choice.text, choice.reasoning, choice.calls = map(self.text, (choice.text, choice.reasoning, choice.calls))
        choice.token_ids = self.ids(choice.token_ids)

    def _object(self, value: Json, left_out: list[str]) -> Json:
        hidden: Json = {}
        for name, item in value.items():
            if name in _LEFT_OUT:
                left_out += [name] if item is not None else []
            elif name in _PLAIN and isinstance(item, str):
                hidden[name] = item
            else:
                hidden[name] = item if name in _PLAIN_NUMBERS else self._value(item, left_out)
        return hidden

    def _value(self, value: Any, left_out: list[str]) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._object(value, left_out)
        if isinstance(value, list):
            if value and all(type(item) is int for item in value):
                return self.ids(value)
            return [self._value(item, left_out) for item in value]
        return value


def _letters(seed: bytes, count: int) -> str:
    noise = hashlib.shake_128(seed).digest(count)
    return "".join(_LETTERS[byte % 26] for byte in noise)
