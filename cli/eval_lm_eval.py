"""``sgl eval lm-eval``, also ``sgl eval --lm-eval``: tasks of EleutherAI's library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.eval_options import Progress, folder_of, how, opened, with_run
from sgl.cli.options import ModelArgument, command_of
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.evals.running import Run


@with_run
def run(
    values: sources.Values,
    given: dict[str, Any],
    tasks: Annotated[str, typer.Argument(help="Tasks by lm-eval's names, by commas.", metavar="TASK,...")],
    model: ModelArgument = "",
    num_fewshot: Annotated[
        int | None, how("--num-fewshot", "--num-shots", help="Else the task's own.", metavar="N")
    ] = None,
    limit: Annotated[int | None, how("--limit", "--num-questions", help="Of each task.", metavar="N")] = None,
    include_path: Annotated[str, how("--include-path", help="Folder with further task files.", metavar="DIR")] = "",
    chat: Annotated[bool, how("--chat", "--apply-chat-template", help="Ask in a conversation.")] = False,
    system_prompt: Annotated[
        str, how("--system-prompt", "--system-instruction", help="Its beginning.", metavar="TEXT")
    ] = "",
    max_len: Annotated[
        int | None, how("--max-len", help="Tokens of a prompt and its answer; else the model's context.")
    ] = None,
    seed: Annotated[int, how("--seed", help="Of what is drawn.", metavar="N")] = 1234,
) -> None:
    """Run any task of lm-eval on a model here or behind a URL."""
    from sgl.bench import provenance
    from sgl.bench.evals.journal import Journal
    from sgl.bench.evals.tasks.questions import at_least

    try:
        from sgl.bench.evals import harness
    except ImportError as error:
        raise ConfigError(f"--lm-eval needs its library ({error}): pip install 'sgl[eval]'.") from None
    for flag, value in {"--limit": limit, "--max-len": max_len, "--parallel": given["parallel"]}.items():
        at_least(flag, value, 1)
    provenance.check_output(given["result_file"])
    names = tuple(name for name in tasks.split(",") if name)
    plan = harness.Plan(names, num_fewshot, limit, include_path, chat, system_prompt, max_len, seed)
    with opened(given, values, model) as asked:
        identity = asked.identity
        head = {"task": plan.name, "model": identity.name, "facts": identity.facts, "settings": plan.settings()}
        folder = folder_of(given, plan.name, head)
        with Journal(folder, head, fresh=given["fresh"]) as journal, Batches(plan.name) as bars:
            try:
                results, samples = harness.run(
                    plan, asked, parallel=given["parallel"], journal=journal, watch=bars.begin
                )
            except KeyboardInterrupt:
                text = f"Interrupted: what was answered is kept in {folder}; the same command goes on."
                console.err().print(text, soft_wrap=True, markup=False)
                raise
    flags = {"tasks": tasks, **plan.settings(), "limit": limit, "include_path": include_path}
    for name, found in results.items():
        head = provenance.head("eval", flags, seed, "any", provenance.Data(name, "", "", found.get("num_items", 0)))
        line = {**head, "task": f"lm-eval:{name}", "model": identity.name, **found}
        provenance.append(given["result_file"] or str(folder / "result.jsonl"), line)
    for name, rows in samples.items():
        content = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        (folder / f"samples-{Path(name).name}.jsonl").write_text(content, encoding="utf-8")
    _show(results)
    console.err().print(f"Answers and results: {folder}", soft_wrap=True, markup=False)


command = command_of(run)


class Batches:
    """One bar after the other, for what lm-eval asks at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Progress | None = None

    def begin(self, run: Run) -> Any:
        """A bar for a batch; returns what counts its answers."""
        self._stop()
        self._bar = Progress(f"{self._name} {run.task.name}", len(run.items), len(run.answered))
        self._bar.__enter__()
        return self._bar.count

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None


def _show(results: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("task", "metric"):
        table.add_column(title, header_style="dim", no_wrap=True)
    for title in ("value", "95% interval"):
        table.add_column(title, header_style="dim", justify="right", no_wrap=True)
    for name, found in results.items():
        for metric, value in found["metrics"].items():
            if not metric.partition(",")[2] or "_stderr," in metric:  # what lm-eval says beside its metrics
                continue
            known = metric == found.get("accuracy_metric") and "low" in found
            interval = f"{found['low']:.4f} to {found['high']:.4f}" if known else ""
            table.add_row(Text(console.printable(name)), Text(metric), f"{value:.6g}", interval)
        told = {"num_cut": "answers were cut by the length limit", "num_truncated": "prompts were cut to fit"}
        for key, text in told.items():
            if found.get(key):
                console.err().print(f"{name}: {found[key]} {text}.", soft_wrap=True, markup=False)
    console.out().print(table, soft_wrap=False)
