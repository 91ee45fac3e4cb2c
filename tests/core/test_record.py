from __future__ import annotations

from pathlib import Path

import pytest

from sgl.engine.base.errors import SglError
from sgl.engine.base.types import Add, Request, SamplingParams
from sgl.engine.core.record import FileRecorder, read_steps, replay
from sgl.engine.core.scheduler import Scheduler, SchedulerConfig
from sgl.engine.core.sim import SimExecutor, SimModel
from sgl.engine.loop import EngineLoop
from tests.core.simulation import ModuloGrammars, Script, run_to_end

CONFIG = SchedulerConfig(
    num_pages=20, page_size=4, max_running=3, max_step_tokens=16, max_queued=10, max_len=60, max_draft=2
)


def record(path: Path) -> None:
    requests = [
        Request(rid=f"r{i}", token_ids=tuple(range(i, 20 + i)), params=SamplingParams(max_new_tokens=25))
        for i in range(5)
    ]
    script = Script({0: [Add(request) for request in requests]})
    executor = SimExecutor(SimModel(), CONFIG.page_size, CONFIG.max_draft)
    scheduler = Scheduler(CONFIG, ModuloGrammars(97))
    recorder = FileRecorder(path)
    loop = EngineLoop(scheduler, executor, script, script, overlap=1, recorder=recorder, clock=lambda: 0.0)
    run_to_end(loop, script)
    assert scheduler.num_preempted, "the record should contain a preemption"
    recorder.close()


def test_recorded_plans_replay_to_the_same_results(tmp_path: Path) -> None:
    record(tmp_path / "steps")
    executor = SimExecutor(SimModel(), CONFIG.page_size, CONFIG.max_draft)
    steps = 0
    for step, outputs in replay(read_steps(tmp_path / "steps"), executor):
        assert outputs == step.outputs
        steps += 1
    assert steps > 20


def test_a_truncated_record_is_readable_up_to_its_last_whole_step(tmp_path: Path) -> None:
    record(tmp_path / "steps")
    whole = list(read_steps(tmp_path / "steps"))
    content = (tmp_path / "steps").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-5])
    assert list(read_steps(tmp_path / "cut")) == whole[:-1]


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"\x04\x00\x00\x00abcd")
    with pytest.raises(SglError, match="foreign is not a step record"):
        list(read_steps(tmp_path / "foreign"))


def test_a_file_that_cannot_be_written_is_refused_by_flag(tmp_path: Path) -> None:
    with pytest.raises(SglError, match=r"--record-plans .*: No such file or directory"):
        FileRecorder(tmp_path / "absent" / "steps")
