"""An engine without a model: it answers with the prompt's own tokens, shifted by the seed unless greedy.

What it does wrong on request is named by the model path. A "patient" one gives nobody more than `PATIENCE` tokens until
it is told to go on: what a test does meanwhile, it does in time.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError, ModelError
from sgl.engine.base.types import (
    Abort,
    Add,
    Call,
    FinishReason,
    Output,
    Outputs,
    Reply,
    Request,
    Shutdown,
    Stats,
    TokenLogprob,
)

PATIENCE = 6
VOCAB = 400
CONTEXT = 64
CRASH_ID = 399
"""A prompt that begins with it ends the engine."""
REFUSED_ID = 398
"""A prompt that begins with it is refused as the queue is full."""


@dataclass
class Running:
    request: Request
    out: list[int] = field(default_factory=list)

    def next(self) -> Output:
        request, params = self.request, self.request.params
        first = not self.out
        prompt = request.token_ids
        token_id = prompt[len(self.out) % len(prompt)]
        if params.temperature > 0:
            token_id = (token_id + params.seed) % VOCAB
        if params.max_new_tokens:
            self.out.append(token_id)
        output = Output(rid=request.rid, token_ids=[token_id] if params.max_new_tokens else [])
        if request.wants.logprobs:
            output.logprobs = [logprob(token_id, request.wants.top_logprobs)] * len(output.token_ids)
        if first:
            output.prompt_tokens, output.cached_tokens = len(prompt), len(prompt) // 2
            if request.wants.logprob_start is not None:
                output.prompt_logprobs = [
                    logprob(t, request.wants.top_logprobs) if i else TokenLogprob(t, None) for i, t in enumerate(prompt)
                ][request.wants.logprob_start :]
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else request.eos_ids)}
        if output.token_ids and token_id in stops and len(self.out) > params.min_new_tokens:
            output.finish = FinishReason(kind="stop", matched=token_id)
        elif len(self.out) >= params.max_new_tokens:
            output.finish = FinishReason(kind="length")
        if output.finish is not None:
            output.prompt_tokens, output.cached_tokens = len(prompt), len(prompt) // 2
        return output


def logprob(token_id: int, num_top: int) -> TokenLogprob:
    return TokenLogprob(token_id, -token_id / 100, tuple((token_id + i, -1.0 - i) for i in range(num_top)))


class FakeLoop:
    def __init__(self, config: EngineConfig, inbox: Any, outbox: Any) -> None:
        self.behaviour = config.model.model_path.rpartition("/")[2]
        if self.behaviour == "missing":
            raise ModelError("There is no such model.")
        if self.behaviour == "misconfigured":
            raise ConfigError("That does not fit.", param="--page-size")
        if self.behaviour == "bug":
            raise RuntimeError("a bug while loading")
        if self.behaviour == "exit":
            os._exit(7)
        self.info = {
            "model_path": config.model.model_path,
            "context_len": CONTEXT,
            "vocab_size": VOCAB,
            "max_total_num_tokens": 128,
            "max_req_input_len": CONTEXT - 4,
            "eos_ids": [3],
            "more": "is ignored",
        }
        self._inbox, self._outbox = inbox, outbox
        self._running: dict[str, Running] = {}
        self.aborted: list[str] = []
        self._stopping = False
        self._limit: float = PATIENCE if self.behaviour == "patient" else math.inf

    def run(self) -> None:
        self._outbox.send(Stats(step_id=1))
        while not self._stopping or self.behaviour == "stubborn":
            for message in self._inbox.drain(0.0 if self._free() else 0.05):
                self._take(message)
            outputs = [running.next() for running in self._free()]
            for output in outputs:
                if output.finish is not None:
                    del self._running[output.rid]
            if outputs:
                self._outbox.send(Outputs(outputs))

    def _free(self) -> list[Running]:
        """Those that may have another token."""
        return [running for running in self._running.values() if len(running.out) < self._limit]

    def _take(self, message: Any) -> None:
        match message:
            case Add(request) if request.token_ids[0] == CRASH_ID:
                raise RuntimeError("a bug while running")
            case Add(request) if request.token_ids[0] == REFUSED_ID:
                finish = FinishReason(kind="abort", message="The queue is full.", status=503, code="server_overloaded")
                self._outbox.send(Outputs([Output(rid=request.rid, finish=finish)]))
            case Add(request):
                assert request.rid not in self._running
                self._running[request.rid] = Running(request)
            case Abort(rid):
                self.aborted.append(rid)
                if self._running.pop(rid, None) is not None:
                    finish = FinishReason(kind="abort", status=499, code="aborted")
                    self._outbox.send(Outputs([Output(rid=rid, finish=finish)]))
            case Call(call_id, "running"):
                self._outbox.send(Reply(call_id, {"rids": list(self._running), "aborted": self.aborted}))
            case Call(call_id, "echo", args):
                self._outbox.send(Reply(call_id, args))
            case Call(call_id, "go on"):
                self._limit = math.inf
                self._outbox.send(Reply(call_id, {}))
            case Call(call_id, "flush_cache"):
                self._outbox.send(Reply(call_id, {"success": not self._running}))
            case Call(call_id, "describe_weights" | "canary"):
                self._outbox.send(Reply(call_id, {"num_updates": 0}))
            case Call(call_id, name):
                self._outbox.send(Reply(call_id, error=f"The engine has no operation {name!r}."))
            case Shutdown():
                self._stopping = True


def build_loop(config: EngineConfig, inbox: Any, outbox: Any) -> FakeLoop:
    return FakeLoop(config, inbox, outbox)
