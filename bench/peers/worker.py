"""A peer engine in a process of its own, driven by JSON lines on standard input and answering on standard output.

Runs under any interpreter: it imports the peer and the standard library, and nothing of this project. Times are taken
here, on the clock that all processes of a machine share.

    {"load": "llama-cpp", "model": "m.gguf", "threads": 2, "options": {}}   ->  {"ok": {"version": ..., ...}}
    {"run": [[1, 2, 3], ...], "output_lens": [128, ...]}                    ->  {"ok": {"start_s": ..., "tokens": ...}}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

Json = dict[str, Any]
Prompts = Sequence[Sequence[int]]
clock = time.perf_counter


class Peer(Protocol):
    """A loaded model.

    ``facts`` are its version and ``weight_bytes``, what one step reads. ``run`` answers every prompt greedily with
    exactly its number of tokens and returns when it began and, for every request, when each token came.
    """

    facts: Json

    def run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]: ...


class LlamaCpp:
    """llama.cpp through llama-cpp-python's C functions: no sampler but the largest logit, no text."""

    BATCH = 2048

    def __init__(self, model: str, threads: int, options: Json) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._threads = threads
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(self.BATCH, 0, 1)
        self._context: Any = None
        self._room = (0, 0)
        version = f"llama-cpp-python {llama_cpp.__version__}"
        self.facts = {"version": version, "weight_bytes": llama_cpp.llama_model_size(self._model)}

    def run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]:
        self._make_room(
            len(prompts), max(len(prompt) + more for prompt, more in zip(prompts, output_lens, strict=True))
        )
        tokens: list[list[float]] = [[] for _ in prompts]
        start_s = clock()
        last = [0] * len(prompts)
        prompt_items = [
            (token, place, number, place == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        for at in range(0, len(prompt_items), self.BATCH):
            self._step(prompt_items[at : at + self.BATCH], last, tokens)
        for count in range(1, max(output_lens)):
            items = [
                (last[number], len(prompt) + count - 1, number, True)
                for number, prompt in enumerate(prompts)
                if count < output_lens[number]
            ]
            self._step(items, last, tokens)
        return start_s, tokens

    def _step(self, items: list[tuple[int, int, int, bool]], last: list[int], tokens: list[list[float]]) -> None:
        """Computes tokens (id, position, request, whether the next one is wanted) and picks the next ones."""
        batch = self._batch
        batch.n_tokens = len(items)
        for i, (token, place, number, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, place, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = number
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        chosen = [(number, self._largest(i)) for i, (_, _, number, wanted) in enumerate(items) if wanted]
        now_s = clock()
        for number, token in chosen:
            last[number] = token
            tokens[number].append(now_s)

    def _largest(self, row: int) -> int:
        import numpy as np

        logits = self._lib.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _make_room(self, requests: int, length: int) -> None:
        """An empty context for so many requests of this length; made anew only where the last one does not fit."""
        length = -(-length // 256) * 256
        lib = self._lib
        if self._room == (requests, length):
            lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
            return
        if self._context:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = requests * length, requests, self.BATCH
        params.n_threads = params.n_threads_batch = self._threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no room for {requests} requests of {length} tokens")
        self._room = (requests, length)


class OpenVino:
    """OpenVINO GenAI's paged pipeline, step by step."""

    def __init__(self, model: str, threads: int, options: Json) -> None:
        import openvino_genai

        self._lib: Any = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._last_id = 0
        weight_bytes = (Path(model) / "openvino_model.bin").stat().st_size
        self.facts = {"version": f"openvino-genai {openvino_genai.__version__}", "weight_bytes": weight_bytes}

    def run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]:
        import numpy as np
        import openvino

        handles: list[Any] = []
        tokens: list[list[float]] = [[] for _ in prompts]
        start_s = clock()
        for prompt, output_len in zip(prompts, output_lens, strict=True):
            config = self._lib.GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = output_len, True, False
            self._last_id += 1
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._last_id, ids, config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now_s = clock()
            for handle, times in zip(handles, tokens, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        times += [now_s] * len(output.generated_ids)
        return start_s, tokens


class Transformers:
    """transformers' ``generate`` over one padded batch, with its defaults.

    Options: ``dtype`` by its name in torch; ``dummy`` for random weights of the checkpoint's shape.
    """

    def __init__(self, model: str, threads: int, options: Json) -> None:
        import torch
        import transformers

        log: Any = transformers.logging
        log.set_verbosity_error()
        log.disable_progress_bar()
        torch.set_num_threads(threads)
        auto: Any = transformers.AutoModelForCausalLM
        dtype = getattr(torch, options.get("dtype", "bfloat16"))
        if options.get("dummy"):
            shape = transformers.AutoConfig.from_pretrained(model)
            self._model = auto.from_config(shape, dtype=dtype).eval()
        else:
            self._model = auto.from_pretrained(model, dtype=dtype).eval()
        self._model.generation_config.eos_token_id = None
        weight_bytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
        self.facts = {"version": f"transformers {transformers.__version__}", "weight_bytes": weight_bytes}

    def run(self, prompts: Prompts, output_lens: Sequence[int]) -> tuple[float, list[list[float]]]:
        import torch
        import transformers

        steps: list[float] = []

        def note(input_ids: Any, scores: Any, **_: Any) -> Any:
            steps.append(clock())
            return torch.zeros(len(prompts), dtype=torch.bool)

        longest, count = max(map(len, prompts)), max(output_lens)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        start_s = clock()
        self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([note]),
        )
        return start_s, [steps[:output_len] for output_len in output_lens]


PEERS: Mapping[str, Callable[[str, int, Json], Peer]] = {
    "llama-cpp": LlamaCpp,
    "openvino": OpenVino,
    "transformers": Transformers,
}


def serve(load: Callable[[Json], Peer], requests: TextIO, answers: TextIO) -> None:
    """Answers each request line with one line until there are no more. What fails is said, and ends nothing else."""
    peer: Peer | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if "load" in request:
                peer = load(request)
                said: Json = {"ok": peer.facts}
            elif peer is None:
                said = {"error": "no model is loaded"}
            else:
                start_s, tokens = peer.run(request["run"], request["output_lens"])
                said = {"ok": {"start_s": start_s, "tokens": tokens}}
        except Exception as error:  # noqa: BLE001 - another program's: all of them are the answer
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


def own_output() -> TextIO:
    """Standard output for answers alone: what the peer prints there goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _load(request: Json) -> Peer:
    return PEERS[request["load"]](request["model"], request["threads"], request["options"])


if __name__ == "__main__":
    serve(_load, sys.stdin, own_output())
