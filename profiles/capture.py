"""The commands that record a profile of another command, and where they leave it; reads no profile."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sgl.engine.base import env
from sgl.engine.base.errors import ConfigError

NSYS_INSTALL = """\
apt update
apt install -y --no-install-recommends gnupg
echo "deb http://developer.download.nvidia.com/devtools/repos/ubuntu$(source /etc/lsb-release; \
echo "$DISTRIB_RELEASE" | tr -d .)/$(dpkg --print-architecture) /" | tee /etc/apt/sources.list.d/nvidia-devtools.list
apt-key adv --fetch-keys http://developer.download.nvidia.com/compute/cuda/repos/ubuntu1804/x86_64/7fa2af80.pub
apt update
apt install -y nsight-systems-cli"""

_NSYS_FLAGS = (
    "--trace=cuda,nvtx,osrt",
    "--cuda-graph-trace=node",  # the kernels of a captured graph one by one, not the graph as one
    "--trace-fork-before-exec=true",  # the engine is a child of the command
    "--sample=none",
    "--force-overwrite=true",
    "--export=sqlite",
)


@dataclass(frozen=True)
class Command:
    """A command line, and what its environment has besides ours."""

    words: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a line for a shell."""
        variables = (f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        return " ".join([*variables, shlex.join(self.words)])

    def run(self) -> int:
        """Its exit status. Ctrl-C reaches it too; it is then waited for, since it writes the profile at its end."""
        with subprocess.Popen(self.words, env={**env.all_variables(), **self.variables}) as process:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue


def own(words: Sequence[str]) -> list[str]:
    """A command of sgl, with or without that word, as the interpreter runs it.

    Raises:
        ConfigError: there is none.
    """
    rest = list(words[1:] if words[:1] == ["sgl"] else words)
    if not rest:
        raise ConfigError("Say behind -- which command is to be recorded, for example: -- bench one-batch MODEL.")
    return [sys.executable, "-m", "sgl", *rest]


def with_torch(words: Sequence[str], directory: Path, first: int, count: int) -> Command:
    """Every engine of the command writes a trace of ``count`` steps, from the ``first`` on, into the directory."""
    variables = {"SGL_PROFILE_STEPS": f"{first}:{count}", "SGLANG_TORCH_PROFILER_DIR": str(directory)}
    return Command(own(words), variables)


def with_nsys(words: Sequence[str], output: Path, extra: Sequence[str]) -> Command:
    """nsys leaves ``output``.nsys-rep for its own viewer, and ``output``.sqlite for `sgl profile report`."""
    head = ["nsys", "profile", *_NSYS_FLAGS, f"--output={output}", *extra]
    return Command([*head, *own(words)], {"SGL_NVTX": "1"})


def with_py_spy(words: Sequence[str], directory: Path, rate: int) -> Command:
    """py-spy looks at all processes of the command from outside."""
    output = directory / "py-spy.speedscope.json"
    head = ["py-spy", "record", "--subprocesses", f"--rate={rate}", "--format=speedscope", f"--output={output}"]
    return Command([*head, "--", *own(words)])


def with_sampler(words: Sequence[str], directory: Path) -> Command:
    """Every process of the command samples itself."""
    return Command(own(words), {"SGL_PROFILE_PY": str(directory)})


def is_installed(program: str) -> bool:
    return shutil.which(program) is not None


def files_in(directory: Path, pattern: str) -> list[Path]:
    """Those that are there now, oldest first; none where there is no directory."""
    return sorted(directory.glob(pattern), key=lambda path: path.stat().st_mtime)


def make_directory(given: str, kind: str) -> Path:
    """Where a profile goes: where it is said, or among the other profiles.

    Raises:
        ConfigError: it cannot be made.
    """
    directory = (Path(given).expanduser() if given else env.profiler_dir() / kind).resolve()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error.strerror}.", param="--output") from None
    return directory
