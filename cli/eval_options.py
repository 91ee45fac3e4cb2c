"""The options that all of ``sgl eval`` has in common, and what is shown of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sgl.cli import console
from sgl.cli.options import Options, option, with_config, with_model, with_options
from sgl.engine.base import env, sources
from sgl.engine.base.config import Given
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.evals.items import Task
    from sgl.bench.evals.local import Local
    from sgl.bench.evals.remote import Remote
    from sgl.bench.evals.running import Run
    from sgl.bench.evals.tasks.questions import Asking

GROUPS = ("model", "cache", "schedule", "parallel", "kernel", "grammar")
WHO, RUN, HOW = "Model", "Run", "Questions"
FOLDER = "sgl-eval"
_REMOTE_OPTIONS = ("model.model_path", "model.tokenizer_path")


def how(*flags: str, help: str, metavar: str | None = None) -> Any:
    """A flag of one task: which questions, and how they are asked."""
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=HOW)


COMMON: Options = {
    "url": option(
        str, "", "--url", "--base-url", help="A server instead of a model here.", panel=WHO, metavar="http://..."
    ),
    "api_key": option(str, "", "--api-key", help="Of the server; else OPENAI_API_KEY.", panel=WHO, metavar="KEY"),
    "parallel": option(int, 64, "--parallel", help="Questions under way at once.", panel=RUN, metavar="N"),
    "output": option(
        str,
        "",
        "--output",
        help=f"Folder of the answers, from which an interrupted run goes on; else one below {FOLDER}/.",
        panel=RUN,
        metavar="DIR",
    ),
    "result_file": option(
        str,
        "",
        "--result-file",
        help="Where the result is appended; else result.jsonl there.",
        panel=RUN,
        metavar="FILE",
    ),
    "fresh": option(bool, False, "--fresh", help="Ask everything again.", panel=RUN),
}
ASKING: Options = {
    "chat": option(bool, False, "--chat", help="Ask in a conversation, not as a text to go on with.", panel=HOW),
    "system_prompt": option(
        str, "", "--system-prompt", help="What the conversation begins with; makes it one.", panel=HOW, metavar="TEXT"
    ),
    "max_tokens": option(
        int | None, None, "--max-tokens", help="Of an answer; else what the task usually takes.", panel=HOW, metavar="N"
    ),
    "temperature": option(float, 0.0, "--temperature", help="0 takes the likeliest token.", panel=HOW, metavar="T"),
    "seed": option(int, 1, "--seed", help="Of what is drawn.", panel=HOW, metavar="N"),
}
"""By field of `sgl.bench.evals.tasks.questions.Asking`."""


def with_run(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the engine's options and the common ones to a function, which receives ``values`` and ``given``."""
    return with_config(*GROUPS)(with_options("given", COMMON)(function))


def with_questions(function: Callable[..., None]) -> Callable[..., None]:
    """As `with_run`, with how questions are put as ``asking``, a dict."""
    return with_run(with_options("asking", ASKING)(function))


def asking_of(asking: Mapping[str, Any], *, chat: bool = False) -> Asking:
    """
    Args:
        chat: whether the task always is a conversation.

    Raises:
        ConfigError: a number is out of range.
    """
    from sgl.bench.evals.tasks.questions import Asking, at_least

    at_least("--max-tokens", asking["max_tokens"], 1)
    if not 0 <= asking["temperature"] <= 1000:
        message = f"--temperature must be from 0 to 1000, got {asking['temperature']:g}."
        raise ConfigError(message, param="--temperature")
    return Asking(**{**asking, "chat": chat or asking["chat"]})


def opened(given: Mapping[str, Any], values: Mapping[str, Given], model: str) -> Local | Remote:
    """The model under test.

    Raises:
        ConfigError: options of both kinds of models, or one that does not fit.
        SglError: it cannot be loaded or reached.
    """
    if given["url"]:
        return _remote(given, values, model)
    from sgl.bench.evals.local import Local

    config = sources.configure(with_model(values, model))
    if not model and "model.model_path" not in values:
        told = f"No model was named: evaluating the demo model, {config.model.model_path}"
        console.err().print(told, soft_wrap=True)
    with console.err().status(f"loading {console.printable(config.model.model_path)}"):
        return Local.start(config)


def _remote(given: Mapping[str, Any], values: Mapping[str, Given], model: str) -> Remote:
    from sgl.bench.evals.remote import Remote

    flags = [value.where for key, value in values.items() if value.source == "flag" and key not in _REMOTE_OPTIONS]
    if flags:
        raise ConfigError(f"{flags[0]} is an option of an engine here; leave it out with --url.", param=flags[0])
    name, tokenizer = (values[key].value if key in values else "" for key in _REMOTE_OPTIONS)
    key = given["api_key"] or env.text("OPENAI_API_KEY")
    return Remote.connect(given["url"], model or str(name or ""), str(tokenizer or ""), key)


def run_task(task: Task, given: Mapping[str, Any], values: Mapping[str, Given], model: str, **flags: Any) -> None:
    """Asks, shows and records.

    Args:
        flags: of the task, for the record.

    Raises:
        ConfigError: an option does not fit, or the data cannot be read.
        typer.Exit: 130 after Ctrl-C; 1 if questions failed.
    """
    from sgl.bench import provenance
    from sgl.bench.evals import results, running
    from sgl.bench.evals.journal import Journal

    if given["parallel"] < 1:
        raise ConfigError(f"--parallel must be at least 1, got {given['parallel']}.", param="--parallel")
    provenance.check_output(given["result_file"])
    with opened(given, values, model) as asked:
        head = results.head(task, asked)
        folder = folder_of(given, task.name, head)
        with Journal(folder, head, fresh=given["fresh"]) as journal:
            run = running.prepare(task, asked, journal)
            with Progress(task.name, len(run.items), len(run.answered)) as bar:
                running.evaluate(task, asked, parallel=given["parallel"], journal=journal, on_record=bar.count, run=run)
        shown = {**{key: value for key, value in given.items() if key != "api_key"}, **flags}
        found = None if run.interrupted and not run.answered else results.line(run, asked, shown)
    finish(run, found, folder, given["result_file"])


def folder_of(given: Mapping[str, Any], name: str, head: Mapping[str, Any]) -> Path:
    """Where answers are kept: by default one folder for each task, model and settings."""
    from sgl.bench.evals.journal import config_hash

    return Path(given["output"] or f"{FOLDER}/{name}-{config_hash(head)}")


class Progress:
    """A bar on standard error that counts answers."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self._bar = console.bar()
        self._task = self._bar.add_task(name, total=total, completed=done)
        self._name = name
        self._judged = self._right = self._failed = 0

    def count(self, record: Any) -> None:
        """One more."""
        self._failed += bool(record.error)
        if record.is_right is not None and not record.error:
            self._judged, self._right = self._judged + 1, self._right + record.is_right
        told = f"{self._name} {self._right / self._judged:.1%}" if self._judged else self._name
        failed = f" [red]{self._failed} failed[/red]" if self._failed else ""
        self._bar.update(self._task, advance=1, description=told + failed)

    def step(self) -> None:
        """One more of what is not judged."""
        self._bar.update(self._task, advance=1)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


@contextlib.contextmanager
def counted(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error; what it gives is called for every step."""
    with Progress(name, total, 0) as bar:
        yield bar.step


def finish(run: Run, found: Mapping[str, Any] | None, folder: Path, result_file: str) -> None:
    """Shows a run and records it if it is whole.

    Raises:
        typer.Exit: 130 after Ctrl-C; 1 if questions failed.
    """
    from sgl.bench import provenance
    from sgl.bench.evals.results import FILE

    if found is not None:
        show(found)
    if run.interrupted:
        text = f"Interrupted: {len(run.answered)} of {len(run.items)} answers are kept in {folder}; the same command"
        console.err().print(f"{text} goes on.", soft_wrap=True, markup=False)
        raise typer.Exit(130)
    assert found is not None, "a run that was not broken off has answers or has raised"
    file = result_file or str(folder / FILE)
    provenance.append(file, found)
    console.err().print(f"Answers: {folder}/items.jsonl. Result: {file}", soft_wrap=True, markup=False)
    if run.failed:
        told = f"{len(run.failed)} of {len(run.items)} questions failed and count for nothing; the first: "
        console.complain(f"{told}{run.failed[0].error}", "The same command asks them again.")
        raise typer.Exit(1)


def show(found: Mapping[str, Any]) -> None:
    """The figures of a result; a table of groups where there are some."""
    from rich.text import Text

    screen = console.out()
    if found.get("groups"):
        _show_groups(found["groups"])
    rows: list[str] = []
    if "accuracy" in found:
        shown = f"{found['accuracy']:.1%} of {found['num_answered']} questions right"
        rows.append(f"{shown} (95%: {found['low']:.1%} to {found['high']:.1%})")
    rows += [f"{title} {_figure(found, key)}" for key, title in _FIGURES.items() if key in found]
    if found["num_cut"]:
        rows.append(f"{found['num_cut']} answers were cut by the length limit")
    if found["num_resumed"]:
        rows.append(f"{found['num_resumed']} answers are of an earlier run")
    if found["latency"] and found["num_answered"] > found["num_resumed"]:
        rows.append(f"{found['latency']:.1f} s")
    screen.print(Text(f"{found['task']}: ", "bold") + Text("; ".join(rows)), soft_wrap=True)


_FIGURES = {
    "perplexity": "perplexity",
    "invalid": "without an answer that can be read:",
    "ended": "ended by themselves:",
    "right_names": "right functions:",
    "valid_arguments": "arguments that are JSON objects:",
}


def _figure(found: Mapping[str, Any], key: str) -> str:
    if key != "perplexity":
        return f"{found[key]:.1%}"
    low, high = found["perplexity_low"], found["perplexity_high"]
    interval = f" (95%: {low:.4g} to {high:.4g})" if low is not None else " (too few windows for an interval)"
    return f"{found[key]:.4g}{interval} over {found['num_tokens']} tokens"


def _show_groups(groups: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("", header_style="dim", no_wrap=True)
    for title in ("answered", "right", "95% interval", "cut"):
        table.add_column(title, header_style="dim", justify="right", no_wrap=True)
    for name, group in groups.items():
        cells = ["-", "-"]
        if "accuracy" in group:
            cells = [f"{group['accuracy']:.1%}", f"{group['low']:.1%} to {group['high']:.1%}"]
        table.add_row(Text(name), str(group["num_answered"]), *cells, str(group["num_cut"] or ""))
    console.out().print(table, soft_wrap=False)
