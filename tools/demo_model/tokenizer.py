"""Trains the demo model's tokenizer: python -m tools.demo_model.tokenizer --out DIR."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sgl.bench.evals.demo import words
from sgl.bench.evals.demo.facts import COUNTRIES, DAYS, ELEMENTS, MONTHS, OPPOSITES
from sgl.bench.evals.demo.skills import SKILLS
from sgl.bench.evals.demo.tool_tasks import LANGUAGES, SLOTS, TASKS, VERBS, WEATHER

VOCABULARY = 3072
MAX_LENGTH = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
# A word is the same token after a space, a quote or a line start: letters, single digits, line ends and everything
# else (punctuation with its spaces) never share a token. Exact copying depends on this.
SPLIT = r"\p{L}+|\p{N}|\n|[^\p{L}\p{N}\n]+"


def whole_words() -> list[str]:
    """Return the words that shall be one token each."""
    pools = [
        words.NAMES,
        words.CITIES,
        words.COMMON_WORDS,
        words.ROOMS,
        DAYS,
        MONTHS,
        LANGUAGES,
        SLOTS,
        VERBS,
        WEATHER,
        [cell for row in COUNTRIES for cell in row],
        [*ELEMENTS, *ELEMENTS.values()],
        [*OPPOSITES, *OPPOSITES.values()],
        [name for task in TASKS for name in task.names],
    ]
    return [word for pool in pools for entry in pool for word in entry.replace("_", " ").split()]


def corpus(dialogues: int) -> Iterator[str]:
    """Yield the whole words often, and the text of dialogues of every skill."""
    for word in whole_words():
        yield " ".join([word] * 60)
    rng = random.Random(0)
    names = list(SKILLS)
    for number in range(dialogues):
        dialogue = SKILLS[names[number % len(names)]](rng)
        for message in dialogue.messages:
            yield message["content"] or str(message["tool_calls"]).replace("'", '"')
        yield str(dialogue.tools).replace("'", '"')


def train_tokenizer(dialogues: int = 30000) -> PreTrainedTokenizerFast:
    """Return the trained tokenizer with its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKUP),
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(dialogues), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    template = (Path(__file__).parent / "chat_template.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def main() -> None:
    """Train, report how many words are single tokens, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(out, save_jinja_files=False)
    split = sorted({word for word in whole_words() if len(tokenizer.encode(word)) > 1})
    print(f"{len(tokenizer)} tokens; words of more than one token: {split}")


if __name__ == "__main__":
    main()
