"""Writes what `sgl bench tune` found; engine/base/tuned.py finds it again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sgl.engine.base.errors import ConfigError
from sgl.engine.base.tuned import Profile


def write(profile: Profile, path: Path) -> None:
    """Replaces the file as a whole: an engine that starts meanwhile never reads half of it.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
        scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
