"""A profile that a running server records: starts it, follows it and ends it over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl.profiles.http import Connection


class Status(msgspec.Struct):
    """Of the recording; ``path`` is the last trace that was written, on the server."""

    is_recording: bool
    num_steps: int
    steps_left: int
    path: str


class LiveProfile(Connection):
    """The profiler of a server; all raise SglError where that refuses."""

    def start(self, num_steps: int, output_dir: str, *, with_stack: bool, record_shapes: bool) -> None:
        """Records the next steps."""
        body: dict[str, Any] = {"num_steps": num_steps, "with_stack": with_stack, "record_shapes": record_shapes}
        if output_dir:
            body["output_dir"] = output_dir
        self.ask("POST", "/start_profile", body)

    def status(self) -> Status:
        """How far it is."""
        return self.read("/profile_status", Status)

    def stop(self) -> None:
        """Ends it and writes the trace."""
        self.ask("POST", "/stop_profile", {})
