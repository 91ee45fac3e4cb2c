"""Resolves what was given for the options of groups.py into one frozen `EngineConfig`.

Reads nothing from outside: values come from sources.py, the machine from machine.py, the model's config.json from the
caller.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from sgl.engine.base.errors import ConfigError
from sgl.engine.base.groups import (
    HARMLESS,
    LATER,
    CacheConfig,
    GrammarConfig,
    KernelConfig,
    ModelConfig,
    ObserveConfig,
    ParallelConfig,
    ScheduleConfig,
    ServeConfig,
)
from sgl.engine.base.machine import Machine
from sgl.engine.base.options import Option, Value, closest, index, options_of

__all__ = [
    "CacheConfig",
    "EngineConfig",
    "Given",
    "GrammarConfig",
    "KernelConfig",
    "Machine",
    "ModelConfig",
    "ObserveConfig",
    "Origin",
    "ParallelConfig",
    "ScheduleConfig",
    "ServeConfig",
    "resolve",
]

Source = Literal["flag", "set", "call", "env", "file", "tuned", "default", "resolved", "receipt"]


@dataclass(frozen=True)
class Given:
    """A value as somebody gave it: text or already typed, with the place it stands in (``--tp``, ``SGL_PORT``)."""

    value: object
    source: Source
    where: str
    note: str = ""


@dataclass(frozen=True)
class Origin:
    """Why an option has its value."""

    source: Source
    reason: str = ""


@dataclass(frozen=True)
class EngineConfig:
    """Every option with its final value. Constructors get their group, never the whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    provenance: Mapping[str, Origin] = field(default_factory=dict, compare=False)

    def get(self, key: str) -> Value:
        """The value of ``group.field``."""
        group, _, name = key.partition(".")
        value: Value = getattr(getattr(self, group), name)
        return value

    def replace(self, values: Mapping[str, tuple[Value, str]]) -> EngineConfig:
        """A copy in which ``group.field`` has a computed value, for a reason."""
        groups: dict[str, dict[str, Value]] = {}
        for key, (value, _) in values.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[name] = value
        changed: dict[str, Any] = {g: dataclasses.replace(getattr(self, g), **v) for g, v in groups.items()}
        origins = {key: Origin("resolved", reason) for key, (_, reason) in values.items()}
        return dataclasses.replace(self, **changed, provenance={**self.provenance, **origins})

    def to_flat_dict(self) -> dict[str, Value]:
        """SGLang's names and plain values, for ``/get_server_info`` and logs; secrets are hidden."""
        items = ((item, self.get(item.key)) for item in OPTIONS)
        return {item.name: "********" if item.declaration.secret and value else value for item, value in items}

    def describe(self) -> str:
        """``ServerArgs(port=8000, ...)`` for the log: what was given or is not the default; secrets are hidden."""
        shown = self.to_flat_dict()
        told = [item for item in OPTIONS if self._is_given(item) or self.get(item.key) != item.default]
        return f"ServerArgs({', '.join(f'{item.name}={shown[item.name]!r}' for item in told)})"

    def _is_given(self, item: Option) -> bool:
        return self.provenance.get(item.key, Origin("default")).source not in ("default", "resolved")

    def to_json(self) -> bytes:
        """Everything, secrets included, for handing the configuration to another process of ours."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes) -> EngineConfig:
        """The inverse of `to_json`."""
        return msgspec.json.decode(data, type=EngineConfig)


GROUPS: Mapping[str, type] = {
    name: cls for name, cls in typing.get_type_hints(EngineConfig).items() if name != "provenance"
}
OPTIONS: tuple[Option, ...] = tuple(item for group, cls in GROUPS.items() for item in options_of(group, cls))
BY_NAME: Mapping[str, Option] = index(OPTIONS)
"""Every name of every option: ``page_size``, ``cache.page_size``, ``tp``, ..."""


def lookup(name: str, where: str) -> Option:
    """The option called ``name`` (``page-size``, ``page_size`` or ``cache.page_size``).

    Raises:
        ConfigError: there is none (yet); ``where`` names the place for the sentence.
    """
    key = name.replace("-", "_")
    if key in BY_NAME:
        return BY_NAME[key]
    if key in LATER:
        raise ConfigError(f"{where}: '{name}' is not supported by this version of sgl.", param=name)
    raise ConfigError(f"{where}: there is no option called '{name}'.{closest(key, BY_NAME)}", param=name)


def asks_for_nothing(name: str, value: object) -> bool:
    """Whether this is an option that comes later, at the value that it has without being there."""
    key = name.replace("-", "_")
    return key in LATER and str(value).lower() == HARMLESS.get(key, "false")


def resolve(values: Mapping[str, Given], hf_config: Mapping[str, Any], machine: Machine) -> EngineConfig:
    """Parses what was given and computes what was not. Pure.

    Afterwards every field has its final value but ``cache.max_total_tokens`` (and an upper bound of
    ``schedule.max_running_requests``), which `budget.solve` settles once the weights' size is known.

    Args:
        values: by ``group.field``.
        hf_config: the model's config.json.
        machine: what the model will run on.

    Raises:
        ConfigError: a value is wrong, or contradicts the model.
    """
    parsed: dict[str, Value] = {}
    origins: dict[str, Origin] = {}
    for item in OPTIONS:
        given = values.get(item.key)
        parsed[item.key] = item.default if given is None else item.parse(given.value, given.where)
        origins[item.key] = Origin("default") if given is None else Origin(given.source, _told(given))
    draft = Draft(parsed, origins, text_config(hf_config, str(parsed["model.json_model_override_args"])), machine)
    for key, compute in _RESOLVERS.items():
        before = draft.values[key]
        draft.values[key], reason = compute(draft)
        if draft.values[key] != before or reason:
            _explain(draft, key, before, reason)
    groups = {
        name: cls(**{item.field: draft.values[item.key] for item in OPTIONS if item.group == name})
        for name, cls in GROUPS.items()
    }
    return EngineConfig(**groups, provenance=draft.origins)


def text_config(hf_config: Mapping[str, Any], override: str) -> dict[str, Any]:
    """The language model's part of config.json with ``--json-model-override-args`` merged in."""
    try:
        extra = json.loads(override or "{}")
    except json.JSONDecodeError as error:
        message = f"--json-model-override-args must be a JSON object, but {error.msg} at column {error.colno}."
        raise ConfigError(message, param="--json-model-override-args") from None
    if not isinstance(extra, dict):
        raise ConfigError(
            f"--json-model-override-args must be a JSON object, got {override}.", param="--json-model-override-args"
        )
    merged = {**hf_config, **extra}
    nested = merged.get("text_config")
    return {**nested, **extra} if isinstance(nested, dict) else merged


@dataclass
class Draft:
    """Values on their way to being resolved."""

    values: dict[str, Value]
    origins: dict[str, Origin]
    hf: Mapping[str, Any]
    machine: Machine

    @property
    def on_gpu(self) -> bool:
        return self.values["model.device"] == "cuda"


Computed = tuple[Value, str]


def _told(given: Given) -> str:
    return given.where + (f", {given.note}" if given.note else "")


def _explain(draft: Draft, key: str, before: Value, reason: str) -> None:
    """A default that was computed says why; a value that was asked for keeps its origin and adds the reason."""
    origin = draft.origins[key]
    if origin.source == "default":
        draft.origins[key] = Origin("resolved", reason)
    else:
        draft.origins[key] = Origin(origin.source, "; ".join(part for part in (origin.reason, reason) if part))


def _model_path(draft: Draft) -> Computed:
    path = draft.values["model.model_path"]
    if not path:
        raise ConfigError("--model-path is required: a directory or a Hugging Face Hub id.", param="--model-path")
    return path, ""


def _tp_size(draft: Draft) -> Computed:
    size = draft.values["parallel.tp_size"]
    if size != 1:
        raise ConfigError(f"--tp-size {size} is not supported by this version of sgl; use 1.", param="--tp-size")
    return size, ""


def _device(draft: Draft) -> Computed:
    asked, found = draft.values["model.device"], draft.machine.device
    if asked == "cuda" and found != "cuda":
        raise ConfigError(
            "--device cuda needs an NVIDIA GPU and a torch built for CUDA; none was found.", param="--device"
        )
    if asked != "auto":
        return asked, ""
    return found, "there is a GPU" if found == "cuda" else "no GPU that torch can use"


_DTYPES = {"half": "float16", "float": "float32"}


def _dtype(draft: Draft) -> Computed:
    asked = str(draft.values["model.dtype"])
    if asked in _DTYPES:
        return _DTYPES[asked], f"{asked} means {_DTYPES[asked]}"
    if asked != "auto":
        return asked, ""
    stored = str(draft.hf.get("dtype") or draft.hf.get("torch_dtype") or "").removeprefix("torch.")
    if stored in ("bfloat16", "float16", "float32"):
        slow = "; on a CPU --dtype bfloat16 is faster" if stored == "float16" and not draft.on_gpu else ""
        return stored, f"the checkpoint's{slow}"
    if stored:
        raise ConfigError(
            f"config.json names the precision {stored!r}, which is not supported; pass --dtype bfloat16, float16 or "
            "float32 if the weights can be converted.",
            param="--dtype",
        )
    return "bfloat16", "config.json names no precision"


_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "model_max_length")


def model_context_length(hf: Mapping[str, Any]) -> tuple[int, str]:
    """(tokens, reason): how long a sequence the model was made for, with its rope scaling."""
    key = next((k for k in _LENGTH_KEYS if isinstance(hf.get(k), int)), None)
    if key is None:
        return 2048, "config.json names no length"
    length = int(hf[key])
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factor = scaling.get("factor", 1) or 1
    if kind in ("default", "llama3", "dynamic") or "original_max_position_embeddings" in scaling or factor == 1:
        return length, f"{key} of the model"
    return int(length * factor), f"{key} {length} times rope factor {factor:g}"


def _context_length(draft: Draft) -> Computed:
    limit, reason = model_context_length(draft.hf)
    asked = draft.values["model.context_length"]
    if asked is None:
        return limit, reason
    assert isinstance(asked, int)
    if asked <= limit:
        return asked, ""
    if draft.values["model.allow_longer_context"]:
        return asked, f"longer than the model's {limit}, allowed by --allow-longer-context"
    raise ConfigError(
        f"--context-length {asked} is longer than the model's {limit} ({reason}); use at most {limit}, or add "
        "--allow-longer-context if the answers may be wrong beyond it.",
        param="--context-length",
    )


def _default(key: str, compute: Callable[[Draft], Computed]) -> Callable[[Draft], Computed]:
    """Computes a value only where none was given."""

    def resolver(draft: Draft) -> Computed:
        value = draft.values[key]
        return (value, "") if value not in (None, "") else compute(draft)

    return resolver


def _mem_fraction(draft: Draft) -> Computed:
    return (0.88, "of the GPU's memory") if draft.on_gpu else (0.5, "of the free memory: others use this machine too")


def _max_total_tokens(draft: Draft) -> Computed:
    return None, "as many as the memory allows, known once the weights are loaded"


def _max_running(draft: Draft) -> Computed:
    return (256, "default on a GPU") if draft.on_gpu else (64, "default on a CPU")


def _chunk(draft: Draft) -> Computed:
    asked = draft.values["schedule.chunked_prefill_size"]
    if asked == 0:
        raise ConfigError(
            "--chunked-prefill-size must be at least 1, or -1 for no chunks, got 0.", param="--chunked-prefill-size"
        )
    if asked is not None:
        return asked, ""
    if draft.on_gpu:
        return 8192, "default on a GPU"
    cores = draft.machine.cores
    size = 512 if cores <= 4 else 1024 if cores <= 16 else 2048
    return size, f"for {cores} CPU cores: a step should not keep decoding requests waiting"


def _cpu_threads(draft: Draft) -> Computed:
    return draft.machine.cores, "CPU cores of this process"


def _torch_compile(draft: Draft) -> Computed:
    asked = draft.values["kernel.enable_torch_compile"]
    if asked and (not draft.on_gpu or draft.values["kernel.disable_cuda_graph"]):
        raise ConfigError(
            "--enable-torch-compile compiles steps that are captured on a GPU: there are none on a CPU or with "
            "--disable-cuda-graph; leave it out.",
            param="--enable-torch-compile",
        )
    return asked, ""


def _random_seed(draft: Draft) -> Computed:
    return draft.machine.entropy % 2**31, "drawn at start"


_RESOLVERS: Mapping[str, Callable[[Draft], Computed]] = {
    "model.model_path": _model_path,
    "parallel.tp_size": _tp_size,
    "model.device": _device,
    "model.dtype": _dtype,
    "model.context_length": _context_length,
    "model.tokenizer_path": _default(
        "model.tokenizer_path", lambda draft: (draft.values["model.model_path"], "the model's")
    ),
    "model.served_model_name": _default(
        "model.served_model_name", lambda draft: (draft.values["model.model_path"], "the model path")
    ),
    "model.random_seed": _default("model.random_seed", _random_seed),
    "cache.mem_fraction_static": _default("cache.mem_fraction_static", _mem_fraction),
    "cache.max_total_tokens": _default("cache.max_total_tokens", _max_total_tokens),
    "schedule.max_running_requests": _default("schedule.max_running_requests", _max_running),
    "schedule.chunked_prefill_size": _chunk,
    "kernel.enable_torch_compile": _torch_compile,
    "kernel.cpu_threads": _default("kernel.cpu_threads", _cpu_threads),
    "observe.log_level_http": _default(
        "observe.log_level_http", lambda draft: (draft.values["observe.log_level"], "as --log-level")
    ),
}


def explain(config: EngineConfig) -> Iterator[tuple[Option, Value, Origin]]:
    """Every option with its value and why it has it, in the order of declaration."""
    for item in OPTIONS:
        yield item, config.get(item.key), config.provenance.get(item.key, Origin("default"))
