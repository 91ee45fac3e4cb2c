"""GGUF files: their blocks, their models against transformers, and their tokenizers against the ones they came from."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sgl.engine.base import env, gguf, gguf_folder, hub
from sgl.engine.base.errors import ModelError
from sgl.engine.text.tokenizer import load_tokenizer
from sgl.quant.formats.gguf import BY_NAME
from tests.models import oracle
from tests.models.checkpoints import make_checkpoint
from tests.models.paged import Paged
from tests.quant import gguf_file

PROMPT = [5, 17, 250, 3, 99, 42, 7, 300]
HALVES = {"q6_k": (208,), **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2))}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "cache_dir", lambda: tmp_path / "cache")


def _random_blocks(name: str, rows: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    raw = rng.integers(0, 256, (rows, count, BY_NAME[name].size_bytes), dtype=np.uint8)
    for at in HALVES.get(name, (0,)):
        raw[..., at : at + 2] = rng.normal(size=(rows, count, 1)).astype(np.float16).view(np.uint8)
    return raw


def _block(name: str, raw: bytes) -> list[float]:
    """The numbers of a block, one by one."""
    half = lambda at: np.float32(struct.unpack_from("<e", raw, at)[0])  # noqa: E731
    if name == "q8_0":
        return [half(0) * np.float32(q) for q in struct.unpack_from("<32b", raw, 2)]
    if name in ("q4_0", "q4_1", "q5_0", "q5_1"):
        affine, five = name.endswith("1"), name.startswith("q5")
        at = 4 if affine else 2
        high = struct.unpack_from("<I", raw, at)[0] if five else 0
        data, numbers = raw[at + (4 if five else 0) :], []
        for i in range(32):
            q = (data[i % 16] >> (0 if i < 16 else 4) & 15) | (high >> i & 1) << 4
            middle = 0 if affine else 16 if five else 8
            numbers.append(half(0) * np.float32(q - middle) + (half(2) if affine else np.float32(0)))
        return numbers
    if name == "q6_k":
        numbers = []
        for i in range(256):
            part, place = i // 128, i % 128
            low = raw[part * 64 + place % 64] >> (0 if place < 64 else 4) & 15
            high = raw[128 + part * 32 + place % 32] >> 2 * (place // 32) & 3
            scale = struct.unpack_from("b", raw, 192 + i // 16)[0]
            numbers.append(half(208) * np.float32(scale) * np.float32((low | high << 4) - 32))
        return numbers
    numbers = []
    for i in range(256):
        s, j = raw[4:16], i // 32
        scale = s[j] & 63 if j < 4 else (s[j + 4] & 15) | s[j - 4] >> 6 << 4
        least = s[j + 4] & 63 if j < 4 else s[j + 4] >> 4 | s[j] >> 6 << 4
        q = raw[(48 if name == "q5_k" else 16) + i // 64 * 32 + i % 32] >> (0 if j % 2 == 0 else 4) & 15
        if name == "q5_k":
            q |= (raw[16 + i % 32] >> j & 1) << 4
        numbers.append(half(0) * np.float32(scale) * np.float32(q) - half(2) * np.float32(least))
    return numbers


@pytest.mark.parametrize("name", BY_NAME)
def test_blocks_are_read_exactly(name: str) -> None:
    scheme, raw = BY_NAME[name], _random_blocks(name, 3, 2)
    tensors = {name: torch.from_numpy(raw.reshape(3, -1))}
    read = scheme.decode(tensors, 3, 2 * scheme.numbers).dequantize().numpy()
    wanted = np.array([[number for block in row for number in _block(name, block.tobytes())] for row in raw])
    assert np.array_equal(read, wanted.astype(np.float32))


@pytest.mark.parametrize("name", BY_NAME)
def test_blocks_are_read_as_the_gguf_package_does(name: str) -> None:
    package = pytest.importorskip("gguf")
    scheme, raw = BY_NAME[name], _random_blocks(name, 16, 3)
    wanted = package.quants.dequantize(raw.reshape(16, -1), package.GGMLQuantizationType[name.upper()])
    tensors = {name: torch.from_numpy(raw.reshape(16, -1))}
    assert np.array_equal(scheme.decode(tensors, 16, 3 * scheme.numbers).dequantize().numpy(), wanted)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("llama", kind) for kind in (gguf_file.F32, gguf_file.F16, gguf_file.BF16, gguf_file.Q4_0, gguf_file.Q8_0)),
        *((family, gguf_file.Q8_0) for family in ("qwen2", "qwen3", "gemma2")),
    ],
)
def test_models_compute_what_their_weights_say(family: str, kind: int, tmp_path: Path) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    extra = {"query_pre_attn_scalar": 32} if family == "gemma2" else {}
    source = make_checkpoint(family, tmp_path / "source", tied=family == "gemma2", **shape, **extra)
    stored = gguf_file.convert(source, tmp_path / "model.gguf", kind)
    from safetensors.torch import save_file

    save_file(
        {name: weight.contiguous() for name, weight in stored.items()}, source / "model.safetensors", {"format": "pt"}
    )
    folder = hub.locate(str(tmp_path / "model.gguf"), ())
    model = Paged(folder, torch.float32, loading={"exact_activations": True})
    wanted = oracle.logits(source, torch.float32, PROMPT)
    torch.testing.assert_close(model.prompt(PROMPT), wanted, rtol=1e-4, atol=2e-4)


def test_llama3_frequencies_are_found_and_checked(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = make_checkpoint("llama", tmp_path / "source", rope_parameters=rope)
    gguf_file.convert(source, tmp_path / "model.gguf", gguf_file.F32)
    header = gguf.read(tmp_path / "model.gguf")
    data = (tmp_path / "model.gguf").read_bytes()
    tensors = {}
    for name, tensor in header.tensors.items():
        size = int(np.prod(tensor.shape)) * 4
        tensors[name] = (gguf_file.F32, tensor.shape, data[tensor.offset : tensor.offset + size])
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(source), torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    for name, divisors in (("good", plain / scaled), ("bad", plain / scaled * 1.5)):
        tensors["rope_freqs.weight"] = (gguf_file.F32, (8,), divisors.float().numpy().tobytes())
        gguf_file.write(tmp_path / f"{name}.gguf", header.metadata, tensors)
    model = Paged(hub.locate(str(tmp_path / "good.gguf"), ()), torch.float32)
    torch.testing.assert_close(model.prompt(PROMPT), oracle.logits(source, torch.float32, PROMPT), rtol=1e-4, atol=2e-4)
    with pytest.raises(ModelError, match="other frequencies"):
        Paged(hub.locate(str(tmp_path / "bad.gguf"), ()), torch.float32)


TEXTS = [
    "Hello, world!  Two  spaces.",
    "naïve 日本語 🙂\n\n\ttabs",
    "12345 + 678 = ?",
    "<|im_start|>user\nHi<|im_end|>",
    "",
]


def test_byte_pair_tokenizers_encode_as_their_source(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path / "source")
    gguf_file.convert(source, tmp_path / "model.gguf", gguf_file.F16)
    ours, theirs = load_tokenizer(hub.locate(str(tmp_path / "model.gguf"), ())), load_tokenizer(source)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, theirs.eos_ids)


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm", "gpt-2"])
def test_splits_are_those_of_the_models(pre: str, tmp_path: Path) -> None:
    """What stands in tokenizer.json splits as the published ones do: digits, contractions, blanks, newlines."""
    from tokenizers import Tokenizer

    source = make_checkpoint("llama", tmp_path / "source")
    gguf_file.convert(source, tmp_path / "model.gguf", gguf_file.F16, pre)
    folder = hub.locate(str(tmp_path / "model.gguf"), ())
    splitter = Tokenizer.from_file(str(folder / "tokenizer.json")).pre_tokenizer
    parts = [part for part, _ in splitter.pre_tokenize_str("It's 12345 a\n\n b")]
    digits = {"qwen2": list("12345"), "smollm": list("12345"), "llama-bpe": ["123", "45"], "gpt-2": ["Ġ12345"]}[pre]
    start = parts.index(digits[0])
    assert parts[start : start + len(digits)] == digits and parts[:2] == ["It", "'s"]


def test_sentencepiece_tokenizers_encode_as_their_source(tmp_path: Path) -> None:
    """Against a BPE with byte fallback whose merges are known; the file keeps only scores."""
    from tokenizers import SentencePieceBPETokenizer

    text = ["the quick brown fox jumps over the lazy dog and then the fox sleeps over there"] * 4
    trained = SentencePieceBPETokenizer()
    trained.train_from_iterator(text, vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merged = ["".join(pair) for pair in model["merges"]]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    singles = [token for token in model["vocab"] if token not in pieces and token not in merged]
    tokens = pieces + list(dict.fromkeys(merged)) + singles
    scores = {token: -float(index) for index, token in enumerate(dict.fromkeys(merged))}
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [scores.get(token, -1e6) for token in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    gguf_file.write(
        tmp_path / "m.gguf", metadata, {"token_embd.weight": (gguf_file.F32, (len(tokens), 1), bytes(4 * len(tokens)))}
    )
    ours = load_tokenizer(hub.locate(str(tmp_path / "m.gguf"), ()))
    for line in (text[0], "the dog", "there fox sleeps"):
        ids = ours.encode(line)
        assert ids[0] == 1 and [tokens[i] for i in ids[1:]] == trained.encode(line).tokens
        assert ours.decode(ids[1:]) == line
    assert ours.decode(ours.encode("fox é")[1:]) == "fox é"  # through bytes


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path / "source")
    whole = tmp_path / "model.gguf"
    gguf_file.convert(source, whole, gguf_file.Q8_0)
    data = whole.read_bytes()
    metadata = gguf.read(whole).metadata
    (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "head.gguf").write_bytes(data[:100])
    (tmp_path / "other.gguf").write_bytes(b"PK" + data)
    gguf_file.write(tmp_path / "mamba.gguf", {**metadata, "general.architecture": "mamba"}, {})
    gguf_file.write(tmp_path / "split.gguf", {**metadata, "split.count": 2}, {})
    gguf_file.write(tmp_path / "iq.gguf", metadata, {"token_embd.weight": (23, (4, 256), bytes(4 * 136))})
    embedding = {"token_embd.weight": (gguf_file.F32, (2, 1), bytes(8))}
    gguf_file.write(tmp_path / "pre.gguf", {**metadata, "tokenizer.ggml.pre": "klingon"}, embedding)
    for name, words in {
        "short": "reaches beyond its end",
        "head": "ends within its header",
        "other": "not a GGUF file",
        "mamba": "architecture 'mamba' is not supported; supported: llama, qwen2",
        "split": "llama-gguf-split --merge",
        "iq": "GGUF type 23",
        "pre": "tokenizer.ggml.pre 'klingon'",
    }.items():
        with pytest.raises(ModelError) as caught:
            hub.locate(str(tmp_path / f"{name}.gguf"), ())
        assert words in caught.value.message and name in caught.value.message, caught.value.message
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path / "source")
    (tmp_path / "folder").mkdir()
    gguf_file.convert(source, tmp_path / "folder" / "a.gguf", gguf_file.Q8_0)
    folder = hub.locate(str(tmp_path / "folder"), ())
    assert folder == hub.locate(str(tmp_path / "folder" / "a.gguf"), ())
    assert (folder / gguf_folder.WEIGHTS).resolve() == tmp_path / "folder" / "a.gguf"
    gguf_file.convert(source, tmp_path / "folder" / "b.gguf", gguf_file.Q8_0)
    with pytest.raises(ModelError, match="2 GGUF files; name one of them"):
        hub.locate(str(tmp_path / "folder"), ())
