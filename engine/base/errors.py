"""The one error type that users see; everything else is a bug and keeps its traceback."""

from __future__ import annotations


class SglError(Exception):
    """A problem that the user can act on.

    Args:
        message: one sentence that names the field, the value and the fix.
        code: a stable machine-readable name, e.g. ``context_length_exceeded``.
        status: the HTTP status a server answers with; the CLI exits with 2, or 1 if the engine has died.
        param: the request field or flag at fault.
        retryable: whether the same request may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "invalid_value",
        status: int = 400,
        param: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.param = param
        self.retryable = retryable


class ConfigError(SglError):
    """A flag, environment variable or config file value that cannot be used."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, code="invalid_config", param=param)


class ModelError(SglError):
    """A checkpoint that cannot be loaded: missing, corrupt or of an unsupported architecture."""

    def __init__(self, message: str, *, param: str | None = "model_path") -> None:
        super().__init__(message, code="model_error", param=param)


class OverloadedError(SglError):
    """The server cannot take the request now."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="server_overloaded", status=503, retryable=True)


class OutOfMemoryError(SglError):
    """Memory did not suffice for something; what was there before still is."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="out_of_memory", status=503, retryable=True)


class EngineDiedError(SglError):
    """The engine stopped; requests in flight are lost."""

    def __init__(self, message: str = "The engine has stopped; see its log for the reason.") -> None:
        super().__init__(message, code="engine_dead", status=500, retryable=True)
