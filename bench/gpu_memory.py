"""What an engine does on a GPU that has no memory left: a part of `sgl.bench.gpu_check`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from sgl.bench.gpu_engine import GREEDY, Station
from sgl.bench.gpu_sections import SHAPES, Context, Result
from sgl.engine.base.device import Device, open_device
from sgl.engine.base.errors import OutOfMemoryError
from sgl.engine.base.types import Wants

_MIB = 1 << 20
_PROMPT = [[7, 8, 9]]
_LONG = [[place % 300 for place in range(200)]] * 8
_SCORED = Wants(logprobs=True, logprob_start=0)  # logits of whole prompts: what a step needs most memory for


def memory(context: Context) -> Result:
    """Loading names the line of the budget, captures are left out, and a step is refused or comes again in parts."""
    device = open_device(context.scale.device)
    told = {"load": _load(context, device)}
    context.keep({"is_ok": False, "told": told})
    station = _station(context)
    before = station.run(_PROMPT, 8)[0].token_ids
    with _full(device, 768 * _MIB):
        station.prepare()
        told["capture"] = _same(station, before)
    with _full(device, 24 * _MIB):
        told["step"] = _step(station)
    told["afterwards"] = _same(station, before)
    station.close()
    return {"is_ok": all(outcome.startswith("ok") for outcome in told.values()), "told": told}


def _station(context: Context) -> Station:
    """Of a single layer of the 8B shape, but with the whole vocabulary."""
    scale = context.scale
    override = scale.override if scale.override != "{}" else '{"num_hidden_layers": 1}'
    return Station(
        model_path=str(SHAPES / "llama-3.1-8b"),
        load_format="dummy",
        device=scale.device,
        dtype="bfloat16",
        context_length=256,
        json_model_override_args=override,
        max_total_tokens=4096,
        random_seed=1,
        canary="off",
    )


@contextmanager
def _full(device: Device, left_bytes: int) -> Iterator[None]:
    """Somebody else has all memory but that; a CPU is left alone, for others would feel it."""
    import torch

    gc.collect()
    device.trim()
    size = max(device.memory().free_bytes - left_bytes, 0) if device.is_async else 0
    taken = device.zeros((size,), torch.uint8)
    try:
        yield
    finally:
        del taken
        gc.collect()
        device.trim()


def _load(context: Context, device: Device) -> str:
    with _full(device, 512 * _MIB):
        try:
            _station(context).close()
        except OutOfMemoryError as error:
            named = "'weights'" in error.message
            return f"{'ok' if named else 'the line is not named'}: {error.message}"
    return "it was loaded without memory" if device.is_async else "ok: nothing is short on a CPU"


def _step(station: Station) -> str:
    try:
        station.run(_LONG, 4, wants=_SCORED)
    except RuntimeError as error:  # the request's
        return f"{'ok' if 'memory' in str(error) else 'wrong'}: {error}"
    return "ok: computed, in smaller steps where it had to be"


def _same(station: Station, before: list[int]) -> str:
    after = station.run(_PROMPT, 8, GREEDY)[0].token_ids
    return "ok" if after == before else f"{after} instead of {before}"
