"""Feeds a whole front with tokens and counts what it writes: everything a server does but read and write sockets."""

from __future__ import annotations

import asyncio
import json
import time
from types import TracebackType
from typing import Any

import uvloop

from sgl.engine.api import AsyncEngine, ModelInfo
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import Add, FinishReason, Inbound, Output, Outputs
from sgl.engine.client.protocol import OnDied, OnMessage
from sgl.engine.client.wire import decode_outbound, encode
from sgl.engine.text.settings import TextSettings
from sgl.engine.text.template import ChatTemplate
from sgl.engine.text.tokenizer import Tokenizer
from sgl.engine.text.vocabulary import LibraryVocabulary
from sgl.server.app import build_app
from sgl.server.http import BoundedHeaders, HttpServer
from sgl.server.state import ServerState

_WORDS = ("the", " time", " of", " a", " step", ",", " which", " nobody", " sees", ".", "\n", " is", " ten", " times")
_STOPS = ("\n\nUser:", "<end>")


class StreamProbe:
    """Completions that stream side by side, one event for every token.

    Args:
        num_streams: how many, each on a connection of its own.
        num_tokens: of each.
    """

    def __init__(self, num_streams: int, num_tokens: int) -> None:
        self._num_streams, self._num_tokens = num_streams, num_tokens
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._feed = _Feed()
        tokenizer = _tokenizer()
        state = ServerState(EngineConfig().replace({"observe.log_level_http": ("error", "benchmark")}))
        self._engine = AsyncEngine(state.config, self._feed, tokenizer, ChatTemplate({}, {}))
        state.start(self._engine)
        self._server = HttpServer(build_app(state), state)
        self._server.config.load()
        fields = {"model": "m", "prompt": [1, 2, 3], "max_tokens": num_tokens, "stream": True, "stop": _STOPS}
        body = json.dumps(fields).encode()
        self._request = (
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

    def __call__(self) -> float:
        """Tokens per second of processor time."""
        return self._runner.run(self._run())

    def __enter__(self) -> StreamProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        self._runner.close()

    async def _run(self) -> float:
        self._feed.rids.clear()
        wires = [self._connect() for _ in range(self._num_streams)]
        while len(self._feed.rids) < self._num_streams:
            await asyncio.sleep(0)
        messages = [self._message(number) for number in range(self._num_tokens)]
        begun = time.thread_time()
        for number, message in enumerate(messages, start=1):
            self._feed.on_message(decode_outbound(message))
            while any(wire.num_events < number for wire in wires):
                await asyncio.sleep(0)
        took_s = time.thread_time() - begun
        while self._server.server_state.tasks:
            await asyncio.sleep(0)
        for wire in wires:
            wire.end()
        return self._num_streams * self._num_tokens / took_s

    def _connect(self) -> _Wire:
        protocol = BoundedHeaders(self._server.config, self._server.server_state, app_state={})
        wire = _Wire(protocol)
        protocol.connection_made(wire)
        protocol.data_received(self._request)
        return wire

    def _message(self, number: int) -> bytes:
        """What the engine process sends after a step."""
        is_last = number == self._num_tokens - 1
        finish = FinishReason(kind="length") if is_last else None
        return encode(
            Outputs(
                [
                    Output(
                        rid=rid,
                        token_ids=[(number + place) % len(_WORDS)],
                        finish=finish,
                        prompt_tokens=3 if is_last or not number else 0,
                    )
                    for place, rid in enumerate(self._feed.rids)
                ]
            )
        )


class _Feed:
    """An engine that says what it is told to."""

    def __init__(self) -> None:
        self.rids: list[str] = []
        self.on_message: OnMessage = lambda message: None

    def start(self, on_message: OnMessage, on_died: OnDied) -> ModelInfo:
        self.on_message = on_message
        return ModelInfo(context_len=4096, vocab_size=len(_WORDS), max_total_num_tokens=1 << 20, max_req_input_len=4000)

    def send(self, message: Inbound) -> None:
        if isinstance(message, Add):
            self.rids.append(message.request.rid)

    def close(self) -> None:
        pass


class _Wire(asyncio.Transport):
    """A connection's transport that counts events and throws them away."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self._protocol = protocol
        self._is_closing = False
        self.num_events = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.num_events += bytes(data).count(b'data: {"')

    def end(self) -> None:
        """The client goes away."""
        self._is_closing = True
        self._protocol.connection_lost(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    vocabulary = {word.replace(" ", "Ġ").replace("\n", "Ċ"): number for number, word in enumerate(_WORDS)}
    library = Library(models.BPE(vocabulary, []))
    library.decoder = decoders.ByteLevel()
    settings = TextSettings({}, (), (), {})
    return Tokenizer(LibraryVocabulary(library, settings), settings)
