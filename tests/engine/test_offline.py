"""The synchronous engine: lists, streams, threads, notebooks, interrupts, shutdown."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

import sgl
from sgl.engine.api import AsyncEngine, offline
from sgl.engine.base.errors import ConfigError, EngineDiedError, ModelError, SglError
from tests.engine.fake_loop import CRASH_ID
from tests.engine.front import LOOP, checkpoint

GREEDY = {"temperature": 0, "max_new_tokens": 5}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline.AsyncEngine, "start", functools.partial(AsyncEngine.start, loop=LOOP))


@pytest.fixture
def engine(fake: None, tmp_path: Path) -> Iterator[sgl.Engine]:
    with sgl.Engine(model_path=str(checkpoint(tmp_path)), random_seed=0) as engine:
        yield engine


@pytest.fixture
def patient(fake: None, tmp_path: Path) -> Iterator[sgl.Engine]:
    with sgl.Engine(model_path=str(checkpoint(tmp_path, "patient")), random_seed=0) as engine:
        yield engine


def ids(output: dict) -> list[int]:
    return [token_id for _, token_id, _ in output["meta_info"]["output_token_logprobs"]]


def test_one_prompt_gives_one_output(engine: sgl.Engine) -> None:
    output = engine.generate("Hello world", GREEDY)
    prompt = engine.tokenizer.encode("Hello world")
    assert output["text"] == engine.tokenizer.decode((prompt * 5)[:5])
    assert output["meta_info"]["finish_reason"] == {"type": "length", "length": 5}
    assert output["meta_info"]["prompt_tokens"] == len(prompt)
    assert engine.tokenizer_manager.tokenizer is engine.tokenizer


def test_lists_of_prompts_ids_and_parameters(engine: sgl.Engine) -> None:
    outputs = engine.generate(["Hello", "world"], [{**GREEDY, "max_new_tokens": 1}, {**GREEDY, "max_new_tokens": 2}])
    assert [o["meta_info"]["completion_tokens"] for o in outputs] == [1, 2]
    assert ids(engine.generate(input_ids=[7, 8], sampling_params=GREEDY, return_logprob=True)) == [7, 8, 7, 8, 7]
    outputs = engine.generate(input_ids=[[7], [8]], sampling_params=GREEDY, return_logprob=[True, False])
    assert ids(outputs[0]) == [7] * 5
    assert "output_token_logprobs" not in outputs[1]["meta_info"]
    assert engine.generate([], GREEDY) == []
    assert len(engine.generate(["Hello"], GREEDY)) == 1


def test_several_answers_are_a_flat_list(engine: sgl.Engine) -> None:
    params = {"max_new_tokens": 1, "n": 2, "seed": 3}
    outputs = engine.generate(input_ids=[7], sampling_params=params, return_logprob=True)
    assert [ids(o) for o in outputs] == [[10], [11]]
    outputs = engine.generate(input_ids=[[7], [9]], sampling_params=params, return_logprob=True)
    assert [ids(o) for o in outputs] == [[10], [11], [12], [13]]


def test_streams_are_cumulative(engine: sgl.Engine) -> None:
    texts = [chunk["text"] for chunk in engine.generate("Hello world", GREEDY, stream=True)]
    assert texts[-1] == engine.generate("Hello world", GREEDY)["text"]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def test_streams_of_lists_have_an_index(engine: sgl.Engine) -> None:
    chunks = list(engine.generate(["Hello", "world"], {**GREEDY, "n": 2}, stream=True))
    last = {chunk["index"]: chunk for chunk in chunks}
    assert sorted(last) == [0, 1, 2, 3]
    assert all(chunk["meta_info"]["finish_reason"] for chunk in last.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Either text, input_ids or input_embeds should be provided."),
        ({"prompt": "a", "input_ids": [1]}, "Either text, input_ids or input_embeds should be provided."),
        ({"prompt": ["a", "b"], "sampling_params": [{}]}, "`sampling_params` must have an entry for each of the 2"),
        ({"prompt": "a", "sampling_params": {"temperature": -1}}, "temperature must be non-negative, got -1."),
        ({"prompt": "a", "sampling_params": {"top": 1}}, "`sampling_params.top` is not a known field."),
        ({"prompt": "a", "sampling_params": "x"}, "sampling_params must be an object, got 'x'."),
        ({"prompt": "a", "sampling_params": [{}]}, "sampling_params must be an object, got [{}]."),
        ({"prompt": 5}, "prompt must be a text or a list of texts, got 5."),
        ({"input_ids": 5}, "input_ids must be a list of token ids or a list of such lists, got 5."),
        ({"prompt": "a\ud800"}, "text has an unpaired surrogate"),
        ({"prompt": ""}, "The prompt is empty"),
        ({"input_ids": [10**6]}, "token id 1000000 is outside the vocabulary"),
        ({"input_ids": []}, "The prompt is empty"),
    ],
)
def test_bad_requests_are_refused_and_the_engine_goes_on(engine: sgl.Engine, arguments: dict, message: str) -> None:
    with pytest.raises(SglError, match=re.escape(message)):
        engine.generate(**arguments)
    assert engine.generate("Hello", GREEDY)["text"]


def test_ids_may_be_an_array(engine: sgl.Engine) -> None:
    ids = engine.tokenizer.encode("Hello")
    expected = engine.generate(input_ids=ids, sampling_params=GREEDY)["text"]
    assert engine.generate(input_ids=numpy.array(ids), sampling_params=GREEDY)["text"] == expected
    assert [o["text"] for o in engine.generate(input_ids=numpy.array([ids, ids]), sampling_params=GREEDY)] == [
        expected
    ] * 2


def test_within_a_running_event_loop(engine: sgl.Engine) -> None:
    """As in a notebook: the synchronous form blocks, the asynchronous one does not."""

    async def cell() -> None:
        expected = engine.generate("Hello", GREEDY)["text"]
        outputs = await asyncio.gather(*(engine.async_generate("Hello", GREEDY) for _ in range(3)))
        assert [output["text"] for output in outputs] == [expected] * 3
        chunks = [chunk async for chunk in await engine.async_generate("Hello", GREEDY, stream=True)]
        assert chunks[-1]["text"] == expected

    asyncio.run(cell())


def test_from_several_threads(engine: sgl.Engine) -> None:
    found: list[list[int]] = []

    def work(number: int) -> None:
        for _ in range(5):
            found.append(ids(engine.generate(input_ids=[number], sampling_params=GREEDY, return_logprob=True)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50, 58)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([[number] * 5 for number in range(50, 58)] * 5)


def wait_until_idle(engine: sgl.Engine) -> None:
    deadline = time.monotonic() + 60
    while engine.tokenizer_manager.num_active or not engine.flush_cache():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupt_aborts_the_request(patient: sgl.Engine) -> None:
    def interrupt() -> None:
        while not patient.tokenizer_manager.num_active:
            time.sleep(0.005)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    assert main is not None
    for stream in (False, True):
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            for _ in patient.generate("Hello", {**GREEDY, "max_new_tokens": 60}, stream=stream):
                pass
        thread.join()
        wait_until_idle(patient)
    assert patient.generate("Hello", GREEDY)["text"]


def test_leaving_a_stream_aborts_the_request(patient: sgl.Engine) -> None:
    for _ in patient.generate("Hello", {**GREEDY, "max_new_tokens": 60}, stream=True):
        break
    gc.collect()
    wait_until_idle(patient)

    async def cell() -> None:
        async for _ in await patient.async_generate("Hello", {**GREEDY, "max_new_tokens": 60}, stream=True):
            break
        task = asyncio.create_task(patient.async_generate("Hello", {**GREEDY, "max_new_tokens": 60}))
        while not patient.tokenizer_manager.num_active:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cell())
    wait_until_idle(patient)


def test_shutdown_can_be_repeated(engine: sgl.Engine) -> None:
    stream = engine.generate("Hello", GREEDY, stream=True)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(SglError, match="has been shut down"):
        engine.generate("Hello", GREEDY)
    with pytest.raises(SglError, match="has been shut down"):
        next(stream)


def test_shutdown_ends_requests_of_other_threads(patient: sgl.Engine) -> None:
    outputs: list[dict] = []
    thread = threading.Thread(
        target=lambda: outputs.append(patient.generate("Hello", {**GREEDY, "max_new_tokens": 60}))
    )
    thread.start()
    while not patient.tokenizer_manager.num_active:
        time.sleep(0.005)
    patient.shutdown()
    thread.join()
    assert outputs[0]["meta_info"]["finish_reason"]["type"] == "abort"


def test_the_death_of_the_engine_is_an_error(engine: sgl.Engine) -> None:
    with pytest.raises(EngineDiedError, match="a bug while running"):
        engine.generate(input_ids=[CRASH_ID], sampling_params=GREEDY)
    with pytest.raises(EngineDiedError):
        engine.generate("Hello", GREEDY)


def test_server_info(engine: sgl.Engine) -> None:
    info = engine.get_server_info()
    assert info["version"] == sgl.__version__
    assert info["max_total_num_tokens"] == 128
    assert info["random_seed"] == 0
    assert engine.flush_cache() is True


def test_options_are_checked(fake: None, tmp_path: Path) -> None:
    path = str(checkpoint(tmp_path))
    with pytest.raises(ConfigError, match="'colour'"):
        sgl.Engine(model_path=path, colour=1)
    with pytest.raises(ConfigError, match="page_size"):
        sgl.Engine(model_path=path, page_size="x")
    with pytest.raises(ModelError, match="no such directory"):
        sgl.Engine(model_path="/nowhere")
    with pytest.raises(ModelError, match="no such model"):
        sgl.Engine(model_path=str(checkpoint(tmp_path, "missing")))


SCRIPT = """
import functools, sys
import sgl
from tests.engine.front import LOOP
from sgl.engine.api import AsyncEngine, offline
offline.AsyncEngine.start = functools.partial(AsyncEngine.start, loop=LOOP)
engine = sgl.Engine(model_path=sys.argv[1])
stream = engine.generate("Hello", {"max_new_tokens": 60}, stream=True)
next(stream)
print("ok")
"""


def test_a_script_that_forgets_to_shut_down_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(checkpoint(tmp_path, "patient"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
