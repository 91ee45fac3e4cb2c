"""Puts an engine together: loads, divides the memory, wires; the only module that sees scheduling and execution."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import sgl
from sgl.engine.base import env, hub, kv_scales
from sgl.engine.base.arena import Arena
from sgl.engine.base.budget import Budget
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.processors import find_processor, known_processors
from sgl.engine.base.timeline import Timeline
from sgl.engine.base.types import Request
from sgl.engine.core.grammar import GrammarCompiler, NoGrammars
from sgl.engine.core.operations import Operation
from sgl.engine.core.record import FileRecorder, NullRecorder
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.loop import EngineLoop, Inbox, Outbox

if TYPE_CHECKING:
    from sgl.engine.attn.backend import AttentionBackend
    from sgl.engine.base.device import Device
    from sgl.engine.base.machine import Machine
    from sgl.engine.nn.decoder import Model
    from sgl.engine.nn.spec import ModelSpec
    from sgl.engine.runtime.canary import Canary
    from sgl.engine.runtime.executor import TorchExecutor
    from sgl.engine.runtime.graphs import GraphOptions
    from sgl.engine.runtime.profiler import Profiler
    from sgl.engine.runtime.rehearsal import Rehearsal
    from sgl.engine.runtime.weights import Source
    from sgl.kernels.registry import Kernels

logger = logging.getLogger(__name__)

_REHEARSAL_BYTES = 8 << 30
"""More than a few layers of a model take, with its embeddings and what they compute."""

_FORMATS = (
    "dtype",
    "quantization",
    "torchao_config",
    "kv_cache_dtype",
    "exact_activations",
    "allow_repack",
    "quantization_param_path",
)
"""Options that decide in which formats a model computes."""

_CHOICES = ("attention_backend", "page_size", "disable_cuda_graph")
"""Options that decide in which order sums are computed."""

_MOST_POPULATED_BYTES = 4 << 30
"""Of memory for weights that is faulted in ahead: more takes longer than there is time for."""


def build_loop(config: EngineConfig, inbox: Inbox, outbox: Outbox) -> EngineLoop:
    """Loads the model, divides the memory and puts an engine together.

    Raises:
        ModelError: the checkpoint cannot be loaded.
        ConfigError: an option does not fit the model or the machine.
    """
    timeline = Timeline()
    timeline.mark("engine process")
    arena = _arena(config)  # before the imports: its memory is faulted in beside them
    from sgl.engine.base.machine import detect
    from sgl.engine.models.fit import fitted
    from sgl.engine.runtime.weights import Source

    recorder = FileRecorder(Path(config.observe.record_plans)) if config.observe.record_plans else NullRecorder()
    timeline.mark("imports")
    machine = detect(config.model.device)
    device, kernels = _open(config)
    timeline.mark("kernels")
    model, hf_config, model_dir = _first_load(config, device, kernels, arena, timeline)
    config = fitted(config, model.spec)
    executor, schedule, budget = _execution(config, machine, device, kernels, model, timeline)
    source = Source.of(config.model.model_path, config.model.load_format, model_dir)
    canary = _canary(config, device, kernels, model, schedule, executor)
    canary.check(source)
    timeline.mark("canary")
    scheduler = Scheduler(schedule, _grammars(config, model, lambda: scheduler.num_steps))
    profiler = _profiler(device, machine, model, scheduler)
    return EngineLoop(
        scheduler,
        executor,
        inbox,
        outbox,
        # What computes while it is called leaves nothing to hide behind it.
        overlap=int(device.is_async and not config.schedule.disable_overlap_schedule),
        info={
            **model_info(config, hf_config, budget, model),
            "startup": timeline.marks,
            "kernels": kernels.names,
            "isa": device.isa,
        },
        recorder=recorder,
        log_interval=config.observe.decode_log_interval,
        operations={
            **_operations(config, device, kernels, model, source, scheduler, executor, canary),
            "start_profile": profiler.start,
            "stop_profile": profiler.stop,
            "profile_status": profiler.status,
        },
        check=_checker(config, model.vocab_size),
        watch=profiler,
        tells_steps=config.observe.request_ledger_size > 0,
        prepare=executor.prepare,
    )


def _first_load(
    config: EngineConfig, device: Device, kernels: Kernels, arena: Arena | None, timeline: Timeline
) -> tuple[Model, dict[str, Any], Path]:
    """As `_load`, while what the model will run is compiled beside it."""
    from sgl.engine.base.shortage import memory_for

    rehearsal = _rehearse(config, device, kernels)
    with memory_for("weights", device, "take a smaller model, or --quantization int8, int4 or fp8"):
        loaded = _load(config, device, kernels, arena)
    timeline.mark("weights")
    if rehearsal is not None:
        rehearsal.join()
        timeline.mark("kernels compiled")
    return loaded


def _execution(
    config: EngineConfig, machine: Machine, device: Device, kernels: Kernels, model: Model, timeline: Timeline
) -> tuple[TorchExecutor, SchedulerConfig, Budget]:
    """What runs the model in the memory that its weights have left, and how that was divided."""
    from sgl.engine.base.shortage import memory_for
    from sgl.engine.runtime.capture import graph_options

    graphs = graph_options(config, step_tokens(config)) if device.is_async else None
    free_bytes = device.memory().free_bytes
    with memory_for("attention workspace", device, "take --attention-backend triton, or a smaller model"):
        backend = _backend(config, device, model, kernels)
    budget = _solve(config, machine, device, model, backend, graphs, free_bytes)
    schedule = scheduler_config(config, budget)
    logger.info(
        "max_total_num_tokens=%d, chunked_prefill_size=%d, max_prefill_tokens=%d, max_running_requests=%d, "
        "context_len=%d",
        budget.max_total_tokens,
        schedule.max_step_tokens,
        config.schedule.max_prefill_tokens,
        schedule.max_running,
        schedule.max_len,
    )
    with memory_for("KV cache", device, "lower --mem-fraction-static or --max-total-tokens"):
        executor = _executor(
            device,
            kernels,
            model,
            backend,
            num_slots=schedule.max_running,
            max_len=schedule.max_len,
            num_pages=schedule.num_pages,
            page_size=schedule.page_size,
            graphs=graphs,
        )
    timeline.mark("KV cache")
    if device.is_async:  # what it runs is compiled on first use
        executor.warm_up()
        timeline.mark("warm-up")
    return executor, schedule, budget


def _solve(
    config: EngineConfig,
    machine: Machine,
    device: Device,
    model: Model,
    backend: AttentionBackend[Any],
    graphs: GraphOptions | None,
    free_after_bytes: int,
) -> Budget:
    """What the memory is divided into, now that the weights are there, behind which so much was free."""
    from sgl.engine.base.budget import solve
    from sgl.engine.runtime.capture import capture_bytes
    from sgl.engine.runtime.kv import kv_bytes_per_page

    if device.is_async:  # a part of a GPU has less than nvidia-smi tells of the whole
        machine = replace(machine, memory_bytes=device.memory().total_bytes)
    traits = backend.traits
    max_running = config.schedule.max_running_requests or 1
    return solve(
        config,
        machine,
        weight_bytes=model.weight_bytes,
        kv_bytes_per_page=max(kv_bytes_per_page(model.kv_specs, config.cache.page_size), 1),  # encoders keep nothing
        activation_bytes=model.activation_bytes(step_tokens(config), max_running)
        + traits.step_bytes
        + traits.plan_bytes,
        graph_bytes=capture_bytes(graphs, model.activation_bytes, traits.step_bytes, traits.graph_bytes),
        workspace_bytes=max(free_after_bytes - device.memory().free_bytes, 0) if device.is_async else 0,
        free_after_bytes=free_after_bytes if device.is_async else None,
    )


def _executor(
    device: Device,
    kernels: Kernels,
    model: Model,
    backend: AttentionBackend[Any],
    *,
    num_slots: int,
    max_len: int,
    num_pages: int,
    page_size: int,
    graphs: GraphOptions | None = None,
) -> TorchExecutor:
    """The model on its device, with the memory of its requests."""
    from sgl.engine.runtime.executor import TorchExecutor
    from sgl.engine.runtime.sampler import SamplingOps

    return TorchExecutor(
        model,
        backend,
        device,
        num_slots=num_slots,
        max_len=max_len,
        num_pages=num_pages,
        page_size=page_size,
        graphs=graphs,
        sampling=SamplingOps.of(kernels),
        locate=kernels["decode.locate"],
        commit=kernels["decode.commit"],
        refill=kernels["decode.refill"],
    )


def _backend(config: EngineConfig, device: Device, model: Model, kernels: Kernels) -> AttentionBackend[Any]:
    """What computes the model's attention."""
    from sgl.engine.attn.choice import choose_backend

    return choose_backend(config.kernel.attention_backend, device, model.kv_specs, config.cache.page_size, kernels)


def _profiler(device: Device, machine: Machine, model: Model, scheduler: Scheduler) -> Profiler:
    """What records steps when it is asked to."""
    from sgl.engine.base.machine import describe
    from sgl.engine.runtime.profiler import Profiler

    return Profiler(
        env.profiler_dir(),
        has_gpu=device.kind == "cuda",
        facts={"cost": msgspec.to_builtins(model.cost), "machine": describe(machine)},
        computed=lambda rid: scheduler.state_of(rid).computed,
        unasked=env.profile_steps(),
    )


def _canary(
    config: EngineConfig,
    device: Device,
    kernels: Kernels,
    model: Model,
    schedule: SchedulerConfig,
    executor: TorchExecutor,
) -> Canary:
    """What looks at weights before anybody is served with them."""
    import torch

    from sgl.engine.models.loader import read_config
    from sgl.engine.nn.spec import MoeSpec
    from sgl.engine.runtime.canary import Canary, Extent, Made

    options = config.to_flat_dict()
    formats = {name: str(options[name]) for name in _FORMATS}
    made = Made(
        sgl=sgl.__version__,
        isa=f"{device.isa}, {torch.get_num_threads()} threads",
        formats=formats,
        kernels={
            **kernels.names,
            **{name: str(options[name]) for name in _CHOICES},
            "torch": str(torch.__version__),
        },
    )
    max_len = min(schedule.max_len, schedule.num_pages * schedule.page_size) - 1
    spec, cost = model.spec, model.cost
    extent = Extent(
        model.vocab_size,
        max_len,
        schedule.page_size,
        gives="tokens" if spec.pooling is None else "vector" if spec.pooling.task == "embed" else "classes",
        has_experts=any(isinstance(layer.mlp, MoeSpec) for layer in spec.layers),
        is_quantized=any(weights.format != cost.format for weights in cost.linears),
    )
    overrides = json.loads(config.model.json_model_override_args)

    def describe(directory: Path) -> dict[str, Any]:
        return {**read_config(directory, overrides), "sgl.pooling": repr(spec.pooling)}

    return Canary(executor, extent, made, config.observe.canary, describe)


def _grammars(config: EngineConfig, model: Model, num_steps: Callable[[], int]) -> GrammarCompiler:
    """What constrains output, if this engine has text and generates any."""
    from sgl.engine.grammar.backend import Options
    from sgl.engine.grammar.compiler import Grammars
    from sgl.engine.grammar.vocabulary import model_vocabulary

    if config.model.skip_tokenizer_init or model.spec.pooling is not None:
        return NoGrammars("Grammars need a tokenizer, but --skip-tokenizer-init is set.")
    options = Options(config.grammar.constrained_json_whitespace_pattern or None)
    grammars = Grammars(
        config.grammar.grammar_backend, lambda: model_vocabulary(config.model, model.vocab_size), options
    )
    grammars.warm_up(num_steps)
    return grammars


def _open(config: EngineConfig) -> tuple[Device, Kernels]:
    """The device with the threads it is to use, and its kernels."""
    import torch

    from sgl.engine.base.device import open_device
    from sgl.engine.base.dtypes import torch_dtype
    from sgl.kernels.cpu import native
    from sgl.kernels.registry import bind

    device = open_device(config.model.device)
    if config.kernel.cpu_threads is not None:
        torch.set_num_threads(config.kernel.cpu_threads)
    if config.kernel.cpu_pin:
        native.pin(torch.get_num_threads())
    drawing = {"auto": (), "pytorch": ("sample.draw=reference",)}
    backend = config.kernel.sampling_backend
    overrides = (*drawing.get(backend, (f"sample.draw={backend}",)), *config.kernel.overrides)
    return device, bind(device.kind, device.isa, torch_dtype(config.model.dtype), overrides)


def _arena(config: EngineConfig) -> Arena | None:
    """Memory for the weights of a local checkpoint, on its way while torch is imported."""
    if config.model.device == "cuda":
        return None
    files = Path(config.model.model_path).expanduser().glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    arena = Arena(2 * size)
    needed = size if config.model.quantization == "none" else size // 2
    arena.populate(min(needed, _MOST_POPULATED_BYTES))
    return arena


def _operations(
    config: EngineConfig,
    device: Device,
    kernels: Kernels,
    model: Model,
    source: Source,
    scheduler: Scheduler,
    executor: TorchExecutor,
    canary: Canary,
) -> dict[str, Operation]:
    """What may be asked of this engine beside requests."""
    from sgl.engine.base.dtypes import torch_dtype
    from sgl.engine.runtime.distributions import Distributions
    from sgl.engine.runtime.weights import Weights

    def locate(path: str) -> Path:
        return hub.locate(path, (*hub.WEIGHT_FILES, "*.json"), "", config.model.download_dir)

    spec = model.spec

    def load(path: str, load_format: str) -> Model:
        where = {"model.model_path": path, "model.load_format": load_format, "model.revision": ""}
        other = config.replace({key: (value, "update of the weights") for key, value in where.items()})
        return _load(other, device, kernels, None, like=spec)[0]

    weights = Weights(executor.loaded, scheduler, device, model, source, load, locate, canary)
    return {
        "update_weights": weights.update,
        "get_weights": weights.get,
        "describe_weights": weights.describe,
        "weight_files": weights.files,
        "canary": canary.describe,
        "golden": canary.golden,
        "release_memory": weights.release,
        "resume_memory": weights.restore,
        "logprobs": Distributions(executor.loaded, device, torch_dtype(config.model.dtype), spec).logprobs,
    }


def _checker(config: EngineConfig, vocab_size: int) -> Callable[[Request], None]:
    """What can be said about a request only where the logit processors are."""
    if config.serve.enable_custom_logit_processor:
        logger.info("Logit processors: %s.", ", ".join(known_processors()))

    def check(request: Request) -> None:
        if request.params.processor is not None:
            find_processor(request.params.processor).check(vocab_size)

    return check


def _rehearse(config: EngineConfig, device: Device, kernels: Kernels) -> Rehearsal | None:
    """Compiles beside the loader what the model will need, where that takes time and there is memory for both."""
    from sgl.engine.runtime.rehearsal import Rehearsal
    from sgl.engine.runtime.warmup import LONGEST

    files = Path(config.model.model_path).expanduser().glob("*.safetensors")
    size_bytes = sum(file.stat().st_size for file in files)
    if not device.is_async or not size_bytes or device.memory().free_bytes < 1.25 * size_bytes + _REHEARSAL_BYTES:
        return None
    small = config.replace({"model.load_format": ("dummy", "rehearsal")})

    def make() -> TorchExecutor:
        model = _load(small, device, kernels, None, is_rehearsal=True)[0]
        page_size = config.cache.page_size
        return _executor(
            device,
            kernels,
            model,
            _backend(config, device, model, kernels),
            num_slots=2,
            max_len=min(2 * LONGEST, model.spec.max_positions),
            num_pages=1 + 2 * LONGEST // page_size,
            page_size=page_size,
        )

    return Rehearsal(make, device)


def _load(
    config: EngineConfig,
    device: Device,
    kernels: Kernels,
    arena: Arena | None,
    like: ModelSpec | None = None,
    is_rehearsal: bool = False,
) -> tuple[Model, dict[str, Any], Path]:
    """The model, its config.json and where they came from."""
    from sgl.engine.base.dtypes import cache_dtype, torch_dtype
    from sgl.engine.models.loader import load_model, read_config

    files = (*hub.WEIGHT_FILES, *hub.TOKENIZER_FILES)
    model_dir = hub.locate(config.model.model_path, files, config.model.revision, config.model.download_dir)
    hf_config = read_config(model_dir, json.loads(config.model.json_model_override_args))
    if config.cache.quantization_param_path and not is_rehearsal:
        checked = kv_scales.check(config.cache.quantization_param_path, config.cache.kv_cache_dtype, hf_config)
        logger.info("%s", checked)
    model = load_model(
        model_dir,
        hf_config,
        dtype=torch_dtype(config.model.dtype),
        device=device,
        kernels=kernels,
        load_format=config.model.load_format,
        quantization=config.model.quantization,
        torchao_config=config.model.torchao_config,
        allow_repack=config.model.allow_repack,
        exact_activations=config.model.exact_activations,
        kv_dtype=cache_dtype(config.cache.kv_cache_dtype),
        is_embedding=config.model.is_embedding,
        pooling=config.model.pooling,
        seed=config.model.random_seed or 0,
        arena=arena,
        like=like,
        is_rehearsal=is_rehearsal,
    )
    return model, hf_config, model_dir


def step_tokens(config: EngineConfig) -> int:
    """The token budget of a step; prompts that must not be split need room for the longest of them."""
    chunk = config.schedule.chunked_prefill_size or -1
    return chunk if chunk > 0 else max(config.schedule.max_prefill_tokens, config.model.context_length or 0)


def scheduler_config(config: EngineConfig, budget: Budget) -> SchedulerConfig:
    """The scheduler's slice of a resolved configuration."""
    assert config.model.context_length is not None
    return SchedulerConfig(
        num_pages=budget.num_pages,
        page_size=config.cache.page_size,
        max_running=budget.max_running_requests,
        max_step_tokens=step_tokens(config),
        max_queued=config.schedule.max_queued_requests,
        max_len=min(config.model.context_length, budget.max_total_tokens),
        policy=config.schedule.policy,
        conservativeness=config.schedule.conservativeness,
        split_prompts=config.schedule.chunked_prefill_size != -1,
        prefix_caching=not config.cache.disable_radix_cache,
        jump_forward=not config.grammar.disable_jump_forward,
        seed=config.model.random_seed or 0,
    )


def model_info(config: EngineConfig, hf_config: dict[str, Any], budget: Budget, model: Model) -> dict[str, Any]:
    """What the front process must know; the fields of its ModelInfo."""
    from sgl.engine.models.fit import pooling_info
    from sgl.engine.models.registry import family_of

    eos = hf_config.get("eos_token_id")
    longest = min(config.model.context_length or 0, budget.max_total_tokens)
    family = family_of(hf_config)
    return {
        "model_path": config.model.model_path,
        "tokenizer_path": config.model.tokenizer_path,
        "is_generation": model.spec.pooling is None,
        "pooling": pooling_info(model),
        "context_len": config.model.context_length,
        "vocab_size": model.vocab_size,
        "hidden_size": model.spec.hidden_size,
        "max_total_num_tokens": budget.max_total_tokens,
        "max_req_input_len": longest - (model.spec.pooling is None),
        "tool_parser": family.tool_parser,
        "reasoning_parser": family.reasoning_parser,
        "cost": model.cost,
        "eos_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
    }
