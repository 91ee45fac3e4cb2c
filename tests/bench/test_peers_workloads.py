from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator

import pytest

from sgl.bench.peers.client import APIS, Client, read_answer
from sgl.bench.peers.workloads import WORKLOADS, Answer, Prompts, Round, choose
from sgl.engine.base.errors import ConfigError, SglError
from tests.bench.fake_server import FakeServer, serve


def evenly(sent_s: float, first_s: float, count: int, gap_s: float) -> Answer:
    return Answer(sent_s, [first_s + i * gap_s for i in range(count)], count)


def test_the_table_is_that_of_the_published_figures() -> None:
    told = {
        name: (w.prefix_len, w.prompt_len, w.output_len, w.requests, w.concurrency) for name, w in WORKLOADS.items()
    }
    assert told == {
        "W1": (0, 128, 128, 1, 0),
        "W2": (0, 1024, 1, 1, 0),
        "W3x8": (0, 128, 128, 8, 0),
        "W3x32": (0, 128, 128, 32, 0),
        "W4": (0, 4096, 64, 1, 0),
        "W5": (1024, 32, 32, 16, 0),
        "W6": (0, 128, 128, 32, 8),
    }
    assert [w.name for w in choose("W3,W1")] == ["W3x8", "W3x32", "W1"]
    with pytest.raises(ConfigError, match="--workloads W7 is unknown; use W1, W2"):
        choose("W7")


def test_one_request() -> None:
    answer = evenly(10.0, 10.5, 128, 0.02)
    assert WORKLOADS["W1"].figures([Round(3.04, [answer])]) == pytest.approx({"decode_tok_s": 50.0, "ttft_s": 0.5})
    figures = WORKLOADS["W4"].figures([Round(9.0, [evenly(0.0, 8.0, 64, 0.04)])])
    assert figures == pytest.approx({"decode_tok_s": 25.0, "ttft_s": 8.0, "prefill_tok_s": 512.0})
    figures = WORKLOADS["W2"].figures([Round(2.0, [evenly(1.0, 3.0, 1, 0.0)])])
    assert figures == pytest.approx({"prefill_tok_s": 512.0, "ttft_s": 2.0})


def test_many_requests_decode_in_the_stretch_that_they_share() -> None:
    """By hand: two requests share the time from 2.0 to 5.0, with 3 + 6 events in it, borders as (2, 5]."""
    slow, fast = Answer(0.0, [2.0, 3.0, 4.0, 5.0], 4), Answer(0.0, [1.0, *(2.25 + 0.5 * i for i in range(7))], 8)
    figures = WORKLOADS["W3x8"].figures([Round(6.0, [slow, fast])])
    assert figures["out_tok_s"] == pytest.approx(12 / 6.0)
    assert figures["decode_tok_s"] == pytest.approx((3 + 6) / 3.0)
    short = [Answer(0.0, [1.0, 1.5], 2), Answer(0.0, [1.0, 1.9], 2)]
    assert "decode_tok_s" not in WORKLOADS["W3x8"].figures([Round(2.0, short)])


def test_shared_prefix_and_server() -> None:
    cold, warm = Round(6.0, []), Round(4.0, [])
    assert WORKLOADS["W5"].figures([cold, warm]) == {"wall_cold_s": 6.0, "wall_warm_s": 4.0}
    answers = [evenly(0.0, 1.0, 128, 0.05), evenly(1.0, 4.0, 128, 0.1)]
    figures = WORKLOADS["W6"].figures([Round(16.0, answers)])
    assert figures == pytest.approx({"req_s": 2 / 16, "out_tok_s": 16.0, "ttft_s": 2.0, "itl_ms": 75.0})


def test_prompts_never_come_again_but_for_the_shared_prefix() -> None:
    prompts = Prompts(49152, 7)
    cold, warm = prompts.repeat_of(WORKLOADS["W5"])
    everything = [*cold, *warm, *prompts.repeat_of(WORKLOADS["W5"])[0]]
    assert len({tuple(prompt) for prompt in everything}) == 48
    assert len({tuple(prompt[:1024]) for prompt in everything}) == 2
    assert all(300 <= token < 49152 - 300 for prompt in everything for token in prompt)
    rng = random.Random(8)  # as the published figures were made: a generator for every prompt
    assert Prompts(49152, 7).draw(20) == [rng.randrange(300, 49152 - 300) for _ in range(20)]


class Wire:
    """Lines of an answer, each of which comes after a known time."""

    def __init__(self, lines: list[tuple[float, bytes]]) -> None:
        self.now_s = 100.0
        self._lines: Iterator[tuple[float, bytes]] = iter(lines)

    async def readline(self) -> bytes:
        wait_s, line = next(self._lines, (0.0, b""))
        self.now_s += wait_s
        return line


def event(wait_s: float, content: object) -> tuple[float, bytes]:
    return wait_s, f"data: {json.dumps(content)}\n".encode()


HEAD = [(0.0, b"HTTP/1.1 200 OK\r\n"), (0.0, b"\r\n"), (0.0, b"1f\r\n")]
STREAMS = {
    "sglang": [
        event(0.5, {"meta_info": {"completion_tokens": 1}}),
        event(0.25, {"meta_info": {"completion_tokens": 3}}),
        (9.0, b"data: [DONE]\n"),
    ],
    "openai": [
        event(0.5, {"choices": [{"text": ""}]}),  # bytes that are no text yet are tokens too
        event(0.25, {"choices": [{"text": "x"}], "usage": None}),
        event(9.0, {"choices": [], "usage": {"completion_tokens": 3}}),
        (9.0, b"data: [DONE]\n"),
    ],
    "llama": [event(0.5, {"content": ""}), event(0.25, {"content": "x"}), event(9.0, {"stop": True})],
}


@pytest.mark.parametrize("api", APIS)
def test_events_are_timed_when_they_come(api: str) -> None:
    wire = Wire([*HEAD, *STREAMS[api]])
    answer = asyncio.run(read_answer(wire.readline, APIS[api], 99.0, 3, lambda: wire.now_s))
    assert (answer.arrivals_s, answer.num_tokens, answer.ttft_s) == ([100.5, 100.75], 3, 1.5)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([(0.0, b"HTTP/1.1 400 Bad\r\n"), (0.0, b'{"error": "no"}\n')], "answered 'HTTP/1.1 400 Bad': .*no"),
        (HEAD, "answered 'HTTP/1.1 200 OK'"),
        ([*HEAD, event(0.1, {"meta_info": {"completion_tokens": 2}})], "with 2 tokens where 3 were asked for"),
    ],
)
def test_what_is_not_a_whole_answer_is_refused(lines: list[tuple[float, bytes]], message: str) -> None:
    wire = Wire(lines)
    with pytest.raises(SglError, match=message):
        asyncio.run(read_answer(wire.readline, APIS["sglang"], 99.0, 3, lambda: wire.now_s))


@pytest.mark.parametrize("api", ["sglang", "openai"])
def test_requests_over_the_wire(api: str) -> None:
    with serve(FakeServer("")) as server:
        whole = Client(server.url, api, "m").round([[1, 2, 3], [4, 5]], 6, concurrency=1)
    assert [answer.num_tokens for answer in whole.answers] == [6, 6]
    assert whole.answers[0].arrivals_s[-1] <= whole.answers[1].sent_s  # one at a time
    assert whole.wall_s >= sum(answer.arrivals_s[-1] - answer.sent_s for answer in whole.answers)
    ids = {"sglang": "input_ids", "openai": "prompt"}[api]
    assert [body[ids] for body in server.bodies] == [[1, 2, 3], [4, 5]]
    told = server.bodies[0] if api == "openai" else server.bodies[0]["sampling_params"]
    assert (told["temperature"], told["ignore_eos"]) == (0, True)


def test_no_server_and_no_url() -> None:
    with pytest.raises(SglError, match=r"http://127.0.0.1:9 did not answer"):
        Client("http://127.0.0.1:9", "openai").round([[1]], 1)
    with pytest.raises(ConfigError, match="must be like http"):
        Client("127.0.0.1:9", "openai")
