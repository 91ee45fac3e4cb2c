"""Names logit processors: the registry, the form in which a request asks for one, and what one is shown.

A request carries a name and parameters, never code: what can run is what was defined in the engine's own process, ships
with sgl, or comes with an installed package that names it under the entry point group `GROUP`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Processor

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

GROUP = "sgl.logit_processors"
CONTEXT = "__req__"
"""The entry of a request's parameters under which its `LogitContext` stands; SGLang's name."""

MAX_CHARS = 1 << 16
_SHIPPED = "sgl.engine.runtime.processors"
_PARAM = "custom_logit_processor"
_REGISTRY: dict[str, type[CustomLogitProcessor]] = {}


def _on_host(numbers: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(numbers, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class LogitContext:
    """Where a request stands when its next token is chosen. To read a tensor's value waits for the device.

    Attributes:
        tokens: int32 ``[W]``, prompt and output; undefined from ``position`` on.
        position: int64, a scalar: how many tokens there are.
        num_prompt: how many of them are the prompt.
        stop_ids: the tokens that end the answer.
        upload: numbers as int64 ``[N]`` where the logits are. A list as an index waits for the device, this does not.
    """

    tokens: Tensor
    position: Tensor
    num_prompt: int
    stop_ids: tuple[int, ...]
    upload: Callable[[Sequence[int]], Tensor] = _on_host


class CustomLogitProcessor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all processors. Defining a subclass registers it, under ``name`` or else the name of the class.

    Fields of a subclass are its parameters, checked when a request comes in. One without fields takes any
    ``custom_params`` and finds them in ``custom_param_list``.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.__dict__.get("name") or cls.__name__] = cls

    def __call__(self, logits: Tensor, custom_param_list: Sequence[Mapping[str, Any]]) -> Tensor:
        """The logits ``[N, V]`` to choose from, changed in place or new; for each row there are its parameters."""
        raise NotImplementedError

    def check(self, vocab_size: int) -> None:
        """Raises `SglError` where parameters do not suit the model."""

    def to_str(self) -> str:
        """What a request carries as ``custom_logit_processor``."""
        cls = type(self)
        name = cls.__dict__.get("name") or cls.__name__
        return msgspec.json.encode({"name": name, "params": msgspec.structs.asdict(self)}).decode()


class LogitProcessor(Protocol):
    """A processor with the parameters of one request."""

    def __call__(self, logits: Tensor, context: LogitContext) -> Tensor: ...


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    """The form of `CustomLogitProcessor.to_str`."""

    name: str
    params: dict[str, Any] = {}


def read_processor(text: str, custom_params: Mapping[str, Any] | None) -> Processor:
    """What a request asks for. ``custom_params`` come on top of the parameters in ``text``.

    Raises:
        SglError: 400; it is not what `CustomLogitProcessor.to_str` writes, or too long.
    """
    if len(text) > MAX_CHARS:
        message = f"{_PARAM} must have at most {MAX_CHARS} characters, got {len(text)}."
        raise SglError(message, param=_PARAM)
    try:
        found = msgspec.json.decode(text, type=_Named)
    except (msgspec.DecodeError, RecursionError):
        message = f'{_PARAM} must be what to_str() gives: {{"name": ..., "params": {{...}}}}; code is not accepted.'
        raise SglError(message, param=_PARAM) from None
    params = msgspec.json.encode({**found.params, **(custom_params or {})})
    if len(params) > MAX_CHARS:
        raise SglError(f"custom_params must have at most {MAX_CHARS} bytes as JSON.", param="custom_params")
    return Processor(found.name, params.decode())


def write_processor(call: Processor) -> str:
    """What `read_processor` reads as ``call``."""
    return msgspec.json.encode({"name": call.name, "params": msgspec.Raw(call.params.encode())}).decode()


def known_processors() -> list[str]:
    """The names that requests may use here."""
    _load_installed()
    return sorted(_REGISTRY)


def find_processor(call: Processor) -> CustomLogitProcessor:
    """The processor of that name, with its parameters.

    Raises:
        SglError: 400; there is no such processor, or it does not take these parameters.
    """
    _load_installed()
    if call.name not in _REGISTRY:
        names = ", ".join(known_processors())
        raise SglError(f"{_PARAM}: there is no processor {call.name!r:.80} here; there are: {names}.", param=_PARAM)
    cls = _REGISTRY[call.name]
    given = msgspec.json.decode(call.params, type=dict[str, Any])
    if not cls.__struct_fields__:
        return cls()
    try:
        return msgspec.convert(given, cls)
    except msgspec.ValidationError as error:
        takes = ", ".join(cls.__struct_fields__)
        message = f"{_PARAM} {call.name!r}: {str(error)[:200]}; its parameters are: {takes}."
        raise SglError(message, param=_PARAM) from None


def make_processor(call: Processor) -> LogitProcessor:
    """`find_processor`, bound to the parameters; what it returns takes the logits ``[1, V]`` of one row."""
    processor = find_processor(call)
    params = msgspec.json.decode(call.params, type=dict[str, Any])

    def run(logits: Tensor, context: LogitContext) -> Tensor:
        return processor(logits, [{**params, CONTEXT: context}])

    return run


@cache
def _load_installed() -> None:
    """Imports the shipped processors and those of installed packages; importing a class registers it."""
    loaders: list[tuple[str, Callable[[], object]]] = [(_SHIPPED, lambda: importlib.import_module(_SHIPPED))]
    loaders += [(point.value, point.load) for point in importlib.metadata.entry_points(group=GROUP)]
    for source, load in loaders:
        try:
            load()
        except Exception:
            logger.exception("the logit processor %s cannot be loaded", source)
