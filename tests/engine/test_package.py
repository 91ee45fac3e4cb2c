"""The package's front door."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sgl

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "tokenizers", "zmq", "msgspec", "asyncio")


def test_importing_sgl_imports_nothing_else() -> None:
    code = f"import sys, sgl; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_engine_s_api_does_not_import_torch() -> None:
    code = "import sys, sgl; sgl.Engine; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_does_not_import_torch() -> None:
    """The front process of `sgl serve`: command line, HTTP, tokenizer and template."""
    code = (
        "import sys, sgl.cli.serve, sgl.server.app; from pathlib import Path; "
        "from sgl.engine.text.tokenizer import load_tokenizer; from sgl.engine.text.template import load_template; "
        "load_template(load_tokenizer(Path('assets/demo')), None); "
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in sgl.__all__:
        assert getattr(sgl, name) is not None
        assert name in dir(sgl)
    with pytest.raises(AttributeError, match="'sgl' has no attribute 'nothing'"):
        sgl.nothing  # noqa: B018


def test_version_is_the_package_s() -> None:
    assert sgl.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
