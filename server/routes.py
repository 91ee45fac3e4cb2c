"""The one table of routes: path, methods, who may call it, and what answers."""

from __future__ import annotations

from sgl.engine.api import explanation
from sgl.server import (
    control,
    embed,
    functions,
    health,
    ledger,
    native,
    openapi,
    pages,
    profile,
    rerank,
    schema,
    schemas,
    sessions,
    tokenize,
    weights,
)
from sgl.server.anthropic import routes as messages
from sgl.server.anthropic.errors import error_body as anthropic_error
from sgl.server.anthropic.protocol import CountBody, MessagesBody
from sgl.server.auth import GuardedRoute, Level
from sgl.server.batches import routes as batches
from sgl.server.openai import chat, completions, embeddings, models
from sgl.server.openai.protocol import ChatBody, CompletionBody
from sgl.server.openai.responses import routes as responses
from sgl.server.openai.responses.protocol import PromptBody, ResponsesBody
from sgl.server.sse import Watched

GET, POST, DELETE = ("GET",), ("POST",), ("DELETE",)
OPEN, API, ADMIN = Level.OPEN, Level.API, Level.ADMIN

ROUTES: tuple[GuardedRoute, ...] = (
    GuardedRoute("/health", control.health, GET, OPEN),
    GuardedRoute("/livez", health.livez, GET, OPEN),
    GuardedRoute("/readyz", health.readyz, GET, OPEN),
    GuardedRoute("/startupz", health.startupz, GET, OPEN),
    GuardedRoute("/metrics", control.metrics, GET, OPEN),
    GuardedRoute("/docs", pages.docs, GET, OPEN),
    GuardedRoute("/openapi.json", openapi.openapi, GET, API),
    GuardedRoute("/health_generate", Watched(control.health_generate), GET, API),
    GuardedRoute("/get_model_info", control.model_info, GET, API),
    GuardedRoute("/get_server_info", control.server_info, GET, API),
    GuardedRoute("/flush_cache", control.flush_cache, POST, ADMIN),
    GuardedRoute("/configure_logging", control.configure_logging, POST, ADMIN, body=control.LoggingBody),
    GuardedRoute("/start_profile", profile.start, ("GET", "POST"), ADMIN, body=profile.ProfileBody),
    GuardedRoute("/stop_profile", profile.stop, ("GET", "POST"), ADMIN),
    GuardedRoute("/profile_status", profile.status, GET, ADMIN),
    GuardedRoute("/requests", ledger.listing, GET, ADMIN, query=ledger.ListQuery, answer=explanation.Listing),
    GuardedRoute("/requests/{rid:path}", ledger.one, GET, API, answer=explanation.Explanations),
    GuardedRoute(
        "/update_weights_from_disk",
        weights.update,
        POST,
        ADMIN,
        body=weights.UpdateBody,
        answer=weights.UpdateResult,
    ),
    GuardedRoute("/update_weights", weights.update, POST, ADMIN, body=weights.UpdateBody, answer=weights.UpdateResult),
    GuardedRoute("/get_weights_by_name", weights.by_name, ("GET", "POST"), ADMIN, body=weights.WeightsBody),
    GuardedRoute("/release_memory_occupation", weights.release, ("GET", "POST"), ADMIN),
    GuardedRoute("/resume_memory_occupation", weights.resume, ("GET", "POST"), ADMIN),
    GuardedRoute("/init_weights_update_group", weights.from_trainer, POST, ADMIN),
    GuardedRoute("/update_weights_from_distributed", weights.from_trainer, POST, ADMIN),
    GuardedRoute("/open_session", sessions.open_session, POST, API, body=sessions.OpenSessionBody),
    GuardedRoute("/close_session", sessions.close_session, POST, API, body=sessions.CloseSessionBody),
    GuardedRoute("/abort_request", sessions.abort_request, POST, API, body=sessions.AbortBody),
    GuardedRoute(
        "/generate",
        Watched(native.generate),
        ("POST", "PUT"),
        API,
        body=native.GenerateBody,
        answer=schemas.Outputs,
    ),
    GuardedRoute("/tokenize", tokenize.tokenize, POST, API, body=tokenize.TokenizeBody, answer=schemas.Tokens),
    GuardedRoute("/v1/tokenize", tokenize.tokenize, POST, API, body=tokenize.TokenizeBody, answer=schemas.Tokens),
    GuardedRoute("/detokenize", tokenize.detokenize, POST, API, body=tokenize.DetokenizeBody, answer=schemas.Text),
    GuardedRoute("/v1/detokenize", tokenize.detokenize, POST, API, body=tokenize.DetokenizeBody, answer=schemas.Text),
    GuardedRoute("/tokenizer_info", tokenize.tokenizer_info, GET, API),
    GuardedRoute("/apply-template", tokenize.apply_template, POST, API, body=ChatBody, answer=schemas.Prompt),
    GuardedRoute("/v1/schema/check", schema.check, POST, API, body=schema.CheckBody, answer=schema.Report),
    GuardedRoute("/v1/models", models.listing, GET, API, answer=schemas.ModelList),
    GuardedRoute("/v1/models/{model:path}", models.one, GET, API, answer=schemas.ModelCard),
    GuardedRoute("/v1/chat/completions", Watched(chat.create), POST, API, body=ChatBody, answer=schemas.ChatCompletion),
    GuardedRoute(
        "/v1/completions", Watched(completions.create), POST, API, body=CompletionBody, answer=schemas.Completion
    ),
    GuardedRoute(
        "/function_call", functions.parse, POST, API, body=functions.FunctionCallBody, answer=functions.FunctionCalls
    ),
    GuardedRoute("/encode", Watched(embed.encode), ("POST", "PUT"), API, body=embed.EncodeBody, answer=embed.Outputs),
    GuardedRoute(
        "/classify", Watched(embed.classify), ("POST", "PUT"), API, body=embed.EncodeBody, answer=embed.Outputs
    ),
    GuardedRoute(
        "/v1/embeddings",
        Watched(embeddings.create),
        POST,
        API,
        body=embeddings.EmbeddingsBody,
        answer=embeddings.EmbeddingList,
    ),
    GuardedRoute("/v1/rerank", Watched(rerank.rerank), POST, API, body=rerank.RerankBody, answer=rerank.RerankAnswer),
    GuardedRoute("/rerank", Watched(rerank.rerank), POST, API, body=rerank.RerankBody, answer=rerank.RerankAnswer),
    GuardedRoute("/v1/score", Watched(rerank.score), POST, API, body=rerank.ScoreBody, answer=rerank.ScoreAnswer),
    GuardedRoute("/v1/responses", Watched(responses.create), POST, API, body=ResponsesBody),
    GuardedRoute("/v1/responses/input_tokens", responses.count, POST, API, body=PromptBody),
    GuardedRoute("/v1/responses/{response_id}", responses.retrieve, GET, API),
    GuardedRoute("/v1/responses/{response_id}", responses.delete, DELETE, API),
    GuardedRoute("/v1/responses/{response_id}/input_items", responses.input_items, GET, API, query=responses.PageQuery),
    GuardedRoute("/v1/messages", Watched(messages.create), POST, API, MessagesBody, anthropic_error),
    GuardedRoute("/v1/messages/count_tokens", messages.count, POST, API, CountBody, anthropic_error),
    GuardedRoute("/v1/files", batches.upload, POST, API, form=schemas.FileForm),
    GuardedRoute("/v1/files", batches.list_files, GET, API, query=schemas.FilesQuery),
    GuardedRoute("/v1/files/{file_id}", batches.show_file, GET, API),
    GuardedRoute("/v1/files/{file_id}", batches.delete_file, DELETE, API),
    GuardedRoute("/v1/files/{file_id}/content", batches.content, GET, API),
    GuardedRoute("/v1/batches", batches.create_batch, POST, API, body=batches.BatchBody),
    GuardedRoute("/v1/batches", batches.list_batches, GET, API, query=schemas.BatchesQuery),
    GuardedRoute("/v1/batches/{batch_id}", batches.show_batch, GET, API),
    GuardedRoute("/v1/batches/{batch_id}/cancel", batches.cancel, POST, API),
)
