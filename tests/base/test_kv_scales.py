"""--quantization-param-path: files that other engines take are taken, and what is wrong with one is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import sgl
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.kv_scales import check

MODEL = {"model_type": "llama", "num_hidden_layers": 2}
CACHE = {"dtype": "float8_e4m3fn", "scaling_factor": {"0": {"0": 0.023, "1": 1}}}
"""As vLLM's extract_scales.py writes them: scales by rank of tensor parallelism, then by layer."""


def file_of(path: Path, content: Any) -> str:
    file = path / "scales.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


@pytest.mark.parametrize("cache_dtype", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("model_type", [{}, {"model_type": None}, {"model_type": "llama"}], ids=str)
def test_a_good_file_is_taken(cache_dtype: str, model_type: dict[str, Any], tmp_path: Path) -> None:
    told = check(file_of(tmp_path, {**model_type, "kv_cache": CACHE}), cache_dtype, MODEL)
    assert "scales.json was checked and is not needed" in told


def _scales(*numbers: Any) -> dict[str, Any]:
    return {"kv_cache": {**CACHE, "scaling_factor": {"0": {str(place): n for place, n in enumerate(numbers)}}}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[1]", "must be a JSON object"),
        ({"model_type": "qwen2", "kv_cache": CACHE}, "'qwen2', and this one is 'llama'"),
        ({"kv_cache": []}, "an object kv_cache"),
        ({"kv_cache": {**CACHE, "dtype": "int8"}}, "dtype 'float8_e4m3fn'"),
        ({"kv_cache": {"dtype": "float8_e4m3fn"}}, "kv_cache.scaling_factor"),
        ({"kv_cache": {**CACHE, "scaling_factor": {"0": 3}}}, "scales by layer in kv_cache.scaling_factor.0"),
        (_scales(0.1), "has 1 scales in kv_cache.scaling_factor.0 for the 2 layers"),
        (_scales(0.1, 0), "'0' as the scale of layer 1; it must be above zero"),
        (_scales(0.1, -2.0), "'-2.0' as the scale of layer 1"),
        (_scales("x", 1), "'x' as the scale of layer 0"),
        (_scales(float("nan"), 1), "'nan' as the scale of layer 0"),
        (_scales(True, 1), "'True' as the scale of layer 0"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_sentence(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(file_of(tmp_path, content), "fp8_e4m3", MODEL)
    assert words in caught.value.message and "\n" not in caught.value.message
    assert caught.value.message.startswith("--quantization-param-path ")


def test_a_missing_file_and_a_cache_that_is_not_in_fp8_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check(str(tmp_path / "none.json"), "fp8_e4m3", MODEL)
    with pytest.raises(ConfigError, match="--kv-cache-dtype is auto: set it to fp8_e4m3"):
        check(file_of(tmp_path, {"kv_cache": CACHE}), "auto", MODEL)


def test_an_engine_starts_with_it_and_says_what_became_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scales = {"kv_cache": {**CACHE, "scaling_factor": {"0": {str(layer): 0.5 for layer in range(6)}}}}
    caplog.set_level(logging.INFO)
    options = {"kv_cache_dtype": "fp8_e4m3", "quantization_param_path": file_of(tmp_path, scales)}
    with sgl.Engine(max_total_tokens=1024, log_level="info", **options) as engine:
        assert (
            engine.generate("What is", {"temperature": 0, "max_new_tokens": 4})["meta_info"]["completion_tokens"] == 4
        )
    assert "was checked and is not needed" in caplog.text
