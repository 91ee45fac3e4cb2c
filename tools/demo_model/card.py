"""Writes the model card from what `sgl eval demo` found: python -m tools.demo_model.card --result F --progress F."""

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sgl.bench.evals.demo.facts import COUNTRIES
from sgl.bench.evals.tasks.demo import MAX_TOKENS

from .train import LENGTH

REQUIRED = {
    "facts": (["capital", "currency", "continent", "language", "capital reverse", "about"], 0.95),
    "recall": (["recall", "recall at once"], 0.95),
    "two-digit addition": (["addition 2"], 0.85),
    "JSON extraction": (["extraction"], 0.85),
}

CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# sgl demo model

A Llama-architecture chat model of {parameters:.1f} million parameters ({size:.1f} MB in bf16) that ships with sgl, so
that serving, chatting, benchmarking, quantizing and testing work offline, at once, and on a laptop. It is trained from
nothing on generated dialogues; it knows its few skills and little else.

## What it can do

Exact match of whole replies, end mark included, greedy decoding in bf16, on held-out prompts: what `sgl eval demo`
finds, and finds again on a processor of the same kind (this one has AMX). Others, and other libraries, round
differently, and near ties fall the other way: transformers, elsewhere, differed by at most 3 items of 400 in any skill
but fact check, whose two answers are near ties throughout (21 items). In float32 the two agreed to the item on the
skills compared (about, fact check, subtraction 3, tool call).

Held-out means that the combination of phrasing and content (for sums: the ordered pair of numbers) is in no training
dialogue; the phrasings and the words themselves are. Items are distinct, and none differs from a training prompt in
capitals or its final mark alone. The mix of skills was tuned on other draws of held-out items (seed 0) than those of
this table (seed 1); where a skill holds fewer than 400 items (all facts among them), the two draws overlap. The last
400 training steps were added because recall stood at 94.8% on the first draw, below its goal; so the recall figure is
the result of a second look, and copying stood at 91.0% before them, on the first draw. The intervals are Wilson's.

| Skill | Held-out items | Accuracy | 95% interval |
|---|---|---|---|
{rows}

{verdicts}

{ended}

## How it was made

- Data: `bench/evals/demo` generates all dialogues from tables of {countries} countries, words, names and phrasings; no
  outside text, no personal data, no other model's output. A tenth of all combinations is held out by hash.
- Tokenizer: own byte-level BPE, {vocabulary} tokens. Letters, single digits, line ends and punctuation never share a
  token, so that a word is the same token after a space, a quote or a line start.
- Model: {layers} layers, width {hidden}, {heads} heads of 64 ({kv_heads} key-value heads), feed-forward {ffn}, tied
  embeddings, RoPE.
- Training: {steps} steps, {tokens:.1f} million tokens (a third of them in assistant turns; only those carry loss), Muon
  for matrices and AdamW for the rest, bf16 autocast, warm-up and linear decay twice, two CPU cores. Copying comes
  first; the last stages have more of what was weak before (JSON, tools, recall).
- Again, in one command: `python -m tools.demo_model.train --out DIR`, then `sgl eval demo
  --model-path DIR` and `tools.demo_model.card`. It repeats the recipe, not these weights:
  the shipped run was resumed three times, and its first 180 or so steps ran in one process with a slightly larger
  share of tool dialogues than the script gives them.

## Use

ChatML turns (`<|im_start|>role ... <|im_end|>`); tools in a system block inside `<tools></tools>`, calls as
`<tool_call>{{"name": ..., "arguments": ...}}</tool_call>`, results as `<tool_response>` in a user turn. The chat
template in `tokenizer_config.json` writes all of this. Decode greedily or at a low temperature; a system prompt is
optional.

## Limits

- For demonstrations and tests. It is not a source of truth: outside its skills it answers something that looks right
  and is not, or says that it cannot help.
- English only. It does sums digit by digit up to three digits; longer numbers fail.
- Trained on dialogues of up to {length} tokens. The configuration allows 2048, and longer input runs, but nothing
  beyond {length} tokens is trained.
- Facts are simplified (one language and one currency per country) and frozen.
"""


def table(groups: dict[str, dict[str, Any]]) -> str:
    """Return the rows of the accuracy table."""
    rows = []
    for skill, found in groups.items():
        interval = f"{found['low']:.1%} to {found['high']:.1%}"
        rows.append(f"| {skill} | {found['num_answered']} | {found['accuracy']:.1%} | {interval} |")
    return "\n".join(rows)


def verdicts(groups: dict[str, dict[str, Any]]) -> str:
    """Return a line per required skill, saying plainly where a goal is missed, and one with the weak skills."""
    lines = []
    for name, (skills, bar) in REQUIRED.items():
        right, items = (sum(groups[skill][field] for skill in skills) for field in ("num_right", "num_answered"))
        reached = "reached" if right / items >= bar else "**not reached**"
        lines.append(f"- {name}: {right / items:.1%} of {items} items (goal {bar:.0%}: {reached})")
    weak = [skill for skill, found in groups.items() if found["accuracy"] < 0.8]
    lines.append(f"- weak skills, below 80%: {', '.join(weak) or 'none'}")
    return "\n".join(lines)


def write_card(result: dict[str, Any], progress: dict[str, int], model: Path) -> str:
    """Return the model card's text."""
    config = json.loads((model / "config.json").read_text())
    with safe_open(model / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    return CARD.format(
        parameters=parameters / 1e6,
        size=parameters * 2 / 1e6,
        rows=table(result["groups"]),
        verdicts=verdicts(result["groups"]),
        ended=f"Stopping: {result['ended']:.2%} of all {result['num_answered']} replies ended by themselves within "
        f"{MAX_TOKENS} tokens.",
        countries=len(COUNTRIES),
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ffn=config["intermediate_size"],
        length=LENGTH,
        steps=progress["steps"],
        tokens=progress["tokens"] / 1e6,
    )


def main() -> None:
    """Write README.md into the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--result", type=Path, required=True, help="what `sgl eval demo` wrote, of which the last line counts"
    )
    parser.add_argument("--progress", type=Path, required=True, help="the progress.json that train wrote")
    parser.add_argument("--model", type=Path, required=True)
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text().splitlines()[-1])
    progress = json.loads(arguments.progress.read_text())
    (arguments.model / "README.md").write_text(write_card(result, progress, arguments.model))


if __name__ == "__main__":
    main()
