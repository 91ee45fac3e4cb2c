"""Servers of this project and of the peers as processes: how they start, when they are ready and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sgl.bench.peers.client import Client
from sgl.bench.peers.workloads import Prompt, Prompts, Round
from sgl.engine.base import env
from sgl.engine.base.config import Given
from sgl.engine.base.errors import SglError
from sgl.engine.base.machine import cores

_START_S = 600.0
_STOP_S = 30.0
_WARM_SEED = 1 << 40  # far from any that is measured


@dataclass(frozen=True)
class Launch:
    """How a server is started; ``{port}`` in the command is replaced."""

    api: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def own_server(values: Mapping[str, Given]) -> Launch:
    """``sgl serve`` with these options, by key."""
    given = [word for key, value in values.items() for word in ("--set", f"{key}={value.value}")]
    command = [sys.executable, "-m", "sgl", "serve", "--port", "{port}", "--log-level", "warning", *given]
    return Launch("sglang", command)


def llama_server(python: str, model: str, flags: Sequence[str]) -> Launch:
    """llama-server with all cores.

    Raises:
        SglError: that interpreter has none.
    """
    program, environment = llama_program(python, "llama-server")
    threads = str(cores())
    common = ["-m", model, "-t", threads, "-tb", threads, "--host", "127.0.0.1", "--port", "{port}"]
    return Launch("llama", [program, *common, "--no-webui", "--no-warmup", *flags], environment)


def llama_program(python: str, name: str) -> tuple[str, dict[str, str]]:
    """A program of llama.cpp as the wheel build of llama-cpp-python installs it, and the environment that it needs.

    Raises:
        SglError: that interpreter has none.
    """
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    program = site / "bin" / name
    if not program.is_file():
        raise SglError(f"llama-cpp: {python} has no {name}; build llama-cpp-python with LLAMA_BUILD_TOOLS.")
    return str(program), {"LD_LIBRARY_PATH": f"{site}/lib:{site}/llama_cpp/lib"}


def vllm_server(python: str, model: str) -> Launch:
    """vLLM's CPU build, all cores to its threads."""
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores() - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": str(cores()),
    }
    options = ["--served-model-name", "m", "--dtype", "bfloat16", "--max-model-len", "8192", "--max-num-seqs", "32"]
    program = str(Path(python).with_name("vllm"))
    return Launch("openai", [program, "serve", model, *options, "--host", "127.0.0.1", "--port", "{port}"], environment)


class ServerProcess:
    """A server that runs while it is measured and not while another is; `round` starts it when it must.

    Attributes:
        version, weight_bytes: what the caller knows of it.
    """

    def __init__(self, name: str, launch: Launch, vocab_size: int, version: str = "", weight_bytes: int = 0) -> None:
        self.name = name
        self.version = version
        self.weight_bytes = weight_bytes
        self._launch = launch
        self._vocab_size = vocab_size
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process

    def round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int = 0) -> Round:
        """
        Raises:
            SglError: the server does not start, or a request failed.
        """
        self.wake()
        assert self._client is not None
        return self._client.round(prompts, output_len, concurrency)

    def warm_up(self, prompts: Sequence[Prompt]) -> None:
        """Nothing more: it is warm when it is awake."""

    def wake(self) -> None:
        """Starts the server if it does not run, and lets it answer a few prompts that nobody measures.

        Raises:
            SglError: it does not start.
        """
        if self._client is not None:
            return
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [word.replace("{port}", str(port)) for word in self._launch.command]
        environment = {**env.all_variables(), **self._launch.environment}
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env=environment, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        self._wait(url)
        client = Client(url, self._launch.api)
        warm = Prompts(self._vocab_size, _WARM_SEED)
        client.round([warm.draw(128)], 16)
        client.round([warm.draw(128) for _ in range(8)], 16)
        self._client = client

    def rest(self) -> None:
        """Stops the server, so that it takes nothing from others."""
        self._client = None
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # what it started and left behind
            os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.rest()
        self._log.close()

    def _wait(self, url: str) -> None:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        self.rest()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise SglError(f"{self.name} does not start: {lines[-1]}")
