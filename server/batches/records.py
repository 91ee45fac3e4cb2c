"""What is known about a file and about a batch, and how both look in OpenAI's API. Stores nothing itself."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
FINAL = ("completed", "failed", "expired", "cancelled")
"""Statuses in which nothing changes any more."""


class FileRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A file whose content is complete and on disk. ``filename`` is the client's word for it, never a path here.

    Args:
        expires_at: when it may be deleted; None keeps it until somebody does.
    """

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None = None

    def to_api(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {**msgspec.structs.asdict(self), "object": "file", "status": "processed", "status_details": None}


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line of an input (counted from 1), or with the whole of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRecord(msgspec.Struct, kw_only=True, frozen=True):
    """The state of a batch; its columns in the database have the same names.

    Args:
        endpoint: what every line asks; empty if each may ask something else.
        output_id, error_id: the files that answers and failures are appended to; not visible before the batch ends.
        output_bytes, error_bytes: how much of these files counts. What a crash left behind that is thrown away.
        total: lines; known once they were checked.
        completed, failed: how many of them have an answer, by kind.
        input_tokens, output_tokens: of all answers; some of them were cached, or reasoning.
        output_expires_after: how many seconds the files of its answers are kept; None: until somebody deletes them.
    """

    id: str
    status: Status
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    errors: list[LineError] = []
    output_id: str
    error_id: str
    output_bytes: int = 0
    error_bytes: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_expires_after: int | None = None
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def num_answered(self) -> int:
        return self.completed + self.failed

    def to_api(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        times = {name: getattr(self, name) for name in self.__struct_fields__ if name.endswith("_at")}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": msgspec.to_builtins(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_id if self.is_final and self.output_bytes else None,
            "error_file_id": self.error_id if self.is_final and self.error_bytes else None,
            **times,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
                "total_tokens": self.input_tokens + self.output_tokens,
            },
            "metadata": self.metadata,
        }


def new_id(kind: str) -> str:
    """A name that nobody can guess: ``file-...`` or ``batch_...``."""
    return f"{kind}{'-' if kind == 'file' else '_'}{uuid.uuid4().hex}"
