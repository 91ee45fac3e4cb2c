from __future__ import annotations

import random
from dataclasses import replace

import pytest

from sgl.bench.contamination import Clocks, ContaminatedError, Facts, check_cache, check_state
from sgl.bench.data import Sample, num_shared
from sgl.bench.figures import Outcome
from sgl.engine.base.errors import ConfigError

BEFORE = Facts({"model_path": "a", "served_model_name": "x"}, num_active=0, num_requests=10)


def done(sample: Sample, cached: int | None) -> Outcome:
    return Outcome(0.0, 1.0, input_len=len(sample.input_ids), output_len=sample.output_len, cached_len=cached)


def test_a_pause_between_two_clocks_is_no_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0

    def monotonic() -> float:
        return now_s

    def wall() -> float:
        """Reads the clock; then, the first time, others are given the processor."""
        nonlocal now_s
        read_s = 100.0 + now_s
        now_s += 3.0 if now_s == 5.0 else 0.0
        return read_s

    monkeypatch.setattr("sgl.bench.contamination.time.monotonic", monotonic)
    monkeypatch.setattr("sgl.bench.contamination.time.time", wall)
    assert Clocks.now() == Clocks(108.0, 8.0)


@pytest.mark.parametrize(("jump_s", "elapsed_s"), [(0.0, 1.0), (0.09, 1.0), (-0.09, 1.0), (3.0, 3600.0)])
def test_clocks_that_are_adjusted_may_part_a_little(jump_s: float, elapsed_s: float) -> None:
    Clocks(100.0, 5.0).check(Clocks(100.0 + elapsed_s + jump_s, 5.0 + elapsed_s))


@pytest.mark.parametrize(("jump_s", "told"), [(2.0, "+2.00"), (-3600.0, "-3600.00"), (0.2, "+0.20")])
def test_a_clock_that_jumps_is_refused(jump_s: float, told: str) -> None:
    with pytest.raises(ContaminatedError, match=rf"The clock jumped by \{told} s during the run"):
        Clocks(100.0, 5.0).check(Clocks(101.0 + jump_s, 6.0))


def test_what_was_sent_may_have_been_taken() -> None:
    BEFORE.check(replace(BEFORE, num_requests=14), num_sent=4)
    BEFORE.check(replace(BEFORE, num_requests=12), num_sent=4)  # two were refused
    BEFORE.check(replace(BEFORE, num_requests=None), num_sent=0)  # not our server


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (replace(BEFORE, num_requests=15), r"worked for others during the run \(it took 5 requests, 4 of them ours\)"),
        (replace(BEFORE, num_requests=3), "The server was started again during the run"),
        (
            replace(BEFORE, model={"model_path": "b", "served_model_name": "x"}),
            r"The model changed during the run \(model_path was a and is b\)",
        ),
        (replace(BEFORE, model={"model_path": "a"}), "served_model_name was x and is not told"),
    ],
)
def test_a_server_that_was_not_ours_alone_is_refused(after: Facts, message: str) -> None:
    with pytest.raises(ContaminatedError, match=message):
        BEFORE.check(after, num_sent=4)


def test_what_prompts_share_is_what_a_prefix_tree_saves() -> None:
    rng = random.Random(0)
    for _ in range(30):
        samples = [Sample(tuple(rng.choices((1, 2), k=rng.randrange(1, 8))), 1) for _ in range(10)]
        nodes = {sample.input_ids[: i + 1] for sample in samples for i in range(len(sample.input_ids))}
        assert num_shared(samples) == sum(len(sample.input_ids) for sample in samples) - len(nodes)


def test_later_questions_may_find_what_was_said() -> None:
    talk = Sample((1, 2), 3, later=(Sample((4,), 5), Sample((6, 7), 1)))
    # The second prompt has 2 + 3 + 1 tokens, the third 2 + 3 + 1 + 5 + 2; at least one must be computed.
    assert num_shared([talk]) == 5 + 12


def test_a_cold_cache_holds_what_the_prompts_share() -> None:
    samples = [Sample((1, 2, 3, 4), 1), Sample((1, 2, 5), 1)]
    assert check_cache("cold", samples, [done(samples[0], 0), done(samples[1], 2)]) == ""
    assert check_cache("any", samples, [done(samples[0], 4), done(samples[1], 3)]) == ""
    with pytest.raises(ContaminatedError, match=r"not cold \(3 prompt tokens were cached, .* have 2 in common\)"):
        check_cache("cold", samples, [done(samples[0], 1), done(samples[1], 2)])


def test_a_template_around_every_prompt_may_be_cached() -> None:
    samples = [Sample((1, 2), 1), Sample((3, 4), 1)]
    outcomes = [Outcome(0.0, input_len=9, cached_len=0), Outcome(0.0, input_len=9, cached_len=5)]
    assert check_cache("cold", samples, outcomes) == ""


def test_a_warm_cache_holds_most_of_the_prompts() -> None:
    samples = [Sample((1, 2, 3, 4), 1)]
    assert check_cache("warm", samples, [done(samples[0], 3)]) == ""
    with pytest.raises(ContaminatedError, match=r"was not warm \(1 prompt tokens were cached of the 4 that"):
        check_cache("warm", samples, [done(samples[0], 1)])


def test_a_server_that_does_not_say_is_noted() -> None:
    samples = [Sample((1, 2), 1)]
    assert "--cache-state cold was not checked" in check_cache("cold", samples, [done(samples[0], None)])
    assert check_cache("cold", samples, [Outcome(0.0, error="no")]) == ""


def test_unknown_states_are_named() -> None:
    with pytest.raises(ConfigError, match="--cache-state hot is unknown; use cold, warm, any"):
        check_state("hot")
