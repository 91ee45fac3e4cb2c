"""``sgl eval kl``: how far a model's distributions are from a reference checkpoint's."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgl.cli import console
from sgl.cli.eval_options import GROUPS, RUN, WHO, counted, how
from sgl.cli.eval_perplexity import DATA, WINDOW
from sgl.cli.options import ModelArgument, command_of, with_config, with_model
from sgl.engine.base import sources
from sgl.engine.base.config import Given
from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from sgl.bench.evals.divergence import Divergence, Recording
    from sgl.bench.evals.estimates import Estimate
    from sgl.bench.evals.local import Local

_GB = 1 << 30
_OWN = ("model.quantization", "cache.kv_cache_dtype", "model.json_model_override_args", "model.revision")
"""Options of the candidate that its reference does not share."""


@with_config(*GROUPS)
def kl(
    values: sources.Values,
    model: ModelArgument = "",
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            help="Checkpoint to compare with, read without --quantization; or a folder of --save-reference.",
            metavar="PATH",
            rich_help_panel=WHO,
        ),
    ] = "",
    data: Annotated[str, DATA] = "",
    window: Annotated[int, WINDOW] = 512,
    num_windows: Annotated[int, how("--num-windows", help="0 for all.", metavar="N")] = 64,
    save_reference: Annotated[
        str,
        typer.Option(
            "--save-reference",
            help="Keep the reference's distributions here, for other candidates.",
            metavar="DIR",
            rich_help_panel=RUN,
        ),
    ] = "",
    max_gb: Annotated[
        float,
        typer.Option(
            "--max-gb",
            help="Of those distributions; of larger ones the likeliest tokens are kept.",
            metavar="GB",
            rich_help_panel=RUN,
        ),
    ] = 1.0,
    seed: Annotated[int, how("--seed", help="Of the bootstrap.", metavar="N")] = 1,
    result_file: Annotated[
        str, typer.Option("--result-file", help="Where the result is appended.", metavar="FILE", rich_help_panel=RUN)
    ] = "",
) -> None:
    """Compare a model's next-token distributions with a reference's, on a text: one after the other in memory."""
    from sgl.bench import provenance
    from sgl.bench.evals import divergence
    from sgl.bench.evals.tasks.questions import at_least

    at_least("--window", window, 2)
    at_least("--num-windows", num_windows, 0)
    if not 0 < max_gb <= 1024:
        raise ConfigError(f"--max-gb must be above 0 and at most 1024, got {max_gb:g}.", param="--max-gb")
    if not reference:
        raise ConfigError("kl needs --reference, the checkpoint to compare with.", param="--reference")
    provenance.check_output(result_file)
    flags = {"reference": reference, "window": window, "num_windows": num_windows, "data": data, "max_gb": max_gb}
    with contextlib.ExitStack() as stack:
        folder = Path(save_reference or stack.enter_context(tempfile.TemporaryDirectory(prefix="sgl-kl-")))
        if (Path(reference) / divergence.META).is_file():
            recording = divergence.Recording.open(Path(reference))
        else:
            recording = _record(values, reference, data, (window, num_windows), folder, int(max_gb * _GB))
        with _loaded(with_model(values, model)) as candidate:
            on_document = stack.enter_context(counted("candidate", len(recording.documents)))
            found = divergence.compare(recording, candidate, seed=seed, on_document=on_document)
    _show(found)
    if result_file:
        told = provenance.Data(data or reference, found.documents_hash, data, found.num_documents)
        head = provenance.head("eval", flags, seed, "any", told)
        provenance.append(result_file, {**head, "task": "kl", **found.to_dict()})


command = command_of(kl)


def _record(
    values: sources.Values, reference: str, data: str, size: tuple[int, int], folder: Path, max_bytes: int
) -> Recording:
    from sgl.bench.evals import divergence
    from sgl.bench.evals.tasks.perplexity import texts_of

    if not data:
        raise ConfigError("kl needs --data, a text file or JSONL with text.", param="--data")
    texts = texts_of(Path(data))
    own = {key: value for key, value in values.items() if key not in _OWN}
    with _loaded({**own, "model.model_path": Given(reference, "flag", "--reference")}) as model:
        documents = [part for text in texts for part in divergence.windows(model.tokenizer.encode(text), size[0])]
        documents = documents[: size[1] or None]
        with counted("reference", len(documents)) as on_document:
            return divergence.record(model, documents, folder, max_bytes=max_bytes, on_document=on_document)


def _loaded(values: sources.Values) -> Local:
    from sgl.bench.evals.local import Local

    config = sources.configure(values)
    with console.err().status(f"loading {console.printable(config.model.model_path)}"):
        return Local.start(config)


def _show(found: Divergence) -> None:
    from rich.table import Table

    def cells(figure: Estimate, form: Callable[[float], str]) -> list[str]:
        if figure.low is None or figure.high is None:
            return [form(figure.value), "-"]
        return [form(figure.value), f"{form(figure.low)} to {form(figure.high)}"]

    table = Table(box=None, pad_edge=False)
    table.add_column("", header_style="dim", no_wrap=True)
    for title in ("", "95% interval"):
        table.add_column(title, header_style="dim", justify="right", no_wrap=True)
    rows: dict[str, list[Any]] = {
        "KL(reference || model), nats per token": cells(found.kl, lambda value: f"{value:.3g}"),
        "the same at the 99th percentile of tokens": [f"{found.kl_p99:.3g}", ""],
        "same likeliest token": cells(found.top1_agreement, lambda value: f"{value:.2%}"),
        "perplexity of the reference": cells(found.perplexity_reference, lambda value: f"{value:.4g}"),
        "perplexity of the model": cells(found.perplexity_candidate, lambda value: f"{value:.4g}"),
        "ratio of perplexities": cells(found.perplexity_ratio, lambda value: f"{value:.4f}"),
    }
    for title, row in rows.items():
        table.add_row(title, *row)
    console.out().print(table, soft_wrap=False)
    told = f"{found.num_positions} tokens of {found.num_documents} documents; "
    exact = "over the whole vocabulary."
    if not found.is_exact:
        exact = f"a lower bound: {found.tail_mass:.2%} of the reference's probability was kept as one outcome."
    console.err().print(told + exact, soft_wrap=True, highlight=False)
    if found.kl.low is None:
        console.err().print("Fewer than 6 documents have no interval; a smaller --window makes more of them.")
