"""Reads recordings and writes what a replay was answered; knows no server."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from sgl.engine.api.exchange import FILES, FORMS, Exchange
from sgl.engine.base.errors import ConfigError


def read(path: Path) -> list[Exchange]:
    """The exchanges of a folder that ``--record`` has written, or of one file, in the order they came.

    The last line of a file may be cut off, as a crash or a full disk leaves it.

    Raises:
        ConfigError: there are none, or a line is something else.
    """
    try:
        files = sorted(path.glob(FILES)) if path.is_dir() else [path]
        found = [exchange for file in files for exchange in _read(file)]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", param="DIR") from None
    if not found:
        what = f"no files {FILES} with requests" if path.is_dir() else "no requests"
        raise ConfigError(f"{path} has {what}; `sgl serve --record DIR` writes some.", param="DIR")
    return sorted(found, key=lambda exchange: exchange.at_s)


def _read(file: Path) -> list[Exchange]:
    decoder = msgspec.json.Decoder(Exchange)
    found = []
    *lines, rest = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            exchange = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: line {number} is no recorded request: {error}", param="DIR") from None
        if exchange.path not in FORMS:
            raise ConfigError(f"{file}: line {number} is for {exchange.path}, which is not known.", param="DIR")
        found.append(exchange)
    if not lines and rest:
        raise ConfigError(f"{file} is no recording: its first line does not end.", param="DIR")
    return found


class Writer:
    """Appends exchanges to a new file, each as soon as it is there.

    Raises:
        ConfigError: the file exists, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("xb")
        except FileExistsError:
            raise ConfigError(f"--output {path} exists; name another file.", param="--output") from None
        except OSError as error:
            raise ConfigError(f"--output {path}: {error.strerror}.", param="--output") from None
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the rest of a line that had no place
            self._file.close()

    def write(self, exchange: Exchange) -> None:
        """
        Raises:
            OSError: the disk is full.
        """
        self._file.write(self._encoder.encode(exchange) + b"\n")
        self._file.flush()
