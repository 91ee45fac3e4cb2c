"""``sgl bench serving``: drives a server over HTTP, prints the block of results and records it."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from sgl.cli.bench_data import Progress, block_of, finish, with_data
from sgl.cli.options import command_of
from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError

LATENCIES = {
    "End-to-End Latency": ("E2E Latency", "e2e_latency"),
    "Time to First Token": ("TTFT", "ttft"),
    "Time per Output Token (excl. 1st token)": ("TPOT", "tpot"),
    "Inter-token Latency": ("ITL", "itl"),
}


@with_data
def serving(
    data: dict[str, Any],
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="sglang, sglang-oai, sglang-oai-chat, vllm, vllm-chat, lmdeploy, openai, openai-chat.",
            metavar="NAME",
        ),
    ] = "sglang",
    base_url: Annotated[
        str, typer.Option("--base-url", help="URL of the server, instead of --host and --port.", metavar="URL")
    ] = "",
    host: Annotated[str, typer.Option("--host", help="Where the server is.", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Its port.", metavar="PORT", min=1, max=65535)] = 30000,
    model: Annotated[
        str,
        typer.Option("--model", "--model-path", help="Its name there; else the first of /v1/models.", metavar="NAME"),
    ] = "",
    tokenizer: Annotated[
        str,
        typer.Option("--tokenizer", help="Directory or Hub id; else what the server or --model says.", metavar="PATH"),
    ] = "",
    api_key: Annotated[str, typer.Option("--api-key", help="Else OPENAI_API_KEY.", metavar="KEY")] = "",
    request_rate: Annotated[
        float, typer.Option("--request-rate", help="Requests per second; inf: all at once.", metavar="RATE")
    ] = math.inf,
    arrival: Annotated[
        str, typer.Option("--arrival", help="Gaps between requests: constant, poisson or gamma.", metavar="NAME")
    ] = "poisson",
    burstiness: Annotated[
        float, typer.Option("--burstiness", help="Shape of gamma: below 1 comes in bursts.", metavar="SHAPE")
    ] = 0.5,
    max_concurrency: Annotated[
        int | None, typer.Option("--max-concurrency", help="Requests under way at once.", metavar="N")
    ] = None,
    warmup_requests: Annotated[
        int, typer.Option("--warmup-requests", help="Requests before the measured ones.", metavar="N", min=0)
    ] = 1,
    flush_cache: Annotated[
        bool, typer.Option("--flush-cache", help="Empty the server's prefix cache after the warm-up.")
    ] = False,
    disable_ignore_eos: Annotated[
        bool, typer.Option("--disable-ignore-eos", help="Let answers end where the model ends them.")
    ] = False,
    slo: Annotated[
        str, typer.Option("--slo", help="Goodput within these ms, e.g. ttft:500,tpot:50 (and e2e).", metavar="BOUNDS")
    ] = "",
    output_file: Annotated[
        str, typer.Option("--output-file", "--result-filename", help="Append the result as JSON.", metavar="FILE")
    ] = "",
) -> None:
    """Measure latency and throughput of a server: this one, SGLang's or any with OpenAI's API."""
    if base_url and (host, port) != ("127.0.0.1", 30000):
        raise ConfigError("--base-url says where the server is; leave out --host and --port.", param="--base-url")
    from sgl.bench import provenance
    from sgl.bench.data import DataOptions, Vocabulary, load, warm_up
    from sgl.bench.figures import parse_slo
    from sgl.bench.load import Traffic, run_until_interrupt
    from sgl.bench.serving import Server, Target

    options, bounds = DataOptions(**data), parse_slo(slo)
    options.check()
    traffic = Traffic(request_rate, arrival, burstiness, max_concurrency, options.seed)
    traffic.check()
    provenance.check_output(output_file)
    url = base_url or f"http://{host}:{port}"
    key = api_key or env.text("OPENAI_API_KEY")
    server = Server.connect(Target(backend, url, model, tokenizer, key, not disable_ignore_eos))
    vocabulary = Vocabulary.of(server.tokenizer)
    samples = load(options, vocabulary)
    warm = warm_up(samples, warmup_requests, vocabulary)
    with Progress(len(samples)) as run:
        run_until_interrupt(run, server.measure(run, samples, traffic, warm, flush=flush_cache))
    result = {**server.result(run, traffic, bounds, flush=flush_cache), "dataset_name": options.dataset_name}
    if output_file:
        flags = {**data, "backend": backend, "base_url": url, "model": model, "tokenizer": tokenizer}
        flags |= {"request_rate": str(request_rate), "arrival": arrival, "burstiness": burstiness, "slo": slo}
        flags |= {"max_concurrency": max_concurrency, "warmup_requests": warmup_requests, "flush_cache": flush_cache}
        flags |= {"disable_ignore_eos": disable_ignore_eos}
        provenance.append(output_file, {**result, **provenance.provenance(flags, options.seed, samples)})
    finish(result, block_of("Serving Benchmark Result", _rows(result)))


command = command_of(serving)


def _rows(result: dict[str, Any]) -> dict[str, object]:
    cached = result["total_cached_tokens"]
    rows: dict[str, object] = {
        "Backend": result["backend"],
        "Traffic request rate": result["request_rate"],
        "Max request concurrency": result["max_concurrency"] or "not set",
        "Successful requests": result["completed"],
        "Failed requests": result["failed"],
        "Benchmark duration (s)": result["duration"],
        "Total input tokens": result["total_input_tokens"],
        "Total cached input tokens": "not reported" if cached is None else cached,
        "Total generated tokens": result["total_output_tokens"],
        "Total generated tokens (retokenized)": result["total_output_tokens_retokenized"],
        "Request throughput (req/s)": result["request_throughput"],
        "Input token throughput (tok/s)": result["input_throughput"],
        "Output token throughput (tok/s)": result["output_throughput"],
        "Total token throughput (tok/s)": result["total_throughput"],
        "Concurrency": result["concurrency"],
    }
    if "goodput" in result:
        rows["Goodput within the SLO (req/s)"] = result["goodput"]
    for title, (short, key) in LATENCIES.items():
        rows[title] = None
        rows |= {f"{name.capitalize()} {short} (ms)": result[f"{name}_{key}_ms"] for name in ("mean", "median", "p99")}
    return rows
