"""The weights that an engine computes with: says which they are, exchanges them, frees and restores them.

An exchange never shows: the new weights are read and packed on a thread of their own, beside the old ones, which go on
serving until all is there; whatever is wrong with the checkpoint ends it before anything has changed. Then no further
request starts, those that have said something finish on the old weights, those that have not wait for the new ones, and
the prefix cache is emptied. Those that are not finished after a while end with an error and can be sent again. So no
answer is ever computed with both.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from sgl.engine.base.budget import size
from sgl.engine.base.device import Device
from sgl.engine.base.errors import ModelError, SglError
from sgl.engine.base.types import FinishReason, Output
from sgl.engine.models.loader import read_rows, weight_files
from sgl.engine.nn.decoder import Model
from sgl.engine.runtime.loaded import Loaded

logger = logging.getLogger(__name__)

DRAIN_S = 120.0
"""How long requests that have begun to answer may go on with the old weights."""

MAX_ELEMENTS = 1 << 22
"""Numbers of a tensor that are shown at once."""

LOAD_FORMATS = ("auto", "safetensors", "dummy")

_SAMPLES, _SAMPLE_BYTES = 64, 4096

Stamp = tuple[Path, int, int]
"""A file, its size and when it was changed."""

_SUPERSEDED = FinishReason(
    kind="abort",
    message="The model's weights were exchanged before this answer was finished; send the request again.",
    status=503,
    code="weights_updated",
)


class Requests(Protocol):
    """What an exchange asks of the scheduler."""

    @property
    def has_work(self) -> bool: ...

    @property
    def is_settled(self) -> bool:
        """Whether nothing has been computed for any request that is left."""

    def pause(self) -> None:
        """Starts no request any more that has not begun to answer."""

    def resume(self) -> None: ...

    def expel(self, reason: FinishReason) -> list[Output]:
        """Ends the requests that have begun to answer."""

    def shut(self, reason: FinishReason | None) -> None:
        """Refuses all new requests with a reason; None takes them again."""

    def forget_prefixes(self) -> None:
        """Empties the prefix cache, of which nobody may use anything."""


class Check(Protocol):
    """Looks at what the loaded weights compute before anybody is served with them."""

    def check(self, source: Source) -> None:
        """
        Raises:
            ModelError: nobody should be.
        """


Load = Callable[[str, str], Model]
"""From a path and a load format to a model of the same architecture and sizes; raises ModelError."""


@dataclass(eq=False)
class Source:
    """Where weights came from. ``stamps`` are the sizes and times of its files when they were read."""

    path: str
    load_format: str
    directory: Path
    stamps: tuple[Stamp, ...]

    @classmethod
    def of(cls, path: str, load_format: str, directory: Path) -> Source:
        files = [] if load_format == "dummy" else weight_files(directory)
        return cls(path, load_format, directory, tuple(map(_stamp, files)))

    @property
    def is_unchanged(self) -> bool:
        """Whether the files are still those that were read."""
        try:
            return all(_stamp(stamp[0]) == stamp for stamp in self.stamps)
        except OSError:
            return False

    @cached_property
    def fingerprint(self) -> str:
        """A hash of sizes and of bytes from all over the files, which tells checkpoints apart; empty if unknown."""
        return _fingerprint([file for file, _, _ in self.stamps]) if self.stamps and self.is_unchanged else ""


class Weights:
    """The weights of one engine.

    Attributes:
        num_updates: how often they have become others. The reply that tells a higher number stands between the outputs
            of the old weights and those of the new ones.

    Args:
        model, source: what it computes with now.
        load: reads others.
        locate: from a path to a directory with its files; raises ModelError.
        canary: looks at new weights.
    """

    def __init__(
        self,
        loaded: Loaded,
        requests: Requests,
        device: Device,
        model: Model,
        source: Source,
        load: Load,
        locate: Callable[[str], Path],
        canary: Check,
    ) -> None:
        self.requests = requests
        self._loaded = loaded
        self._device = device
        self._source = source
        self._load = load
        self._locate = locate
        self._canary = canary
        self._dtype = model.kv_specs[0].dtype
        self._size_bytes = model.weight_bytes
        self.num_updates = 0
        self._is_released = False
        self._update: Update | None = None

    def describe(self) -> dict[str, Any]:
        """Which weights these are; the fingerprint is of samples of their files."""
        source = self._source
        return {
            "model_path": source.path,
            "load_format": source.load_format,
            "num_updates": self.num_updates,
            "fingerprint": source.fingerprint,
            "released": self._is_released,
        }

    def files(self) -> dict[str, Any]:
        """Where these weights can be read again: nowhere, if their files have changed or they are random."""
        files = [str(file) for file, _, _ in self._source.stamps] if self._source.is_unchanged else []
        return {"files": files, "num_updates": self.num_updates}

    def update(self, model_path: str, load_format: str = "auto", drain_s: float = DRAIN_S) -> Update:
        """Starts an exchange.

        Raises:
            SglError: another is going on, or memory does not suffice.
        """
        self._refuse_second()
        if load_format not in LOAD_FORMATS:
            message = f"load_format must be one of {', '.join(LOAD_FORMATS)}, got {load_format!r:.40}."
            raise SglError(message, param="load_format")
        self._check_memory()
        self._update = Update(self, model_path, load_format, drain_s)
        return self._update

    def release(self) -> dict[str, Any]:
        """Gives back the memory of weights and KV cache; requests are refused until `restore`.

        Raises:
            SglError: there are requests, or it has been done already.
        """
        self._refuse_second()
        if self.requests.has_work:
            raise SglError("Memory can be released only while no request is running or waiting.", status=409)
        if self._is_released:
            raise SglError("The memory has been released already.", status=409)
        message = "The engine's memory is released; call /resume_memory_occupation first."
        self.requests.shut(FinishReason(kind="abort", message=message, status=503, code="memory_released"))
        self.requests.forget_prefixes()
        self._loaded.release()
        self._trim()
        self._is_released = True
        return {"success": True}

    def restore(self) -> Update:
        """Reads the weights again from where they came from.

        Raises:
            SglError: nothing has been released.
        """
        if not self._is_released:
            raise SglError("The memory has not been released.", status=409)
        self._refuse_second()
        self._check_memory()
        self._update = Update(self, self._source.path, self._source.load_format, 0.0)
        return self._update

    def get(self, name: str, truncate_size: int = 100) -> dict[str, Any]:
        """The first rows of a tensor by its name in the checkpoint, in float32 as it was before any quantization.

        Raises:
            SglError: there is no such tensor, or its file has changed since it was loaded.
        """
        source = self._source
        if source.load_format == "dummy":
            raise SglError("Dummy weights come from no checkpoint; there is nothing to show.", param="name")
        if not source.is_unchanged:
            raise SglError(f"The files in {source.directory} have changed since they were loaded.", param="name")
        shape, rows, data = read_rows(source.directory, name, truncate_size, MAX_ELEMENTS, self._dtype)
        return {"shape": shape, "rows": rows, "data": data}

    # ---- for updates -------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """A thread of its own begins to read."""
        self._device.enter()

    def read(self, path: str, load_format: str) -> tuple[Source, Model]:
        """On a thread of its own; changes nothing here."""
        try:
            directory = self._locate(path)
        except ModelError as error:
            logger.warning("%s", error.message)
            raise ModelError(f"Failed to get weights iterator: {path} (repository not found).") from None
        source = Source.of(path, load_format, directory)
        model = self._load(path, load_format)
        if not source.is_unchanged:
            raise ModelError(f"the files in {directory} were changed while they were read.")
        return source, model

    def install(self, source: Source, model: Model) -> None:
        """Computes with other weights from the next step on.

        Whatever it raises, the weights are those from before.

        Raises:
            ModelError: the canary says no.
        """
        self.requests.forget_prefixes()
        before = self._loaded.exchange(model)
        try:
            self._canary.check(source)
        except Exception:
            self._loaded.put_back(before)
            raise
        if not self._is_released or source.fingerprint != self._source.fingerprint:
            self.num_updates += 1
        self._source, self._is_released = source, False
        logger.info("The weights are now those of %s.", source.path)

    def close_update(self) -> None:
        """An exchange is over, well or not, and nobody holds the model that is not used."""
        self._update = None
        self._trim()
        self.requests.resume()
        if not self._is_released:
            self.requests.shut(None)

    def _trim(self) -> None:
        """Returns the memory of a model that is not used any more: its layers refer to each other."""
        was_frozen = gc.get_freeze_count() > 0  # as a process of its own is, first model included
        gc.unfreeze()
        gc.collect()
        if was_frozen:
            gc.freeze()
        self._device.trim()

    def _refuse_second(self) -> None:
        if self._update is not None:
            raise SglError("The weights are being exchanged already; wait until that is done.", status=409)

    def _check_memory(self) -> None:
        free_bytes = self._device.memory().free_bytes
        if free_bytes < self._size_bytes:
            raise SglError(
                f"New weights take {size(self._size_bytes)} beside those that are served, and only {size(free_bytes)} "
                "of memory are free."
            )


class Update:
    """One exchange on its way."""

    def __init__(self, weights: Weights, path: str, load_format: str, drain_s: float) -> None:
        self._weights = weights
        self._drain_s = drain_s
        self._found: tuple[Source, Model] | None = None
        self._error: Exception | None = None
        self._deadline_s: float | None = None
        self._thread = threading.Thread(target=self._read, args=(path, load_format), name="sgl-weights", daemon=True)
        self._thread.start()

    def advance(self, now_s: float) -> tuple[list[Output], dict[str, Any] | None]:
        """Goes on as far as it can without waiting.

        Returns:
            The last outputs of requests that it ended, and its own answer once it is done.
        """
        if self._thread.is_alive():
            return [], None
        weights, outputs = self._weights, list[Output]()
        if self._found is None:
            weights.close_update()
            return [], {"success": False, "message": _reason(self._error)}
        if self._deadline_s is None:
            self._deadline_s = now_s + self._drain_s
            weights.requests.pause()
        elif now_s >= self._deadline_s:
            outputs = weights.requests.expel(_SUPERSEDED)
        if not weights.requests.is_settled:
            return outputs, None
        (source, model), self._found = self._found, None
        try:
            weights.install(source, model)
        except Exception as error:  # noqa: BLE001 - `_reason` logs what is no mistake of the caller
            return outputs, {"success": False, "message": _reason(error)}
        finally:
            del model
            weights.close_update()
        told = {"success": True, "message": "Succeeded to update model weights."}
        return outputs, {**told, "model_path": source.path, "num_updates": weights.num_updates}

    def join(self) -> None:
        """Waits until everything is read; `advance` does the rest."""
        self._thread.join()

    def _read(self, path: str, load_format: str) -> None:
        try:
            self._weights.enter()
            self._found = self._weights.read(path, load_format)
        except Exception as error:  # noqa: BLE001 - `advance` reports it
            self._error = error


def _reason(error: Exception | None) -> str:
    if isinstance(error, SglError):
        return error.message if error.message.startswith("Failed to") else f"Failed to update weights: {error.message}"
    logger.error("an update of the weights failed", exc_info=error)
    return f"Failed to update weights: {type(error).__name__}; see the log."


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return file, found.st_size, found.st_mtime_ns


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as source:
            length = source.seek(0, 2)
            digest.update(f"{file.name} {length}\n".encode())
            for sample in range(_SAMPLES):
                source.seek(max(length - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                digest.update(source.read(_SAMPLE_BYTES))
    return digest.hexdigest()
