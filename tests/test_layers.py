"""Imports run downward only (docs/design.md, section 1), and nothing dangerous is used anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cli", "server", "lang", "bench", "profiles", "quant", "engine", "kernels")

DRIVERS = {"engine.api", "engine.base", "engine.text"}
MODEL = {"engine.models", "engine.nn", "engine.attn", "kernels"}
ALLOWED: dict[str, set[str]] = {
    "cli": {"server", "bench", "profiles", "lang", "quant", "quant.gate", "kernels", *DRIVERS},
    "server": DRIVERS,
    "bench": DRIVERS,
    "profiles": {"bench", *DRIVERS},
    "lang": {"engine.api", "engine.base"},
    "quant": {"kernels", "engine.base"},
    "quant.gate": {"quant", "bench", *DRIVERS},  # runs the engine, which reads what quant writes
    "kernels": {"engine.base"},
    "engine.api": {"engine.client", "engine.grammar", "engine.text", "engine.base"},
    "engine.client": {"engine.assembly", "engine.base"},
    "engine.worker": {"engine.client", "engine.assembly", "engine.base"},
    "engine.assembly": {"engine.loop", "engine.core", "engine.runtime", "engine.grammar", *MODEL, "engine.base"},
    "engine.loop": {"engine.core", "engine.base"},
    "engine.replay": {"engine.assembly", "engine.loop", "engine.core", "engine.base"},
    "engine.grammar": {"engine.core", "engine.text", "kernels", "engine.base"},
    "engine.core": {"engine.base"},
    "engine.runtime": {*MODEL, "engine.base"},
    "engine.models": {"engine.nn", "kernels", "quant", "engine.base"},
    "engine.nn": {"engine.attn", "kernels", "quant", "engine.base"},
    "engine.attn": {"kernels", "engine.base"},
    "engine.text": {"engine.base"},
    "engine.base": set(),
}
"""What each layer may import besides itself."""

PARTS = {"engine.core", "engine.runtime", "engine.client", "engine.assembly", "server"}
EXCEPTIONS: dict[str, set[str]] = {
    "cli.replay_plans": {"engine.replay"},  # executes plans, which no driver knows
    "bench.host": PARTS,  # measures the parts of the host one by one
    "bench.host_stream": PARTS,
    "bench.gpu_engine": {"engine.assembly", "engine.loop"},  # drives an engine step by step
    "bench.gpu_sections": {"engine.attn", "kernels"},  # whose checks it runs
    "bench.doctor.layers": {"engine.nn"},  # looks into a model, layer by layer
    "bench.doctor.model": {"engine.models"},
    "bench.doctor.traces": MODEL,
    "bench.doctor.weights": {"engine.models", "engine.nn", "kernels"},  # what config.json asks for
}
"""What single modules may import besides what their layer may."""

WITHOUT_TORCH = ("cli", "server", "lang", "engine.core", "engine.text", "engine.client", "engine.api")
GPU_FILES = {"engine/base/device.py"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def layer_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "engine" or parts[:2] == ["quant", "gate"] else parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def test_imports_run_downward() -> None:
    wrong = []
    for path, tree in sources():
        layer = layer_of(module_of(path))
        for line, name in imports(tree):
            if name.startswith("sgl."):
                target = layer_of(name.removeprefix("sgl."))
                if target in ("engine", "assets", layer):
                    continue
                if target not in ALLOWED.get(layer, set()) | EXCEPTIONS.get(module_of(path), set()):
                    wrong.append(f"{path}:{line}: {layer} must not import {target}")
    assert not wrong, "\n".join(wrong)


def test_torch_stays_where_it_belongs() -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for path, tree in sources()
        for line, name in imports(tree)
        if module_of(path).startswith(WITHOUT_TORCH) and name.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_cuda_is_used_only_by_device_and_gpu_kernels() -> None:
    wrong = []
    for path, tree in sources():
        if str(path) in GPU_FILES or path.parts[:2] in {("kernels", "triton"), ("kernels", "flashinfer")}:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda":
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


WAITING = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "argwhere"}
"""Methods that need a number of the device before the host can go on."""

MAY_WAIT: dict[str, set[str]] = {
    "engine/runtime/result.py": WAITING,
    "engine/runtime/sampler.py": {"tolist", "numpy"},  # on a CPU alone, where the tokens are at hand
    "engine/attn/checks.py": WAITING,  # compares
    "engine/attn/cpu.py": WAITING,
    "engine/attn/torch_native.py": WAITING,  # on a GPU it plans with what the host knows
}


def test_no_step_waits_for_the_device_outside_the_result() -> None:
    wrong = []
    for path, tree in sources():
        if path.parts[:2] not in {("engine", "runtime"), ("engine", "attn")}:
            continue
        banned = WAITING - MAY_WAIT.get(str(path), set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in banned:
                wrong.append(f"{path}:{node.lineno}: .{node.attr}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.tensor" and "tolist" in banned:
                wrong.append(f"{path}:{node.lineno}: torch.tensor copies from memory that is not page-locked")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["pickle", "dill", "cloudpickle", "marshal", "shelve"])
def test_nothing_can_be_unpickled(module: str) -> None:
    assert not [
        f"{path}:{line}" for path, tree in sources() for line, name in imports(tree) if module in name.split(".")
    ]


def test_no_code_is_evaluated() -> None:
    banned = {"eval", "exec", "compile", "yaml.load", "torch.load", "os.system"}
    wrong = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in banned:
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg == "shell":
                wrong.append(f"{path}:{node.value.lineno}: shell=")
    assert not wrong, "\n".join(wrong)


def test_the_environment_is_read_in_one_file() -> None:
    wrong = []
    for path, tree in sources():
        if str(path) == "engine/base/env.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for() -> None:
    assert not [str(path) for path, tree in sources() if not ast.get_docstring(tree)]
