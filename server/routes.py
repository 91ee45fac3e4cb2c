"""The one table of routes: path, methods, who may call it, and what answers."""

from __future__ import annotations

from sgl.server import control, native
from sgl.server.auth import GuardedRoute, Level
from sgl.server.openai import chat, completions, models
from sgl.server.sse import Watched

GET, POST = ("GET",), ("POST",)
OPEN, API, ADMIN = Level.OPEN, Level.API, Level.ADMIN

ROUTES: tuple[GuardedRoute, ...] = (
    GuardedRoute("/health", control.health, GET, OPEN),
    GuardedRoute("/metrics", control.metrics, GET, OPEN),
    GuardedRoute("/health_generate", Watched(control.health_generate), GET, API),
    GuardedRoute("/get_model_info", control.model_info, GET, API),
    GuardedRoute("/get_server_info", control.server_info, GET, API),
    GuardedRoute("/flush_cache", control.flush_cache, POST, ADMIN),
    GuardedRoute("/generate", Watched(native.generate), ("POST", "PUT"), API),
    GuardedRoute("/v1/models", models.listing, GET, API),
    GuardedRoute("/v1/models/{model:path}", models.one, GET, API),
    GuardedRoute("/v1/chat/completions", Watched(chat.create), POST, API),
    GuardedRoute("/v1/completions", Watched(completions.create), POST, API),
)
