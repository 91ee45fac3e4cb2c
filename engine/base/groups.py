"""Declares every option of the engine and the server, once: type, default, names, bounds and help.

The command line, files, environment variables, documentation and `/get_server_info` are generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sgl.engine.base.options import option


@dataclass(frozen=True)
class ModelConfig:
    """Which model, in which precision, on which device."""

    model_path: str = option(
        "",
        "Directory with config.json and safetensors, or a Hugging Face Hub id.",
        flags=("--model-path", "--model"),
        env="MODEL_PATH",
    )
    tokenizer_path: str = option("", "Directory or Hub id of the tokenizer, if not the model's.", env="TOKENIZER_PATH")
    tokenizer_mode: Literal["auto", "slow"] = option(
        "auto", "auto reads tokenizer.json; slow uses transformers' Python tokenizer.", env="TOKENIZER_MODE"
    )
    load_format: Literal["auto", "safetensors", "gguf", "bitsandbytes", "dummy"] = option(
        "auto",
        "dummy makes random weights from config.json alone; gguf and bitsandbytes are found without being named.",
        env="LOAD_FORMAT",
        later=("pt", "npcache", "layered"),
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float"] = option(
        "auto",
        "Precision of weights and activations; auto is the checkpoint's, bfloat16 where it names none.",
        env="DTYPE",
    )
    quantization: Literal[
        "none",
        "int8",
        "int4",
        "int4-g32",
        "int4-g64",
        "int4-g128",
        "fp8",
        "nf4",
        "awq",
        "awq_marlin",
        "gptq",
        "gptq_marlin",
        "marlin",
        "bitsandbytes",
        "compressed-tensors",
        "gguf",
        "modelopt",
        "torchao",
        "w8a8_fp8",
        "w8a8_int8",
    ] = option(
        "none",
        "Round the linear layers' weights while loading: int8 (a scale per output), int4-gN (a scale per group of N "
        "inputs, with a head of 8 bits; int4 is int4-g128), fp8 (a scale per output) or nf4. The method of a quantized "
        "checkpoint is found without this; the other names may say it, and a wrong one is an error.",
        env="QUANTIZATION",
        later=("squeezellm",),
    )
    torchao_config: Literal[
        "none",
        "int8dq",
        "int8wo",
        "fp8wo",
        "fp8dq-per_tensor",
        "fp8dq-per_row",
        "int4wo-32",
        "int4wo-64",
        "int4wo-128",
        "int4wo-256",
    ] = option("none", "As --quantization, in torchao's words.", env="TORCHAO_CONFIG")
    allow_repack: bool = option(
        False,
        "Round weights in a format that no kernel of this device runs once more, to int8 or int4, in place of decoding "
        "them to the model's precision; the log says how large the error is that this adds.",
    )
    exact_activations: bool = option(
        False,
        "Multiply 4-bit weight-only formats with activations as they are, where their kernel would round these to int8 "
        "by groups (on a CPU).",
    )
    context_length: int | None = option(
        None,
        "Longest sequence, prompt and answer together; the model's own if not given.",
        env="CONTEXT_LENGTH",
        flags=("--context-length", "--max-model-len"),
        min=1,
        metavar="TOKENS",
    )
    allow_longer_context: bool = option(
        False,
        "Accept a --context-length beyond what the model was trained for.",
        env="SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN",
    )
    served_model_name: str = option("", "Name in /v1/models; the model path if not given.", env="SERVED_MODEL_NAME")
    chat_template: str = option(
        "",
        "Name of a built-in chat template or a .jinja or .json file; the tokenizer's own if not given.",
        env="CHAT_TEMPLATE",
    )
    revision: str = option("", "Branch, tag or commit on the Hub.")
    download_dir: str = option("", "Where Hub downloads are kept; the Hugging Face cache if not given.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.", env="TRUST_REMOTE_CODE")
    skip_tokenizer_init: bool = option(False, "Take and return token ids only.", env="SKIP_TOKENIZER_INIT")
    json_model_override_args: str = option("{}", "JSON object merged into the model's config.json.", metavar="JSON")
    is_embedding: bool = option(
        False, "Answer with embeddings; encoders and models with a head for scores do so without being told."
    )
    pooling: Literal["auto", "last", "mean", "cls"] = option(
        "auto",
        "Which hidden states make an embedding: of the last token, of all, of the first; auto is what the checkpoint "
        "says.",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where the model runs; auto takes the GPU if there is one.", later=("xpu", "hpu", "rocm", "mps")
    )
    random_seed: int | None = option(
        None, "Seed of everything random; drawn at start if not given.", env="RANDOM_SEED", min=0, max=2**31 - 1
    )


@dataclass(frozen=True)
class CacheConfig:
    """Memory for keys and values."""

    page_size: int = option(16, "Tokens per page of the KV cache.", min=1, max=1024, metavar="TOKENS")
    mem_fraction_static: float | None = option(
        None,
        "Share of the memory for weights and KV cache: of all memory on a GPU, of the free memory on a CPU.",
        env="MEM_FRACTION_STATIC",
        min=0.01,
        max=0.99,
        metavar="FRACTION",
    )
    max_total_tokens: int | None = option(
        None,
        "Tokens that the KV cache holds; as many as the memory allows if not given.",
        env="MAX_TOTAL_TOKENS",
        min=1,
        metavar="TOKENS",
    )
    kv_cache_dtype: Literal["auto", "int8", "fp8_e4m3", "fp8_e5m2"] = option(
        "auto",
        "What keys and values are kept in: auto is the model's precision; the others take a byte per number and a "
        "scale per token and head.",
        env="KV_CACHE_DTYPE",
    )
    quantization_param_path: str = option(
        "",
        "JSON file of measured scales for a cache in fp8 (vLLM's and SGLang's layout). It is checked and not needed: "
        "every token and head gets a scale of its own.",
        env="QUANTIZATION_PARAM_PATH",
        metavar="FILE",
    )
    disable_radix_cache: bool = option(
        False, "Do not reuse the keys and values of common prefixes.", env="DISABLE_RADIX_CACHE"
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """Which requests run in a step."""

    policy: Literal["lpm", "fcfs", "dfs-weight", "random"] = option(
        "lpm",
        "Order of admission: longest prefix match, first come, weighted depth first, random.",
        flags=("--schedule-policy",),
        env="SCHEDULE_POLICY",
    )
    conservativeness: float = option(
        1.0,
        "How much of its token limit a request is expected to use; lower admits more and preempts more often.",
        flags=("--schedule-conservativeness",),
        env="SCHEDULE_CONSERVATIVENESS",
        min=0,
        max=100,
    )
    chunked_prefill_size: int | None = option(
        None,
        "Most prompt tokens in one step; -1 never splits a prompt.",
        env="CHUNKED_PREFILL_SIZE",
        min=-1,
        metavar="TOKENS",
    )
    max_prefill_tokens: int = option(
        16384,
        "Most tokens that one step may prefill if prompts are not split.",
        env="MAX_PREFILL_TOKENS",
        min=1,
        metavar="TOKENS",
    )
    max_running_requests: int | None = option(
        None, "Most requests that run at the same time.", env="MAX_RUNNING_REQUESTS", min=1, metavar="N"
    )
    max_queued_requests: int = option(
        4096, "Most requests that wait; further ones are answered with 503.", min=0, metavar="N"
    )
    stream_interval: int = option(
        1,
        "Tokens between two streamed pieces; larger is cheaper and less smooth.",
        env="STREAM_INTERVAL",
        min=1,
        metavar="TOKENS",
    )
    allow_auto_truncate: bool = option(False, "Cut prompts that are too long instead of refusing them.")
    disable_overlap_schedule: bool = option(False, "Do not schedule the next step while the device computes.")


@dataclass(frozen=True)
class ParallelConfig:
    """Over how many devices the model is spread."""

    tp_size: int = option(
        1,
        "Tensor parallel size; 1 in this version.",
        flags=("--tp-size", "--tp", "--tensor-parallel-size"),
        env="TENSOR_PARALLEL_SIZE",
        min=1,
    )


@dataclass(frozen=True)
class KernelConfig:
    """Which implementation computes what."""

    overrides: tuple[str, ...] = option(
        (),
        "Force an implementation, for example norm.rms=reference, or reference for all; repeatable.",
        flags=("--kernels", "--kernel"),
        metavar="OP=IMPL",
    )
    attention_backend: Literal["auto", "cpu", "flashinfer", "triton", "torch_native"] = option(
        "auto", "Implementation of attention; auto is the fastest that can compute the model here.", later=("fa3",)
    )
    sampling_backend: Literal["auto", "triton", "flashinfer", "pytorch"] = option(
        "auto", "Implementation of random draws, short for --kernel sample.draw=...; pytorch is the reference."
    )
    disable_cuda_graph: bool = option(
        False,
        "Launch every kernel of a step on a GPU anew, in place of replaying steps that were captured.",
        env="DISABLE_CUDA_GRAPH",
    )
    cuda_graph_max_bs: int = option(
        256,
        "Largest number of requests whose decoding steps are captured on a GPU.",
        env="CUDA_GRAPH_MAX_BS",
        min=1,
        max=4096,
        metavar="N",
    )
    cuda_graph_bs: tuple[str, ...] = option(
        (),
        "Numbers of requests to capture in place of those chosen by default; repeatable, or with commas.",
        metavar="N",
    )
    disable_cuda_graph_padding: bool = option(
        False,
        "Replay a captured step only for exactly as many requests, not for fewer.",
        env="DISABLE_CUDA_GRAPH_PADDING",
    )
    enable_torch_compile: bool = option(
        False, "Have torch compile the small ones of the steps that are captured on a GPU.", env="ENABLE_TORCH_COMPILE"
    )
    torch_compile_max_bs: int = option(
        32,
        "Largest number of requests for --enable-torch-compile.",
        env="TORCH_COMPILE_MAX_BS",
        min=1,
        max=4096,
        metavar="N",
    )
    cpu_threads: int | None = option(
        None, "Threads of the CPU kernels; the cores of this process or container if not given.", min=1, max=4096
    )
    cpu_pin: bool = option(
        False, "Keep every thread of the CPU kernels on a core of its own; for cores that nobody else uses."
    )
    no_tuned: bool = option(False, "Ignore what `sgl bench tune` found for this model on this machine.")


@dataclass(frozen=True)
class GrammarConfig:
    """Structured output."""

    grammar_backend: Literal["auto", "native", "llguidance", "xgrammar", "outlines", "none"] = option(
        "auto",
        "What constrains output; auto takes the native automata for the JSON schemas and regular expressions that they "
        "express and llguidance for the others, xgrammar for EBNF and structural tags; none refuses them all.",
    )
    constrained_json_whitespace_pattern: str = option(
        "",
        "Regular expression of what may stand between two symbols of JSON; if not given, one blank at most, after "
        "commas and colons.",
        metavar="REGEX",
    )
    disable_jump_forward: bool = option(False, "Compute one by one also those tokens that a grammar leaves no choice.")
    disable_outlines_disk_cache: bool = option(
        False, "Accepted for SGLang's sake: outlines_core keeps nothing on disk.", env="DISABLE_OUTLINES_DISK_CACHE"
    )


@dataclass(frozen=True)
class ServeConfig:
    """The HTTP server."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    port: int = option(30000, "Port to listen on; 0 takes a free one.", min=0, max=65535)
    api_key: str = option("", "Key that clients must send as a bearer token.", env="API_KEY", secret=True)
    admin_api_key: str = option("", "Key for the administrative routes; --api-key if not given.", secret=True)
    allowed_host: tuple[str, ...] = option(
        (),
        "Further names by which a server that listens on localhost only may be called without a key, for a proxy in "
        "front of it; repeatable, or with commas.",
        metavar="NAME",
    )
    enable_cache_report: bool = option(False, "Report cached prompt tokens in the usage of OpenAI responses.")
    strict_model_name: bool = option(False, "Refuse requests that name another model than the served one.")
    max_body_bytes: int = option(32 * 2**20, "Largest request body.", min=1024, metavar="BYTES")
    file_storage_path: str = option(
        "sglang_storage",
        "Directory of uploaded files and of batches; made when the first one comes.",
        flags=("--file-storage-path", "--file-storage-pth"),
        env="FILE_STORAGE_PATH",
        metavar="DIR",
    )
    max_file_bytes: int = option(200 * 2**20, "Largest file of /v1/files.", min=1024, metavar="BYTES")
    max_stored_responses: int = option(
        1000, "Responses of /v1/responses that are kept in memory; 0 keeps none.", min=0, metavar="N"
    )
    max_stored_response_bytes: int = option(
        64 * 2**20,
        "Memory for kept responses, with all that they answered; the longest unused go first.",
        min=0,
        metavar="BYTES",
    )
    tool_call_parser: Literal[
        "auto",
        "none",
        "llama3",
        "mistral",
        "qwen25",
        "hermes",
        "pythonic",
        "deepseekv3",
        "qwen3_coder",
        "glm45",
        "kimi_k2",
        "gpt-oss",
        "demo",
    ] = option(
        "auto",
        "The form in which the model calls tools; auto goes by the chat template, then by the model family. With none, "
        "calls stay in the text.",
    )
    reasoning_parser: Literal["auto", "none", "deepseek-r1", "qwen3", "glm45", "kimi", "kimi_k2", "gpt-oss"] = option(
        "auto",
        "The form in which the model shows its reasoning; auto goes by the chat template, then by the model family. "
        "With none, reasoning stays in the text.",
    )
    drain_timeout_s: float = option(
        30.0, "How long running requests may finish after SIGTERM.", min=0, metavar="SECONDS"
    )
    return_hidden_states: bool = option(
        False, "Return the last hidden states with answers of the native API whose requests do not say otherwise."
    )
    enable_custom_logit_processor: bool = option(
        False, "Let requests ask for registered logit processors by name (custom_logit_processor)."
    )
    watchdog_timeout: float = option(
        300.0, "/health answers 503 if the engine has not been heard of for so long.", min=1, metavar="SECONDS"
    )


@dataclass(frozen=True)
class ObserveConfig:
    """Logs, metrics and records."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] = option(
        "info", "How much is logged.", env="LOG_LEVEL"
    )
    log_level_http: Literal["debug", "info", "warning", "error", "critical"] | None = option(
        None, "How much the HTTP server logs; --log-level if not given.", env="LOG_LEVEL_HTTP"
    )
    log_format: Literal["text", "json"] = option(
        "text", "How log lines look; json has one object a line: time, level, logger, message, request_id."
    )
    log_requests: bool = option(False, "Log the parameters and results of every request.", env="LOG_REQUESTS")
    log_requests_level: int = option(
        2,
        "What --log-requests shows: 0 names and counts, 1 also parameters, 2 also the first 2,048 characters of texts, "
        "3 all of them.",
        min=0,
        max=3,
        metavar="LEVEL",
    )
    log_redact: str = option(
        "",
        "Regular expression; what it matches in logged and dumped texts is hidden, as are keys, bearer tokens and "
        "inline images anyway.",
        metavar="REGEX",
    )
    show_time_cost: bool = option(
        False,
        "Log for every answer how long it waited, when its first token came and how long it took.",
        env="SHOW_TIME_COST",
    )
    dump_requests_folder: str = option(
        "",
        "Write requests and answers, whole, to files of JSON lines there; /configure_logging may choose a folder below "
        "it, or end it.",
        metavar="DIR",
    )
    dump_requests_threshold: int = option(
        1000, "Answers in one file of --dump-requests-folder.", min=1, max=100_000, metavar="N"
    )
    enable_metrics: bool = option(False, "Serve Prometheus metrics at /metrics.")
    decode_log_interval: int = option(40, "Decode steps between two log lines.", min=1, metavar="STEPS")
    canary: Literal["refuse", "warn", "off"] = option(
        "refuse",
        "Weights that after loading or an update compute nonsense, or not what was recorded of them: they are not "
        "served, or with a warning; off does not look.",
    )
    request_ledger_size: int = option(
        1000,
        "Finished requests whose ledger is kept for `sgl explain`: where their time went; 0 records nothing.",
        min=0,
        max=1_000_000,
        metavar="N",
    )
    record_plans: str = option("", "File that receives every step plan, for replay.", metavar="FILE")
    record: str = option(
        "",
        "Write every request to what generates, with its answer and its times, to files of JSON lines there, for "
        "`sgl replay`. API keys are never written.",
        metavar="DIR",
    )
    record_redact: Literal["none", "text"] = option(
        "none", "text: --record puts made-up words of the same lengths for all that was said."
    )
    record_max_mb: int = option(
        1024, "Of all files of --record together; the oldest goes.", min=8, max=1_000_000, metavar="MB"
    )


LATER = frozenset(
    """
    model_impl
    delete_ckpt_after_loading dp_size dp data_parallel_size
    load_balance_method ep_size ep cpu_offload_gb prefill_only_one_req base_gpu_id stream_output
    dist_init_addr nccl_init_addr nnodes node_rank lora_paths max_loras_per_batch lora_backend enable_lora
    enable_flashinfer_mla speculative_algorithm speculative_algo
    speculative_draft_model_path speculative_draft speculative_num_steps speculative_num_draft_tokens
    speculative_eagle_topk speculative_token_map enable_double_sparsity ds_channel_config_path ds_heavy_channel_num
    ds_heavy_token_num ds_heavy_channel_type ds_sparse_decode_threshold
    disable_custom_all_reduce disable_mla enable_nan_detection
    enable_p2p_check triton_attention_reduce_in_fp32 enable_mixed_chunk enable_dp_attention enable_ep_moe
    triton_attention_num_kv_splits num_continuous_decode_steps enable_memory_saver enable_nccl_nvls
    enable_hierarchical_cache pp_size
    """.split()  # noqa: SIM905 - as a literal it would be 70 lines
)
"""Options of SGLang that this version answers with a sentence instead of taking them for a mistake."""

HARMLESS = {
    "base_gpu_id": "0",
    "cpu_offload_gb": "0",
    "data_parallel_size": "1",
    "dp": "1",
    "dp_size": "1",
    "ep_size": "1",
    "load_balance_method": "round_robin",
    "model_impl": "auto",
    "nnodes": "1",
    "node_rank": "0",
    "pp_size": "1",
}
"""Values of `LATER` options that ask for nothing, so that launchers may spell them out; of the others it is false."""
