"""``sgl version``: what is installed and what it runs on."""

from __future__ import annotations

import platform
from importlib import metadata

import sgl
from sgl.cli.options import command_of

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "xgrammar", "triton", "flashinfer-python")


def version_of(package: str) -> str:
    """The installed version, a dash if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def version() -> None:
    """Show versions and the machine, for bug reports."""
    from rich.table import Table

    from sgl.cli import console
    from sgl.engine.base.budget import size
    from sgl.engine.base.machine import detect

    machine = detect()
    table = Table.grid(padding=(0, 2))
    table.add_row("sgl", sgl.__version__)
    for package in PACKAGES:
        table.add_row(package, version_of(package))
    table.add_row("python", platform.python_version())
    table.add_row("device", f"{machine.device}: {machine.device_name}")
    table.add_row("cores", f"{machine.cores} ({machine.isa})")
    table.add_row("memory", f"{size(machine.memory_bytes)}, {size(machine.memory_free_bytes)} free")
    console.out().print(table)


command = command_of(version)
