"""Small tokenizers of every kind, and directories that hold them like a checkpoint does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Hello world, hello there! It's 12:30 and   spaces matter.",
    "naïve café über straße",
    "日本語のテキスト 中文文本 한국어",
    "emoji 😀😃👩‍👩‍👧 🇩🇪 end",
    "def f(x):\n    return x + 1\n",
] * 3
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<note>", special=False), AddedToken("｜töken｜", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral, Gemma: spaces are ▁, unknown characters are byte tokens, a leading space is stripped."""
    words = ["▁hello", "▁world", "he", "ll", "hell", "hello", "wor", "ld", "world", "▁▁", "▁▁▁▁"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzH,.!é日"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("w", "o"), ("▁", "▁"), ("▁▁", "▁▁")]
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*tokens, "wo"]))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Spaces are ▁; the decoder drops those of the first token."""
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), *((t, -1.0) for t in ("▁", *"helowrdé日😀", "▁he", "llo", "▁▁"))], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    """The decoder puts spaces between tokens."""
    words = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "##ing", "do", "n", "'", "t", ".", ","]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    return tokenizer


def without_decoder() -> Tokenizer:
    """Tokens are joined with spaces."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "a", "b", "c"])}, "<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def byte_level_in_sequence() -> Tokenizer:
    """Byte-level, but not to be recognised as such at once."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "word_piece": word_piece,
    "without_decoder": without_decoder,
    "byte_level_in_sequence": byte_level_in_sequence,
}


def write(directory: Path, tokenizer: Tokenizer, settings: dict[str, Any] | None = None, **files: Any) -> Path:
    """A directory with tokenizer.json, tokenizer_config.json and further JSON files by name."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    contents = {"tokenizer_config": {**known, **(settings or {})}, **files}
    for name, content in contents.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory
