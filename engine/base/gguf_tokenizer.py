"""The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json; encodes nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl.engine.base.errors import ModelError
from sgl.engine.base.gguf import Gguf

_UNKNOWN, _CONTROL, _DEFINED = 2, 3, 4  # types of tokens

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS: Mapping[str, str | None] = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "gpt-2": None,
    "default": None,
}
"""How text is split before byte pairs are merged, by ``tokenizer.ggml.pre``; None: as GPT-2 does."""

_DIGITS = ("smollm",)
"""Those that split digits from each other, then as GPT-2 does."""


def tokenizer_files(header: Gguf) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json.

    Raises:
        ModelError: the tokenizer is missing or of a kind that is not supported.
    """
    metadata = header.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"{header.path} has no tokenizer (tokenizer.ggml.tokens).")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        described = _byte_pairs(header, tokens)
    elif kind == "llama":
        described = _sentence_pieces(header, tokens)
    else:
        raise ModelError(
            f"{header.path}: the tokenizer {kind!r} is not supported; supported are gpt2 (BPE) and llama (SPM)."
        )
    described["added_tokens"] = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[index] != _DEFINED,
        }
        for index, token in enumerate(tokens)
        if kinds[index] in (_UNKNOWN, _CONTROL, _DEFINED)
    ]
    named = _named(metadata, tokens)
    described["post_processor"] = _framing(metadata, named, described["post_processor"])
    return {"tokenizer.json": described, "tokenizer_config.json": _config(metadata, named)}


def _named(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, tuple[str, int]]:
    """BOS and its like: token and id."""
    fields = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{field}_token_id") for name, field in fields.items()}
    return {name: (tokens[index], index) for name, index in ids.items() if index is not None and index < len(tokens)}


def _config(metadata: Mapping[str, Any], named: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    config: dict[str, Any] = {name: token for name, (token, _) in named.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config["add_eos_token"] = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


def _framing(metadata: Mapping[str, Any], named: Mapping[str, tuple[str, int]], otherwise: Any) -> Any:
    """Puts BOS in front where the file says so; where it says nothing, SPM does and BPE does not."""
    adds = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
    if not adds or "bos_token" not in named:
        return otherwise
    token, index = named["bos_token"]
    bos, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, bos, second],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def _byte_pairs(header: Gguf, tokens: Sequence[str]) -> dict[str, Any]:
    split = header.metadata.get("tokenizer.ggml.pre", "default")
    if split not in _SPLITS and split not in _DIGITS:
        known = ", ".join((*_SPLITS, *_DIGITS))
        raise ModelError(f"{header.path}: tokenizer.ggml.pre {split!r} is not supported; supported: {known}.")
    pattern = _SPLITS.get(split)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": pattern is None}
    steps: list[dict[str, Any]] = [byte_level]
    if pattern is not None:
        steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level]
    if split in _DIGITS:
        steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    merges = [merge.split(" ", 1) for merge in header.metadata.get("tokenizer.ggml.merges") or []]
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if pattern == _QWEN2 else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": _model(tokens, merges, ignore_merges=pattern == _LLAMA3),
    }


def _sentence_pieces(header: Gguf, tokens: Sequence[str]) -> dict[str, Any]:
    """SentencePiece's BPE: pairs merge in the order of the score of what they make."""
    metadata = header.metadata
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    ids = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token, index in ids.items():
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(scores[index], len(left), len(right), left, right) for left, right in known]
    merges.sort(key=lambda merge: merge[:3], reverse=True)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    space: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    strip: list[dict[str, Any]] = []
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        space.insert(0, {"type": "Prepend", "prepend": "▁"})
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    model = _model(tokens, [[left, right] for *_, left, right in merges], ignore_merges=False)
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": space},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**model, "unk_token": tokens[unknown], "fuse_unk": True, "byte_fallback": True},
    }


def _model(tokens: Sequence[str], merges: list[list[str]], ignore_merges: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }
