"""Which backend is chosen where, and what is said about the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from sgl.engine.attn import choice
from sgl.engine.attn.batch import KVSpec
from sgl.engine.attn.checks import CASES, Case, error, make_scene
from sgl.engine.attn.choice import choose_backend
from sgl.engine.attn.torch_native import TorchNativeBackend
from sgl.engine.base.device import CpuDevice, Device
from sgl.engine.base.errors import ConfigError
from sgl.kernels.registry import bind
from tests.attn import fake_flashinfer

SPEC = KVSpec("full", 8, 128, torch.bfloat16)


@dataclass(frozen=True)
class Gpu(CpuDevice):
    """Looks like a GPU, computes like none."""

    kind: str = "cuda"
    isa: str = "sm90"  # type: ignore[misc]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What seems to be installed, which a test may change."""
    pytest.importorskip("triton")
    fake_flashinfer.install(monkeypatch)
    installed = {"triton", "flashinfer", "flashinfer_jit_cache"}
    monkeypatch.setattr(choice, "find_spec", lambda name: name if name in installed else None)
    return installed


def chosen(name: str = "auto", device: Device | None = None, spec: KVSpec = SPEC) -> str:
    kernels = bind("cpu", "generic", torch.bfloat16)
    return type(choose_backend(name, cast(Any, device or Gpu()), [spec], 16, kernels)).__name__


def refusal(name: str, **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        chosen(name, **arguments)
    assert caught.value.param == "attention_backend"
    return caught.value.message


def test_a_gpu_takes_the_fastest_that_can(packages: set[str]) -> None:
    assert chosen() == "FlashInferBackend"
    assert chosen("triton") == "TritonBackend"
    assert chosen("torch_native") == "TorchNativeBackend"
    assert chosen(spec=replace(SPEC, head_dim=80)) == "TritonBackend"
    assert chosen(spec=replace(SPEC, quantized=torch.float8_e4m3fn)) == "TritonBackend"
    assert chosen(spec=replace(SPEC, head_dim=512)) == "TorchNativeBackend"
    packages.remove("flashinfer")
    assert chosen() == "TritonBackend"
    packages.remove("triton")
    assert chosen() == "TorchNativeBackend"


def test_plain_torch_says_what_is_missing(packages: set[str], caplog: pytest.LogCaptureFixture) -> None:
    packages.clear()
    chosen()
    assert "triton is not installed" in caplog.text and "sgl[gpu]" in caplog.text


def test_a_refusal_says_why_and_what_to_do(packages: set[str]) -> None:
    assert "the model runs on cuda; use auto, flashinfer, triton, torch_native" in refusal("cpu")
    assert "the model runs on cpu" in refusal("triton", device=CpuDevice())
    assert "compute capability 8.0, this one is sm75" in refusal("flashinfer", device=Gpu(isa="sm75"))
    assert "--kv-cache-dtype auto" in refusal("flashinfer", spec=replace(SPEC, quantized=torch.int8))
    assert "it is unknown" in refusal("fa9")
    packages.remove("flashinfer")
    assert "flashinfer is not installed" in refusal("flashinfer")


def test_flashinfer_needs_a_compiler_or_compiled_kernels(
    packages: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages.remove("flashinfer_jit_cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert "nvcc" in refusal("flashinfer")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert chosen("flashinfer") == "FlashInferBackend"


@pytest.mark.parametrize("known", [True, False], ids=["host lengths", "device lengths"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plain_torch_computes_all_of_it(case: Case, known: bool) -> None:
    backend = TorchNativeBackend(CpuDevice(), bind("cpu", "generic", torch.float32))
    scene = make_scene(case, torch.float32, torch.device("cpu"), clean=True)
    if not known:
        scene.batch = replace(scene.batch, host=None)
    assert error(scene.run(backend), scene.truth(), torch.float32) <= 1


@pytest.mark.skipif(find_spec("flashinfer") is None, reason="FlashInfer is not installed")
def test_flashinfer_takes_what_is_passed() -> None:
    """The signatures that the stand-in of the other tests imitates."""
    import inspect

    from flashinfer import cascade, decode, mla, prefill

    def names(fn: Callable[..., object]) -> set[str]:
        return set(inspect.signature(fn).parameters)

    assert list(inspect.signature(mla.BatchMLAPagedAttentionWrapper.plan).parameters)[1:13] == [
        *("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr", "num_heads", "head_dim_ckv", "head_dim_kpe"),
        *("page_size", "causal", "sm_scale", "q_data_type", "kv_data_type"),
    ]
    options = {"sm_scale", "window_left", "logits_soft_cap", "q_data_type", "kv_data_type"}
    prefill_plan = prefill.BatchPrefillWithPagedKVCacheWrapper.plan
    for plan in (decode.BatchDecodeWithPagedKVCacheWrapper.plan, decode.fast_decode_plan, prefill_plan):
        assert options <= names(plan)
    assert {"causal", "max_token_per_sequence"} <= names(prefill_plan)
    shape = ["num_qo_heads", "num_kv_heads", "head_dim", "page_size"]
    assert list(inspect.signature(decode.fast_decode_plan).parameters)[:8] == [
        *("self", "indptr", "indices", "last_page_len"),
        *shape,
    ]
    wrappers = (
        decode.BatchDecodeWithPagedKVCacheWrapper,
        prefill.BatchPrefillWithPagedKVCacheWrapper,
        mla.BatchMLAPagedAttentionWrapper,
    )
    for wrapper in wrappers:
        assert {"out", "return_lse"} <= names(wrapper.run) and {"use_cuda_graph", "backend"} <= names(wrapper.__init__)
    assert list(inspect.signature(cascade.merge_state_in_place).parameters)[:4] == ["v", "s", "v_other", "s_other"]
