"""Directories as checkpoints have them, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sgl.engine.base.errors import ModelError, SglError
from sgl.engine.text.tokenizer import load_tokenizer, no_tokenizer
from tests.text import vocabularies

TEXTS = [
    "Hello world",
    "<s>Hello",
    "<|im_start|>user\nhi<|im_end|>",
    "日本 😀 é",
    "a\0b",
    "",
    "<note> x <pad>",
    "  two  ",
]
FLAGS = [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_encodes_as_transformers_does_but_for_a_doubled_bos(tmp_path: Path, kind: str, flags: dict[str, bool]) -> None:
    extra = {"pad_token": "<pad>", "additional_special_tokens": ["<extra>"], "clean_up_tokenization_spaces": False}
    vocabularies.write(tmp_path, vocabularies.KINDS[kind](), {**flags, **extra})
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        for special in (True, False):
            expected = theirs.encode(text, add_special_tokens=special)
            if special and expected[:2] == [ours.bos_id] * 2:
                expected = expected[1:]
            assert ours.encode(text, add_special_tokens=special) == expected
            for skip in (True, False):
                assert ours.decode(expected, skip_special_tokens=skip) == theirs.decode(
                    expected, skip_special_tokens=skip
                )


def test_one_bos_stays_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.byte_fallback()))
    assert tokenizer.encode("hello")[0] == tokenizer.bos_id
    assert tokenizer.encode("<s>hello") == tokenizer.encode("<s>hello", add_special_tokens=False)
    assert tokenizer.encode("<s><s>hello").count(tokenizer.bos_id) == 2  # the second was asked for


def test_end_ids_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    files = {"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [3, 7]}}
    vocabularies.write(tmp_path, vocabularies.byte_level(), {"eos_token": {"content": "</s>"}}, **files)
    assert load_tokenizer(tmp_path).eos_ids == (3, 7, 1)
    assert no_tokenizer(tmp_path).eos_ids == (3, 7)


def test_end_ids_of_a_nested_text_model(tmp_path: Path) -> None:
    files = {"config": {"text_config": {"eos_token_id": 9}}}
    vocabularies.write(tmp_path, vocabularies.byte_level(), {"eos_token": None}, **files)
    assert load_tokenizer(tmp_path).eos_ids == (9,)


def test_special_tokens_map_fills_in(tmp_path: Path) -> None:
    vocabularies.write(
        tmp_path, vocabularies.byte_level(), {"bos_token": None}, special_tokens_map={"bos_token": {"content": "<s>"}}
    )
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.settings.named) == (0, {"bos_token": "<s>"})


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_token_bytes_join_to_the_text(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.KINDS[kind](), {"bos_token": None}))
    ids = tokenizer.encode("hello hello", add_special_tokens=False)
    text = b"".join(map(tokenizer.token_bytes, ids)).decode()
    assert text.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""


def test_token_bytes_of_parts_of_a_character(tmp_path: Path) -> None:
    for kind in ("byte_level", "byte_fallback"):
        tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.KINDS[kind]()))
        ids = tokenizer.encode("😀", add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == "😀"
        assert "\ufffd" in tokenizer.token_text(ids[-1])


def test_leading_space_shows_in_the_text_of_a_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.byte_fallback()))
    token_id = tokenizer.id_of("▁world") or tokenizer.id_of("▁hello")
    assert token_id is not None
    assert tokenizer.token_text(token_id).startswith(" ")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "x" * 10 + "\ud83d"])
def test_unpaired_surrogates_are_refused_by_name(tmp_path: Path, text: str) -> None:
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.byte_level()))
    with pytest.raises(SglError, match=r"prompt has an unpaired surrogate \(U\+D") as caught:
        tokenizer.encode(text, param="prompt")
    assert (caught.value.param, caught.value.status) == ("prompt", 400)


@pytest.mark.parametrize("ids", [[-1], [5, 10**9], [2**40]])
def test_ids_out_of_range_are_refused(tmp_path: Path, ids: list[int]) -> None:
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.byte_level()))
    with pytest.raises(SglError, match="outside the vocabulary"):
        tokenizer.decode(ids)


def test_batches_encode_like_single_texts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, vocabularies.byte_fallback()))
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_padding_and_truncation_of_the_file_do_not_apply(tmp_path: Path) -> None:
    library = vocabularies.byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=64)
    tokenizer = load_tokenizer(vocabularies.write(tmp_path, library))
    assert tokenizer.decode(tokenizer.encode("Hello world, hello there!")) == "Hello world, hello there!"


def test_no_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no tokenizer .*--tokenizer-path"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "XYZ"}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}'),
        ("generation_config.json", "\xff"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    vocabularies.write(tmp_path, vocabularies.byte_level())
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=name) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in caught.value.message


def test_without_a_tokenizer_text_is_refused(tmp_path: Path) -> None:
    tokenizer = no_tokenizer(tmp_path)
    with pytest.raises(SglError, match="--skip-tokenizer-init"):
        tokenizer.encode("x")
    detokenizer = tokenizer.detokenizer()
    assert (detokenizer.push([1, 2]), detokenizer.finish(), tokenizer.token_text(3)) == ("", "", "")


def test_directories_without_tokenizer_json_are_left_to_transformers(tmp_path: Path) -> None:
    """GPT-2's own form: vocab.json and merges.txt."""
    source = json.loads(vocabularies.byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(source["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in source["merges"])]))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hello world") == vocabularies.byte_level().encode("Hello world").ids
    assert tokenizer.eos_ids == (1,)


def test_tokenizers_written_in_python(tmp_path: Path) -> None:
    """One that transformers has no `tokenizers` form of."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "</s>": 1, "h": 2, "e": 3, "l": 4, "o": 5, "|": 6}))
    config = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    tokenizer = load_tokenizer(tmp_path, "slow")
    ids = tokenizer.encode("hello", add_special_tokens=False)
    assert ids == [2, 3, 4, 4, 5]
    assert tokenizer.id_of("nothing") is None
