"""Executes recorded step plans on the executor of an engine, without scheduling anything, and compares bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sgl.engine.assembly import build_loop
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.options import Value
from sgl.engine.base.types import Executor, Inbound, Outbound, RowOutput
from sgl.engine.core.record import RecordedStep, read_steps, replay
from sgl.engine.loop import EngineLoop

_OVERRIDES: dict[str, Value] = {
    "model.skip_tokenizer_init": True,
    "observe.record_plans": "",
    "observe.request_ledger_size": 0,
}
"""Grammars are masks in a record; and a replay must not write over what it reads."""


@dataclass(frozen=True)
class Needs:
    """What an engine must have to execute the plans of a record."""

    num_steps: int
    num_pages: int
    num_slots: int

    @staticmethod
    def of(path: Path, page_size: int) -> Needs:
        """Reads all of the record.

        Raises:
            ConfigError: it cannot be read, has no steps, or was made with smaller pages.
            SglError: it is no record of steps.
        """
        num_steps, pages, slots = 0, -1, -1
        entries: dict[int, int] = {}  # of a slot's page table
        computed: dict[int, int] = {}
        try:
            for step in read_steps(path):
                num_steps += 1
                for row in step.plan.rows:
                    slots = max(slots, row.slot)
                    if row.init is not None:
                        entries[row.slot] = computed[row.slot] = 0
                    if row.new_pages is not None:
                        entries[row.slot] = row.new_pages.start + len(row.new_pages.pages)
                        pages = max((pages, *row.new_pages.pages))
                    begin = computed.get(row.slot, 0) if row.computed is None else row.computed
                    computed[row.slot] = begin + row.num_tokens - row.num_draft
                    if entries.get(row.slot) and computed[row.slot] > entries[row.slot] * page_size:
                        text = f"--page-size {page_size} is smaller than it was when {path} was recorded."
                        raise ConfigError(text, param="--page-size")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.", param="FILE") from None
        if not num_steps:
            raise ConfigError(f"{path} has no steps; `sgl serve --record-plans FILE` writes some.", param="FILE")
        return Needs(num_steps, pages + 1, slots + 1)


@dataclass(frozen=True)
class Parting:
    """Where a replay came out otherwise."""

    step_id: int
    rid: str
    recorded: RowOutput
    now: RowOutput


class PlanReplay:
    """The plans of one file and an executor that fits them.

    Args:
        config: of the model as it was then; memory and slots are taken from the record.

    Raises:
        SglError: the model or the record cannot be used.
    """

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._path = path
        self.needs = Needs.of(path, config.cache.page_size)
        sizes: dict[str, Value] = {
            "cache.max_total_tokens": max(self.needs.num_pages, 1) * config.cache.page_size,
            "schedule.max_running_requests": self.needs.num_slots,
        }
        changes = {key: (value, "the record") for key, value in {**_OVERRIDES, **sizes}.items()}
        self._loop = build_loop(config.replace(changes), _Nobody(), _Nobody())
        self._executor = _executor_of(self._loop)

    def run(self) -> Iterator[Parting | None]:
        """One item a step, None where all rows are as recorded. Once one is not, the following mean nothing."""
        encode = msgspec.msgpack.Encoder().encode
        for step, outputs in replay(read_steps(self._path), self._executor):
            yield None if encode(outputs) == encode(step.outputs) else _parting(step, outputs)

    def close(self) -> None:
        """Frees what the engine took."""
        self._loop.scheduler.close()
        self._executor.close()


class _Nobody:
    """Asks for nothing and hears nothing."""

    def drain(self, timeout_s: float) -> list[Inbound]:
        return []

    def send(self, message: Outbound) -> None:
        pass


def _executor_of(loop: EngineLoop) -> Executor:
    found: list[Executor] = []

    def look(executor: Executor) -> Executor:
        found.append(executor)
        return executor

    loop.wrap_executor(look)
    return found[0]


def _parting(step: RecordedStep, outputs: list[RowOutput]) -> Parting:
    encode = msgspec.msgpack.Encoder().encode
    rows = zip(step.plan.rows, step.outputs, outputs, strict=True)
    row, recorded, now = next(row for row in rows if encode(row[1]) != encode(row[2]))
    return Parting(step.plan.step_id, row.rid, recorded, now)
