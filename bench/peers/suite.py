"""Runs the workloads on this engine and its peers in turns, on the same prompts; makes no models, prints nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import sgl
from sgl.bench import provenance
from sgl.bench.bandwidth import BandwidthProbe, moved
from sgl.bench.peers import engine, servers
from sgl.bench.peers.servers import ServerProcess
from sgl.bench.peers.workloads import Prompt, Prompts, Round, Workload
from sgl.engine.base import hub, sources
from sgl.engine.base.config import Given
from sgl.engine.base.errors import ConfigError


class Runner(Protocol):
    """What runs a workload: an engine in a process, or a server.

    ``wake`` makes it ready and ``rest`` makes it take nothing from others; ``warm_up`` is one round that nobody
    measures.
    """

    version: str
    weight_bytes: int

    def wake(self) -> None: ...

    def warm_up(self, prompts: Sequence[Prompt]) -> None: ...

    def round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int = 0) -> Round: ...

    def rest(self) -> None: ...

    def close(self) -> None: ...


OWN = "sgl"
FORMATS = ("bf16", "int8", "int4")


class Files(NamedTuple):
    """Where an engine's models lie under the folder, by format, and where its interpreter may be."""

    by_format: Mapping[str, str]
    environment: str = ""


ENGINES: Mapping[str, Files] = {
    OWN: Files(dict.fromkeys(FORMATS, "models/{model}")),
    "llama-cpp": Files(
        {"bf16": "gguf/{model}-BF16.gguf", "int8": "gguf/{model}-Q8_0.gguf", "int4": "gguf/{model}-Q4_0.gguf"},
        "venv-llama",
    ),
    "openvino": Files({"bf16": "ov/{model}-fp16", "int8": "ov/{model}-int8", "int4": "ov/{model}-int4"}, "venv-ov"),
    "transformers": Files({"bf16": "models/{model}"}, "venv-base"),
    "vllm": Files({"bf16": "models/{model}", "int8": "ct/{model}-W8A8", "int4": "ct/{model}-W4A16"}, "venv-vllm"),
}

QUANTIZATION = {"bf16": "none", "int8": "int8", "int4": "int4-g64"}
"""The engine's option for each format."""

LLAMA_SERVER = {
    "W5": ("-np", "4", "-c", "8704", "-kvu"),  # prompts share a prefix within a slot: few slots
    "W6": ("-np", "32", "-c", "139264"),
}


@dataclass(frozen=True)
class Setup:
    """What is measured.

    Args:
        folder: with models and, where they are not given, the peers' environments.
        model: one of `models.SHAPES`.
        own_values: further options of this engine, by key.
    """

    folder: Path
    model: str
    engines: Sequence[str]
    formats: Sequence[str]
    workloads: Sequence[Workload]
    repeats: int
    seed: int
    pythons: Mapping[str, str] = field(default_factory=dict)
    own_values: Mapping[str, Given] = field(default_factory=dict)

    def check(self) -> None:
        """
        Raises:
            ConfigError: an engine or a format that does not exist, or a model that was not made.
        """
        for name in self.engines:
            if name not in ENGINES:
                raise ConfigError(f"--engines {name} is unknown; use {', '.join(ENGINES)}.", param="--engines")
        for name in self.formats:
            if name not in FORMATS:
                raise ConfigError(f"--formats {name} is unknown; use {', '.join(FORMATS)}.", param="--formats")
        for name in self.engines:
            for weights in self.formats:
                path = self.path(name, weights)
                if path is not None and not path.exists():
                    message = f"There is no {path}; make it with `sgl bench peers {self.folder} --make-models`."
                    raise ConfigError(message, param="FOLDER")

    def path(self, name: str, weights: str) -> Path | None:
        """An engine's model in a format; None if it has none."""
        template = ENGINES[name].by_format.get(weights)
        return None if template is None else self.folder / template.format(model=self.model)

    def python(self, name: str) -> str:
        """The interpreter that has a peer: as given, in the folder, or this one."""
        beside = self.folder / ENGINES[name].environment / "bin" / "python"
        given = self.pythons.get(name) or self.pythons.get("")
        return given or (str(beside) if beside.is_file() else sys.executable)

    def kind(self, name: str, workload: Workload) -> str:
        """What runs a workload: ``worker``, ``server`` with some settings, or nothing (empty)."""
        if name == "vllm":
            return "server"
        if name == "llama-cpp" and workload.name in LLAMA_SERVER:
            return f"server {workload.name}"
        if name == OWN:
            return "server" if workload.over_http else "worker"
        if workload.over_http or (name == "transformers" and workload.prefix_len):
            return ""
        return "worker"


def measure(setup: Setup, note: Callable[[str], None] = lambda _: None) -> Iterator[dict[str, Any]]:
    """One result for every workload, engine and repeat; the order of the engines turns with each repeat.

    Raises:
        SglError: an engine does not start or fails.
    """
    setup.check()
    vocab_size = int(hub.read_config(str(setup.folder / "models" / setup.model))["vocab_size"])
    prompts, probe = Prompts(vocab_size, setup.seed << 32), BandwidthProbe()
    common = {
        "kind": "peers",
        "model": setup.model,
        "seed": setup.seed,
        "sgl_version": sgl.__version__,
        "machine": provenance.describe(),
        "cache_state": "cold",
    }
    for weights in setup.formats:
        fleet = Fleet(setup, weights, vocab_size, note)
        try:
            for workload in setup.workloads:
                names = [name for name in setup.engines if setup.path(name, weights) and setup.kind(name, workload)]
                for name in names:
                    fleet.warm_up(name, workload)
                for repeat in range(setup.repeats):
                    asked = prompts.repeat_of(workload)
                    for name in names if repeat % 2 == 0 else reversed(names):
                        note(f"{setup.model} {weights} {workload.name}: {name}, {repeat + 1} of {setup.repeats}")
                        run = _one(fleet.only(name, workload), workload, asked, probe)
                        said = {"engine": name, "format": weights, "workload": workload.name, "repeat": repeat}
                        hashed = {"dataset_hash": provenance.name_of(asked), "time": time.strftime("%FT%T%z")}
                        yield {**common, **said, **hashed, **run}
        finally:
            fleet.close()


class Fleet:
    """The engines that hold one format's weights; each is started when it is first needed."""

    def __init__(self, setup: Setup, weights: str, vocab_size: int, note: Callable[[str], None]) -> None:
        self._setup, self._weights, self._vocab_size, self._note = setup, weights, vocab_size, note
        self._runners: dict[tuple[str, str], Runner] = {}

    def only(self, name: str, workload: Workload) -> Runner:
        """The runner for a workload, with every other one at rest."""
        wanted = self._setup.kind(name, workload)
        if (name, wanted) not in self._runners:
            self._note(f"{name} {self._weights}: loading")
            self._runners[name, wanted] = self._make(name, wanted, workload)
        for key, runner in self._runners.items():
            if key != (name, wanted):
                runner.rest()
        runner = self._runners[name, wanted]
        runner.wake()
        return runner

    def warm_up(self, name: str, workload: Workload) -> None:
        """As many requests as the workload has, of prompts that are not longer than they must be."""
        prompts = Prompts(self._vocab_size, 1 << 50)
        asked = [prompts.draw(min(workload.prompt_len, 128)) for _ in range(workload.requests)]
        self.only(name, workload).warm_up(asked)

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()

    def _make(self, name: str, kind: str, workload: Workload) -> Runner:
        setup, path = self._setup, str(self._setup.path(name, self._weights))
        python = setup.python(name) if name != OWN else ""
        if name == OWN:
            named = sources.from_call({"model_path": path, "quantization": QUANTIZATION[self._weights]})
            if kind == "worker":
                return engine.own_engine(sources.configure({**setup.own_values, **named}))
            return self._server(name, servers.own_server({**setup.own_values, **named}))
        if name == "vllm":
            return self._server(name, servers.vllm_server(python, path))
        if kind != "worker":
            return self._server(name, servers.llama_server(python, path, LLAMA_SERVER[workload.name]))
        return engine.local_engine(name, path, python)

    def _server(self, name: str, launch: servers.Launch) -> ServerProcess:
        return ServerProcess(name, launch, self._vocab_size)


def _one(
    runner: Runner, workload: Workload, passes: Sequence[Sequence[Sequence[int]]], probe: BandwidthProbe
) -> dict[str, Any]:
    """One repeat between two probes of the bandwidth."""
    before = probe.measure()
    rounds: list[Round] = [runner.round(prompts, workload.output_len, workload.concurrency) for prompts in passes]
    after = probe.measure()
    figures = workload.figures(rounds)
    result: dict[str, Any] = {
        "version": runner.version,
        "figures": figures,
        "weight_bytes": runner.weight_bytes,
        "bandwidth_before": before,
        "bandwidth_after": after,
        "bandwidth_moved": moved(before, after),
    }
    if "decode_tok_s" in figures and runner.weight_bytes:
        read = runner.weight_bytes * figures["decode_tok_s"] / workload.batch
        result["share_of_bandwidth"] = read / ((before + after) / 2)
    return result
