"""Field extraction: a sentence with several values becomes a JSON object with the requested keys."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sgl.bench.evals.demo.dialogue import Dialogue, exchange
from sgl.bench.evals.demo.facts import DAYS
from sgl.bench.evals.demo.words import (
    CITIES,
    COLORS,
    EVENTS,
    FOODS,
    FRUITS,
    HOBBIES,
    JOBS,
    PLACES,
    THINGS,
    any_name,
    any_word,
)


@dataclass(frozen=True)
class Domain:
    """A kind of sentence: how each field is drawn, and the sentences that hold all fields."""

    fields: dict[str, Callable[[random.Random], Any]]
    sentences: list[str]


DOMAINS: list[Domain] = [
    Domain(
        {"name": any_name, "age": lambda rng: rng.randint(5, 99), "city": lambda rng: rng.choice(CITIES)},
        [
            "{name} is {age} years old and lives in {city}.",
            "{name}, {age}, lives in {city}.",
            "My friend {name} from {city} is {age}.",
            "In {city} lives {name}, who is {age} years old.",
            "I met {name} in {city}. {name} is {age} years old.",
            "At the age of {age}, {name} moved to {city}.",
            "{name} ({age}) comes from {city}.",
        ],
    ),
    Domain(
        {"name": any_name, "job": lambda rng: rng.choice(JOBS), "city": lambda rng: rng.choice(CITIES)},
        [
            "{name} works as a {job} in {city}.",
            "{name} is a {job} from {city}.",
            "The {job} {name} lives in {city}.",
            "In {city}, {name} works as a {job}.",
            "{name} moved to {city} to become a {job}.",
        ],
    ),
    Domain(
        {"name": any_name, "age": lambda rng: rng.randint(5, 99), "job": lambda rng: rng.choice(JOBS)},
        [
            "{name} is a {age} year old {job}.",
            "{name}, {age}, works as a {job}.",
            "The {job} {name} is {age} years old.",
            "At {age}, {name} became a {job}.",
        ],
    ),
    Domain(
        {"name": any_name, "hobby": lambda rng: rng.choice(HOBBIES), "color": lambda rng: rng.choice(COLORS)},
        [
            "{name} likes {hobby} and the color {color}.",
            "{name} enjoys {hobby} and wears {color} clothes.",
            "The hobby of {name} is {hobby}, the favorite color is {color}.",
        ],
    ),
    Domain(
        {
            "item": lambda rng: rng.choice(THINGS + FRUITS),
            "quantity": lambda rng: rng.randint(1, 99),
            "price": lambda rng: rng.randint(1, 999),
        },
        [
            "I want {quantity} of the item {item} for {price} dollars.",
            "Order: {quantity} x {item}, {price} dollars.",
            "We sold {quantity} pieces of {item} at {price} dollars.",
            "Please send {quantity} units of {item}. The price is {price}.",
            "{quantity} times {item} costs {price} dollars.",
        ],
    ),
    Domain(
        {
            "product": lambda rng: rng.choice(THINGS + FOODS),
            "color": lambda rng: rng.choice(COLORS),
            "price": lambda rng: rng.randint(1, 999),
        },
        [
            "The {color} {product} costs {price} dollars.",
            "I bought a {color} {product} for {price} dollars.",
            "For sale: {color} {product}, {price} dollars.",
            "A {product} in {color} is {price} dollars.",
        ],
    ),
    Domain(
        {
            "event": lambda rng: rng.choice(EVENTS),
            "day": lambda rng: rng.choice(DAYS),
            "place": lambda rng: rng.choice(PLACES),
        },
        [
            "The {event} is on {day} at the {place}.",
            "On {day} there is a {event} in the {place}.",
            "We have a {event} at the {place} on {day}.",
            "Please come to the {place} on {day} for the {event}.",
        ],
    ),
    Domain(
        {"name": any_name, "day": lambda rng: rng.choice(DAYS), "event": lambda rng: rng.choice(EVENTS)},
        [
            "{name} invited me to a {event} on {day}.",
            "On {day}, {name} has a {event}.",
            "The {event} of {name} is on {day}.",
        ],
    ),
    Domain(
        {"name": any_name, "phone": lambda rng: str(rng.randint(10000, 99999)), "city": lambda rng: rng.choice(CITIES)},
        [
            "{name} lives in {city} and has the phone number {phone}.",
            "Call {name} in {city} at {phone}.",
            "Contact: {name}, {city}, phone {phone}.",
        ],
    ),
    Domain(
        {"word": any_word, "number": lambda rng: rng.randint(1, 9999), "label": any_word},
        [
            "The word is {word}, the number is {number} and the label is {label}.",
            "word {word}, label {label}, number {number}",
            "Label {label} has the word {word} and the number {number}.",
        ],
    ),
]

INSTRUCTIONS = [
    "Extract the {fields} as JSON: {text}",
    "Return a JSON object with {fields} from this text: {text}",
    "{text} Give me the {fields} as JSON.",
    "Turn this into JSON with the keys {fields}: {text}",
    "Read the text and write JSON with {fields}. Text: {text}",
    "JSON with {fields}, please: {text}",
    "Find the {fields} in this text and answer in JSON: {text}",
    "{text} Write the {fields} as a JSON object.",
    "Extract {fields} from the following sentence as JSON. {text}",
    "Convert to JSON ({fields}): {text}",
    "Extract JSON with the fields {fields}.\n\n{text}",
]


def joined(words: list[str]) -> str:
    """Return words as an English enumeration."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def extraction(rng: random.Random) -> Dialogue:
    """Return a request for one to three fields of a sentence as JSON, in the order asked for."""
    domain = rng.choice(DOMAINS)
    values = {name: draw(rng) for name, draw in domain.fields.items()}
    fields = rng.sample(list(values), rng.choice([1, 2, 3, 3]))
    if rng.random() < 0.5:
        fields = [name for name in values if name in fields]
    text = rng.choice(domain.sentences).format(**values)
    prompt = rng.choice(INSTRUCTIONS).format(fields=joined(fields), text=text)
    return exchange(prompt, prompt, json.dumps({name: values[name] for name in fields}))
