"""Requests through the asynchronous engine: text, stops, logprobs, aborts, slow readers, death."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sgl.engine.api import AsyncEngine, GenerateRequest, Generation
from sgl.engine.base.errors import EngineDiedError, ModelError, OverloadedError, SglError
from sgl.engine.base.types import FinishReason, Output, Outputs, SamplingParams, TokenLogprob
from tests.engine.fake_loop import CRASH_ID, REFUSED_ID, VOCAB
from tests.engine.front import checkpoint, collect, config, greedy, running, with_engine
from tests.server.fake import EchoClient, make_config, make_engine

TEXT = "Hello world 😀 naïve!"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return checkpoint(tmp_path)


async def settled(engine: AsyncEngine) -> dict[str, Any]:
    """What the engine has running once it has read everything that was sent before."""
    return await engine.call("running")


@pytest.mark.parametrize("in_process", [True, False])
def test_a_prompt_is_answered(path: Path, in_process: bool) -> None:
    async def use(engine: AsyncEngine) -> None:
        ids = engine.tokenizer.encode(TEXT)
        (item,) = await collect(engine, GenerateRequest(rid="r", text=TEXT, sampling=greedy(len(ids))))
        assert (item.rid, item.index, item.text, item.delta) == ("r", 0, TEXT, TEXT)
        assert item.output_ids == item.token_ids == ids
        assert item.finish_reason is not None and item.finish_reason.kind == "length"
        assert (item.prompt_tokens, item.completion_tokens, item.cached_tokens) == (len(ids), len(ids), len(ids) // 2)
        assert engine.num_active == 0
        assert engine.alive

    with_engine(path, use, in_process=in_process)


def test_streamed_pieces_join(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        ids = engine.tokenizer.encode(TEXT)
        items = await collect(engine, GenerateRequest(input_ids=ids, sampling=greedy(len(ids)), stream=True))
        text = ""
        for item in items:
            text += item.delta
            assert item.text == text
            assert "\ufffd" not in item.text
            assert item.output_ids == ids[: item.completion_tokens]
        assert text == TEXT
        assert [token for item in items for token in item.token_ids] == ids
        assert [item.finish_reason is None for item in items] == [True] * (len(items) - 1) + [False]

    with_engine(path, use)


def test_a_slow_reader_gets_fewer_and_larger_items(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        request = GenerateRequest(text="Hello world", sampling=greedy(50), stream=True)
        items = []
        async for item in engine.generate(request):
            items.append(item)
            while (await settled(engine))["rids"]:  # it reads on when all is there
                pass
        assert len(items) <= 2
        assert sum(len(item.token_ids) for item in items) == 50
        assert "".join(item.delta for item in items) == items[-1].text

    with_engine(path, use)


def test_stream_interval(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        items = await collect(engine, GenerateRequest(text="Hello", sampling=greedy(40), stream=True))
        assert all(len(item.token_ids) >= 16 for item in items[1:-1])

    with_engine(path, use, schedule__stream_interval=16)


def test_several_answers_have_seeds_in_a_row(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        request = GenerateRequest(rid="r", input_ids=[10, 20], sampling=SamplingParams(max_new_tokens=2), n=3, seed=5)
        items = await collect(engine, request)
        outputs = {item.index: (item.rid, item.output_ids) for item in items}
        assert outputs == {i: (f"r:{i}", [15 + i, 25 + i]) for i in range(3)}

    with_engine(path, use)


def test_drawn_seeds_repeat_with_the_engine_s_seed(path: Path) -> None:
    async def use(engine: AsyncEngine) -> list[list[int]]:
        request = GenerateRequest(input_ids=[10], sampling=SamplingParams(max_new_tokens=1))
        return [(await collect(engine, request))[0].output_ids for _ in range(4)]

    first = with_engine(path, use)
    assert first == with_engine(path, use)
    assert len({ids[0] for ids in first}) > 1
    assert first != with_engine(path, use, model__random_seed=1)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(path: Path, keep: bool, stream: bool) -> None:
    async def use(engine: AsyncEngine) -> None:
        ids = engine.tokenizer.encode("one two three")
        request = GenerateRequest(
            input_ids=ids, sampling=greedy(50), stop=("xyz", "o th"), no_stop_trim=keep, stream=stream
        )
        items = await collect(engine, request)
        *early, last = items
        assert "".join(item.delta for item in items) == last.text == ("one two th" if keep else "one tw")
        assert last.finish_reason is not None
        assert (last.finish_reason.kind, last.finish_reason.matched) == ("stop", "o th")
        assert all("two th".startswith(item.text[4:]) and not item.text.endswith("o ") for item in early)
        assert last.completion_tokens == len(engine.tokenizer.encode("one two th"))  # those up to the match
        state = await settled(engine)
        assert state["rids"] == []
        assert len(state["aborted"]) == 1

    with_engine(path, use)


def test_stop_strings_wait_for_min_new_tokens(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        ids = engine.tokenizer.encode("abcabc")
        assert len(ids) == 6
        request = GenerateRequest(input_ids=ids, sampling=greedy(50, min_new_tokens=3), stop=("bc",))
        (item,) = await collect(engine, request)
        assert item.text == "abca"

    with_engine(path, use)


def test_stop_tokens_are_not_part_of_the_text(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        note = engine.tokenizer.id_of("<note>")
        assert note is not None
        ids = [*engine.tokenizer.encode("hi"), note]
        for keep, text in ((False, "hi"), (True, "hi<note>")):
            request = GenerateRequest(
                input_ids=ids, sampling=greedy(50, stop_token_ids=(note,)), no_stop_trim=keep, skip_special_tokens=False
            )
            (item,) = await collect(engine, request)
            assert (item.text, item.output_ids) == (text, ids)
            assert item.finish_reason is not None and item.finish_reason.matched == note

    with_engine(path, use)


def test_every_file_s_end_ids_reach_the_engine(path: Path) -> None:
    """1 stands in config.json, 3 comes from the engine."""

    async def use(engine: AsyncEngine) -> None:
        for end in (1, 3):
            (item,) = await collect(engine, GenerateRequest(input_ids=[50, end], sampling=greedy(9)))
            assert (item.finish_reason.kind, item.finish_reason.matched) == ("stop", end)
            (item,) = await collect(engine, GenerateRequest(input_ids=[50, end], sampling=greedy(9, ignore_eos=True)))
            assert item.finish_reason.kind == "length"

    with_engine(path, use)


def test_logprobs(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        request = GenerateRequest(
            input_ids=[7, 8, 9], sampling=greedy(4), stream=True, return_logprob=True, logprob_start_len=1,
            top_logprobs_num=2,
        )  # fmt: skip
        items = await collect(engine, request)
        assert [p.token_id for p in items[0].input_logprobs] == [8, 9]
        assert all(item.input_logprobs == [] for item in items[1:])
        new = [p for item in items for p in item.output_logprobs]
        assert [p.token_id for p in new] == items[-1].output_ids == [7, 8, 9, 7]
        assert new == items[-1].all_output_logprobs
        assert all(len(p.top) == 2 for p in new)
        request = GenerateRequest(input_ids=[7], sampling=greedy(1), logprob_start_len=0, top_logprobs_num=2)
        (item,) = await collect(engine, request)
        assert item.output_logprobs == item.input_logprobs == []

    with_engine(path, use)


def test_no_new_tokens_at_all(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        request = GenerateRequest(
            text="Hello", sampling=greedy(0), stream=True, return_logprob=True, logprob_start_len=0
        )
        (item,) = await collect(engine, request)
        assert (item.text, item.output_ids, item.finish_reason.kind) == ("", [], "length")
        assert len(item.input_logprobs) == item.prompt_tokens

    with_engine(path, use)


def test_leaving_the_iteration_aborts(tmp_path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        request = GenerateRequest(rid="r", text="Hello", sampling=greedy(50), n=2, stream=True)
        items = engine.generate(request)
        await anext(items)
        await items.aclose()
        assert engine.num_active == 0
        assert (await settled(engine))["rids"] == []

    with_engine(checkpoint(tmp_path, "patient"), use)


def test_cancelling_aborts(tmp_path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        task = asyncio.create_task(collect(engine, GenerateRequest(text="Hello", sampling=greedy(50))))
        while not (await settled(engine))["rids"]:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.num_active == 0
        assert (await settled(engine))["rids"] == []

    with_engine(checkpoint(tmp_path, "patient"), use)


def test_aborting_by_name_gives_a_last_item(tmp_path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        def start(rid: str, n: int = 1) -> asyncio.Task[list[Generation]]:
            return asyncio.create_task(
                collect(engine, GenerateRequest(rid=rid, text="Hello", sampling=greedy(50), n=n))
            )

        tasks = {rid: start(rid, n) for rid, n in (("a", 2), ("a:b", 1), ("ab", 1))}
        while len((await settled(engine))["rids"]) < 4:
            await asyncio.sleep(0.01)
        await engine.abort("a")
        await engine.abort("unknown")
        for item in await tasks["a"]:
            assert (item.finish_reason.kind, item.finish_reason.status) == ("abort", 499)
        await engine.call("go on")
        for other in ("a:b", "ab"):
            assert (await tasks[other])[0].finish_reason.kind == "length"

    with_engine(checkpoint(tmp_path, "patient"), use)


def test_a_name_is_free_again_at_once(tmp_path: Path) -> None:
    """What the engine still sends for an aborted request must not reach the next one of that name."""

    async def use(engine: AsyncEngine) -> None:
        for number in range(20):
            request = GenerateRequest(rid="same", input_ids=[50 + number], sampling=greedy(20), stream=True)
            items = engine.generate(request)
            assert set((await anext(items)).output_ids) == {50 + number}
            await items.aclose()

    with_engine(checkpoint(tmp_path, "patient"), use)


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        first = engine.generate(GenerateRequest(rid="r", text="Hello", sampling=greedy(50), stream=True))
        await anext(first)
        with pytest.raises(SglError, match="'r' is already running") as caught:
            await collect(engine, GenerateRequest(rid="r", text="Hello", sampling=greedy(9)))
        assert (caught.value.status, caught.value.param) == (400, "rid")
        await engine.call("go on")
        await anext(first)  # unharmed
        await first.aclose()
        two = [GenerateRequest(rid="s", text="Hello", sampling=greedy(9)) for _ in range(2)]
        with pytest.raises(SglError, match="'s' is already running"):
            await anext(engine.generate_batch(two))
        assert engine.num_active == 0

    with_engine(checkpoint(tmp_path, "patient"), use)


def test_batches_keep_their_positions(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        requests = [GenerateRequest(input_ids=[50 + i], sampling=greedy(i + 1), n=2) for i in range(5)]
        got = [(position, item.index, item.output_ids) async for position, item in engine.generate_batch(requests)]
        assert sorted(got) == [(i, n, [50 + i] * (i + 1)) for i in range(5) for n in range(2)]

    with_engine(path, use)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", ["answered", "aborted"])
def test_logprobs_of_a_prompt_are_computed_once_for_all_answers(stream: bool, ends: str) -> None:
    """Those that come before the first answer, whose step brings them, wait for it."""
    known = [TokenLogprob(5, None), TokenLogprob(6, -0.5)]

    async def use(engine: AsyncEngine, client: EchoClient) -> None:
        client.limit = lambda: 0  # what comes is delivered below
        request = GenerateRequest(
            rid="r", input_ids=[5, 6], n=3, sampling=greedy(1), return_logprob=True, logprob_start_len=0, stream=stream
        )
        found: list[Generation] = []

        async def read() -> None:
            async for item in engine.generate(request):
                found.append(item)

        reading = asyncio.create_task(read())
        while len(client.received) < 3:
            await asyncio.sleep(0.001)
        assert [asked.wants.logprob_start for asked in client.received] == [0, None, None]
        first, *others = [asked.rid for asked in client.received]
        for rid in others:
            engine._deliver(Outputs([output(rid)]))
        await asyncio.sleep(0.01)
        assert not found
        if ends == "answered":
            engine._deliver(Outputs([output(first, prompt_logprobs=known)]))
        else:
            await engine.abort("r")
        await reading
        kinds = {item.index: item.finish_reason.kind for item in found if item.finish_reason}
        assert kinds == {0: "length" if ends == "answered" else "abort", 1: "length", 2: "length"}
        expected = known if ends == "answered" else []
        assert [item.input_logprobs for item in found] == [expected] * 3
        assert [item.transcript.prompt_logprobs for item in found] == [expected] * 3

    def output(rid: str, **fields: Any) -> Output:
        return Output(rid=rid, token_ids=[7], finish=FinishReason(kind="length"), prompt_tokens=2, **fields)

    async def main() -> None:
        engine, client = make_engine(make_config())
        try:
            async with asyncio.timeout(60):
                await use(engine, client)
        finally:
            await engine.shutdown()

    asyncio.run(main())


def test_long_texts_are_tokenized_beside_the_loop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: AsyncEngine) -> None:
        encode, threads = engine.tokenizer.encode, set()

        def watched(text: str, **options: Any) -> list[int]:
            threads.add(threading.current_thread())
            return encode(text, **options)

        monkeypatch.setattr(engine.tokenizer, "encode", watched)
        with pytest.raises(SglError, match="longer than the model's context length"):
            await collect(engine, GenerateRequest(text="Hello world " * 20_000))
        assert threads and threading.current_thread() not in threads

    with_engine(path, use)


def test_a_text_far_beyond_the_context_is_not_tokenized_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: AsyncEngine) -> None:
        encode, seen = engine.tokenizer.encode, []

        def watched(text: str, **options: Any) -> list[int]:
            seen.append(len(text))
            return encode(text, **options)

        monkeypatch.setattr(engine.tokenizer, "encode", watched)
        with pytest.raises(
            SglError, match=r"^The input \(more than 128 tokens\) is longer than the model's context"
        ) as error:
            await collect(engine, GenerateRequest(text="ab " * 1_000_000, sampling=greedy(1)))
        assert (error.value.code, error.value.param) == ("context_length_exceeded", "text")
        assert sum(seen) < 10_000

    with_engine(path, use)


def test_a_text_far_beyond_the_context_is_cut_on_demand(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        (item,) = await collect(engine, GenerateRequest(text="ab " * 100_000, sampling=greedy(1)))
        assert item.prompt_tokens == engine.info.max_req_input_len
        assert item.warnings == (f"The prompt was cut to its first {item.prompt_tokens} tokens.",)

    with_engine(path, use, schedule__allow_auto_truncate=True)


def test_what_the_engine_settles_is_in_its_configuration(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        assert engine.config.cache.max_total_tokens == engine.info.max_total_num_tokens

    with_engine(path, use)


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_token_has_a_time(tmp_path: Path, stream: bool) -> None:
    async def use(engine: AsyncEngine) -> None:
        begun_s = time.monotonic()
        items = await collect(engine, GenerateRequest(input_ids=[5], sampling=greedy(6), stream=stream))
        (first_s,) = {item.first_token_s for item in items}
        assert first_s is not None and begun_s < first_s < time.monotonic()
        (none,) = await collect(engine, GenerateRequest(input_ids=[5], sampling=greedy(0), stream=stream))
        assert none.first_token_s is None

    with_engine(checkpoint(tmp_path), use)


def test_what_the_engine_refuses_is_raised(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        for n in (1, 3):
            with pytest.raises(SglError, match="The queue is full") as caught:
                await collect(engine, GenerateRequest(input_ids=[REFUSED_ID], sampling=greedy(9), n=n))
            assert (caught.value.status, caught.value.code) == (503, "server_overloaded")
            assert caught.value.retryable
        assert engine.num_active == 0

    with_engine(path, use)


def test_calls(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        assert await engine.call("echo", x=[1]) == {"x": [1]}
        assert await engine.call("flush_cache") == {"success": True}
        with pytest.raises(SglError, match="no operation 'nonsense'"):
            await engine.call("nonsense")
        assert engine.stats.step_id == 1

    with_engine(path, use)


@pytest.mark.parametrize("in_process", [True, False])
def test_when_the_engine_dies_everybody_learns(path: Path, in_process: bool, capfd: Any, caplog: Any) -> None:
    async def use(engine: AsyncEngine) -> None:
        beat = engine.last_heartbeat_s
        others = [
            asyncio.create_task(collect(engine, GenerateRequest(input_ids=[CRASH_ID, 1], sampling=greedy(9))))
            for _ in range(2)
        ]
        for task in others:
            with pytest.raises(EngineDiedError):
                await task
        assert not engine.alive
        assert engine.num_active == 0
        with pytest.raises(EngineDiedError):
            await collect(engine, GenerateRequest(input_ids=[5], sampling=greedy(9)))
        with pytest.raises(EngineDiedError):
            await engine.call("echo")
        assert engine.last_heartbeat_s >= beat

    with_engine(path, use, in_process=in_process)


def test_a_mistake_in_one_answer_ends_only_that_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: AsyncEngine) -> None:
        from sgl.engine.api import answer

        class Broken(answer.Answer):
            def add(self, output: Any) -> None:
                if self.rid == "bad":
                    raise ValueError("a mistake")
                super().add(output)

        monkeypatch.setattr("sgl.engine.api.front.Answer", Broken)
        good = asyncio.create_task(collect(engine, GenerateRequest(rid="good", input_ids=[5], sampling=greedy(9))))
        with pytest.raises(SglError, match="cannot be processed") as caught:
            await collect(engine, GenerateRequest(rid="bad", input_ids=[5], sampling=greedy(9)))
        assert caught.value.status == 500
        assert (await good)[0].output_ids == [5] * 9

    with_engine(path, use)


def test_shutdown_drains_then_aborts(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(checkpoint(tmp_path, "patient")) as engine:
            quick = asyncio.create_task(collect(engine, GenerateRequest(text="Hello", sampling=greedy(3))))
            await asyncio.sleep(0)
            closing = asyncio.create_task(engine.shutdown(drain_s=60))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError):
                await collect(engine, GenerateRequest(text="Hello", sampling=greedy(9)))
            assert (await quick)[0].finish_reason.kind == "length"
            await closing
        async with running(tmp_path / "patient") as engine:
            endless = asyncio.create_task(collect(engine, GenerateRequest(text="Hello", sampling=greedy(50))))
            await asyncio.sleep(0)
            await engine.shutdown(drain_s=0)
            assert (await endless)[0].finish_reason.kind == "abort"

    asyncio.run(main())


def test_an_engine_outlives_an_event_loop(path: Path) -> None:
    engine = AsyncEngine.start(config(path), in_process=True, loop="tests.engine.fake_loop:build_loop")
    for _ in range(2):
        (item,) = asyncio.run(collect(engine, GenerateRequest(input_ids=[5], sampling=greedy(2))))
        assert item.output_ids == [5, 5]
    engine.close()
    engine.close()


def test_without_a_tokenizer(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        (item,) = await collect(engine, GenerateRequest(input_ids=[5, 1], sampling=greedy(9)))
        assert (item.text, item.output_ids) == ("", [5, 1])  # 1 ends it, by config.json
        with pytest.raises(SglError, match="--skip-tokenizer-init"):
            await collect(engine, GenerateRequest(text="x"))
        with pytest.raises(SglError, match="--skip-tokenizer-init"):
            await collect(engine, GenerateRequest(input_ids=[5], stop=("x",)))

    with_engine(path, use, model__skip_tokenizer_init=True)


def test_a_missing_tokenizer_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bug").mkdir()
    with pytest.raises(ModelError, match="has no tokenizer"):
        AsyncEngine.start(config(tmp_path / "bug"), in_process=True, loop="tests.engine.fake_loop:build_loop")


def test_the_model_s_end_ids_count_with_another_tokenizer(path: Path, tmp_path: Path) -> None:
    from tests.text import vocabularies

    vocabularies.write(tmp_path / "other", vocabularies.byte_level(), {"eos_token": None})

    async def use(engine: AsyncEngine) -> None:
        (item,) = await collect(engine, GenerateRequest(input_ids=[50, 1], sampling=greedy(9)))
        assert item.finish_reason.matched == 1

    with_engine(path, use, model__tokenizer_path=str(tmp_path / "other"))


def test_ids_beyond_the_tokenizer_s_vocabulary_have_no_text(path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        assert engine.tokenizer.vocab_size < VOCAB
        (item,) = await collect(engine, GenerateRequest(input_ids=[VOCAB - 5], sampling=greedy(2)))
        assert (item.text, item.completion_tokens) == ("", 2)

    with_engine(path, use)


def test_more_answers_than_may_wait_are_refused_at_once(tmp_path: Path) -> None:
    async def use(engine: AsyncEngine) -> None:
        requests = [GenerateRequest(text="Hello", sampling=greedy(1), n=128) for _ in range(40)]
        with pytest.raises(SglError, match=r"asks for 5120 answers .* at most 4096"):
            async for _ in engine.generate_batch(requests):
                pass

    with_engine(checkpoint(tmp_path), use)
