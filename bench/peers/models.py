"""Makes the checkpoints that all engines are measured on: random weights of two well-known shapes, with a tokenizer.

Speed does not depend on what weights say, only on how many there are; answers are noise.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl.engine.base.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

SHAPES: Mapping[str, str] = {"qwen2-0.5b": "qwen2.5-0.5b", "llama-135m": "smollm2-135m"}
"""Names of the models and of their shapes in ``bench/shapes``."""

SEED = 1234
DEVIATION = 0.02
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MERGED = 6000
"""Ids that text is made of; the others fill the vocabulary up."""


def make_models(folder: Path, names: Iterator[str] | None = None, note: Callable[[str], None] = lambda _: None) -> None:
    """Writes ``folder/models/NAME`` for every shape; what is there stays.

    Raises:
        ConfigError: the folder cannot be written.
    """
    shapes = Path(__file__).resolve().parent.parent / "shapes"
    for name in names or SHAPES:
        path = folder / "models" / name
        if (path / "model.safetensors").is_file():
            note(f"{path} is there")
            continue
        note(f"making {path}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            make_model(path, json.loads((shapes / SHAPES[name] / "config.json").read_text()))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None


def make_model(path: Path, config: dict[str, Any]) -> None:
    """Writes a checkpoint of this ``config.json``: weights, tokenizer, chat template."""
    from safetensors.torch import save_file

    first = config["vocab_size"] - len(SPECIAL)
    ids = {"pad_token_id": first, "eos_token_id": first + 2, "bos_token_id": None}
    make_tokenizer(path, config["vocab_size"])
    (path / "config.json").write_text(json.dumps({**config, **ids, "torch_dtype": config["dtype"]}, indent=1))
    (path / "generation_config.json").write_text(json.dumps(ids))
    weights = make_weights({**config, **ids})
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})  # last: it says that all is there


def make_weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Normally distributed bf16 weights by name, norms of ones; a tied head is left out."""
    import torch
    import transformers

    auto: Any = transformers.AutoConfig
    shape = auto.for_model(**config)
    automatic: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = automatic.from_config(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, parameter in model.named_parameters():
        if "norm" in name:
            weights[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:
            drawn = torch.empty(parameter.shape).normal_(0.0, DEVIATION, generator=generator)
            weights[name] = drawn.to(torch.bfloat16)
    return weights


def make_tokenizer(path: Path, vocab_size: int) -> None:
    """A byte-level BPE of exactly this size; three special tokens are its last ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, first = pre_tokenizers.ByteLevel.alphabet(), vocab_size - len(SPECIAL)
    trainer = trainers.BpeTrainer(vocab_size=min(_MERGED, first), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_sentences(), trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<unused{i}>": i for i in range(len(vocabulary), first)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": first + i, "content": text, **flags} for i, text in enumerate(SPECIAL)]
    (path / "tokenizer.json").write_text(json.dumps(content))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "model_max_length": 32768,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _sentences(count: int = 4000) -> Iterator[str]:
    """Words of a language that does not exist, the same every time."""
    rng = random.Random(SEED)
    onsets, rimes = ("", "b", "d", "gr", "k", "l", "m", "p", "s", "st", "t", "v"), ("a", "en", "i", "or", "um", "y")
    words = ["".join(rng.choice(onsets) + rng.choice(rimes) for _ in range(rng.randint(1, 4))) for _ in range(3000)]
    for _ in range(count):
        yield " ".join(rng.choices(words, k=rng.randint(4, 16))).capitalize() + f", {rng.randrange(10000)}.\n"
