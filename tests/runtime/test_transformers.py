"""The executor over real families against transformers, which has no paged cache, no batches and no chunks of ours."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl.engine.attn.torch_native import TorchNativeBackend
from sgl.engine.base.device import detect_isa, open_device
from sgl.engine.base.types import RowInit, SamplingParams, Wants
from sgl.engine.models.loader import load_model, read_config
from sgl.engine.runtime.executor import TorchExecutor
from sgl.kernels.registry import bind
from tests.models.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.runtime.driver import Driver, OracleDrafter

PAGE, NUM_PAGES, MAX_NEW = 4, 80, 10

CASES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "gpt2": {},
}


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(request.param, path, tokenizer=False, **CASES[request.param])


class Reference:
    """What transformers says about a few prompts."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        rng = random.Random(0)
        self.prompts = [tuple(rng.randrange(VOCAB_SIZE) for _ in range(n)) for n in (1, 3, 8, 21, 33, 40)]
        self.answers = {prompt: self._greedy(prompt) for prompt in self.prompts}

    def _greedy(self, prompt: tuple[int, ...]) -> list[int]:
        tokens = list(prompt)
        for _ in range(MAX_NEW):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.model(torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def hidden(self, tokens: list[int]) -> torch.Tensor:
        """The hidden states behind the last norm, float32 [T, H]."""
        found = self.model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
        states: torch.Tensor = found.hidden_states[-1][0]
        return states


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


def make_driver(path: Path, reference: Reference, max_draft: int = 0, **settings: Any) -> Driver:
    device = open_device("cpu")
    kernels = bind("cpu", detect_isa(), torch.float32)
    executor = TorchExecutor(
        load_model(path, read_config(path, {}), dtype=torch.float32, device=device, kernels=kernels),
        TorchNativeBackend(device, kernels),
        device,
        num_slots=4,
        max_len=64,
        num_pages=NUM_PAGES,
        page_size=PAGE,
        drafter=OracleDrafter(reference.answers, max_draft, hit_rate=0.6),
    )
    return Driver(executor, page_size=PAGE, num_pages=NUM_PAGES, max_draft=max_draft, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_chunk": 1},
        {"max_chunk": 5, "overlap": 1},
        {"max_chunk": 6, "preemption": 0.15, "max_draft": 3},
        {"max_chunk": 9, "preemption": 0.15, "max_draft": 2, "overlap": 1},
    ],
    ids=str,
)
def test_tokens_and_logprobs_are_those_of_transformers(
    checkpoint: Path, reference: Reference, settings: dict[str, Any]
) -> None:
    driver = make_driver(checkpoint, reference, **settings)
    wants = Wants(logprobs=True, logprob_start=0, hidden=True)
    greedy = SamplingParams(temperature=0.0)
    inits = [RowInit(token_ids=p, num_prompt=len(p), params=greedy, wants=wants, eos_ids=()) for p in reference.prompts]
    for job in driver.run(inits, MAX_NEW):
        assert (job.error, job.tokens) == (None, reference.answers[job.init.token_ids])
        hidden = torch.frombuffer(bytearray(b"".join(job.hidden)), dtype=torch.float32).view(len(job.hidden), -1)
        torch.testing.assert_close(hidden, reference.hidden(job.tokens)[: len(job.tokens) - 1], atol=1e-4, rtol=1e-3)
        exact = reference.logits(job.tokens).double().log_softmax(-1)
        entries = job.prompt_logprobs + job.logprobs
        assert [entry.token_id for entry in entries] == job.tokens
        assert entries[0].logprob is None
        expected = [float(exact[place, token_id]) for place, token_id in enumerate(job.tokens[1:])]
        assert [entry.logprob for entry in entries[1:]] == pytest.approx(expected, abs=1e-4)
