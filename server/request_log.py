"""Writes requests and what became of them to the log (``--log-requests``), without secrets. Changes nothing."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sgl.engine.api import GenerateRequest, Generation
from sgl.engine.base.config import ObserveConfig
from sgl.engine.base.errors import ConfigError, SglError
from sgl.server.observer import Watch
from sgl.server.request_dump import RequestDump

logger = logging.getLogger(__name__)

MAX_LEVEL = 3
METADATA = ("rid", "stream", "n")
PARAMETERS = (
    *("sampling", "stop", "no_stop_trim", "skip_special_tokens", "spaces_between_special_tokens"),
    *("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs", "return_hidden_states"),
    "return_receipt",
    *("seed", "priority", "add_special_tokens", "fit_max_new_tokens", "token_ids_logprob", "session", "pooling"),
    *("custom_logit_processor", "custom_params"),
)
"""Fields of a request that are shown from level 1 on, where they are not the default."""
CONTENT = ("text", "input_ids")
"""Fields that are shown from level 2 on."""
HIDDEN = ("cache_salt", "input_embeds")
"""Fields that are never shown."""

_SHORT_CHARS = 2048
_MOST_CHARS = 2 * _SHORT_CHARS  # of one field, which may be a long list
_SEARCHED_CHARS = 4 * _SHORT_CHARS  # of what is cut to the above, so that what is redacted may reach beyond the cut
_REDACTED = "[redacted]"
_SECRETS = r"\b(?:sk|pk|hf|ghp|xox[abp])[-_][\w-]{16,}|\bBearer\s+\S+|\bdata:[\w.+/-]*(?:;[\w=-]+)*;base64,[\w+/=]+"


class RequestLog:
    """Observer of requests, as the options and `/configure_logging` want it.

    Args:
        options: those of the server.

    Raises:
        ConfigError: ``--log-redact`` is not a regular expression, or requests cannot be dumped where it is said.
    """

    def __init__(self, options: ObserveConfig) -> None:
        self._is_logged = options.log_requests
        self._level = options.log_requests_level
        self._shows_times = options.show_time_cost
        self._redactor = Redactor(options.log_redact)
        self._dump = RequestDump(options.dump_requests_folder, options.dump_requests_threshold)

    @property
    def is_on(self) -> bool:
        """Whether anything is to be written about requests."""
        return self._is_logged or self._shows_times or self._dump.is_on

    def configure(
        self,
        *,
        log_requests: bool | None = None,
        log_requests_level: int | None = None,
        dump_requests_folder: str | None = None,
        dump_requests_threshold: int | None = None,
    ) -> None:
        """Changes what is given, for requests that begin from now on (`/configure_logging`).

        Args:
            dump_requests_folder: below ``--dump-requests-folder``; empty ends the dumping.

        Raises:
            SglError: 400; a value is out of range, the folder is outside. Nothing has been changed then.
        """
        if log_requests_level is not None and not 0 <= log_requests_level <= MAX_LEVEL:
            text = f"log_requests_level must be between 0 and {MAX_LEVEL}, got {log_requests_level}."
            raise SglError(text, param="log_requests_level")
        self._dump.configure(dump_requests_folder, dump_requests_threshold)
        if log_requests is not None:
            self._is_logged = log_requests
        if log_requests_level is not None:
            self._level = log_requests_level

    def observe(self, request: GenerateRequest) -> Watch:
        """Logs the request and watches its answers."""
        if self._is_logged:
            logger.info("Receive: %s", self._pairs(self._described(request)))
        return _LoggedRequest(self, request)

    def close(self) -> None:
        """Writes out what is still to be dumped."""
        self._dump.close()

    def finished(self, request: GenerateRequest, item: Generation, start_s: float) -> None:
        """An answer is complete."""
        if self._is_logged:
            logger.info("Finish: %s", self._pairs({"rid": request.rid, **self._result(item)}))
        if self._shows_times:
            logger.info("Time cost: %s", self._pairs({"rid": request.rid, **_times(item, start_s)}))
        if self._dump.is_on:
            self._dump.add(
                {
                    "request": {**_parameters(request, ""), **_content(request, self._redactor.whole)},
                    "answer": {**_metadata(item), "text": self._redactor.whole(item.text)},
                }
            )

    def left(self, request: GenerateRequest, reason: str) -> None:
        """The rest of a request was given up."""
        if self._is_logged:
            logger.info("Abort: %s", self._pairs({"rid": request.rid, "reason": reason}))

    def _described(self, request: GenerateRequest) -> dict[str, Any]:
        shown = {name: getattr(request, name) for name in METADATA}
        if self._level >= 1:
            shown = _parameters(request, "...")
        return {**shown, **(_content(request, self._text) if self._level >= 2 else {})}

    def _result(self, item: Generation) -> dict[str, Any]:
        return {**_metadata(item), **({"text": self._text(item.text)} if self._level >= 2 else {})}

    def _text(self, text: str) -> str:
        return self._redactor.short(text) if self._level < MAX_LEVEL else text

    def _pairs(self, fields: Mapping[str, Any]) -> str:
        most = _MOST_CHARS if self._level < MAX_LEVEL else None
        return " ".join(f"{name}={self._redactor.whole(repr(value)[:most])}" for name, value in fields.items())


class Redactor:
    """Hides keys, inline images and what an expression of the operator's matches.

    Args:
        expression: a regular expression; empty for none.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, expression: str) -> None:
        try:
            self._pattern = re.compile(f"{_SECRETS}|(?:{expression})" if expression else _SECRETS)
        except re.error as error:
            raise ConfigError(f"--log-redact is not a regular expression: {error}.", param="--log-redact") from None

    def whole(self, text: str) -> str:
        """All of a text."""
        return self._pattern.sub(_REDACTED, text)

    def short(self, text: str) -> str:
        """The beginning of a text."""
        shown = self.whole(text[:_SEARCHED_CHARS])
        return shown if len(shown) <= _SHORT_CHARS and len(text) <= _SEARCHED_CHARS else shown[:_SHORT_CHARS] + "..."


class _LoggedRequest:
    def __init__(self, log: RequestLog, request: GenerateRequest) -> None:
        self._log = log
        self._request = request
        self._start_s = time.monotonic()
        self._num_open = request.n

    def see(self, item: Generation) -> None:
        if item.finish_reason is not None:
            self._num_open -= 1
            self._log.finished(self._request, item, self._start_s)

    def end(self, reason: str) -> None:
        if reason and self._num_open:
            self._log.left(self._request, reason)


def _parameters(request: GenerateRequest, source: str) -> dict[str, Any]:
    """Metadata and parameters; the source of a grammar is content, unless it is none."""
    shown = {name: getattr(request, name) for name in METADATA}
    defaults = GenerateRequest()
    for name in PARAMETERS:
        if getattr(request, name) != getattr(defaults, name):
            shown[name] = msgspec.to_builtins(getattr(request, name))
    grammar = request.sampling.grammar
    if grammar is not None:
        shown["sampling"]["grammar"] = [grammar.kind, source or grammar.source]
    return shown


def _content(request: GenerateRequest, render: Callable[[str], str]) -> dict[str, Any]:
    """The prompt, as text or as the text of its ids."""
    if request.text is not None:
        return {"text": render(request.text)}
    return {"input_ids": render(str(list(request.input_ids or ())))}


def _metadata(item: Generation) -> dict[str, Any]:
    assert item.finish_reason is not None
    return {
        "index": item.index,
        "finish_reason": item.finish_reason.kind,
        "prompt_tokens": item.prompt_tokens,
        "completion_tokens": item.completion_tokens,
        "cached_tokens": item.cached_tokens,
    }


def _times(item: Generation, start_s: float) -> dict[str, Any]:
    """Where the time of an answer went, in seconds from when the request came."""
    now_s = time.monotonic()
    times = {"index": item.index, "queue_s": round(item.queue_time_s, 4), "total_s": round(now_s - start_s, 4)}
    if item.first_token_s is not None:
        times["first_token_s"] = round(item.first_token_s - start_s, 4)
    return times
