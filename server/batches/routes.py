"""`/v1/files` and `/v1/batches`. Everything slow or rarely needed is behind `Batches`."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sgl.engine.base.errors import SglError
from sgl.server.body import convert, read_object
from sgl.server.errors import JsonResponse
from sgl.server.fields import check_metadata, warn_ignored
from sgl.server.state import state_of

if TYPE_CHECKING:
    from sgl.server.batches.records import BatchRecord, FileRecord

_PURPOSES = ("batch", "user_data")
_UNUSED_PURPOSES = ("assistants", "fine-tune", "vision", "evals")
_MAX_FILES_LISTED, _MAX_BATCHES_LISTED, _BATCHES_LISTED = 10_000, 100, 20
_CHUNK_BYTES = 2**18
_KEEP_S = (3600, 30 * 24 * 3600)
"""For how long at least and at most a file can be kept that is to expire, as at OpenAI."""


class ExpiresAfter(msgspec.Struct, kw_only=True):
    """When files are deleted by themselves.

    Args:
        anchor: from when on the time counts.
        seconds: how long a file is kept.
    """

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=_KEEP_S[0], le=_KEEP_S[1])]


class BatchBody(msgspec.Struct, kw_only=True):
    """Requests to answer, one a line of a file.

    Args:
        input_file_id: an uploaded file of purpose `batch`.
        endpoint: what every line asks, for example `/v1/chat/completions`.
        completion_window: how long it may take: `24h`.
        metadata: up to 16 texts by name, shown with the batch.
        output_expires_after: when the files with the answers are deleted; null keeps them.
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class FileContent(Response):
    """What is in an open file, piece by piece and no more than is known of; closes it."""

    media_type = "application/octet-stream"

    def __init__(self, opened: BinaryIO, record: FileRecord) -> None:
        shown = {"content-disposition": f'attachment; filename="{record.id}"', "x-content-type-options": "nosniff"}
        super().__init__(headers=shown)
        self.headers["content-length"] = str(record.bytes)
        self._opened = opened
        self._num_left = record.bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened as opened:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while chunk := await asyncio.to_thread(opened.read, min(self._num_left, _CHUNK_BYTES)):
                self._num_left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def content(request: Request) -> Response:
    """What is in a file, as it was uploaded or written."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    record, opened = await desk.thread.do(Store.open_file, request.path_params["file_id"])
    return FileContent(opened, record)


async def show_batch(request: Request) -> Response:
    """One batch as it is now."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    return JsonResponse((await desk.thread.do(Store.batch, request.path_params["batch_id"])).to_api())


async def cancel(request: Request) -> Response:
    """Ends a batch early: answers `cancelling` at once; what has been answered by then is in its output file."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    batch_id = request.path_params["batch_id"]
    before = await desk.thread.do(Store.batch, batch_id)
    after = await desk.thread.do(Store.advance, batch_id, "cancelling")
    if after.status != "cancelling":
        text = f"Batch {batch_id} cannot be cancelled any more: it is {after.status}."
        raise SglError(text, code="batch_not_cancellable", status=409, param="batch_id")
    if before.status != "cancelling":
        desk.runner.cancel(batch_id)
    return JsonResponse(after.to_api())


async def upload(request: Request) -> Response:
    """Takes a file as a form with the fields `file` and `purpose`."""
    from sgl.server.batches.records import new_id
    from sgl.server.batches.store import Store
    from sgl.server.batches.upload import receive

    state = state_of(request)
    desk = await state.batches.desk()
    file_id, kept = new_id("file"), False
    path = desk.thread.path_of(file_id)
    try:
        form = await receive(request.headers, request.stream(), path, state.config.serve.max_file_bytes)
        purpose = _purpose(form.fields.pop("purpose", None))
        expires_after = _expires_after(form.fields)
        record = await desk.thread.do(Store.add_file, file_id, purpose, form.filename or "file", expires_after)
        kept = True
    finally:
        if not kept:
            await asyncio.to_thread(_remove, path)
    return JsonResponse({**record.to_api(), **_warned(form.fields, ())})


async def list_files(request: Request) -> Response:
    """The files, the newest first unless `order` is asc, page by page."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    query = request.query_params
    limit = _limit(query.get("limit"), _MAX_FILES_LISTED, _MAX_FILES_LISTED)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise SglError(f"`order` must be asc or desc, got {order[:20]!r}.", param="order")
    purpose, after = query.get("purpose", ""), query.get("after", "")
    found = await desk.thread.do(Store.files, purpose, after, limit + 1, order == "desc")
    return _page(found, limit)


async def show_file(request: Request) -> Response:
    """What is known of one file."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    return JsonResponse((await desk.thread.do(Store.file, request.path_params["file_id"])).to_api())


async def delete_file(request: Request) -> Response:
    """Deletes a file, unless a batch still needs it."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    file_id = request.path_params["file_id"]
    await desk.thread.do(Store.delete_file, file_id)
    return JsonResponse({"id": file_id, "object": "file", "deleted": True})


async def create_batch(request: Request) -> Response:
    """Starts a batch of what is in an uploaded file: one request a line."""
    from sgl.server.batches.lines import endpoint_of
    from sgl.server.batches.store import COMPLETION_WINDOW, Store

    raw = await read_object(request)
    body = convert(raw, BatchBody)
    check_metadata(body.metadata or {})
    if body.completion_window != COMPLETION_WINDOW:
        text = f"`completion_window` must be {COMPLETION_WINDOW}, got {body.completion_window[:20]!r}."
        raise SglError(text, param="completion_window")
    desk = await state_of(request).batches.desk()
    endpoint = endpoint_of(body.endpoint)
    if endpoint not in desk.endpoints:
        text = f"`endpoint` must be one of {', '.join(desk.endpoints)}, got {body.endpoint[:100]!r}."
        raise SglError(text, param="endpoint")
    expiry = body.output_expires_after
    keep_s = None if expiry is None else expiry.seconds
    batch = await desk.thread.do(Store.create_batch, body.input_file_id, endpoint, body.metadata, keep_s)
    desk.runner.start(batch)
    return JsonResponse({**batch.to_api(), **_warned(raw, BatchBody.__struct_fields__)})


async def list_batches(request: Request) -> Response:
    """The batches, the newest first, page by page."""
    from sgl.server.batches.store import Store

    desk = await state_of(request).batches.desk()
    query = request.query_params
    limit = _limit(query.get("limit"), _BATCHES_LISTED, _MAX_BATCHES_LISTED)
    return _page(await desk.thread.do(Store.batches, query.get("after", ""), limit + 1), limit)


def _page(found: list[FileRecord] | list[BatchRecord], limit: int) -> Response:
    """OpenAI's list of at most ``limit``; one more was asked for, to see whether there is more."""
    shown = [record.to_api() for record in found[:limit]]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return JsonResponse({"object": "list", "data": shown, **ends, "has_more": len(found) > limit})


def _limit(text: str | None, default: int, most: int) -> int:
    return default if text is None else _whole(text, "limit", 1, most)


def _whole(text: str | None, param: str, least: int, most: int) -> int:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise SglError(f"`{param}` must be between {least} and {most}, got {text and text[:20]!r}.", param=param)
    return int(text)


def _purpose(text: str | None) -> str:
    if text is None:
        raise SglError("`purpose` is required; use batch.", code="invalid_field", param="purpose")
    if text in _UNUSED_PURPOSES:
        message = f"`purpose` {text} has no use here: this server neither trains nor searches; use batch or user_data."
        raise SglError(message, code="unsupported_field", param="purpose")
    if text not in _PURPOSES:
        raise SglError(f"`purpose` must be one of {', '.join(_PURPOSES)}, got {text[:40]!r}.", param="purpose")
    return text


def _expires_after(fields: dict[str, str]) -> int | None:
    """Takes a form's `expires_after[anchor]` and `expires_after[seconds]`: for how long to keep the file."""
    name = "expires_after[{}]"
    anchor, seconds = (fields.pop(name.format(part), None) for part in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        param = name.format("anchor")
        raise SglError(f"`{param}` must be created_at, got {anchor and anchor[:40]!r}.", param=param)
    return _whole(seconds, name.format("seconds"), *_KEEP_S)


def _warned(raw: dict[str, Any], known: Any) -> dict[str, Any]:
    warnings = warn_ignored(raw, known)
    return {"warnings": warnings} if warnings else {}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
