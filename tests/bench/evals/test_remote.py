"""A model behind a URL, at the wire."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sgl.bench.evals.asks import Ask, Call, Passage
from sgl.bench.evals.remote import Remote
from sgl.engine.base.errors import ConfigError, SglError


class Server:
    """
    Attributes:
        replies: by path: a body, or a status with one.
        asked: paths with their bodies.
    """

    def __init__(self, replies: dict[str, Any]) -> None:
        self.replies = {"/v1/models": {"data": [{"id": "model-x"}]}, **replies}
        self.asked: list[tuple[str, Any]] = []
        self.url = ""


@contextmanager
def serving(**replies: Any) -> Iterator[tuple[Server, Remote]]:
    """A server, by route with underscores, and the model behind it."""
    server = Server({f"/{path.replace('__', '/')}": reply for path, reply in replies.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(self.path)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, body))
            self._reply(self.path)

        def _reply(self, path: str) -> None:
            found = server.replies.get(path, (404, {}))
            status, body = found if isinstance(found, tuple) else (200, found)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        with Remote.connect(server.url) as remote:
            yield server, remote
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


def test_a_text_goes_on() -> None:
    reply = {"choices": [{"text": " Lima", "finish_reason": "length"}], "usage": USAGE}
    with serving(v1__completions=reply) as (server, remote):
        found = remote.run(remote.answer(Ask(prompt="The capital is", max_tokens=3, stop=("\n",), seed=4)))
        assert (found.text, found.finish, found.prompt_tokens, found.completion_tokens) == (" Lima", "length", 7, 3)
        assert remote.identity.name == "model-x"
        [(path, body)] = server.asked
        assert path == "/v1/completions"
        wanted = {"model": "model-x", "prompt": "The capital is", "max_tokens": 3, "temperature": 0.0}
        assert body == {**wanted, "stop": ["\n"], "seed": 4}


def test_a_conversation_is_answered_with_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    reply = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    tool = {"type": "function", "function": {"name": "add"}}
    with serving(v1__chat__completions=reply) as (server, remote):
        ask = Ask(messages=({"role": "user", "content": "1?"},), tools=(tool,), schema={"type": "object"})
        found = remote.run(remote.answer(ask))
        assert (found.text, found.finish, found.calls) == ("", "tool_calls", (Call("add", '{"a": 1}'),))
        body = server.asked[0][1]
        assert body["tools"] == [tool] and body["messages"] == [{"role": "user", "content": "1?"}]
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_sglangs_api_scores_prompts() -> None:
    entries = [[-9.0, 1, None], [-0.5, 2, None], [-2.0, 3, None]]
    tops = [None, [[-0.5, 2, None]], [[-1.0, 9, None]]]
    meta = {"prompt_tokens": 4, "input_token_logprobs": entries, "input_top_logprobs": tops}
    with serving(get_model_info={"model_path": "m"}, generate={"text": "", "meta_info": meta}) as (server, remote):
        found = remote.run(remote.score(Passage((0, 1, 2, 3), 2)))
        assert found.logprobs == (-0.5, -2.0) and found.is_greedy == (True, False)
        body = server.asked[0][1]
        assert body["input_ids"] == [0, 1, 2, 3] and body["sampling_params"]["max_new_tokens"] == 0
        assert body["return_logprob"] and body["logprob_start_len"] <= 2


def test_openais_api_scores_prompts_by_echo() -> None:
    logprobs = {
        "token_logprobs": [None, -1.0, -0.5, -3.0],
        "top_logprobs": [None, {"a": -1.0}, {"b": -0.25}, {"c": -3.0}],
    }
    reply = {"choices": [{"text": "abcd", "finish_reason": "length", "logprobs": logprobs}]}
    with serving(v1__completions=reply) as (server, remote):
        found = remote.run(remote.score(Passage((5, 6, 7), 1)))
        assert found.logprobs == (-1.0, -0.5), "without the token that was generated"
        assert found.is_greedy == (True, False)
        body = server.asked[0][1]
        assert (body["prompt"], body["echo"], body["logprobs"]) == ([5, 6, 7], True, 1)


@pytest.mark.parametrize(
    ("reply", "message", "retryable"),
    [
        ((503, {"error": {"message": "loading"}}), "HTTP status 503: loading", True),
        ((429, {}), "HTTP status 429", True),
        ((400, {"error": {"message": "too long"}}), "HTTP status 400: too long", False),
        ({"choices": []}, "lacks fields of the API", False),
        ({"error": {"message": "broken"}}, "something else than the API has", False),
        ([1], "something else than the API has", False),
    ],
)
def test_a_refusal_says_whether_it_may_pass(reply: Any, message: str, retryable: bool) -> None:
    with serving(v1__completions=reply) as (_, remote), pytest.raises(SglError, match=message) as caught:
        remote.run(remote.answer(Ask(prompt="x")))
    assert caught.value.retryable is retryable


def test_a_server_without_scores_is_named() -> None:
    reply = {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": None}]}
    with (
        serving(v1__completions=reply) as (_, remote),
        pytest.raises(SglError, match="no log probabilities of prompts"),
    ):
        remote.run(remote.score(Passage((1, 2), 1)))


def test_a_tokenizer_that_is_not_here_is_asked_for() -> None:
    wanted = pytest.raises(ConfigError, match=r"needs the model's tokenizer.*--tokenizer")
    with serving(get_model_info={"tokenizer_path": "/no/such/place"}) as (_, remote), wanted:
        _ = remote.tokenizer


def test_no_server_is_an_error_in_a_sentence() -> None:
    with pytest.raises(SglError, match=r"No server answers at http://127.0.0.1:9"):
        Remote.connect("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="must be like http"):
        Remote.connect("ftp://x")
