"""Engines that run in processes of their own, behind `BatchEngine`: starts, asks and ends them; measures nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgl.bench.engines import BatchEngine, Prompts, Timing
from sgl.bench.peers.client import Client
from sgl.bench.peers.workloads import Answer, Prompt, Round
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.base.machine import cores
from sgl.engine.base.types import Grammar

WORKER = Path(__file__).with_name("worker.py")
LOCAL = ("transformers", "llama-cpp", "openvino")
"""Peers that `worker` runs."""

SERVER = "server"
"""Any server behind a URL, as a peer."""

_END_S = 20.0


def parse_python(text: str) -> dict[str, str]:
    """``/path/python`` for every peer (under ``""``), or ``llama-cpp=/path/python,openvino=...``.

    Raises:
        ConfigError: a peer that does not exist, or no such program.
    """
    chosen: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, path = part.rpartition("=")
        if equals and name not in LOCAL:
            raise ConfigError(f"--peer-python: {name} is unknown; use {', '.join(LOCAL)}.", param="--peer-python")
        if not Path(path).is_file():
            raise ConfigError(f"--peer-python: there is no program {path}.", param="--peer-python")
        chosen[name] = path
    return chosen


class WorkerEngine:
    """A loaded model in a process of its own.

    Args:
        name: what results call it.
        command: the process.
        load: its first request.

    Attributes:
        version: of the engine.
        weight_bytes: what one step reads.
        vocab_size: of the model; 0 if the engine does not say.

    Raises:
        SglError: the process or the model does not start.
    """

    def __init__(self, name: str, command: Sequence[str], load: dict[str, Any]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for us to handle
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        try:
            facts = self._ask(load)
        except BaseException:
            self.close()
            raise
        self.version: str = facts["version"]
        self.weight_bytes: int = facts["weight_bytes"]
        self.vocab_size: int = facts.get("vocab_size", 0)

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        """All prompts at once, answered with ``output_len`` tokens each; see `run_each`."""
        return self.run_each(prompts, [output_len] * len(prompts))

    def run_each(self, prompts: Prompts, output_lens: Sequence[int]) -> Timing:
        """All prompts at once, each with its own length of answer.

        Raises:
            SglError: the engine failed, or an answer is not as long as it should be.
        """
        got = self._ask({"run": [list(prompt) for prompt in prompts], "output_lens": list(output_lens)})
        lengths = [len(times) for times in got["tokens"]]
        if lengths != list(output_lens):
            raise SglError(f"{self.name} answered with {lengths} tokens where {list(output_lens)} were asked for.")
        return Timing(got["start_s"], got["tokens"])

    def round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int = 0) -> Round:
        """All at once, whatever ``concurrency`` says: it is about servers."""
        timing = self.run(prompts, output_len)
        answers = [Answer(timing.start_s, times, len(times)) for times in timing.tokens]
        return Round(max(times[-1] for times in timing.tokens) - timing.start_s, answers)

    def wake(self) -> None:
        """Nothing: it runs."""

    def warm_up(self, prompts: Prompts) -> None:
        self.run(prompts, 4)

    def rest(self) -> None:
        """Nothing: an idle worker waits for a line."""

    def close(self) -> None:
        """Ends the process; twice does no harm."""
        for pipe in (self._orders, self._answers):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(json.dumps(request) + "\n")
            self._orders.flush()
            line = self._answers.readline()
        if not line:
            self._process.wait()
            raise SglError(f"{self.name}: its process ended: {self._last_words()}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise SglError(f"{self.name}: {said['error']}")
        ok: dict[str, Any] = said["ok"]
        return ok

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"


class ServerEngine:
    """A server that runs already, asked over HTTP.

    Args:
        url: of the server; ``api+http://...`` names its API, one of `client.APIS` (otherwise OpenAI's).
        model: its name there.
    """

    version = ""
    weight_bytes = 0

    def __init__(self, url: str, model: str = "m") -> None:
        api, plus, rest = url.partition("+")
        self.name = SERVER
        self._client = Client(rest if plus else url, api if plus else "openai", model)

    def run(self, prompts: Prompts, output_len: int) -> Timing:
        """Times begin when the first request was sent.

        Raises:
            SglError: a request failed.
        """
        answers = self.round(prompts, output_len).answers
        return Timing(min(answer.sent_s for answer in answers), [list(answer.arrivals_s) for answer in answers])

    def round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int = 0) -> Round:
        return self._client.round(prompts, output_len, concurrency)

    def close(self) -> None:
        """Nothing."""


def own_engine(config: EngineConfig, name: str = "sgl", grammar: Grammar | None = None) -> WorkerEngine:
    """This engine in a process of its own; ``grammar`` is what all its answers are kept to.

    Raises:
        SglError: it does not start.
    """
    command = [sys.executable, "-m", "sgl.bench.peers.own"]
    constraint = [grammar.kind, grammar.source] if grammar else None
    return WorkerEngine(name, command, {"load": "sgl", "config": config.to_json().decode(), "grammar": constraint})


def local_engine(name: str, model: str, python: str = "", threads: int = 0, **options: object) -> WorkerEngine:
    """A peer of `LOCAL`.

    Args:
        model: in the peer's own format: a checkpoint, a GGUF file, a directory of OpenVINO IR.
        python: interpreter that has the peer; this one if empty.
        threads: 0 takes all cores.
        options: see the peer's class in `worker`.

    Raises:
        SglError: it is not installed there, or does not load the model.
    """
    command = [python or sys.executable, "-I", str(WORKER)]
    load = {"load": name, "model": model, "threads": threads or cores(), "options": options}
    try:
        return WorkerEngine(name, command, load)
    except SglError as error:
        if "ModuleNotFoundError" not in error.message:
            raise
        extra = f"`pip install 'sgl[peers-{name.removesuffix('-cpp')}]'`"
        message = f"{error.message}. Install it ({extra}) or name another interpreter with --peer-python."
        raise ConfigError(message, param="--peer-python") from None


def check_peer(name: str, model: str) -> None:
    """Refuses what `make_peer` cannot make, before anything is loaded; an empty name is nobody.

    Raises:
        ConfigError: an unknown peer, or one that needs a model of its own.
    """
    if name and "://" not in name and name not in LOCAL:
        raise ConfigError(f"--versus {name} is unknown; use {', '.join(LOCAL)} or a server's URL.", param="--versus")
    if name in LOCAL and name != "transformers" and not model:
        raise ConfigError(f"{name} needs --peer-model: the model in its own format.", param="--peer-model")


def make_peer(name: str, model: str, pythons: Mapping[str, str], config: EngineConfig) -> WorkerEngine | ServerEngine:
    """The peer that a command names, beside an engine with ``config``: one of `LOCAL`, or a server's URL.

    Raises:
        ConfigError: see `check_peer`.
        SglError: it does not start.
    """
    return ServerEngine(name, model or "m") if "://" in name else make_local(name, model, pythons, config)


def make_local(name: str, model: str, pythons: Mapping[str, str], config: EngineConfig) -> WorkerEngine:
    """A peer of `LOCAL`, with the threads of ``config``.

    Args:
        model: in the peer's format; empty takes the checkpoint, which transformers reads.

    Raises:
        ConfigError: see `check_peer`.
        SglError: it does not start.
    """
    if name not in LOCAL:
        raise ConfigError(f"--engine {name} is unknown; use sgl, {', '.join(LOCAL)}.", param="--engine")
    check_peer(name, model)
    python = pythons.get(name, pythons.get("", ""))
    options = {"dtype": config.model.dtype, "dummy": config.model.load_format == "dummy"}
    return local_engine(name, model or config.model.model_path, python, config.kernel.cpu_threads or 0, **options)


@contextlib.contextmanager
def closing_all(engines: Sequence[BatchEngine]) -> Iterator[None]:
    """Closes the engines at the end."""
    try:
        yield
    finally:
        for engine in engines:
            engine.close()
