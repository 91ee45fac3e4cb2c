"""``sgl profile``: recording where the time goes, and reading what was recorded."""

from __future__ import annotations

from collections.abc import Mapping

from sgl.cli.main import Subcommand, group_of

RECORDERS: Mapping[str, Subcommand] = {
    "torch": Subcommand("sgl.cli.profile_torch", "Run a command of sgl and record steps with torch's profiler."),
    "nsys": Subcommand("sgl.cli.profile_nsys", "Run a command of sgl under NVIDIA's nsys."),
    "py": Subcommand("sgl.cli.profile_py", "Run a command of sgl and sample its Python code."),
}

COMMANDS: Mapping[str, Subcommand] = {
    **RECORDERS,
    "with": Subcommand("sgl.cli.profile_with", "The same, spelled `sgl profile with nsys -- ...`."),
    "live": Subcommand("sgl.cli.profile_live", "Have a running server record some steps."),
    "report": Subcommand("sgl.cli.profile_report", "A trace as tables or as one HTML page: phases, layers, kernels."),
    "diff": Subcommand("sgl.cli.profile_diff", "Two traces, name by name."),
}

command = group_of("profile", "Record where the time goes, and read it.", COMMANDS)
