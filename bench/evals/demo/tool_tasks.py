"""Tool-use dialogues: tasks whose tool and parameter names vary, so that the model must read the schema."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sgl.bench.evals.demo.dialogue import Dialogue, Message, assistant, user
from sgl.bench.evals.demo.facts import COUNTRIES, DAYS
from sgl.bench.evals.demo.words import CITIES, ROOMS, THINGS, any_name, any_word, made_up_word

Values = dict[str, Any]
Parameter = tuple[str, list[str], str]

CURRENCY_CODES = ["USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "INR", "CNY", "SEK", "NOK", "PLN", "BRL", "MXN"]
WEATHER = ["sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "clear"]
LANGUAGES = ["French", "German", "Spanish", "Italian", "Polish", "Turkish", "Swedish", "Greek", "Hindi", "Japanese"]
CHORES = [
    "buy {w}",
    "call {n}",
    "clean the {r}",
    "pay the rent",
    "water the flowers",
    "feed the {w}",
    "write to {n}",
    "fix the {w}",
    "return the {w}",
    "meet {n}",
]
TEXTS = [
    "see you at {h}",
    "I am late",
    "bring the {w}",
    "call me back",
    "happy birthday",
    "the {w} is ready",
    "dinner is at {h}",
    "I miss you",
    "thank you for the {w}",
    "where are you",
]
VERBS = [
    "open",
    "close",
    "start",
    "stop",
    "find",
    "move",
    "paint",
    "check",
    "load",
    "wash",
    "lock",
    "rent",
    "sort",
    "print",
]
SLOTS = ["name", "size", "color", "level", "mode", "room", "place", "owner", "type", "target", "label", "side"]


@dataclass(frozen=True)
class Task:
    """One kind of tool use: `parameters` holds (slot, possible parameter names, JSON type)."""

    names: list[str]
    description: str
    parameters: list[Parameter]
    prompts: list[str]
    draw: Callable[[random.Random], Values]
    result: Callable[[random.Random, Values], Values]
    answer: str
    parallel: bool = False


def hour(rng: random.Random) -> str:
    """Return a time of day on a quarter hour."""
    return f"{rng.randint(1, 23)}:{rng.choice(['00', '15', '30', '45'])}"


def ticker(rng: random.Random) -> str:
    """Return a made-up stock symbol."""
    return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(3, 4)))


def chore(rng: random.Random) -> str:
    """Return something to be reminded of."""
    return rng.choice(CHORES).format(w=any_word(rng), n=any_name(rng), r=rng.choice(ROOMS))


def draw_convert(rng: random.Random) -> Values:
    """Return an amount and two different currencies."""
    source, target = rng.sample(CURRENCY_CODES, 2)
    return {"amount": rng.randint(1, 999), "from": source, "to": target}


def draw_distance(rng: random.Random) -> Values:
    """Return two different cities."""
    start, goal = rng.sample(CITIES, 2)
    return {"from": start, "to": goal}


def draw_message(rng: random.Random) -> Values:
    """Return a recipient and a short text."""
    return {"to": any_name(rng), "text": rng.choice(TEXTS).format(h=hour(rng), w=any_word(rng))}


TASKS: list[Task] = [
    Task(
        ["get_weather", "get_current_weather", "weather", "weather_lookup", "fetch_weather"],
        "Get the weather in a city.",
        [("city", ["city", "location", "place", "city_name"], "string")],
        [
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Weather in {city}?",
            "Is it cold in {city}?",
            "What's the weather like in {city}?",
            "Tell me the weather in {city}.",
            "Do I need a coat in {city} today?",
            "What is the weather like in {city} today?",
            "How warm is it in {city}?",
            "Check the weather in {city}.",
        ],
        lambda rng: {"city": rng.choice(CITIES)},
        lambda rng, v: {"temperature": rng.randint(-9, 39), "condition": rng.choice(WEATHER)},
        "It is {temperature} degrees and {condition} in {city}.",
        parallel=True,
    ),
    Task(
        ["get_time", "current_time", "get_current_time", "clock", "local_time"],
        "Get the local time of a city.",
        [("city", ["city", "location", "timezone", "place"], "string")],
        [
            "What time is it in {city}?",
            "How late is it in {city}?",
            "Tell me the time in {city}.",
            "Time in {city}?",
            "What is the time in {city}?",
            "What's the local time in {city}?",
            "Check the time in {city}.",
        ],
        lambda rng: {"city": rng.choice(CITIES)},
        lambda rng, v: {"time": hour(rng)},
        "It is {time} in {city}.",
        parallel=True,
    ),
    Task(
        ["add", "sum", "add_numbers", "calculator", "plus"],
        "Add two numbers.",
        [("a", ["a", "x", "first"], "integer"), ("b", ["b", "y", "second"], "integer")],
        ["What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?", "Calculate {a} + {b}.", "{a} + {b}?"],
        lambda rng: {"a": rng.randint(1, 9999), "b": rng.randint(1, 9999)},
        lambda rng, v: {"result": v["a"] + v["b"]},
        "The result is {result}.",
    ),
    Task(
        ["get_stock_price", "stock_price", "get_quote", "stock_lookup"],
        "Get the price of a stock.",
        [("symbol", ["symbol", "ticker", "stock"], "string")],
        [
            "What is the stock price of {symbol}?",
            "How much is {symbol} today?",
            "Price of {symbol}?",
            "Check the stock {symbol}.",
            "What does {symbol} cost?",
            "Tell me the price of {symbol}.",
        ],
        lambda rng: {"symbol": ticker(rng)},
        lambda rng, v: {"price": rng.randint(2, 999)},
        "The price of {symbol} is {price} dollars.",
        parallel=True,
    ),
    Task(
        ["convert_currency", "convert", "exchange", "currency_converter"],
        "Convert money.",
        [
            ("amount", ["amount", "value"], "number"),
            ("from", ["from", "source", "from_currency"], "string"),
            ("to", ["to", "target", "to_currency"], "string"),
        ],
        [
            "Convert {amount} {from} to {to}.",
            "How much is {amount} {from} in {to}?",
            "What are {amount} {from} in {to}?",
            "Change {amount} {from} into {to}.",
        ],
        draw_convert,
        lambda rng, v: {"result": rng.randint(1, 9999)},
        "{amount} {from} is {result} {to}.",
    ),
    Task(
        ["send_message", "message", "send_text", "write_message"],
        "Send a message to a person.",
        [
            ("to", ["to", "recipient", "person", "name"], "string"),
            ("text", ["text", "message", "body", "content"], "string"),
        ],
        [
            "Send a message to {to}: {text}",
            "Tell {to}: {text}",
            "Write to {to}: {text}",
            "Text {to}: {text}",
            "Send {to} the message: {text}",
        ],
        draw_message,
        lambda rng, v: {"status": "sent"},
        "I sent your message to {to}.",
    ),
    Task(
        ["set_reminder", "remind", "create_reminder", "add_reminder"],
        "Set a reminder.",
        [("text", ["text", "task", "title", "note"], "string"), ("day", ["day", "date", "when"], "string")],
        [
            "Remind me to {text} on {day}.",
            "On {day} I have to {text}. Remind me.",
            "Set a reminder for {day}: {text}",
            "Please remind me on {day} to {text}.",
        ],
        lambda rng: {"text": chore(rng), "day": rng.choice(DAYS)},
        lambda rng, v: {"status": "ok"},
        "I will remind you on {day} to {text}.",
    ),
    Task(
        ["set_alarm", "alarm", "create_alarm", "wake_up"],
        "Set an alarm.",
        [("time", ["time", "at", "clock"], "string")],
        [
            "Wake me at {time}.",
            "Set an alarm for {time}.",
            "I want to get up at {time}.",
            "Alarm at {time}, please.",
            "Set the alarm to {time}.",
        ],
        lambda rng: {"time": hour(rng)},
        lambda rng, v: {"status": "ok"},
        "The alarm is set for {time}.",
    ),
    Task(
        ["translate", "translate_text", "translator", "get_translation"],
        "Translate a word.",
        [
            ("text", ["text", "word", "input"], "string"),
            ("language", ["language", "to", "target", "target_language"], "string"),
        ],
        [
            "Translate {text} into {language}.",
            "What is {text} in {language}?",
            "How do you say {text} in {language}?",
            "{text} in {language}?",
        ],
        lambda rng: {"text": any_word(rng), "language": rng.choice(LANGUAGES)},
        lambda rng, v: {"translation": made_up_word(rng)},
        "In {language}, {text} is {translation}.",
    ),
    Task(
        ["search", "web_search", "search_web", "find"],
        "Search the web.",
        [("query", ["query", "q", "text", "keywords"], "string")],
        [
            "Search for {query}.",
            "Search the web for {query}.",
            "Look up {query}.",
            "Find something about {query}.",
            "Google {query}.",
        ],
        lambda rng: {"query": f"{any_word(rng)} {any_word(rng)}"},
        lambda rng, v: {"title": f"{any_word(rng)} {any_word(rng)}"},
        "I found this: {title}.",
    ),
    Task(
        ["set_light", "light", "switch_light", "control_light"],
        "Switch the light in a room.",
        [("room", ["room", "place", "location"], "string"), ("state", ["state", "mode", "power"], "string")],
        [
            "Turn {state} the light in the {room}.",
            "Switch the {room} light {state}.",
            "Light {state} in the {room}, please.",
            "{room} light {state}",
        ],
        lambda rng: {"room": rng.choice(ROOMS), "state": rng.choice(["on", "off"])},
        lambda rng, v: {"status": "ok"},
        "The light in the {room} is {state}.",
    ),
    Task(
        ["get_population", "population", "count_people", "population_lookup"],
        "Get the population of a country.",
        [("country", ["country", "name", "nation"], "string")],
        [
            "How many people live in {country}?",
            "What is the population of {country}?",
            "Population of {country}?",
            "Tell me the population of {country}.",
        ],
        lambda rng: {"country": rng.choice(COUNTRIES)[0]},
        lambda rng, v: {"population": rng.randint(1, 999) * 1000},
        "{country} has {population} inhabitants.",
        parallel=True,
    ),
    Task(
        ["get_distance", "distance", "route_length", "measure_distance"],
        "Get the distance between two cities in km.",
        [("from", ["from", "start", "origin"], "string"), ("to", ["to", "end", "destination"], "string")],
        [
            "How far is it from {from} to {to}?",
            "Distance from {from} to {to}?",
            "What is the distance between {from} and {to}?",
            "How many km are between {from} and {to}?",
        ],
        draw_distance,
        lambda rng, v: {"km": rng.randint(10, 9999)},
        "It is {km} km from {from} to {to}.",
    ),
    Task(
        ["track_order", "get_order", "order_status", "find_order"],
        "Get the status of an order.",
        [("order_id", ["order_id", "id", "number", "order"], "integer")],
        [
            "Where is my order {order_id}?",
            "Track order {order_id}.",
            "What is the status of order {order_id}?",
            "Check my order {order_id}.",
        ],
        lambda rng: {"order_id": rng.randint(100, 99999)},
        lambda rng, v: {"status": rng.choice(["shipped", "packed", "delivered", "lost", "delayed"])},
        "Your order {order_id} is {status}.",
    ),
    Task(
        ["get_price", "price", "price_lookup", "check_price"],
        "Get the price of a product in dollars.",
        [("product", ["product", "item", "name"], "string")],
        [
            "What does a {product} cost?",
            "How much is a {product}?",
            "Price of a {product}?",
            "Tell me the price of a {product}.",
        ],
        lambda rng: {"product": rng.choice(THINGS)},
        lambda rng, v: {"price": rng.randint(1, 999)},
        "A {product} costs {price} dollars.",
        parallel=True,
    ),
]


def made_up_task(rng: random.Random) -> Task:
    """Return a task with a made-up tool, so that names and parameters must be copied from schema and prompt."""
    noun, slots = any_word(rng), rng.sample(SLOTS, rng.randint(1, 2))
    phrase = " and ".join(f"{slot} {{{slot}}}" for slot in slots)
    verb = rng.choice(VERBS)
    return Task(
        [f"{verb}_{noun}"],
        f"{verb.capitalize()} the {noun}.",
        [(slot, [slot], "string") for slot in slots],
        [
            f"{verb.capitalize()} the {noun} with {phrase}.",
            f"Please {verb} the {noun}: {phrase}.",
            f"Use {verb}_{noun} with {phrase}.",
        ],
        lambda r: {slot: any_word(r) for slot in slots},
        lambda r, v: {"status": r.choice(["ok", "done"])},
        f"The {noun} tool says: {{status}}.",
    )


def schema(rng: random.Random, task: Task) -> tuple[dict[str, Any], dict[str, str]]:
    """Return an OpenAI-style tool entry of the task and the parameter name it uses for each slot."""
    chosen: dict[str, str] = {}
    for slot, names, _ in task.parameters:
        chosen[slot] = rng.choice([name for name in names if name not in chosen.values()] or [slot])
    properties: dict[str, dict[str, str]] = {chosen[slot]: {"type": kind} for slot, _, kind in task.parameters}
    if rng.random() < 0.25:
        for name, details in properties.items():
            details["description"] = f"The {name.replace('_', ' ')}."
    function = {
        "name": rng.choice(task.names),
        "description": task.description,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }
    return {"type": "function", "function": function}, chosen


def call_message(name: str, chosen: dict[str, str], calls: list[Values]) -> Message:
    """Return the assistant message that calls the tool once per element of `calls`."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": {chosen[s]: v for s, v in values.items()}}}
            for values in calls
        ],
    }


def tool_dialogue(rng: random.Random, answered: bool) -> Dialogue:
    """Return a dialogue that ends with a tool call, or with the answer from the tool's result."""
    task = made_up_task(rng) if rng.random() < 0.2 else rng.choice(TASKS)
    others = [t for t in rng.sample(TASKS, 3) if t.description != task.description][: rng.choice([0, 0, 1, 1, 2])]
    tool, chosen = schema(rng, task)
    tools = [tool] + [schema(rng, other)[0] for other in others]
    rng.shuffle(tools)
    calls = [task.draw(rng)]
    prompt = rng.choice(task.prompts).format(**calls[0])
    if task.parallel and rng.random() < 0.15:
        slot = task.parameters[0][0]
        extra = task.draw(rng)
        if extra != calls[0]:
            prompt = prompt.replace(str(calls[0][slot]), f"{calls[0][slot]} and {extra[slot]}")
            calls.append(extra)
    name = tool["function"]["name"]
    messages = [user(prompt), call_message(name, chosen, calls)]
    results = [task.result(rng, values) for values in calls]
    key = json.dumps([task.names[0], sorted(chosen.values()), name, prompt])
    if answered:
        messages += [{"role": "tool", "content": json.dumps(result)} for result in results]
        messages.append(
            assistant(
                " ".join(task.answer.format(**values, **result) for values, result in zip(calls, results, strict=True))
            )
        )
        key += json.dumps(results)
    return Dialogue(key, messages, tools)


def unused_tools(rng: random.Random, base: Dialogue) -> Dialogue:
    """Return `base` with tools on offer that it does not need."""
    tools = [schema(rng, task)[0] for task in rng.sample(TASKS, rng.randint(1, 2))]
    return Dialogue(base.key, base.messages, tools)
