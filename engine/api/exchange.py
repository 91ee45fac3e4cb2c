"""A request over HTTP to what generates, with its answer: a line of a recording, and what reads answers into one.

Knows the forms of answers that the server's APIs have; opens no connection and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Json = dict[str, Any]

FILES = "recording-*.jsonl"
"""What the files of a recording are called, so that their order is that of their names."""

MAX_ANSWER_BYTES = 64 * 2**20
"""Of an answer, or of an event of one; hidden states can have more, and nobody compares those."""


class Choice(msgspec.Struct, omit_defaults=True):
    """One answer to one prompt. ``calls`` are the tool calls, each name before its arguments."""

    text: str = ""
    token_ids: list[int] = []
    reasoning: str = ""
    calls: str = ""
    finish: str = ""


class Answer(msgspec.Struct, omit_defaults=True):
    """What came back; the times count from when the request came, or was sent.

    Args:
        status: 0 if there was none: the client or the server left.
        error: of the server; or what is wrong with the answer.
        first_s: when the first tokens of a stream came.
        e2e_s: when it was over.
    """

    status: int = 0
    error: str = ""
    choices: list[Choice] = []
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_s: float | None = None
    e2e_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether it is whole and no error."""
        return self.status == 200 and not self.error

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None where that cannot be told."""
        if self.first_s is None or self.completion_tokens <= len(self.choices):
            return None
        return (self.e2e_s - self.first_s) * len(self.choices) / (self.completion_tokens - len(self.choices))


class Exchange(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line.

    Args:
        rid: the request id of the HTTP request, ``x-request-id``.
        at_s: when it came, Unix time.
        hidden: how redaction has changed what was said, so that nothing can be compared with it: ``secrets``, ``text``
            (all texts are made up), and the names of fields that are left out.
    """

    rid: str
    path: str
    at_s: float
    body: Json
    answer: Answer
    hidden: list[str] = []

    @property
    def is_greedy(self) -> bool:
        """Whether every answer must be the same each time."""
        asked = self.body.get("sampling_params", self.body if self.path != "/generate" else None)
        asked = asked if isinstance(asked, list) else [asked]
        return all(isinstance(one, dict) and (one.get("temperature") == 0 or one.get("top_k") == 1) for one in asked)


class AnswerReader:
    """Reads one answer as it comes, a stream's events one by one. Whatever comes, it does not raise.

    Args:
        path: of the route, one of `FORMS`.
        started_s: when the request came, on the clock of the other times.
    """

    def __init__(self, path: str, started_s: float) -> None:
        self._form = FORMS[path]
        self._started_s = started_s
        self._status = 0
        self._is_stream = False
        self._waiting = bytearray()
        self._answer = Answer()
        self._choices: dict[int, Choice] = {}
        self._usages: dict[int, tuple[int, int, int]] = {}

    def begin(self, status: int, content_type: str) -> None:
        """The head has come."""
        self._status = status
        self._is_stream = content_type.startswith("text/event-stream")

    def feed(self, data: bytes, now_s: float) -> None:
        """Some of the body has come."""
        if len(self._waiting) + len(data) > MAX_ANSWER_BYTES:
            self._waiting.clear()
            self._answer.error = f"The answer has more than {MAX_ANSWER_BYTES} bytes."
        if self._answer.error:
            return
        self._waiting += data
        if self._is_stream and b"\n" in data:
            *lines, rest = bytes(self._waiting).split(b"\n")
            self._waiting = bytearray(rest)
            for line in lines:
                if line.startswith(b"data:") and (event := line[5:].strip()) != b"[DONE]":
                    self._read(event, now_s)

    def end(self, now_s: float, *, is_whole: bool) -> Answer:
        """The last has come, or nothing will any more."""
        answer = self._answer
        if not self._is_stream and self._waiting:
            self._read(bytes(self._waiting), now_s)
            answer.first_s = None
        answer.status = self._status
        answer.e2e_s = round(now_s - self._started_s, 6)
        answer.choices = [choice for _, choice in sorted(self._choices.items())]
        sums = [sum(column) for column in zip(*self._usages.values(), strict=True)] or [0, 0, 0]
        answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens = sums
        if not is_whole and not answer.error:
            answer.error = "The answer was broken off."
        return answer

    def fail(self, message: str) -> None:
        """There is no answer, for this reason."""
        self._answer.error = self._answer.error or message

    def choice(self, index: int) -> Choice:
        """One of the answers, as far as it has come."""
        return self._choices.setdefault(index, Choice())

    def count(self, index: int, prompt: int, completion: int, cached: int | None) -> None:
        """How many tokens one of the answers has, or all of them together."""
        self._usages[index] = prompt, completion, cached or 0

    def _read(self, data: bytes, now_s: float) -> None:
        try:
            value = msgspec.json.decode(data)
            error = value.get("error") if isinstance(value, dict) else None
            if error:
                self.fail(str(error.get("message") or error) if isinstance(error, dict) else str(error))
            elif self._form(value, self) and self._answer.first_s is None:
                self._answer.first_s = round(now_s - self._started_s, 6)
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError):
            self.fail("The answer has not the form of its API.")


def _native(value: Any, reader: AnswerReader) -> bool:
    """Events are cumulative."""
    came = False
    for place, output in enumerate(value if isinstance(value, list) else [value]):
        meta, index = output["meta_info"], output.get("index", place)
        choice, finish = reader.choice(index), meta.get("finish_reason")
        choice.text, choice.token_ids = output.get("text", ""), output.get("token_ids", [])
        choice.finish = finish["type"] if finish else ""
        reader.count(index, meta["prompt_tokens"], meta["completion_tokens"], meta.get("cached_tokens"))
        if choice.finish == "abort":
            reader.fail(finish.get("message") or "The server gave the request up.")
        came |= meta["completion_tokens"] > 0
    return came


def _openai(value: Json, reader: AnswerReader) -> bool:
    """Completions and chats, whole or in chunks."""
    came = False
    for part in value["choices"]:
        choice = reader.choice(part["index"])
        said = part.get("delta") or part.get("message") or {}
        text = part.get("text") or said.get("content") or ""
        reasoning = said.get("reasoning_content") or ""
        functions = [call["function"] for call in said.get("tool_calls") or ()]
        calls = "".join((f.get("name") or "") + (f.get("arguments") or "") for f in functions)
        choice.text, choice.reasoning = choice.text + text, choice.reasoning + reasoning
        choice.calls += calls
        choice.finish = part.get("finish_reason") or choice.finish
        came |= bool(text or reasoning or calls)
    usage = value.get("usage")
    if usage:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        reader.count(0, usage["prompt_tokens"], usage["completion_tokens"], cached)
    return came


def _responses(value: Json, reader: AnswerReader) -> bool:
    """The last event of a stream holds all of the response."""
    whole = value if value.get("object") == "response" else value.get("response") or {}
    if whole.get("status") in ("completed", "incomplete", "failed"):
        choice = reader.choice(0)
        for item in whole["output"]:
            said = "".join(part.get("text") or "" for part in item.get("content") or ())
            if item["type"] == "function_call":
                choice.calls += item["name"] + item["arguments"]
            elif item["type"] == "reasoning":
                choice.reasoning += said
            else:
                choice.text += said
        choice.finish = (whole.get("incomplete_details") or {}).get("reason") or whole["status"]
        usage = whole.get("usage") or {}
        cached = (usage.get("input_tokens_details") or {}).get("cached_tokens")
        reader.count(0, usage.get("input_tokens", 0), usage.get("output_tokens", 0), cached)
        if whole["status"] == "failed":
            reader.fail(str((whole.get("error") or {}).get("message") or "The response failed."))
    return str(value.get("type", "")).endswith(".delta")


def _messages(value: Json, reader: AnswerReader) -> bool:
    """Anthropic's; a stream says the prompt's tokens at its beginning and the answer's at its end."""
    choice, delta = reader.choice(0), value.get("delta") or {}
    whole = value if value["type"] == "message" else value.get("message") or {}
    blocks = [*(whole.get("content") or ()), value.get("content_block") or {}, delta]
    before = choice.text, choice.reasoning, choice.calls
    for block in blocks:
        choice.text += block.get("text") or ""
        choice.reasoning += block.get("thinking") or ""
        given = msgspec.json.encode(block["input"]).decode() if block.get("input") else ""
        choice.calls += (block.get("name") or "") + given + (block.get("partial_json") or "")
    choice.finish = delta.get("stop_reason") or whole.get("stop_reason") or choice.finish
    usage = value.get("usage") or whole.get("usage")
    if usage:
        cached = usage.get("cache_read_input_tokens") or 0
        reader.count(0, usage.get("input_tokens", 0) + cached, usage.get("output_tokens", 0), cached)
    return (choice.text, choice.reasoning, choice.calls) != before


FORMS: Mapping[str, Callable[[Any, AnswerReader], bool]] = {
    "/generate": _native,
    "/v1/completions": _openai,
    "/v1/chat/completions": _openai,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
}
"""By route, what puts an answer, or an event of one, into a reader; true if tokens came with it."""
