"""Measures held-out exact match with transformers, beside `sgl eval demo`: python -m tools.demo_model.evaluate."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sgl.bench.evals.demo.dialogue import Dialogue
from sgl.bench.evals.demo.held_out import held_out_items
from sgl.bench.evals.demo.skills import SKILLS
from sgl.bench.evals.estimates import share

BATCH = 50
NEW_TOKENS = 120


def split_last(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue) -> tuple[str, str]:
    """Return the prompt up to the last assistant turn, and that turn with its end mark."""
    tools: Any = dialogue.tools or None
    whole = tokenizer.apply_chat_template(dialogue.messages, tools=tools, tokenize=False)
    asked = dialogue.messages[:-1]
    prompt = tokenizer.apply_chat_template(asked, tools=tools, tokenize=False, add_generation_prompt=True)
    return prompt, whole[len(prompt) :].rstrip("\n")


@torch.inference_mode()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """Return greedy replies, end marks included, in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies = [""] * len(prompts)
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        inputs = tokenizer(
            [prompts[index] for index in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        )
        outputs = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        for index, tokens in zip(chosen, outputs[:, inputs["input_ids"].shape[1] :], strict=True):
            replies[index] = tokenizer.decode(tokens).replace("<|endoftext|>", "")
    return replies


def evaluate(
    model_dir: Path, count: int, seed: int, skills: list[str], misses: int, dtype: str
) -> dict[str, dict[str, Any]]:
    """Return for each skill: distinct items, right ones, accuracy, interval, and the share that ended by itself."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    results: dict[str, dict[str, Any]] = {}
    for skill in skills:
        pairs = [split_last(tokenizer, dialogue) for dialogue in held_out_items(skill, count, seed)]
        replies = answers(model, tokenizer, [prompt for prompt, _ in pairs])
        wrong = [(prompt, want, got) for (prompt, want), got in zip(pairs, replies, strict=True) if want != got]
        right = len(pairs) - len(wrong)
        found = share(right, len(pairs))
        ended = sum(reply.endswith("<|im_end|>") for reply in replies) / len(pairs)
        results[skill] = {
            "items": len(pairs),
            "right": right,
            "accuracy": right / len(pairs),
            "low": found.low,
            "high": found.high,
            "ended": ended,
        }
        told = f"{found.value:6.1%}  [{found.low:.2f}, {found.high:.2f}]"
        print(f"{skill:18} {told}  {len(pairs):4} items  {ended:6.1%} ended", flush=True)
        for prompt, want, got in wrong[:misses]:
            print(f"    asked {prompt[-160:]!r}\n    want  {want!r}\n    got   {got!r}")
    return results


def main() -> None:
    """Evaluate the model folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="which held-out items are drawn")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--misses", type=int, default=0, help="how many wrong answers to print per skill")
    parser.add_argument("--skills", nargs="*", default=list(SKILLS))
    arguments = parser.parse_args()
    options = arguments.items, arguments.seed, arguments.skills, arguments.misses, arguments.dtype
    results = evaluate(arguments.model, *options)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
