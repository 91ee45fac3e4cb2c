"""What the engine and its grammar compiler, a process of its own, say to each other: frames of msgpack over pipes."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from sgl.engine.base.types import Grammar
from sgl.engine.grammar.backend import BackendName

MAX_FRAME_BYTES = 1 << 28


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Open a backend. Answered with `Loaded`; what it says holds until the next."""

    backend: BackendName
    pieces: tuple[bytes, ...]
    special: dict[int, bytes]
    whitespace: str | None
    memory_bytes: int


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Compile a grammar for trial. Answered with `Checked` or `Refused`."""

    grammar: Grammar
    mask_s: float


class Lower(msgspec.Struct, frozen=True, tag="lower"):
    """Write a JSON schema for the native backend. Answered with `Checked` or `Refused`."""

    grammar: Grammar


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    pass


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """The grammar is cheap enough. ``grammar`` is what to compile; ``special_ids`` are those that it mentions."""

    grammar: Grammar
    special_ids: tuple[int, ...] = ()


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    message: str
    code: str
    param: str | None = None
    status: int = 400


Request = Load | Check | Lower
Reply = Loaded | Checked | Refused

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def frame_of(message: Request | Reply) -> bytes:
    body = encode(message)
    return len(body).to_bytes(4, "little") + body


def read_frame(stream: BinaryIO) -> bytes:
    """The next message; empty at the end of the stream."""
    size = int.from_bytes(stream.read(4), "little")
    return stream.read(size) if 0 < size <= MAX_FRAME_BYTES else b""
