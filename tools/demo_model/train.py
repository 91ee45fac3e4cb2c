"""Trains the demo model from nothing, or goes on from its checkpoint: python -m tools.demo_model.train --out DIR."""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM, PreTrainedTokenizerFast

from sgl.bench.evals.demo.skills import training_dialogue

from .model import build, export
from .tokenizer import train_tokenizer

LENGTH, TOKENS, WORKERS = 512, 3500, 2
# The learning-rate factor at some steps; it is linear between them.
RATES: list[tuple[int, float]] = [
    (0, 0.0),
    (40, 1.0),
    (1000, 1.0),
    (1300, 0.4),
    (1450, 0.4),
    (1850, 0.0),
    (1870, 0.4),
    (1950, 0.4),
    (2250, 0.0),
]
STEPS = RATES[-1][0]
MUON_RATE, ADAM_RATE = 0.02, 0.003
SAVE_SECONDS = 240.0

MIX: dict[str, float] = {
    "chat": 2,
    "capital": 1.5,
    "currency": 1.2,
    "continent": 1,
    "language": 1,
    "capital_reverse": 1.2,
    "about": 0.7,
    "word fact": 1,
    "fact check": 0.6,
    "addition 1": 0.3,
    "addition 2": 1,
    "addition 3": 1,
    "subtraction 1": 0.3,
    "subtraction 2": 1,
    "subtraction 3": 1,
    "counting": 1,
    "reversing": 1.5,
    "sorting numbers": 1.5,
    "sorting words": 1.5,
    "picking": 0.8,
    "copying": 2,
    "extraction": 3,
    "recall": 2.5,
    "recall at once": 1.2,
    "recall unknown": 0.8,
    "tool call": 1.6,
    "tool answer": 0.7,
    "unused tools": 0.3,
}
# Each stage lasts until its step and changes some weights of the mix. Copying comes first: names, lists, JSON fields
# and tool arguments all wait for it. The last stages have more of what was weak before.
STAGES: list[tuple[int, dict[str, float]]] = [
    (200, {"copying": 10, "recall at once": 4, "tool call": 1, "tool answer": 0.5}),
    (1300, {}),
    (1850, {"extraction": 8, "tool call": 6, "tool answer": 1.5, "copying": 3, "capital_reverse": 1.5}),
    (
        STEPS,
        {
            "extraction": 5,
            "recall": 6,
            "recall at once": 2,
            "recall unknown": 2,
            "tool call": 5,
            "tool answer": 1.5,
            "unused tools": 1.2,
            "capital_reverse": 2.5,
            "fact check": 2,
            "sorting numbers": 3,
            "sorting words": 3,
            "subtraction 1": 0.6,
        },
    ),
]


@dataclass
class Batch:
    """All groups of a step in one row, and their shapes, so that only attention needs to know of dialogues."""

    tokens: list[int]
    positions: list[int]
    learned: list[bool]
    shapes: list[tuple[int, int]]


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    shapes: list[tuple[int, int]],
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend inside each dialogue of a row of groups; padding is at a dialogue's end, so causality alone hides it."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    sizes = [rows * width for rows, width in shapes]
    outputs = []
    for shape, *parts in zip(shapes, *(x[0].split(sizes, 1) for x in (query, key, value)), strict=True):
        q, k, v = (part.unflatten(1, shape) for part in parts)
        future = torch.ones(shape[1], shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) * scaling).masked_fill(future, float("-inf"))
        outputs.append((scores.float().softmax(-1).to(v.dtype) @ v).flatten(1, 2))
    return torch.cat(outputs, 1).transpose(0, 1)[None], None


def learned_positions(tokens: list[int], start: list[int], end: int) -> list[bool]:
    """Return for each token whether it belongs to an assistant turn, its end mark included."""
    learned, inside = [], False
    for place, token in enumerate(tokens):
        learned.append(inside)
        if token == end:
            inside = False
        elif tokens[max(0, place - len(start) + 1) : place + 1] == start:
            inside = True
    return learned


def mix_at(step: int) -> dict[str, float]:
    """Return the skill weights of a step."""
    return MIX | next(change for until, change in STAGES if step < until)


def make_batch(step: int, worker: int, tokenizer: PreTrainedTokenizerFast) -> Batch:
    """Return a worker's part of the batch of a step, a function of nothing but the two numbers."""
    rng = random.Random(step * WORKERS + worker)
    start = tokenizer.encode("<|im_start|>assistant\n")
    texts: list[list[int]] = []
    while sum(map(len, texts)) < TOKENS:
        dialogue = training_dialogue(rng, mix_at(step))
        text = tokenizer.apply_chat_template(dialogue.messages, tools=dialogue.tools or None, tokenize=False)
        texts.append(tokenizer.encode(text)[:LENGTH])
    texts.sort(key=len, reverse=True)
    batch = Batch([], [], [], [])
    while texts:
        width = len(texts[0])
        rows = sum(len(text) > 0.85 * width for text in texts)
        batch.shapes.append((rows, width))
        for text in texts[:rows]:
            missing = width - len(text)
            batch.tokens += text + [tokenizer.pad_token_id] * missing
            batch.learned += learned_positions(text, start, tokenizer.eos_token_id) + [False] * missing
            batch.positions += range(width)
        texts = texts[rows:]
    return batch


def rate_at(step: int) -> float:
    """Return the learning-rate factor of a step."""
    (start, low), (end, high) = next(pair for pair in itertools.pairwise(RATES) if step < pair[1][0])
    return low + (high - low) * (step - start) / (end - start)


class Trainer:
    """Model, optimizers and the step they stand at."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, worker: int) -> None:
        torch.manual_seed(0)
        self.worker = worker
        self.tokenizer = tokenizer
        self.model: LlamaForCausalLM = build(tokenizer)
        AttentionInterface.register("grouped", grouped_attention)
        AttentionMaskInterface.register("grouped", lambda *args, **kwargs: None)
        self.model.set_attn_implementation("grouped")
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02), MUON_RATE),
            (torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0), ADAM_RATE),
        ]
        self.step = self.tokens = 0

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean loss over the learned tokens."""
        tokens = torch.tensor([batch.tokens])
        # A token is learned at the place before it.
        places = torch.tensor(batch.learned).nonzero()[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model(
                input_ids=tokens, position_ids=torch.tensor([batch.positions]), use_cache=False, shapes=batch.shapes
            ).last_hidden_state
            logits = functional.linear(hidden[0, places - 1], self.model.lm_head.weight)
        return functional.cross_entropy(logits.float(), tokens[0, places])

    def average_gradients(self) -> None:
        """Give all workers the mean of their gradients."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / WORKERS
        distributed.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def advance(self) -> float:
        """Take one step and return its loss."""
        batch = make_batch(self.step, self.worker, self.tokenizer)
        loss = self.loss(batch)
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += WORKERS * sum(token != self.tokenizer.pad_token_id for token in batch.tokens)
        return loss.item()

    def save(self, path: Path) -> None:
        """Write the checkpoint; the rename keeps the old one until the new one is whole."""
        state = {
            "model": self.model.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "optimizers": [o.state_dict() for o, _ in self.optimizers],
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        path.with_name("progress.json").write_text(json.dumps({"steps": self.step, "tokens": self.tokens}) + "\n")

    def load(self, path: Path) -> None:
        """Go back to a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens = state["step"], state["tokens"]


def run(trainer: Trainer, checkpoint: Path, stop: int) -> None:
    """Train up to step `stop`; the first worker prints progress and saves every few minutes."""
    saved = shown = time.monotonic()
    seen, losses = trainer.tokens, []
    while trainer.step < stop:
        losses.append(trainer.advance())
        now = time.monotonic()
        if trainer.worker == 0 and trainer.step % 20 == 0:
            speed, loss = (trainer.tokens - seen) / (now - shown), sum(losses) / len(losses)
            print(f"step {trainer.step} loss {loss:.4f} {speed:.0f} tokens/s {trainer.tokens} tokens", flush=True)
            shown, seen, losses = now, trainer.tokens, []
        if trainer.worker == 0 and now - saved > SAVE_SECONDS:
            trainer.save(checkpoint)
            saved = now


def work(worker: int, folder: Path, stop: int) -> None:
    """Train as one of the workers, each on a core of its own, which waits for the others once a step only."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    # A paused worker may keep the others waiting for long.
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder.resolve() / 'meeting'}",
        rank=worker,
        world_size=WORKERS,
        timeout=timedelta(days=1),
    )
    trainer = Trainer(PreTrainedTokenizerFast.from_pretrained(folder), worker)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    run(trainer, checkpoint, stop)
    if worker == 0:
        trainer.save(checkpoint)
    distributed.destroy_process_group()


def main() -> None:
    """Train the tokenizer and the model into --out, which ends as a model folder with a checkpoint in `training`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stop", type=int, default=STEPS, help="leave off at this step; a later run goes on")
    arguments = parser.parse_args()
    folder = arguments.out / "training"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        train_tokenizer().save_pretrained(folder, save_jinja_files=False)
    (folder / "meeting").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=work, args=(worker, folder, arguments.stop), daemon=True) for worker in range(1, WORKERS)
    ]
    for other in others:
        other.start()
    work(0, folder, arguments.stop)
    for other in others:
        other.join()
    export(folder / "checkpoint.pt", folder, arguments.out)


if __name__ == "__main__":
    main()
