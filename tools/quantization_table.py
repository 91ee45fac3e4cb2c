"""Measures every method of `sgl quantize` on the demo model and writes the table of docs/quantization.md.

    python -m tools.quantization_table            # minutes; needs the extra `quant`
    python -m tools.quantization_table --only fp8 int8 --items 20 --print

Accuracy is exact match of whole replies on held-out dialogues of all skills; differences to the original are paired by
item. Speed and memory are measured in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sgl.bench.engines import SglEngine
from sgl.bench.evals.demo.skills import SKILLS, draw
from sgl.bench.evals.estimates import mean, share
from sgl.bench.evals.local import Local
from sgl.bench.evals.running import evaluate
from sgl.bench.evals.tasks.demo import Demo
from sgl.engine.base import hub, sources
from sgl.engine.base.machine import describe, detect
from sgl.engine.text.template import load_template
from sgl.engine.text.tokenizer import load_tokenizer
from sgl.quant.gate.data import DataOptions
from sgl.quant.gate.documents import now, read_evidence
from sgl.quant.gate.job import Job, run
from sgl.quant.gate.measure import Bench
from sgl.quant.recipes import methods
from sgl.quant.recipes.report import Memory

PAGE = Path(__file__).resolve().parent.parent / "docs" / "quantization.md"
BEGIN, END = "<!-- table: python -m tools.quantization_table -->", "<!-- end of table -->"
SEED = 2  # of held-out items: not the one that the model's training mix was tuned on
CALIBRATION, PROMPT, OUTPUT, REPEATS = 128, 64, 192, 7
OPTIONS: Mapping[str, Any] = {"max_total_tokens": 32768, "log_level": "error"}

METHODS: Mapping[str, Callable[[], methods.RecipeFor]] = {
    "fp8": methods.fp8,
    "fp8 --static": lambda: methods.fp8(static=True),
    "fp8 --block": lambda: methods.fp8(block=True),
    "int8": methods.int8,
    "int8 --algorithm smoothquant": lambda: methods.int8(algorithm="smoothquant"),
    "int8 --weight-only": lambda: methods.int8(weight_only=True),
    "int4 --group 32": lambda: methods.int4(group=32),
    "int4 (gptq, group 128)": methods.int4,
    "int4 --algorithm awq": lambda: methods.int4(algorithm="awq"),
    "int4 --algorithm rtn": lambda: methods.int4(algorithm="rtn"),
    "int4 --group 32 --asymmetric": lambda: methods.int4(group=32, asymmetric=True),
    "nvfp4": methods.nvfp4,
    "mxfp4": methods.mxfp4,
    "kv-fp8": methods.kv_fp8,
}


class Quiet:
    """Watches and says nothing."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        pass

    def step(self, note: str, count: int = 1) -> None:
        pass


def texts(path: Path, held_out: bool, count: int) -> Path:
    """Dialogues of one split as the model was trained on them, one a line."""
    tokenizer = load_tokenizer(hub.demo_model())
    template = load_template(tokenizer)
    rng = random.Random(f"quantization {held_out}")
    with path.open("w") as file:
        for index in range(count):
            dialogue = draw(rng, list(SKILLS)[index % len(SKILLS)], held_out)
            text = template.render(dialogue.messages, dialogue.tools or None, add_generation_prompt=False)
            file.write(json.dumps({"text": text}) + "\n")
    return path


def options_of(title: str) -> dict[str, Any]:
    return {**OPTIONS, **({"kv_cache_dtype": "fp8_e4m3"} if title == "kv-fp8" else {})}


def speed(folder: Path, title: str) -> dict[str, Any]:
    """Decode speed of one request, and the most memory that loading and answering took."""
    memory = Memory()
    engine = SglEngine(sources.configure(sources.from_call({"model_path": str(folder), **options_of(title)})))
    prompts = [[5 + i % 200 for i in range(PROMPT)]]
    engine.run(prompts, OUTPUT)
    speeds = [engine.run(prompts, OUTPUT).decode_tokens_per_s for _ in range(REPEATS)]
    engine.close()
    return {"tokens_per_s": max(speeds), "peak_bytes": memory.peak_bytes}


def accuracy(folder: Path, title: str, items: int) -> dict[str, bool]:
    """Which held-out items are answered exactly."""
    with Local.load(model_path=str(folder), **options_of(title)) as model:
        found = evaluate(Demo((), items, SEED), model)
    return {record.key: bool(record.is_right) for record in found.records}


def in_a_process(folder: Path, title: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.quantization_table", "--speed", str(folder), title]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What was found before, or is found now."""
    if not path.is_file():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def row(title: str, folder: Path, right: dict[str, bool], base: dict[str, bool], distance: list[float]) -> list[str]:
    """One line of the table, but for speed and memory; ``distance`` is KL and agreement."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    line = [title, f"{size / 1e6:.1f} MB", f"{share(sum(right.values()), len(right)).value:.1%}"]
    if not distance:
        return [*line, "", "", ""]
    difference = mean([100.0 * (right[key] - base[key]) for key in base])
    interval = f"{difference.value:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})"
    return [*line, interval, f"{distance[0]:.4f}", f"{distance[1]:.1%}"]


HEAD = ["method", "weights", "accuracy", "points to bf16 (95%)", "KL", "same first choice", "tokens/s", "peak memory"]


def table(rows: list[list[str]]) -> str:
    lines = [HEAD, ["---", *["--:"] * (len(HEAD) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(chosen: list[str], items: int, folder: Path) -> str:
    """All of it: makes the checkpoints in ``folder`` and measures them; speeds last, when nothing else runs."""
    data = DataOptions(str(texts(folder / "calibration.jsonl", False, 4 * CALIBRATION)), num_calibration=CALIBRATION)
    held_out = texts(folder / "held-out.jsonl", True, 6 * len(SKILLS))
    tokenizer = load_tokenizer(hub.demo_model())
    documents = [tokenizer.encode(json.loads(line)["text"]) for line in held_out.read_text().splitlines()]
    bench = Bench(hub.demo_model(), documents, folder / "recording", OPTIONS, Quiet())

    def distance(out: Path, title: str) -> list[float]:
        estimates = bench.measure(out, (), quiet=True, **options_of(title)).estimates
        return [estimates["kl"].value, estimates["top1"].value]

    base = kept(folder / "bf16.accuracy.json", lambda: accuracy(hub.demo_model(), "", items))
    rows = [row("bf16 (the original)", hub.demo_model(), base, base, [])]
    folders = {"": hub.demo_model()}
    for title in chosen:
        name = title.replace(" ", "_")
        out = folders[title] = folder / name
        if not out.is_dir():
            run(Job("", out, METHODS[title](), data), Quiet())
        right = kept(folder / f"{name}.accuracy.json", partial(accuracy, out, title, items))
        found = kept(folder / f"{name}.distance.json", partial(distance, out, title))
        rows.append(row(title, out, right, base, found))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    for line, (title, out) in zip(rows, folders.items(), strict=True):
        found = in_a_process(out, title)
        line += [f"{found['tokens_per_s']:.0f}", f"{found['peak_bytes'] / 1e6:.0f} MB"]
    machine = describe(detect())
    told = (
        f"Demo model, {len(base)} held-out items of {len(SKILLS)} skills (seed {SEED}), calibrated with "
        f"{CALIBRATION} training dialogues; KL in nats per token on {len(documents)} held-out dialogues; decode of one "
        f"request, best of {REPEATS}; {machine['device_name'] or machine['isa']}, {machine['cores']} cores; "
        f"{', '.join(f'{name} {version}' for name, version in read_evidence(out).versions.items())}; {now()[:10]}."
    )
    return f"{table(rows)}\n\n{told}"


def write(text: str) -> None:
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}\n\n{text}\n\n{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100, help="held-out items of each skill")
    parser.add_argument("--only", nargs="*", default=list(METHODS), help=f"some of: {', '.join(METHODS)}")
    parser.add_argument("--keep", type=Path, help="where all of it stays; a later run goes on there")
    parser.add_argument("--print", action="store_true", help="print the table instead of writing the page")
    parser.add_argument("--speed", nargs=2, metavar=("DIR", "TITLE"), help="of one checkpoint, as JSON")
    arguments = parser.parse_args()
    if arguments.speed:
        print(json.dumps(speed(Path(arguments.speed[0]), arguments.speed[1])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        text = measured(arguments.only, arguments.items, folder)
    if arguments.print:
        print(text)
    else:
        write(text)


if __name__ == "__main__":
    main()
