"""A real `AsyncEngine` over a made-up model: every answer is its own prompt, one byte a token, and then the end."""

from __future__ import annotations

import dataclasses
import math
import queue
import tempfile
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sgl.engine.api import AsyncEngine, ModelInfo
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.types import (
    Abort,
    Add,
    Call,
    FinishReason,
    Inbound,
    Output,
    Outputs,
    Reply,
    Request,
    Shutdown,
    Stats,
    TokenLogprob,
)
from sgl.engine.client.protocol import OnDied, OnMessage
from sgl.engine.text.template import ChatTemplate
from sgl.engine.text.tokenizer import Tokenizer, load_tokenizer, no_tokenizer

CONTEXT_LEN = 2000
VOCAB_SIZE = 258
PAGE_SIZE = 16
HIDDEN_SIZE = 2
BOS, EOS = 256, 257
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}!{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}{% if tools %}[{{ tools | length }} tools]{% endif %}{{ suffix or '' }}"
)


def make_tokenizer(skip: bool = False) -> Tokenizer:
    """One token a byte, in front of every text <s>; with ``skip`` the one of ``--skip-tokenizer-init``."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        library.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
        return no_tokenizer(directory) if skip else load_tokenizer(directory)


class EchoClient:
    """Stands where the engine process would be, and keeps its books.

    Args:
        delay_s: how long a token takes.

    Attributes:
        limit: how many tokens an answer may have by now; a test that has something done meanwhile holds answers by it.
        num_finished: answers that came to their end.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.limit: Callable[[], float] = lambda: math.inf
        self.num_finished = 0
        self.received: list[Request] = []
        self.aborted: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.running: dict[str, tuple[Request, int]] = {}
        self.cache: set[tuple[int, ...]] = set()
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def start(self, on_message: OnMessage, on_died: OnDied) -> ModelInfo:
        self._on_message, self.die = on_message, on_died
        threading.Thread(target=self._run, name="echo", daemon=True).start()
        return ModelInfo(
            model_path="/models/echo",
            tokenizer_path="/models/echo",
            context_len=CONTEXT_LEN,
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            max_total_num_tokens=4000,
            max_req_input_len=CONTEXT_LEN - 1,
            eos_ids=(EOS,),
        )

    def send(self, message: Inbound) -> None:
        self._inbox.put(message)

    def close(self) -> None:
        self.send(Shutdown())
        self._stopped.wait(5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._drain()
            outputs = [self._step(*entry) for entry in self._free()]
            if outputs:
                self._on_message(Outputs(outputs))
                self._on_message(Stats(num_running=len(self.running), num_total_tokens=4000, num_used_tokens=40))
                self._stopped.wait(self.delay_s)

    def _free(self) -> list[tuple[Request, int]]:
        """Those that may have another token."""
        limit = self.limit()
        return [entry for entry in self.running.values() if entry[1] < limit]

    def _drain(self) -> None:
        while True:
            try:
                message = self._inbox.get_nowait() if self._free() else self._inbox.get(timeout=0.02)
            except queue.Empty:
                return
            match message:
                case Add(request):
                    self.received.append(request)
                    self.running[request.rid] = (request, 0)
                case Abort(rid):
                    self.aborted.append(rid)
                    self.running.pop(rid, None)
                case Call(call_id, name, args):
                    self.calls.append((name, args))
                    self._on_message(self._call(call_id, name, args))
                case Shutdown():
                    self._stopped.set()
                    return

    def _call(self, call_id: int, name: str, args: dict[str, Any]) -> Reply:
        if name == "flush_cache":
            success = not self.running
            if success:
                self.cache.clear()
            return Reply(call_id, value={"success": success})
        if name == "update_weights":
            message = "Succeeded to update model weights."
            if args["model_path"] == "/models/wrong":
                message = "Failed to get weights iterator: /models/wrong (repository not found)."
            return Reply(call_id, value={"success": message.startswith("Succ"), "message": message})
        if name == "get_weights":
            if args["name"] != "a.weight":
                return Reply(call_id, error="There is no such tensor.", param="name")
            return Reply(call_id, value={"shape": [9, 2], "rows": [2, 2], "data": array("f", [1, 2, 3, 4.5]).tobytes()})
        if name == "stop_profile":
            return Reply(call_id, error="Profiling is not in progress. Call /start_profile first.", status=400)
        if name == "weight_files":
            return Reply(call_id, value={"num_updates": 0, "files": []})
        if name == "pages":
            return Reply(call_id, value={"total": 250, "free": 250 - len(self.running), "cached": 0})
        return Reply(call_id, value={"success": True, "message": ""})

    def _step(self, request: Request, num_done: int) -> Output:
        """The next token of a request: its prompt's, in order."""
        params, prompt = request.params, request.token_ids
        cached = len(prompt) // PAGE_SIZE * PAGE_SIZE if prompt in self.cache else 0
        output = Output(rid=request.rid, prompt_tokens=len(prompt), cached_tokens=cached)
        if num_done == 0 and request.wants.logprob_start is not None:
            output.prompt_logprobs = _logprobs(prompt, request, request.wants.logprob_start)
        if request.wants.hidden:
            seen = list(enumerate(prompt)) if num_done == 0 else [(len(prompt) + num_done - 1, prompt[0])]
            output.hidden = [array("f", place).tobytes() for place in seen]
        if num_done < params.max_new_tokens:
            letters = [token_id for token_id in prompt if token_id < 256]
            token_id = letters[num_done % len(letters)] if num_done < len(letters) or params.ignore_eos else EOS
            output.token_ids = [token_id]
            output.logprobs = _logprobs([None, token_id], request, 1) if request.wants.logprobs else []
            num_done += 1
            if token_id in (*params.stop_token_ids, EOS):
                output.finish = FinishReason(kind="stop", matched=token_id)
        if output.finish is None and num_done >= params.max_new_tokens:
            output.finish = FinishReason(kind="length")
        self.running[request.rid] = (request, num_done)
        if output.finish is not None:
            del self.running[request.rid]
            self.num_finished += 1
            self.cache.add(prompt)
        return output


def logprob_of(token_id: int) -> float:
    """What the made-up model says about a token, wherever it stands."""
    return -token_id / 64


def _logprobs(token_ids: Sequence[Any], request: Request, start: int) -> list[TokenLogprob]:
    top = tuple((i, logprob_of(i)) for i in range(request.wants.top_logprobs))
    return [
        TokenLogprob(token_id, logprob_of(token_id), top) if position else TokenLogprob(token_id, None)
        for position, token_id in enumerate(token_ids)
    ][start:]


def make_config(**changes: Any) -> EngineConfig:
    """A configuration for the made-up model; ``serve_port=1`` sets ``serve.port``."""
    config = EngineConfig()
    groups: dict[str, dict[str, Any]] = {"model": {"model_path": "/models/echo", "random_seed": 1}}
    for key, value in changes.items():
        group, _, name = key.partition("_")
        groups.setdefault(group, {})[name] = value
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **values) for group, values in groups.items()}
    )


def make_engine(config: EngineConfig, delay_s: float = 0.0) -> tuple[AsyncEngine, EchoClient]:
    """An engine and the client under it."""
    client = EchoClient(delay_s)
    tokenizer = make_tokenizer(config.model.skip_tokenizer_init)
    return AsyncEngine(config, client, tokenizer, ChatTemplate({"default": TEMPLATE})), client
