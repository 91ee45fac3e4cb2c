"""``sgl prove-determinism``: shows that answers do not depend on what the engine does meanwhile, or where they do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.determinism import Proof
    from sgl.engine.base.config import EngineConfig

_LEAST = {"--schedules": 1, "--num-prompts": 1, "--prompt-len": 4, "--output-len": 1}


@with_config("model", "cache", "schedule", "kernel")
def prove_determinism(
    values: sources.Values,
    model: ModelArgument = "",
    schedules: Annotated[int, typer.Option("--schedules", help="Random schedules to run.", metavar="N")] = 200,
    prompts: Annotated[
        str, typer.Option("--prompts", help="Text, a prompt a line, in place of random tokens.", metavar="FILE")
    ] = "",
    num_prompts: Annotated[int, typer.Option("--num-prompts", help="Prompts of random tokens.", metavar="N")] = 12,
    prompt_len: Annotated[int, typer.Option("--prompt-len", help="Longest of them.", metavar="TOKENS")] = 120,
    output_len: Annotated[int, typer.Option("--output-len", help="Of every answer.", metavar="TOKENS")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Of prompts and schedules.", metavar="N")] = 1,
    output_file: Annotated[
        str, typer.Option("--output-file", "-o", help="Write the certificate as JSON.", metavar="FILE")
    ] = "",
) -> None:
    """Answer prompts alone and under random schedules; ends with 1 at the first bit that differs."""
    sizes = (schedules, num_prompts, prompt_len, output_len)
    for (flag, least), value in zip(_LEAST.items(), sizes, strict=True):
        if value < least:
            raise ConfigError(f"{flag} must be at least {least}, got {value}.", param=flag)
    from sgl.bench.provenance import check_output

    check_output(output_file)
    lines = _read(prompts) if prompts else None
    config = sources.configure(with_model(values, model))
    found = asyncio.run(_prove(config, lines, sizes, seed))
    if output_file:
        console.write_output(output_file, json.dumps(found, indent=1) + "\n")
    if not found["identical"]:
        raise typer.Exit(1)


command = command_of(prove_determinism)


def _read(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--prompts {file} cannot be read: {error.strerror}.", param="--prompts") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--prompts {file} is not UTF-8 text.", param="--prompts") from None
    if not any(line.strip() for line in lines):
        raise ConfigError(f"--prompts {file} has no line of text.", param="--prompts")
    return lines


async def _prove(
    config: EngineConfig, lines: list[str] | None, sizes: tuple[int, int, int, int], seed: int
) -> dict[str, Any]:
    """Runs everything and shows it; the certificate."""
    from sgl.bench import determinism
    from sgl.engine.api import AsyncEngine

    schedules, num_prompts, prompt_len, output_len = sizes
    with console.err().status("loading") as status:
        engine = await asyncio.to_thread(AsyncEngine.start, config, in_process=True)
        try:
            if lines is None:
                prompts = determinism.draw_prompts(num_prompts, engine.info.vocab_size, output_len, prompt_len, seed)
            else:
                prompts = determinism.read_prompts(iter(lines), engine, output_len, seed)
            proof = await determinism.prove(engine, prompts, schedules, seed, status.update)
            found = determinism.certificate(proof, await engine.maker(), prompts, seed)
        finally:
            await engine.shutdown()
    _show(proof)
    return found


def _show(proof: Proof) -> None:
    out = console.out()
    out.print(
        f"{proof.num_schedules} schedules, {proof.num_answers} answers, {proof.num_tokens} tokens compared with those "
        f"of each prompt alone;\n{proof.num_preempted} preemptions, {proof.num_cached_tokens} prompt tokens from the "
        f"cache, {proof.num_aborted} requests aborted beside them.",
        markup=False,
        highlight=False,
    )
    found = proof.divergence
    if found is None:
        out.print("[green]identical[/green]: every token and every logprob, to the last bit")
        return
    out.print(f"[red]different[/red]: schedule {found.schedule.number}, prompt {found.prompt}, token {found.position}")
    for name, (token, logprob) in (("alone", found.alone), ("then", found.then)):
        told = "no token" if token is None else f"token {token}, logprob {logprob!r}"
        out.print(f"  {name}: {told}", markup=False, highlight=False)
    out.print(f"  settings: {json.dumps(found.schedule.settings)}", markup=False, highlight=False)
