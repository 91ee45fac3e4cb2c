"""``sgl profile with TOOL``: another spelling of ``sgl profile TOOL``."""

from __future__ import annotations

from sgl.cli.main import group_of
from sgl.cli.profile import RECORDERS

command = group_of("with", "Record a command of sgl with this tool.", RECORDERS)
