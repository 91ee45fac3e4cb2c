"""Resolution: what is computed from the model and the machine, and why."""

from __future__ import annotations

import json

import pytest

from sgl.engine.base.config import OPTIONS, EngineConfig, Given, explain, resolve
from sgl.engine.base.errors import ConfigError
from tests.base.machines import GPU, LAPTOP, LLAMA, resolved


def test_every_field_is_final_but_those_that_wait_for_the_weights() -> None:
    config = resolved()
    nothing = {option.key for option in OPTIONS if config.get(option.key) is None}
    assert nothing == {"cache.max_total_tokens"}
    assert config.model.tokenizer_path == config.model.served_model_name == "m"


def test_every_value_has_an_origin_and_every_computed_one_a_reason() -> None:
    for option, value, origin in explain(resolved(schedule__policy="fcfs")):
        if origin.source == "default":
            assert value == option.default
        else:
            assert origin.reason, option.key


def test_machines_get_defaults_that_suit_them() -> None:
    laptop, gpu = resolved(), resolved(GPU)
    assert (laptop.model.device, gpu.model.device) == ("cpu", "cuda")
    assert (laptop.schedule.chunked_prefill_size, gpu.schedule.chunked_prefill_size) == (512, 8192)
    assert (laptop.schedule.max_running_requests, gpu.schedule.max_running_requests) == (64, 256)
    assert laptop.kernel.cpu_threads == LAPTOP.cores
    assert resolved(GPU, model__device="cpu").schedule.chunked_prefill_size == 1024


def test_a_gpu_that_is_not_there_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="--device cuda needs an NVIDIA GPU"):
        resolved(model__device="cuda")


@pytest.mark.parametrize(
    ("asked", "hf", "dtype"),
    [
        ("auto", {"torch_dtype": "float32"}, "float32"),
        ("auto", {"dtype": "float16"}, "float16"),
        ("auto", {"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ("auto", {}, "bfloat16"),
        ("auto", {"text_config": {"dtype": "float16"}}, "float16"),
        ("half", {"torch_dtype": "float32"}, "float16"),
        ("float", {}, "float32"),
        ("bfloat16", {"torch_dtype": "float32"}, "bfloat16"),
    ],
)
def test_dtype(asked: str, hf: dict[str, object], dtype: str) -> None:
    assert resolved(hf=hf | {"n_positions": 8}, model__dtype=asked).model.dtype == dtype


def test_a_precision_that_is_not_supported_is_named() -> None:
    with pytest.raises(ConfigError, match="'int4', which is not supported; pass --dtype"):
        resolved(hf={"dtype": "int4", "n_positions": 8})
    assert resolved(hf={"dtype": "int4", "n_positions": 8}, model__dtype="float32").model.dtype == "float32"


@pytest.mark.parametrize(
    ("hf", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, 64),
        ({}, 2048),
    ],
)
def test_context_length_is_the_models(hf: dict[str, object], length: int) -> None:
    assert resolved(hf=hf | {"model_type": "x"}).model.context_length == length


def test_a_longer_context_needs_a_second_flag() -> None:
    assert resolved(model__context_length=100).model.context_length == 100
    with pytest.raises(ConfigError, match=r"--context-length 5000 is longer than the model's 4096.*--allow-longer"):
        resolved(model__context_length=5000)
    config = resolved(model__context_length=5000, model__allow_longer_context=True)
    assert config.model.context_length == 5000
    assert "longer than the model's 4096" in config.provenance["model.context_length"].reason


def test_overrides_of_the_models_config_count() -> None:
    override = json.dumps({"max_position_embeddings": 99})
    assert resolved(model__json_model_override_args=override).model.context_length == 99
    for bad in ("[1]", "{", "x"):
        with pytest.raises(ConfigError, match="--json-model-override-args must be a JSON object"):
            resolved(model__json_model_override_args=bad)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"model__model_path": ""}, "--model-path is required"),
        ({"parallel__tp_size": 2}, "--tp-size 2 is not supported by this version of sgl"),
        ({"schedule__chunked_prefill_size": 0}, "--chunked-prefill-size must be at least 1, or -1"),
    ],
)
def test_contradictions_are_refused(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolved(**flags)


def test_it_survives_the_way_to_another_process() -> None:
    config = resolved(serve__api_key="hunter2", kernel__overrides="a=b,c=d")
    again = EngineConfig.from_json(config.to_json())
    assert again == config
    assert again.provenance == config.provenance


def test_flat_names_are_sglangs_and_secrets_stay_secret() -> None:
    flat = resolved(serve__api_key="hunter2").to_flat_dict()
    assert {"model_path", "tp_size", "schedule_policy", "max_total_tokens", "dtype", "random_seed"} <= flat.keys()
    assert "hunter2" not in json.dumps(flat)
    assert flat["admin_api_key"] == ""


def test_the_log_shows_what_was_given_or_is_not_the_default() -> None:
    assert EngineConfig().describe() == "ServerArgs()"
    told = resolved(serve__api_key="hunter2", cache__page_size=16, serve__port=31000).describe()
    assert told.startswith("ServerArgs(model_path='m', ") and told.endswith(")")
    for part in ("api_key='********'", "page_size=16", "port=31000", "dtype='bfloat16'", "random_seed="):
        assert part in told  # given, whatever the default is, or computed
    for name in ("host", "log_level=", "max_total_tokens", "drain_timeout_s"):
        assert name not in told


def test_resolution_is_pure() -> None:
    values = {"model.model_path": Given("m", "flag", "--model-path")}
    assert resolve(values, LLAMA, LAPTOP) == resolve(values, LLAMA, LAPTOP)


def test_replace_keeps_the_rest_and_says_why() -> None:
    config = resolved().replace({"cache.max_total_tokens": (160, "because")})
    assert config.cache.max_total_tokens == 160
    assert config.provenance["cache.max_total_tokens"].reason == "because"
    assert config.model == resolved().model
