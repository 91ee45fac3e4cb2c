"""Answers kept to a grammar: asked for in every server's words, as long as they should be, recorded and compared."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sgl.bench.backends import BACKENDS
from sgl.bench.compare import Batch, compare, measure, split
from sgl.bench.constraint import check_run, chosen, described
from sgl.bench.contamination import ContaminatedError
from sgl.bench.data import DataOptions, Sample, Vocabulary, load
from sgl.bench.engines import SglEngine
from sgl.bench.figures import Outcome
from sgl.bench.load import Run, Traffic
from sgl.bench.serving import Server, Target
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError
from sgl.engine.base.types import Grammar
from tests.bench.commands import Bench
from tests.bench.fake_server import FakeServer, serve
from tests.bench.test_compare import Clockwork, line, results
from tests.models.checkpoints import make_checkpoint

SCHEMA = '{"type": "array", "items": {"type": "integer"}}'
OF_OPENAI = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(SCHEMA)}}
LETTERS = Grammar("regex", "[a-z]*")


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl.bench.bandwidth.PROBE_BYTES", 1 << 20)


def test_grammars_come_from_files_and_an_expression_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "schema").write_text(SCHEMA)
    (tmp_path / "latin").write_bytes(b"\xff")
    assert chosen() is None
    assert chosen(json_schema=str(tmp_path / "schema")) == Grammar("json_schema", SCHEMA)
    assert chosen(ebnf=str(tmp_path / "schema")) == Grammar("ebnf", SCHEMA)
    assert chosen(regex="[a-z]*") == LETTERS
    with pytest.raises(ConfigError, match=r"--json-schema .*/none cannot be read: No such file"):
        chosen(json_schema=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"--ebnf .*/latin cannot be read: it is not UTF-8 text"):
        chosen(ebnf=str(tmp_path / "latin"))
    with pytest.raises(ConfigError, match="Give one of --json-schema, --regex and --ebnf"):
        chosen(json_schema="x", regex="y")


def test_results_tell_grammars_apart() -> None:
    assert described(None) == {}
    assert described(LETTERS) == described(Grammar("regex", "[a-z]*"))
    assert described(LETTERS) != described(Grammar("regex", "[a-z]+"))
    assert described(LETTERS)["constraint"].keys() == {"kind", "hash"}


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("kind", ["json_schema", "regex", "ebnf"])
def test_every_backend_is_asked_in_its_own_words(tmp_path: Path, backend: str, kind: Any) -> None:
    source = {"json_schema": SCHEMA, "regex": "[a-z]*", "ebnf": 'root ::= "a" root'}[kind]
    target = Target(backend, "http://127.0.0.1:1", grammar=Grammar(kind, source))
    if backend in ("openai", "openai-chat", "lmdeploy") and kind != "json_schema":
        with pytest.raises(ConfigError, match=f"--{kind}: OpenAI's API keeps answers to JSON schemas only"):
            target.check()
        return
    with serve(FakeServer(str(make_checkpoint("llama", tmp_path / "tiny")))) as server:
        connected = Server.connect(Target(backend, server.url, grammar=target.grammar))
        samples = load(DataOptions(num_prompts=1, random_input=9), Vocabulary.of(connected.tokenizer))
        asyncio.run(connected.measure(Run(), samples, Traffic(), (), flush=False))
    (body,) = server.bodies
    if backend.startswith("vllm"):
        name = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}[kind]
        assert body["structured_outputs"] == {name: source}
    elif backend in ("openai", "openai-chat", "lmdeploy"):
        assert body["response_format"] == OF_OPENAI
    else:
        assert body.get("sampling_params", body)[kind] == source


def test_a_schema_that_is_no_json_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="--json-schema is not JSON"):
        Target("openai", "http://127.0.0.1:1", grammar=Grammar("json_schema", "{")).check()


def test_answers_that_ended_early_say_nothing() -> None:
    samples = [Sample((1,), 5, later=(Sample((2,), 3),)), Sample((1,), 4)]
    whole = [Outcome(0.0, 1.0, output_len=length) for length in (5, 3, 4)]
    check_run(samples, whole)
    with pytest.raises(ContaminatedError, match=r"end early \(11 tokens where 12 were asked for\)"):
        check_run(samples, [*whole[:2], Outcome(0.0, 1.0, output_len=3)])
    check_run(samples, whole[:1])  # broken off, which is told elsewhere
    check_run(samples, [*whole[:2], Outcome(0.0, 1.0, output_len=0, error="no")])


def test_the_engine_keeps_to_it_and_refuses_to_stop_short() -> None:
    config = sources.configure(sources.with_demo_model(sources.from_call({"max_total_tokens": 1024})))
    engine = SglEngine(config, grammar=Grammar("regex", "[a-z]*"))
    assert [len(times) for times in engine.run([[5, 6, 7], [8, 9, 10]], 12).tokens] == [12, 12]
    engine.close()
    engine = SglEngine(config, grammar=Grammar("regex", "[a-z]{3}"))
    with pytest.raises(ContaminatedError, match="tokens where 24 were asked for"):
        engine.run([[5, 6, 7], [8, 9, 10]], 12)
    engine.close()


def test_runs_of_different_grammars_are_compared_only_where_that_is_the_question() -> None:
    sides = {"A": Clockwork("A", 0.5, []), "B": Clockwork("B", 1.0, [])}
    a, b = split(list(measure(sides, [Batch(1, 8, 5)], 6, 2000, grammars={"A": None, "B": LETTERS})))
    with pytest.raises(ConfigError, match=r"different grammars \(A: nothing and B: regex [0-9a-f]{16}\)"):
        compare(a, b, paired=True)
    found = {line.figure: line for line in compare(a, b, paired=True, across_grammars=True)}
    assert found["median_decode_throughput"].ratio.value == 2.0
    assert compare(b, b, paired=True)


def test_answers_of_different_length_are_never_compared_across_grammars() -> None:
    a = results(line(total_output_tokens=40))
    b = results(line(total_output_tokens=39, **described(LETTERS)))
    with pytest.raises(ConfigError, match=r"not the same number of tokens \(A: 40 and B: 39\)"):
        compare(a, b, paired=False, across_grammars=True)
    mixed = results(line(**described(LETTERS)), line(**described(Grammar("regex", "[a-z]+"))))
    with pytest.raises(ConfigError, match="different grammars"):
        compare(mixed, mixed, paired=False, across_grammars=True)


def test_commands_record_it_and_compare_it(bench: Bench, tmp_path: Path) -> None:
    plain, kept = tmp_path / "plain.jsonl", tmp_path / "kept.jsonl"
    words = ["--num-prompts", "3", "--random-input", "9", "--random-output", "6", "--random-range-ratio", "1"]
    words += ["--max-total-tokens", "1024"]
    assert bench("offline", *words, "--output-file", str(plain)).returncode == 0
    assert bench("offline", *words, "--regex", "[a-z]*", "--output-file", str(kept)).returncode == 0
    run = json.loads(kept.read_text())
    assert run["constraint"] == described(LETTERS)["constraint"] and run["flags"]["regex"] == "[a-z]*"
    assert "constraint" not in json.loads(plain.read_text())
    refused = bench("compare", str(plain), str(kept))
    assert refused.returncode == 2 and "pass --across-grammars" in " ".join(refused.stderr.split())
    assert bench("compare", str(plain), str(kept), "--across-grammars").returncode == 0
    short = bench("offline", *words, "--regex", "[a-z]")
    assert short.returncode == 2 and "The grammar let answers end early" in " ".join(short.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "http://x", "http://x", "--b", "--regex a*"], "A and B are one server"),
        (["compare", "http://x", "http://y", "--b", "--page-size 16"], "a server has its own options"),
        (["compare", "--a", "", "--b", "--regex a --ebnf b"], "Give one of --json-schema, --regex and --ebnf"),
        (
            ["one-batch", "--versus", "transformers", "--regex", "a*"],
            "--versus has answers that are kept to no",
        ),
        (["offline", "--engine", "transformers", "--regex", "a*"], "--regex needs --engine sgl"),
        (["serving", "--json-schema", "/nowhere"], "--json-schema /nowhere cannot be read"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_named(bench: Bench, words: list[str], message: str) -> None:
    done = bench(*words)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr


@pytest.mark.slow
def test_what_structured_output_costs(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    words = ["--batch", "2", "--input-len", "8", "--output-len", "12", "--repeats", "2", "--output-file", str(file)]
    done = bench("compare", "--max-total-tokens", "1024", *words, "--a", "", "--b", "--regex '[a-z]*'")
    assert done.returncode == 0, done.stderr
    assert "B: --regex '[a-z]*'" in done.stdout and "median_decode_throughput" in done.stdout
    raws = [json.loads(text) for text in file.read_text().splitlines()]
    assert [raw["engine"] for raw in raws] == ["A", "B", "B", "A"]
    assert ["constraint" in raw for raw in raws] == [False, True, True, False]
