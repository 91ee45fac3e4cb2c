"""Floors against sums done by hand and against loops over every token."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sgl.bench import limits
from sgl.bench.figures import Outcome
from sgl.bench.limits import Answered, Ceiling, Floor, Row, Share, Work
from sgl.engine.base.cost import AttentionCost, Cost, Weights
from sgl.engine.base.errors import ConfigError

TINY = Cost(
    linears=(Weights(format="bf16", params=1000, size_bytes=2000),),
    head=Weights(format="bf16", params=300, size_bytes=600),
    attention=(AttentionCost(num_layers=2, flops_per_pair=40, kv_bytes_per_token=8),),
    other_bytes=50,
    format="bf16",
    activation_bytes_per_token=16,
    logits_bytes_per_row=24,
)
SLOW_MEMORY = Ceiling(100.0, {"bf16": 1e9})
SLOW_ARITHMETIC = Ceiling(1e9, {"bf16": 100.0})


def qwen(format: str = "bf16", bytes_per_weight: float = 2.0) -> Cost:
    """Qwen2.5-0.5B from its config.json alone."""
    shape = json.loads((Path(limits.__file__).parent / "shapes" / "qwen2.5-0.5b" / "config.json").read_text())
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    params = layers * (hidden * (hidden + 2 * 128) + hidden * hidden + 3 * hidden * inner)
    head = hidden * shape["vocab_size"]
    return Cost(
        linears=(Weights(format=format, params=params, size_bytes=int(params * bytes_per_weight)),),
        head=Weights(format=format, params=head, size_bytes=int(head * bytes_per_weight)),
        attention=(AttentionCost(num_layers=layers, flops_per_pair=4 * hidden, kv_bytes_per_token=2 * 128 * 2),),
        format="bf16",
        activation_bytes_per_token=2 * layers * hidden * 2,
        logits_bytes_per_row=8 * shape["vocab_size"],
    )


def test_a_decode_step_by_hand() -> None:
    """Two rows behind 5 and 9 tokens."""
    (work,) = limits.decode(TINY, [5, 9], 1)
    assert work.size_bytes == 2000 + 600 + 50 + 2 * 8 * (6 + 10) + 2 * 16 + 2 * 24
    assert work.operations == {
        ("bf16", "GEMM"): 2 * 2 * (1000 + 300),
        ("bf16", "attention"): 2 * 40 * (6 + 10),
    }
    assert work.floor(SLOW_MEMORY) == Floor(pytest.approx(29.86), "memory")
    assert work.floor(SLOW_ARITHMETIC) == Floor(pytest.approx(52.0 + 12.8), "bf16 GEMM")


def test_a_prefill_by_hand() -> None:
    """Prompts of 3 and 2 tokens in chunks of 4: 3 + 1, then 1."""
    first, second = limits.prefill(TINY, [Row(0, 3), Row(0, 2)], 4)
    assert first.operations["bf16", "GEMM"] == 2 * 1000 * 4 + 2 * 300  # one prompt ends
    assert first.operations["bf16", "attention"] == 2 * 40 * (1 + 2 + 3 + 1)
    assert first.size_bytes == 2000 + 600 + 50 + 2 * 8 * 4 + 4 * 16 + 24
    assert second.operations["bf16", "GEMM"] == 2 * 1000 + 2 * 300
    assert second.operations["bf16", "attention"] == 2 * 40 * 2
    assert second.size_bytes == 2000 + 600 + 50 + 2 * 8 * 2 + 16 + 24


def test_the_head_is_read_only_where_a_prompt_ends() -> None:
    first, second = limits.prefill(TINY, [Row(0, 8)], 4)
    assert (first.operations["bf16", "GEMM"], second.operations["bf16", "GEMM"]) == (8000.0, 8600.0)
    assert second.size_bytes - first.size_bytes == 600 + 24 + 2 * 8 * 4


def test_decoding_qwen_alone_is_bound_by_memory() -> None:
    """494 M parameters in bf16, the tied head once: 988 MB a step, so 40 GB/s allow 40.4 tokens a second at most."""
    ceiling = Ceiling(40e9, {"bf16": 430e9})
    found = limits.floor(limits.decode(qwen(), [128], 128), ceiling)
    assert found.bound == "memory"
    weights_s = 2 * 493_961_216 / 40e9
    assert found.seconds / 128 == pytest.approx(weights_s, rel=0.005) and found.seconds / 128 > weights_s


def test_a_prompt_of_qwen_is_bound_by_arithmetic() -> None:
    """357.8 M parameters without the head: 733 GFLOP for 1024 tokens, and 45 more for attention."""
    found = limits.floor(limits.prefill(qwen(), [Row(0, 1024)], 2048), Ceiling(40e9, {"bf16": 430e9}))
    gemm, attention = 2 * 357_826_560 * 1024 + 2 * 896 * 151_936, 24 * 4 * 896 * 1024 * 1025 / 2
    assert found == Floor(pytest.approx((gemm + attention) / 430e9), "bf16 GEMM")


def test_formats_have_ceilings_of_their_own() -> None:
    figures = {"matmul_bf16": 400.0, "gemm_bf16": 420.0, "matmul_int8": 800.0, "gemm_int8": 700.0, "gemm_int4": 600.0}
    ceiling = Ceiling(40.0, limits.rates_of(figures))
    assert ceiling.rates == {"bf16": 420.0, "int8": 800.0, "int4": 800.0}
    assert not ceiling.lacks(qwen("int8", 1.0))
    assert Ceiling(1.0, {"bf16": 1.0}).lacks(qwen("int8", 1.0)) == "the machine's peak for int8 is not known"
    assert Ceiling(1.0, {}).lacks(Cost()) == "it is not known what the model costs"


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 9), (2, 5), (7, 1), (30, 4)])
def test_pairs_are_what_every_token_sees(past: int, new: int, window: int | None) -> None:
    seen = [len(range(max(0, i + 1 - (window or 10**6)), i + 1)) for i in range(past, past + new)]
    assert limits.num_pairs(Row(past, new), window) == sum(seen)


@pytest.mark.parametrize("window", [None, 4])
def test_a_step_reads_the_keys_that_any_of_its_tokens_sees(window: int | None) -> None:
    cost = Cost(attention=(AttentionCost(num_layers=1, flops_per_pair=1, kv_bytes_per_token=1, window=window),))
    for past, new in ((0, 1), (2, 2), (3, 1), (9, 3), (9, 1)):
        seen = {j for i in range(past, past + new) for j in range(max(0, i + 1 - (window or 10**6)), i + 1)}
        assert limits.step(cost, [Row(past, new)], 0).size_bytes == len(seen)


def test_chunks_cover_every_prompt_once() -> None:
    rng = random.Random(0)
    for _ in range(50):
        prompts = [Row(rng.randrange(20), rng.randrange(1, 40)) for _ in range(rng.randrange(1, 6))]
        chunk = rng.randrange(1, 30)
        steps = limits.prefill(TINY, prompts, chunk)
        num_tokens = sum(prompt.new for prompt in prompts)
        assert len(steps) == -(-num_tokens // chunk)
        assert sum(work.operations["bf16", "attention"] for work in steps) == 2 * 40 * sum(
            prompt.past + i for prompt in prompts for i in range(1, prompt.new + 1)
        )
        assert sum(work.operations["bf16", "GEMM"] for work in steps) == 2000 * num_tokens + 600 * len(prompts)


def test_a_run_does_the_work_of_its_phases_with_fewer_readings_of_the_weights() -> None:
    answers = [Answered(input_len=6, cached_len=0, output_len=5)] * 4
    together = limits.traffic(TINY, answers, chunk=64, concurrency=4.0)
    apart = [*limits.prefill(TINY, [Row(0, 6)] * 4, 64), *limits.decode(TINY, [6] * 4, 4)]
    for key in together.operations:
        assert together.operations[key] == sum(work.operations[key] for work in apart)
    assert sum(work.size_bytes for work in apart) - together.size_bytes == TINY.weight_bytes


def test_a_run_is_held_against_the_time_in_which_it_had_requests() -> None:
    """Two requests at once, then nothing for a while, then one: 4 seconds busy, 3 of them decoding."""
    outcomes = [
        Outcome(0.0, 2.0, [(1.0, 1)], input_len=6, output_len=5),
        Outcome(0.5, 2.0, [(1.0, 1)], input_len=6, output_len=5),
        Outcome(10.0, 12.0, [(10.0, 1)], input_len=6, output_len=5),
        Outcome(20.0, 30.0, error="no"),
    ]
    share = limits.of_run(TINY, outcomes, 64, SLOW_MEMORY)
    concurrency = (1.0 + 1.0 + 2.0) / 3.0
    expected = limits.traffic(TINY, [Answered(6, 0, 5)] * 3, 64, concurrency).floor(SLOW_MEMORY)
    assert (share.phase, share.floor, share.measured_s) == ("run", expected, 4.0)
    assert expected.bound == "memory"


def test_spans_that_overlap_count_once() -> None:
    assert limits.union_s([(3.0, 4.0), (0.0, 2.0), (1.0, 2.5), (1.2, 1.3)]) == 3.5
    assert limits.union_s([]) == 0.0


def test_cached_tokens_cost_nothing_but_their_keys() -> None:
    cold = limits.traffic(TINY, [Answered(10, 0, 1)], 64, 1.0)
    warm = limits.traffic(TINY, [Answered(10, 8, 1)], 64, 1.0)
    assert cold.operations["bf16", "GEMM"] - warm.operations["bf16", "GEMM"] == 2 * 1000 * 8
    assert warm.operations["bf16", "attention"] == 2 * 40 * (9 + 10)
    assert cold.size_bytes - warm.size_bytes == 8 * 16


def test_what_binds_for_most_of_the_time_is_named() -> None:
    ceiling = Ceiling(1.0, {"bf16": 1.0})
    reads, multiplies = Work(size_bytes=5.0), Work(operations={("bf16", "GEMM"): 3.0})
    assert limits.floor([reads, multiplies], ceiling) == Floor(8.0, "memory")
    assert limits.floor([reads, multiplies, multiplies], ceiling) == Floor(11.0, "bf16 GEMM")
    assert limits.floor([], ceiling) == Floor(0.0, "memory")


def test_the_sentence() -> None:
    shares = [Share("decode", Floor(0.71, "memory"), 1.0), Share("prefill", Floor(1.16, "bf16 GEMM"), 2.0)]
    assert limits.sentence(shares) == "decode 71% of limit, bound by memory; prefill 58%, bound by bf16 GEMM"
    assert shares[1].to_dict() == {
        "prefill_floor_s": 1.16,
        "prefill_share_of_limit": pytest.approx(0.58),
        "prefill_bound_by": "bf16 GEMM",
    }
    assert Share("run", Floor(1.0, "memory"), 2.0).to_dict().keys() == {"floor_s", "share_of_limit", "bound_by"}


def test_the_least_share() -> None:
    phases = ("prefill", "decode")
    assert limits.parse_least("", phases) == {}
    assert limits.parse_least("0.7", phases) == {"prefill": 0.7, "decode": 0.7}
    assert limits.parse_least("decode=0.7, prefill=0.5", phases) == {"decode": 0.7, "prefill": 0.5}
    assert limits.below({"decode": 0.7}, {"decode": 0.7, "prefill": 0.1}) == ""
    message = limits.below({"decode": 0.7, "prefill": 0.5}, {"decode": 0.684, "prefill": 0.6})
    assert message == "--min-limit: decode reached 68.4% of its limit, less than 70%."


@pytest.mark.parametrize("text", ["x", "70", "0", "-1", "run=0.5", "decode=", "nan"])
def test_wrong_least_shares_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--min-limit must be a share like 0.7, or prefill=0.7,decode=0.7"):
        limits.parse_least(text, ("prefill", "decode"))
