"""Receipts: what an answer was computed from and with, so that anybody can compute it again. Computes no answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

import sgl
from sgl.engine.api.limits import type_error
from sgl.engine.api.request import GenerateRequest, Generation
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.digest import digest_text
from sgl.engine.base.errors import SglError
from sgl.engine.base.processors import write_processor
from sgl.engine.base.types import FinishReason, Request, SamplingParams

OPTIONS = (
    "model_path",
    "revision",
    "load_format",
    "dtype",
    "quantization",
    "torchao_config",
    "allow_repack",
    "exact_activations",
    "json_model_override_args",
    "kv_cache_dtype",
    "device",
    "attention_backend",
    "page_size",
    "disable_cuda_graph",
    "enable_torch_compile",
    "grammar_backend",
    "constrained_json_whitespace_pattern",
    "disable_jump_forward",
)
"""Options of an engine that may change what a model answers; those of scheduling must not."""

_HOLDERS = ("choices", "meta_info", "response", "sgl", "receipt")
"""Fields of answers in which receipts are."""

_MAX_DEPTH = 8


class Maker(msgspec.Struct, frozen=True, kw_only=True):
    """What computes answers.

    Args:
        options: those of `OPTIONS` that the engine has, by name.
        weights: `digest` of the checkpoint's files; empty for random weights.
        template: `digest_text` of the chat template; empty without one.
        kernels: which implementation computes every op.
        isa: instruction set of the processor, or architecture of the GPU.
    """

    sgl: str = sgl.__version__
    options: dict[str, Any]
    weights: str
    template: str
    kernels: dict[str, str]
    isa: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer and everything that it depends on.

    Args:
        eos_ids: tokens that end an answer unless ``params.ignore_eos``.
        stop: strings that do.
        params: among them the seed, drawn if the client gave none.
        sha256: of everything else; tells a receipt that was changed.
    """

    version: int = 1
    maker: Maker
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    eos_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    output_ids: tuple[int, ...]
    finish: FinishReason
    sha256: str = ""

    @property
    def digest(self) -> str:
        """What ``sha256`` ought to be."""
        content = msgspec.structs.replace(self, sha256="")
        return digest_text(msgspec.json.encode(content, order="deterministic").decode()).removeprefix("sha256:")


def make_receipt(maker: Maker, asked: Request, request: GenerateRequest, item: Generation) -> Receipt:
    """Of a finished answer.

    Args:
        asked: what the engine was sent for it.
    """
    assert item.finish_reason is not None
    receipt = Receipt(
        maker=maker,
        prompt_ids=asked.token_ids,
        params=asked.params,
        eos_ids=asked.eos_ids,
        stop=request.stop,
        output_ids=tuple(item.output_ids),
        finish=item.finish_reason,
    )
    return msgspec.structs.replace(receipt, sha256=receipt.digest)


def receipt_fields(item: Generation) -> dict[str, Any]:
    """``receipt`` of an answer that is finished and was asked for one, for the JSON that it is shown in."""
    return {} if item.receipt is None else {"receipt": item.receipt}


def read_receipts(text: bytes) -> list[Receipt]:
    """From a receipt's JSON, or that of whole answers that carry some, of any of the APIs; also of a stream's events.

    Raises:
        SglError: there is none, or one was changed.
    """
    found = [receipt for document in _documents(text) for receipt in _carried(document, 0)]
    if not found:
        raise SglError("There is no receipt in it; ask for one with `return_receipt`.", param="receipt")
    receipts = [_checked(receipt) for receipt in found]
    return list({receipt.sha256: receipt for receipt in receipts}.values())


def _documents(text: bytes) -> list[Any]:
    """The JSON of an answer, or of the events of one."""
    lines = [line.removeprefix(b"data:").strip() for line in text.splitlines() if line.startswith(b"data:")]
    try:
        return [msgspec.json.decode(part) for part in (lines or [text]) if part != b"[DONE]"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SglError("The receipt is neither JSON nor a stream of events with JSON.", param="receipt") from None


def _carried(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """What stands where answers have their receipts."""
    if isinstance(value, list) and depth < _MAX_DEPTH:
        for item in value:
            yield from _carried(item, depth + 1)
    elif isinstance(value, dict) and "maker" in value:
        yield value
    elif isinstance(value, dict) and depth < _MAX_DEPTH:
        for name in _HOLDERS:
            yield from _carried(value.get(name), depth + 1)


def _checked(value: Any) -> Receipt:
    try:
        receipt = msgspec.convert(value, Receipt)
    except msgspec.ValidationError as error:
        raise type_error(error, "receipt") from None
    if receipt.sha256 != receipt.digest:
        raise SglError("The receipt was changed: its sha256 is not that of its content.", param="receipt")
    return receipt


def again(receipt: Receipt) -> GenerateRequest:
    """The request that has to get the same answer."""
    called = receipt.params.processor
    return GenerateRequest(
        input_ids=receipt.prompt_ids,
        sampling=receipt.params,
        seed=receipt.params.seed,
        stop=receipt.stop,
        custom_logit_processor=None if called is None else write_processor(called),
    )


def differences(told: Maker, here: Maker) -> list[str]:
    """In which ways an engine is not the one that made a receipt; the path of its model does not count."""
    pairs: list[tuple[str, Any, Any]] = [
        ("sgl", told.sgl, here.sgl),
        ("weights", told.weights, here.weights),
        ("template", told.template, here.template),
        ("isa", told.isa, here.isa),
    ]
    for field, ours, theirs in (("option", told.options, here.options), ("kernel", told.kernels, here.kernels)):
        names = sorted({*ours, *theirs} - {"model_path", "revision"})
        pairs += [(f"{field} {name}", ours.get(name), theirs.get(name)) for name in names]
    return [f"{name} was {before or 'none'} and is {now or 'none'}" for name, before, now in pairs if before != now]


def options_of(config: EngineConfig) -> dict[str, Any]:
    """The engine's values of `OPTIONS`."""
    flat: Mapping[str, Any] = config.to_flat_dict()
    return {name: flat[name] for name in OPTIONS if name in flat}
