"""Records requests to what generates, with their answers, as files of JSON lines (``--record``); changes nothing.

Everything but taking copies happens on a thread of its own: decoding, hiding, writing.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl.engine.api.exchange import FILES, FORMS, AnswerReader, Exchange
from sgl.engine.base.config import ObserveConfig
from sgl.engine.base.errors import ConfigError, SglError
from sgl.server.background import Background
from sgl.server.pseudonym import Pseudonyms
from sgl.server.request_log import Redactor

logger = logging.getLogger(__name__)

_NUM_FILES = 8  # a full folder keeps at least seven eighths of what it may have
_HIDDEN = "[redacted]"
_KEYS = re.compile(r"(?i)(?:.*_)?(?:api_?key|password|secret|authorization|access_token)")


class Folder:
    """Files of lines that have at most ``max_bytes`` together; the oldest goes where a new one would be too much.

    Files of earlier recordings in the folder count, and go first.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._most_old_bytes = max_bytes - max_bytes // _NUM_FILES
        self._file_bytes = max_bytes // _NUM_FILES
        self._file: BinaryIO | None = None
        self._size = 0
        self._count = 0

    def write(self, line: bytes) -> None:
        """
        Raises:
            OSError: it cannot be written; a part of it may have been.
        """
        if self._file is None or self._size + len(line) > self._file_bytes:
            self.close()
            self._file, self._size = self._new(), 0
        self._file.write(line)
        self._file.flush()
        self._size += len(line)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _new(self) -> BinaryIO:
        old = {path: path.stat().st_size for path in sorted(self._path.glob(FILES))}
        for path in list(old):
            if sum(old.values()) <= self._most_old_bytes:
                break
            path.unlink(missing_ok=True)
            del old[path]
        self._count += 1
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = FILES.replace("*", f"{when}-{os.getpid():07d}-{self._count:06d}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.fdopen(os.open(self._path / name, flags, 0o600), "wb")


class Recorder:
    """Takes pieces of requests and answers on the event loop, and writes whole ones on its thread.

    A disk that fills up ends the recording, not the server; where the thread falls behind, whole requests are left out.

    Raises:
        ConfigError: the folder cannot be made, or ``--log-redact`` is no regular expression.
    """

    def __init__(self, options: ObserveConfig) -> None:
        self.is_on = bool(options.record)
        self._thread: Background | None = None
        if not self.is_on:
            return
        try:
            self._folder = Folder(Path(options.record).expanduser(), options.record_max_mb * 2**20)
        except OSError as error:
            raise ConfigError(f"--record {options.record}: {error.strerror}.", param="--record") from None
        self._redactor = Redactor(options.log_redact)
        self._pseudonyms = Pseudonyms() if options.record_redact == "text" else None
        self._max_line_bytes = options.record_max_mb * 2**20 // _NUM_FILES
        self._encoder = msgspec.json.Encoder()
        self._thread = Background("record", "--record")

    def put(self, size: int, work: Callable[[], None]) -> bool:
        """Hands something of that many bytes to the thread; false if too much waits there already."""
        return self._thread is not None and self._thread.put(size, work)

    def save(self, tape: Tape) -> None:
        """Writes a line; called on the thread."""
        exchange = tape.exchange()
        if exchange is None or not self.is_on:
            return
        exchange = self._without_secrets(exchange)
        line = self._encoder.encode(self._pseudonyms.hide(exchange) if self._pseudonyms else exchange) + b"\n"
        if len(line) > self._max_line_bytes:
            logger.warning("--record: request %s is too long for --record-max-mb.", exchange.rid)
            return
        try:
            self._folder.write(line)
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        """Writes what waits."""
        if self._thread is not None:
            self._thread.put(0, self._end_file)
            self._thread.close()

    def _stop(self, error: OSError) -> None:
        self.is_on = False
        logger.error("--record has ended: %s", error.strerror)
        self._end_file()

    def _end_file(self) -> None:
        try:
            self._folder.close()
        except OSError as error:  # the rest of a line that had no place
            logger.debug("the recording's last line is cut: %s", error.strerror)

    def _without_secrets(self, exchange: Exchange) -> Exchange:
        answer = exchange.answer
        choices = [
            msgspec.structs.replace(
                choice,
                text=self._redactor.whole(choice.text),
                reasoning=self._redactor.whole(choice.reasoning),
                calls=self._redactor.whole(choice.calls),
            )
            for choice in answer.choices
        ]
        body = self._clean(exchange.body)
        hidden = ["secrets"] if (body, choices) != (exchange.body, answer.choices) else []
        answer = msgspec.structs.replace(answer, choices=choices, error=self._redactor.whole(answer.error))
        return msgspec.structs.replace(exchange, body=body, answer=answer, hidden=hidden)

    def _clean(self, value: Any) -> Any:
        """Without secrets and what ``--log-redact`` matches."""
        if isinstance(value, str):
            return self._redactor.whole(value)
        if isinstance(value, list):
            return [self._clean(item) for item in value]
        if isinstance(value, dict):
            return {
                key: _HIDDEN if _KEYS.fullmatch(key) and isinstance(item, str) else self._clean(item)
                for key, item in value.items()
            }
        return value


class Tape:
    """One request and its answer as they pass; after the first lines its methods run on the recorder's thread."""

    def __init__(self, path: str, rid: str) -> None:
        self.path = path
        self.rid = rid
        self.at_s = time.time()
        self.started_s = time.monotonic()
        self._body = bytearray()
        self._reader = AnswerReader(path, self.started_s)
        self._ended: tuple[float, bool] = self.started_s, False

    def asked(self, data: bytes) -> None:
        """Some of the request's body."""
        self._body += data

    def begin(self, status: int, content_type: str) -> None:
        """The head of the answer."""
        self._reader.begin(status, content_type)

    def answered(self, data: bytes, now_s: float) -> None:
        """Some of the answer's body."""
        self._reader.feed(data, now_s)

    def refused(self, error: SglError) -> None:
        """An error in place of an answer, or after its beginning."""
        self._reader.fail(error.message)
        self._reader.begin(error.status, "")

    def end(self, now_s: float, is_whole: bool) -> None:
        """There is no more."""
        self._ended = now_s, is_whole

    def exchange(self) -> Exchange | None:
        """All of it; None if the request was no JSON object, as nothing that a server answers is."""
        try:
            body = msgspec.json.decode(self._body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        now_s, is_whole = self._ended
        answer = self._reader.end(now_s, is_whole=is_whole)
        if not isinstance(body, dict):
            return None
        return Exchange(rid=self.rid, path=self.path, at_s=round(self.at_s, 6), body=body, answer=answer)


class Recording:
    """ASGI middleware that shows a recorder what passes. Stands behind `Auth`: what it refuses is not recorded."""

    def __init__(self, app: ASGIApp, recorder: Recorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        recorder = self._recorder
        if scope["path"] not in FORMS or not recorder.is_on:
            await self._app(scope, receive, send)
            return
        tape = Tape(scope["path"], scope["state"]["request_id"])
        is_kept = True
        is_whole = False

        def keep(size: int, work: Callable[[], None]) -> None:
            nonlocal is_kept
            is_kept = is_kept and recorder.put(size, work)

        async def watched_receive() -> Message:
            message = await receive()
            data = message.get("body", b"")
            if data:
                keep(len(data), partial(tape.asked, data))
            return message

        async def watched_send(message: Message) -> None:
            nonlocal is_whole
            if message["type"] == "http.response.start":
                kind = Headers(raw=list(message["headers"])).get("content-type", "")
                keep(0, partial(tape.begin, message["status"], kind))
            elif message["type"] == "http.response.body":
                data = message.get("body", b"")
                keep(len(data), partial(tape.answered, data, time.monotonic()))
                is_whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except SglError as error:
            keep(0, partial(tape.refused, error))
            is_whole = True
            raise
        finally:
            keep(0, partial(tape.end, time.monotonic(), is_whole))
            keep(0, partial(recorder.save, tape))
