"""The search against made-up cost functions, and the command around it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl.bench import tune
from sgl.bench.engines import SglEngine, Timing
from sgl.bench.tune import EngineRunner, Knob, Load, Setting, Tuning, knobs_for, search
from sgl.cli import bench_tune
from sgl.engine.base import sources, tuned
from sgl.engine.base.errors import ConfigError
from tests.base.machines import GPU, resolved
from tests.cli.test_main import run as run_command
from tests.models.checkpoints import make_checkpoint

Cost = Callable[[Setting], float]

A, B, C = (Knob(f"x.{name}", (1, 2, 3)) for name in "abc")


class Workshop:
    """Starts runners that take as long as a cost function says, and counts those that are open."""

    def __init__(self, cost: Cost, noise: float = 0.0) -> None:
        self.log: list[tuple[tuple[Any, ...], int]] = []
        self.num_open = self.most_open = 0
        self._cost, self._noise = cost, noise
        self._rng = random.Random(0)

    def start(self, setting: Setting) -> Any:
        self._cost(setting)  # may refuse
        workshop = self
        workshop.num_open += 1
        workshop.most_open = max(workshop.most_open, workshop.num_open)

        class Bench:
            def measure(self, round_: int) -> float:
                workshop.log.append((tuple(sorted(setting.items())), round_))
                # Rounds differ, and so does the machine from minute to minute: both runners of a pair feel it.
                drift = 1.0 + 0.5 * (round_ % 3)
                return drift * workshop._cost(setting) * workshop._rng.uniform(1.0, 1.0 + workshop._noise)

            def close(self) -> None:
                workshop.num_open -= 1

        return Bench()

    def search(self, *knobs: Knob, pairs: int = 6) -> Tuning:
        tuning = search(knobs, self.start, pairs)
        assert self.num_open == 0 and self.most_open <= 2
        return tuning


def factor(setting: Setting, factors: dict[tuple[str, int], float]) -> float:
    """1, times what each option of the setting contributes."""
    product = 1.0
    for key, value in setting.items():
        product *= factors.get((key, int(value or 0)), 1.0)  # type: ignore[arg-type]
    return product


def test_the_best_of_independent_options_is_found() -> None:
    factors = {("x.a", 2): 0.9, ("x.a", 3): 0.8, ("x.b", 1): 1.3, ("x.c", 1): 0.95}
    tuning = Workshop(lambda setting: factor(setting, factors)).search(A, B, C)
    assert tuning.changes == {"x.a": 3, "x.c": 1}
    assert tuning.gain == pytest.approx(1 / (0.8 * 0.95))
    assert [(t.key, t.value) for t in tuning.trials if t.kept] == [("x.a", 2), ("x.a", 3), ("x.c", 1)]


def test_two_percent_are_not_worth_a_change_and_noise_is_none() -> None:
    assert Workshop(lambda setting: 0.985 if setting else 1.0).search(A, B).changes == {}
    noisy = Workshop(lambda setting: 0.97 if setting else 1.0, noise=0.3)
    assert noisy.search(A, B, C, pairs=8).changes == {}
    assert Workshop(lambda setting: 1.0, noise=0.1).search(A, B, C, pairs=8).changes == {}


@pytest.mark.parametrize(("count", "cut"), [(1, 0), (3, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (25, 7)])
def test_the_interval_is_the_textbook_s(count: int, cut: int) -> None:
    """Of the sign test, two-sided 5%: for 12 values the 3rd and the 10th."""
    ratios = [1.0 + i / 100 for i in range(count)]
    random.Random(1).shuffle(ratios)
    found = tune.median_ratio(ratios)
    assert found.value == pytest.approx(1.0 + (count - 1) / 200)
    assert (found.low, found.high) == pytest.approx((1.0 + cut / 100, 1.0 + (count - 1 - cut) / 100))


def test_an_option_that_helps_after_another_is_found_in_the_second_round() -> None:
    def cost(setting: Setting) -> float:
        return 0.7 if setting.get("x.a") == 1 and setting.get("x.b") == 2 else 0.9 if setting.get("x.b") == 2 else 1.0

    assert Workshop(cost).search(A, B).changes == {"x.a": 1, "x.b": 2}


def test_best_and_challenger_take_turns_on_work_that_neither_has_seen() -> None:
    workshop = Workshop(lambda setting: 0.5 if setting else 1.0)
    workshop.search(Knob("x.a", (1,)))
    first = [dict(setting) for setting, _ in workshop.log[:4]]
    assert first == [{}, {"x.a": 1}, {"x.a": 1}, {}]
    assert [round_ for _, round_ in workshop.log[:4]] == [0, 0, 1, 1]
    assert len(set(workshop.log)) == len(workshop.log)


def test_a_hopeless_challenger_is_given_up_early() -> None:
    workshop = Workshop(lambda setting: 2.0 if setting else 1.0)
    workshop.search(Knob("x.a", (1,)), pairs=10)
    assert len(workshop.log) == 2 * tune.HOPELESS


def test_a_setting_that_cannot_run_is_noted() -> None:
    def cost(setting: Setting) -> float:
        if setting.get("x.a") == 1:
            raise ConfigError("no room")
        return 0.5 if setting.get("x.a") == 2 else 1.0

    tuning = Workshop(cost).search(A)
    assert (tuning.trials[0].speed, tuning.trials[0].reason) == (None, "no room")
    assert tuning.changes == {"x.a": 2}


@pytest.mark.parametrize("when", [0, 5, 14, 20])
def test_ctrl_c_keeps_the_best_so_far(when: int) -> None:
    calls = iter(range(1000))

    def cost(setting: Setting) -> float:
        if next(calls) == when + 1:
            raise KeyboardInterrupt
        return factor(setting, {("x.a", 1): 0.5})

    tuning = Workshop(cost).search(A, B, C)
    assert tuning.interrupted
    assert tuning.changes == ({"x.a": 1} if when >= 14 else {})


def test_the_model_must_run_with_the_defaults() -> None:
    def cost(setting: Setting) -> float:
        raise ConfigError("no room")

    with pytest.raises(ConfigError, match="no room"):
        Workshop(cost).search(A)


def test_what_is_tried_lies_around_the_defaults_and_spares_what_was_given() -> None:
    knobs = {knob.key: knob.candidates for knob in knobs_for(resolved(), hardware_threads=8)}
    assert knobs == {
        "kernel.cpu_threads": (8, 3, 2),
        "kernel.cpu_pin": (True,),
        "schedule.chunked_prefill_size": (256, 768, 1024),
        "cache.page_size": (32, 64, 128),
    }
    assert tuple(knobs) == tuned.KEYS
    given = resolved(cache__page_size=32, kernel__cpu_threads=1)
    assert [knob.key for knob in knobs_for(given, 8)] == ["kernel.cpu_pin", "schedule.chunked_prefill_size"]
    assert [k.key for k in knobs_for(resolved(GPU), 8)] == ["schedule.chunked_prefill_size", "cache.page_size"]
    alone = {knob.key: knob.candidates for knob in knobs_for(resolved(kernel__cpu_pin=False), 4)}
    assert alone["kernel.cpu_threads"] == (3, 2) and "kernel.cpu_pin" not in alone


def test_the_load_fits_the_model() -> None:
    load = Load.for_model(resolved())
    assert (load.batch_size * load.input_len) >= 4 * 512
    tiny = Load.for_model(resolved(hf={"max_position_embeddings": 16}))
    assert tiny.input_len >= 1 and tiny.output_len >= 2 and tiny.input_len + tiny.output_len < 16


class Clockwork:
    """Answers as if every prompt took a second and every answer four."""

    name = "clockwork"

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    def run(self, prompts: Any, output_len: int) -> Timing:
        self.prompts.append(prompts)
        return Timing(0.0, [[1.0, *([5.0] * (output_len - 1))] for _ in prompts])

    def close(self) -> None: ...


def test_a_measurement_weighs_prompts_and_answers_alike() -> None:
    engine = Clockwork()
    runner = EngineRunner(engine, Load(3, 10, 4), vocab_size=50)
    assert runner.measure(0) == pytest.approx(2.0)
    assert [len(prompts) for prompts in engine.prompts] == [1, 3, 1, 3]
    runner.measure(0)
    assert engine.prompts[2:4] == engine.prompts[4:6]
    assert all(token < 50 for prompts in engine.prompts for prompt in prompts for token in prompt)


def test_the_engine_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = make_checkpoint("llama", tmp_path)
    values = {
        "model_path": str(path),
        "max_total_tokens": 1024,
        "cpu_threads": 1,
        "cpu_pin": True,
        "log_level": "error",
    }
    engine = SglEngine(sources.configure(sources.from_call({**values, "no_tuned": True})), in_process=False)
    runner = EngineRunner(engine, Load(2, 20, 4), engine.engine.info.vocab_size)
    try:
        assert runner.measure(0) > 0
    finally:
        runner.close()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `sgl bench tune` on a tiny model that is twice as fast with pages of 64."""
    path = make_checkpoint("llama", tmp_path / "model", tokenizer=False)
    workshop = Workshop(lambda setting: 0.5 if setting.get("cache.page_size") == 64 else 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(bench_tune, "_start", lambda values, setting, load: workshop.start(setting))
    monkeypatch.setattr(bench_tune, "QUIET_S", 0.0)
    monkeypatch.setattr("sgl.bench.others.Usage.check", lambda self, later: None)
    return lambda *words: run_command(monkeypatch, "bench", "tune", str(path), "--device", "cpu", *words)


def test_the_engine_uses_what_the_command_found(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    told = capsys.readouterr().out
    assert "--page-size 64: 2.00 times as fast as the defaults." in told
    (file,) = (tmp_path / "cache").rglob("*.json")
    assert str(file) in told.replace("\n", "")
    assert json.loads(file.read_bytes())["values"] == {"cache.page_size": 64}
    options = {"model_path": str(tmp_path / "model"), "device": "cpu"}
    config = sources.configure(sources.from_call(options))
    assert config.cache.page_size == 64 and config.provenance["cache.page_size"].reason == str(file)


def test_the_command_writes_elsewhere_if_told_to(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--output", str(tmp_path / "out"), "--page-size", "16") == 0
    assert not (tmp_path / "cache").exists()
    (file,) = (tmp_path / "out").rglob("*.json")
    assert json.loads(file.read_bytes())["values"] == {}


@pytest.mark.parametrize(("changes", "written"), [({}, 0), ({"cache.page_size": 64}, 1)])
def test_half_a_search_is_written_if_it_found_something(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    written: int,
) -> None:
    monkeypatch.setattr(tune, "search", lambda *args, **kwargs: Tuning(changes, [], interrupted=True))
    assert command() == 130
    assert "Interrupted." in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("*.json"))) == written


def test_too_few_repeats_are_refused(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--repeats", "2") == 2
    assert "--repeats must be at least 6" in capsys.readouterr().err
