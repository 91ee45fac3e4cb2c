"""Multi-turn recall: the user says something early and asks for it later."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from sgl.bench.evals.demo.dialogue import Dialogue, Message, assistant, user
from sgl.bench.evals.demo.words import ANIMALS, CITIES, COLORS, FOODS, HOBBIES, JOBS, any_name, any_word


@dataclass(frozen=True)
class Memory:
    """One thing a user may tell: how it is said, acknowledged, asked for, answered and missed."""

    draw: Callable[[random.Random], str]
    statements: list[str]
    acknowledgement: str
    questions: list[str]
    answer: str
    unknown: str


def code(rng: random.Random) -> str:
    """Return a number of three to five digits."""
    return str(rng.randint(100, 99999))


MEMORIES: dict[str, Memory] = {
    "name": Memory(
        any_name,
        [
            "My name is {v}.",
            "I am {v}.",
            "I'm {v}.",
            "Call me {v}.",
            "Hi, I am {v}.",
            "Hello, my name is {v}.",
            "People call me {v}.",
            "I am called {v}.",
            "Hi, I'm {v}.",
            "Hello! I'm {v}.",
            "You can call me {v}.",
            "My name's {v}.",
            "Hi! My name is {v}.",
        ],
        "Nice to meet you, {v}!",
        [
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you remember my name?",
            "Tell me my name.",
            "Say my name.",
            "Do you know my name?",
            "Can you tell me my name?",
            "What am I called?",
            "How am I called?",
            "Remember my name?",
            "What did I say my name was?",
        ],
        "Your name is {v}.",
        "You have not told me your name yet.",
    ),
    "city": Memory(
        lambda rng: rng.choice(CITIES),
        [
            "I live in {v}.",
            "My home is in {v}.",
            "I'm from {v}.",
            "I am from {v}.",
            "My city is {v}.",
            "I live in the city of {v}.",
            "I am living in {v} now.",
        ],
        "{v} sounds like a nice place.",
        [
            "Where do I live?",
            "Which city do I live in?",
            "Do you remember where I live?",
            "Where is my home?",
            "Where am I from?",
            "What is my city?",
            "Tell me where I live.",
        ],
        "You live in {v}.",
        "You have not told me where you live yet.",
    ),
    "color": Memory(
        lambda rng: rng.choice(COLORS),
        [
            "My favorite color is {v}.",
            "I like the color {v} best.",
            "{v} is my favorite color.",
            "The color I like most is {v}.",
        ],
        "Got it, your favorite color is {v}.",
        [
            "What is my favorite color?",
            "Which color do I like?",
            "Do you remember my favorite color?",
            "Tell me my favorite color.",
            "What color do I like best?",
        ],
        "Your favorite color is {v}.",
        "You have not told me your favorite color yet.",
    ),
    "animal": Memory(
        lambda rng: rng.choice(ANIMALS),
        ["My favorite animal is the {v}.", "I like the {v} best of all animals.", "The animal I like most is the {v}."],
        "Got it, your favorite animal is the {v}.",
        [
            "What is my favorite animal?",
            "Which animal do I like?",
            "Do you remember my favorite animal?",
            "Tell me my favorite animal.",
            "Which animal do I like best?",
        ],
        "Your favorite animal is the {v}.",
        "You have not told me your favorite animal yet.",
    ),
    "food": Memory(
        lambda rng: rng.choice(FOODS),
        ["My favorite food is {v}.", "I love to eat {v}.", "I like to eat {v}.", "The food I like most is {v}."],
        "Got it, you like {v}.",
        [
            "What is my favorite food?",
            "What do I like to eat?",
            "Do you remember my favorite food?",
            "Which food do I like?",
            "Tell me my favorite food.",
        ],
        "Your favorite food is {v}.",
        "You have not told me your favorite food yet.",
    ),
    "job": Memory(
        lambda rng: rng.choice(JOBS),
        ["I work as a {v}.", "My job is {v}.", "I am a {v}.", "I'm a {v}."],
        "Being a {v} sounds interesting.",
        [
            "What is my job?",
            "What do I do for a living?",
            "What do I work as?",
            "Do you remember my job?",
            "Tell me my job.",
        ],
        "You work as a {v}.",
        "You have not told me your job yet.",
    ),
    "hobby": Memory(
        lambda rng: rng.choice(HOBBIES),
        ["My hobby is {v}.", "In my free time I like {v}.", "I love {v}.", "My favorite hobby is {v}."],
        "{v} sounds like fun.",
        [
            "What is my hobby?",
            "What do I like to do?",
            "Do you remember my hobby?",
            "What do I do in my free time?",
            "Tell me my hobby.",
        ],
        "Your hobby is {v}.",
        "You have not told me your hobby yet.",
    ),
    "pet": Memory(
        any_name,
        ["My pet is called {v}.", "I have a pet named {v}.", "The name of my pet is {v}.", "My pet's name is {v}."],
        "{v} is a lovely name for a pet.",
        [
            "What is my pet called?",
            "What is the name of my pet?",
            "Do you remember my pet's name?",
            "What's my pet's name?",
            "Tell me the name of my pet.",
        ],
        "Your pet is called {v}.",
        "You have not told me about your pet yet.",
    ),
    "friend": Memory(
        any_name,
        ["My best friend is {v}.", "My best friend is called {v}.", "The name of my best friend is {v}."],
        "{v} must be a good friend.",
        [
            "Who is my best friend?",
            "What is the name of my best friend?",
            "Do you remember my best friend?",
            "Tell me who my best friend is.",
            "What is my best friend called?",
        ],
        "Your best friend is {v}.",
        "You have not told me about your best friend yet.",
    ),
    "age": Memory(
        lambda rng: str(rng.randint(5, 99)),
        ["I am {v} years old.", "I'm {v} years old.", "My age is {v}.", "I just turned {v}."],
        "Got it, you are {v} years old.",
        ["How old am I?", "What is my age?", "Do you remember my age?", "Do you know how old I am?", "Tell me my age."],
        "You are {v} years old.",
        "You have not told me your age yet.",
    ),
    "code": Memory(
        code,
        [
            "The code is {v}.",
            "Remember the code {v}.",
            "Remember this number: {v}",
            "My number is {v}.",
            "Please remember the number {v}.",
        ],
        "I will remember {v}.",
        [
            "What is the code?",
            "What was the number?",
            "Which number did I tell you?",
            "Tell me the code.",
            "What was the code?",
            "Do you remember the number?",
        ],
        "The number is {v}.",
        "You have not told me a number yet.",
    ),
    "word": Memory(
        any_word,
        [
            "The secret word is {v}.",
            "Remember the word {v}.",
            "My secret word is {v}.",
            "The password is {v}.",
            "Please remember this word: {v}",
        ],
        "I will remember {v}.",
        [
            "What is the secret word?",
            "What was the word?",
            "Which word did I tell you?",
            "Tell me the secret word.",
            "Do you remember the word?",
            "What is the password?",
        ],
        "The word is {v}.",
        "You have not told me a word yet.",
    ),
}


def recall(rng: random.Random, fillers: Callable[[], list[Message]]) -> Dialogue:
    """Return a dialogue that states one to three things, chats on, and asks for one or two of them."""
    kinds = rng.sample(sorted(MEMORIES), rng.choice([1, 1, 2, 2, 3]))
    if rng.random() < 0.4 and "name" not in kinds:
        kinds[0] = "name"
    told = {kind: MEMORIES[kind].draw(rng) for kind in kinds}
    messages: list[Message] = []
    for kind, value in told.items():
        memory = MEMORIES[kind]
        messages += [
            user(rng.choice(memory.statements).format(v=value)),
            assistant(memory.acknowledgement.format(v=value)),
        ]
        for _ in range(rng.choice([0, 0, 1, 2])):
            messages += fillers()
    asked = rng.sample(kinds, rng.randint(1, len(kinds)))
    for kind in asked:
        memory = MEMORIES[kind]
        messages += [user(rng.choice(memory.questions)), assistant(memory.answer.format(v=told[kind]))]
    key = json.dumps([m["content"] for m in messages if m["role"] == "user"])
    return Dialogue(key, messages)


def recall_at_once(rng: random.Random) -> Dialogue:
    """Return a dialogue that states one or two things and asks for one of them in the same message."""
    kinds = rng.sample(sorted(MEMORIES), rng.randint(1, 2))
    told = {kind: MEMORIES[kind].draw(rng) for kind in kinds}
    said = " ".join(rng.choice(MEMORIES[kind].statements).format(v=value) for kind, value in told.items())
    asked = rng.choice(kinds)
    prompt = f"{said} {rng.choice(MEMORIES[asked].questions)}"
    return Dialogue(prompt, [user(prompt), assistant(MEMORIES[asked].answer.format(v=told[asked]))])


def recall_unknown(rng: random.Random, fillers: Callable[[], list[Message]]) -> Dialogue:
    """Return a dialogue that asks for something that was never said, after another thing was."""
    told, asked = rng.sample(sorted(MEMORIES), 2)
    memory, missing = MEMORIES[told], MEMORIES[asked]
    messages: list[Message] = []
    if rng.random() < 0.6:
        value = memory.draw(rng)
        messages += [
            user(rng.choice(memory.statements).format(v=value)),
            assistant(memory.acknowledgement.format(v=value)),
        ]
        messages += fillers()
    messages += [user(rng.choice(missing.questions)), assistant(missing.unknown)]
    return Dialogue(json.dumps([m["content"] for m in messages if m["role"] == "user"]), messages)
