"""The choice of implementations and what is said about it."""

from __future__ import annotations

import pytest
import torch

from sgl.engine.base.errors import ConfigError
from sgl.kernels.registry import REFERENCE, Impl, bind, describe, implementations, importable

BF16, FP32 = torch.bfloat16, torch.float32


def test_the_best_that_runs_is_chosen() -> None:
    assert bind("cpu", "avx2", FP32).name("linear") == "onednn.fp32"
    assert bind("cpu", "generic", FP32).name("linear") == REFERENCE


def test_the_best_for_a_gpu_is_chosen() -> None:
    pytest.importorskip("triton")
    kernels = bind("cuda", "sm90", BF16)
    assert (kernels.name("linear"), kernels.name("norm.rms"), kernels.name("act.relu")) == (
        "cublas",
        "triton",
        REFERENCE,
    )
    assert bind("cuda", "sm90", FP32).name("linear") == REFERENCE
    assert bind("cuda", "sm80", BF16).name("linear.fp8") == REFERENCE
    assert bind("cuda", "sm89", BF16).name("linear.fp8") == "triton"


def test_a_gpu_without_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.kernels.registry.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="triton"):
        bind("cuda", "sm90", BF16)


def test_later_overrides_win() -> None:
    every = bind("cpu", "avx512", BF16, ("reference",))
    assert {every.name(impl.op) for impl in implementations()} == {REFERENCE}
    some = bind("cpu", "avx512", BF16, ("reference", "linear=onednn.bf16"))
    assert some.name("linear") == "onednn.bf16" and some.name("norm.rms") == REFERENCE
    assert bind("cpu", "avx512", BF16, ("linear=onednn.bf16", "reference")).name("linear") == REFERENCE


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nothing", ("'nothing'", "names no op", "norm.rms")),
        ("norm.rmss=torch", ("'norm.rmss=torch'", "norm.rms")),
        ("linear=fast", ("linear", "'fast'", "onednn.bf16")),
        ("linear", ("linear", "reference")),
        ("linear=onednn.fp32", ("linear=onednn.fp32", "bfloat16", "computes float32")),
    ],
)
def test_overrides_that_cannot_be_used_are_named(override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        bind("cpu", "avx512_bf16", BF16, (override,))
    assert all(word in caught.value.message for word in words), caught.value.message


def test_the_table_cannot_be_changed() -> None:
    kernels = bind("cpu", "generic", FP32)
    with pytest.raises(TypeError):
        kernels["linear"] = print  # type: ignore[index]


def test_reasons() -> None:
    def never(*args: object) -> None: ...

    impl = Impl("x", "y", never, device="cpu", isa="avx512", dtypes=(BF16,), needs=importable("no_such_module"))
    assert impl.why_not("cuda", "sm90", BF16) == "runs on cpu"
    assert impl.why_not("cpu", "avx2", BF16) == "needs avx512"
    assert impl.why_not("cpu", "avx512", FP32) == "computes bfloat16"
    assert impl.why_not("cpu", "avx512_bf16", BF16) == "no_such_module is not installed"
    assert Impl("x", "y", never, isa="sm90").why_not("cuda", "sm100", BF16) == ""


def test_describe_says_why_not() -> None:
    rows = {row.op: row for row in describe("cpu", "generic", FP32)}
    assert rows["linear"].chosen == REFERENCE
    assert dict(rows["linear"].alternatives)["onednn.fp32"] == "needs avx2"
    assert dict(rows["norm.rms"].alternatives)[REFERENCE] == "not preferred"
