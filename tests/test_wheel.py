"""The wheel: everything is in it, and it works away from the source tree."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from sgl.kernels.cpu import native

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(link.name for link in (ROOT / "sgl").iterdir() if link.is_symlink())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (find_spec("pip") and find_spec("setuptools")), reason="pip and setuptools build the wheel"),
]


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a program that must succeed."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "COLUMNS": "200", **environment}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its traces in the source tree."""
    source, target = tmp_path_factory.mktemp("build") / "source", tmp_path_factory.mktemp("wheels")
    leave = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=leave)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", target)
    run(sys.executable, "-m", "pip", "wheel", source, *options, cwd=target)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it; what sgl needs is borrowed from the one that runs this test."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    options = ("--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", *options, wheel, cwd=folder)
    return folder


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = {f"sgl/{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    assert {"sgl/kernels/cpu/linear.cpp", "sgl/assets/demo/model.safetensors", "sgl/cli/main.py"} <= wanted
    assert wanted - packed == set()


def test_the_command_works_from_anywhere(environment: Path, tmp_path: Path) -> None:
    python, command = environment / "bin/python", environment / "bin/sgl"
    assert run(python, "-c", "import sgl; print(sgl.__file__)", cwd=tmp_path).startswith(str(environment))
    assert "sgl" in run(command, "version", cwd=tmp_path)


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
def test_the_kernels_are_built_from_it(environment: Path, tmp_path: Path) -> None:
    code = "import sgl\nwith sgl.Engine(max_total_tokens=2048, device='cpu') as engine: print(engine.generate('Hello'))"
    path = f"{Path(native.compiler() or '').parent}:/usr/bin:/bin"
    told = run(
        environment / "bin/sgl", "kernels", "--device", "cpu", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path), PATH=path
    )
    assert any(line.split()[:2] == ["linear", "native"] for line in told.splitlines())
    assert list(tmp_path.glob("sgl/kernels/cpu-*.so"))
    assert "meta_info" in run(
        environment / "bin/python", "-c", code, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path), PATH=path
    )
