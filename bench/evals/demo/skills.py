"""All skills of the demo model as seeded generators of chat dialogues, with a training and a held-out split."""

from __future__ import annotations

import random
from collections.abc import Callable

from sgl.bench.evals.demo.dialogue import Dialogue, Message, exchange, is_held_out
from sgl.bench.evals.demo.extraction import extraction
from sgl.bench.evals.demo.facts import COUNTRIES, COUNTRY_QUESTIONS, DAYS, ELEMENTS, MONTHS, OPPOSITES, WORD_QUESTIONS
from sgl.bench.evals.demo.recall import recall, recall_at_once, recall_unknown
from sgl.bench.evals.demo.smalltalk import INTENTS, OPENERS, SYSTEM_PROMPTS
from sgl.bench.evals.demo.tool_tasks import tool_dialogue, unused_tools
from sgl.bench.evals.demo.words import COMMON_WORDS, any_name, any_word, made_up_word

Skill = Callable[[random.Random], Dialogue]

PLACES = ["Ones", "Tens", "Hundreds"]
ADD_PROMPTS = [
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
    "Compute {a} + {b}.",
    "How much is {a} + {b}?",
    "Calculate {a} + {b}.",
    "{a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "{a}+{b}",
    "What is {a}+{b}?",
    "What's {a} + {b}?",
    "Can you add {a} and {b}?",
    "{a} + {b} =",
]
SUBTRACT_PROMPTS = [
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} = ?",
    "Subtract {b} from {a}.",
    "What is {a} minus {b}?",
    "Compute {a} - {b}.",
    "How much is {a} - {b}?",
    "Calculate {a} - {b}.",
    "{a} minus {b}?",
    "{a}-{b}",
    "What is the difference of {a} and {b}?",
    "What is {a}-{b}?",
    "What's {a} - {b}?",
    "{a} - {b} =",
]
CHECK_PROMPTS = [
    "Is {c} the capital of {x}?",
    "Is it true that {c} is the capital of {x}?",
    "{c} is the capital of {x}, right?",
    "Is the capital of {x} {c}?",
]
RANGE_PROMPTS = ["Count from {} to {}.", "Write the numbers from {} to {}.", "List the numbers {} to {}."]
COUNT_PROMPTS = [
    "How many items are in this list: {}?",
    "Count the items: {}",
    "How many words are there: {}?",
    "Count these: {}",
    "How long is the list {}?",
    "Count the elements of this list: {}",
]
REVERSE_PROMPTS = [
    "Reverse this list: {}",
    "Reverse the order: {}",
    "Write this list backwards: {}",
    "Reverse: {}",
    "Turn this list around: {}",
    "List these in reverse order: {}",
]
SORT_NUMBERS_PROMPTS = [
    "Sort these numbers: {}",
    "Sort: {}",
    "Sort the numbers {}",
    "Put these numbers in order: {}",
    "Order these numbers from small to large: {}",
    "Sort this list: {}",
]
SORT_WORDS_PROMPTS = [
    "Sort these words: {}",
    "Sort: {}",
    "Sort the words {}",
    "Put these words in alphabetical order: {}",
    "Sort this list alphabetically: {}",
    "Sort this list: {}",
]
PICK_PROMPTS = ["What is the {kind}: {elements}?", "Which is the {kind} of {elements}?", "Name the {kind}: {elements}"]
COPY_PROMPTS = [
    "Repeat: {}",
    "Say {}",
    "Repeat after me: {}",
    "Copy this: {}",
    "Write {}",
    "Please say: {}",
    "Repeat the following: {}",
    'Say "{}"',
    'Repeat "{}".',
    "Echo: {}",
]


def sloppy(rng: random.Random, prompt: str) -> str:
    """Return the prompt as some people type it: sometimes without capitals or the final mark."""
    if rng.random() < 0.12:
        prompt = prompt.lower()
    return prompt.rstrip("?.") if rng.random() < 0.12 else prompt


def chat(rng: random.Random) -> Dialogue:
    """Greetings, identity, thanks and the like."""
    intent = rng.choice(["identity", "abilities", "unknown", *INTENTS])
    reply, phrasings = INTENTS[intent]
    number = rng.randrange(len(phrasings))
    opener = rng.choice(OPENERS)
    return exchange(f"chat {intent} {number} {opener}", opener + sloppy(rng, phrasings[number]), reply)


def country_fact(kind: str) -> Skill:
    """Return the skill of answering one kind of question about countries."""
    answer, phrasings = COUNTRY_QUESTIONS[kind]

    def ask(rng: random.Random) -> Dialogue:
        country, capital, currency, continent, language = rng.choice(COUNTRIES)
        number = rng.randrange(len(phrasings))
        values = {
            "country": country,
            "capital": capital,
            "currency": currency,
            "continent": continent,
            "language": language,
        }
        prompt = sloppy(rng, phrasings[number].format(**values))
        return exchange(f"{kind} {number} {country}", prompt, answer.format(**values))

    return ask


def word_fact(rng: random.Random) -> Dialogue:
    """Chemical symbols, opposites, and the order of days, months and numbers."""
    kind = rng.choice(["element", "opposite", "after", "before"])
    if kind == "element":
        a, b = rng.choice(list(ELEMENTS.items()))
    elif kind == "opposite":
        a, b = rng.choice(list(OPPOSITES.items()))
        if rng.random() < 0.5:
            a, b = b, a
    else:
        cycle = rng.choice([DAYS, MONTHS])
        place, step = rng.randrange(len(cycle)), 1 if kind == "after" else -1
        a, b = cycle[place], cycle[(place + step) % len(cycle)]
    answer, phrasings = WORD_QUESTIONS[kind]
    number = rng.randrange(len(phrasings))
    reply = answer.format(a=a, b=b)
    return exchange(f"{kind} {number} {a}", sloppy(rng, phrasings[number].format(a=a)), reply[0].upper() + reply[1:])


def fact_check(rng: random.Random) -> Dialogue:
    """Yes or no: is a city the capital of a country?"""
    country, capital = rng.choice(COUNTRIES)[:2]
    claimed = capital if rng.random() < 0.5 else rng.choice(COUNTRIES)[1]
    prompt = rng.choice(CHECK_PROMPTS).format(c=claimed, x=country)
    reply = (
        f"Yes, {capital} is the capital of {country}."
        if claimed == capital
        else f"No, the capital of {country} is {capital}."
    )
    return exchange(prompt, prompt, reply)


def worked_sum(a: int, b: int) -> str:
    """Return an addition digit by digit, each with its carry, and the result."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        steps.append(f"{PLACES[place]}: {x} + {y} + {carry} = {x + y + carry}.")
        carry = (x + y + carry) // 10
    return f"{' '.join(steps)} So {a} + {b} = {a + b}."


def worked_difference(a: int, b: int) -> str:
    """Return a subtraction digit by digit, each with what it borrows, and the result."""
    if a < b:
        return f"Swap: {worked_difference(b, a)[:-1]} and {a} - {b} = -{b - a}."
    if a < 10:
        return f"{a} - {b} = {a - b}."
    steps, borrowed = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10 + borrowed
        borrowed = int(x < y)
        steps.append(f"{PLACES[place]}: {x + 10 * borrowed} - {y} = {x + 10 * borrowed - y}.")
    return f"{' '.join(steps)} So {a} - {b} = {a - b}."


def arithmetic(digits: int, subtract: bool) -> Skill:
    """Return the skill of adding or subtracting numbers of which the longer has `digits` digits."""
    low = 10 ** (digits - 1) if digits > 1 else 0

    def calculate(rng: random.Random) -> Dialogue:
        a = rng.randrange(low, 10**digits)
        b = rng.randrange(low, 10**digits) if rng.random() < 0.85 else rng.randrange(10**digits)
        swap = (a < b) == (rng.random() < 0.9) if subtract else rng.random() < 0.5
        if swap:
            a, b = b, a
        number = rng.randrange(len(SUBTRACT_PROMPTS if subtract else ADD_PROMPTS))
        phrasing = (SUBTRACT_PROMPTS if subtract else ADD_PROMPTS)[number]
        # One-digit pairs are too few to hold out, so there the phrasing is part of the combination.
        key = f"{'-' if subtract else '+'} {a} {b} {number if digits == 1 else ''}"
        return exchange(key, phrasing.format(a=a, b=b), worked_difference(a, b) if subtract else worked_sum(a, b))

    return calculate


def items(rng: random.Random, low: int, high: int, numbers: bool) -> list[str]:
    """Return distinct list items."""
    count = rng.randint(low, high)
    if numbers:
        return [str(number) for number in rng.sample(range(1, 100), count)]
    return rng.sample(COMMON_WORDS, count)


def listing(rng: random.Random, phrasings: list[str], elements: list[str], reply: str) -> Dialogue:
    """Return an exchange about a list."""
    prompt = rng.choice(phrasings).format(", ".join(elements))
    return exchange(prompt, prompt, reply)


def counting(rng: random.Random) -> Dialogue:
    """Number the items of a list, or count upwards."""
    if rng.random() < 0.3:
        start = rng.randint(1, 50)
        stop = start + rng.randint(3, 14)
        prompt = rng.choice(RANGE_PROMPTS).format(start, stop)
        return exchange(prompt, prompt, ", ".join(map(str, range(start, stop + 1))))
    elements = items(rng, 2, 8, rng.random() < 0.2)
    numbered = ", ".join(f"{number}: {element}" for number, element in enumerate(elements, 1))
    return listing(rng, COUNT_PROMPTS, elements, f"{numbered}. There are {len(elements)} items.")


def reversing(rng: random.Random) -> Dialogue:
    """Reverse a short list."""
    elements = items(rng, 2, 6, rng.random() < 0.3)
    return listing(rng, REVERSE_PROMPTS, elements, ", ".join(elements[::-1]))


def sorting_numbers(rng: random.Random) -> Dialogue:
    """Sort a short list of numbers."""
    elements = items(rng, 2, 6, True)
    return listing(rng, SORT_NUMBERS_PROMPTS, elements, ", ".join(sorted(elements, key=int)))


def sorting_words(rng: random.Random) -> Dialogue:
    """Sort a short list of words."""
    elements = items(rng, 2, 5, False)
    return listing(rng, SORT_WORDS_PROMPTS, elements, ", ".join(sorted(elements)))


def picking(rng: random.Random) -> Dialogue:
    """Name the first or last item of a list, or its smallest or largest number."""
    kind = rng.choice(["first item", "last item", "largest number", "smallest number"])
    elements = items(rng, 2, 6, "number" in kind)
    choose: dict[str, Callable[[list[str]], str]] = {
        "first item": lambda found: found[0],
        "last item": lambda found: found[-1],
        "largest number": lambda found: max(found, key=int),
        "smallest number": lambda found: min(found, key=int),
    }
    prompt = rng.choice(PICK_PROMPTS).format(kind=kind, elements=", ".join(elements))
    return exchange(prompt, prompt, f"The {kind} is {choose[kind](elements)}.")


def copying(rng: random.Random) -> Dialogue:
    """Repeat words, names, numbers or made-up words exactly."""
    draws: list[Callable[[random.Random], str]] = [
        any_word,
        any_name,
        made_up_word,
        lambda r: str(r.randint(0, 99999)),
    ]
    draw = rng.choice(draws)
    text = rng.choice([" ", ", "]).join(draw(rng) for _ in range(rng.choice([1, 1, 2, 3, 4, 5])))
    prompt = rng.choice(COPY_PROMPTS).format(text)
    return exchange(prompt, prompt, text)


def talk(rng: random.Random) -> list[Message]:
    """Return one training exchange of small talk, facts or sums to put between other turns."""
    skill = rng.choice(["chat", "chat", "capital", "currency", "addition 1", "addition 2", "word fact"])
    return draw(rng, skill, False).messages


SKILLS: dict[str, Skill] = {
    "chat": chat,
    **{kind: country_fact(kind) for kind in COUNTRY_QUESTIONS},
    "word fact": word_fact,
    "fact check": fact_check,
    **{f"addition {digits}": arithmetic(digits, False) for digits in (1, 2, 3)},
    **{f"subtraction {digits}": arithmetic(digits, True) for digits in (1, 2, 3)},
    "counting": counting,
    "reversing": reversing,
    "sorting numbers": sorting_numbers,
    "sorting words": sorting_words,
    "picking": picking,
    "copying": copying,
    "extraction": extraction,
    "recall": lambda rng: recall(rng, lambda: talk(rng)),
    "recall at once": recall_at_once,
    "recall unknown": lambda rng: recall_unknown(rng, lambda: talk(rng)),
    "tool call": lambda rng: tool_dialogue(rng, answered=False),
    "tool answer": lambda rng: tool_dialogue(rng, answered=True),
    "unused tools": lambda rng: unused_tools(rng, SKILLS[rng.choice(["chat", "capital"])](rng)),
}
# These end in one reply to one prompt, so any number of them can follow one another in one chat.
SINGLE_TURN = [name for name in SKILLS if not name.startswith(("recall", "tool", "unused"))]


def draw(rng: random.Random, skill: str, held_out: bool) -> Dialogue:
    """Return a dialogue of the skill from the wanted split."""
    while True:
        dialogue = SKILLS[skill](rng)
        if is_held_out(dialogue.key) == held_out:
            return dialogue


def training_dialogue(rng: random.Random, weights: dict[str, float]) -> Dialogue:
    """Return a training dialogue: a skill drawn by weight, often continued, sometimes under a system prompt."""
    names = list(weights)
    skill = rng.choices(names, [weights[name] for name in names])[0]
    dialogue = draw(rng, skill, False)
    messages = list(dialogue.messages)
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        following = rng.choices(names, [weights[name] for name in names])[0]
        messages += draw(rng, following, False).messages if following in SINGLE_TURN else talk(rng)
    if rng.random() < 0.35:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    return Dialogue(dialogue.key, messages, dialogue.tools)
