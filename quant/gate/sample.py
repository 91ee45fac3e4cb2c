"""The built-in conversations: what people ask of a model, in small, made from a seed; needs no network.

They are for a first try. Text of the kind that the model will see serves better (--calibration).
"""

from __future__ import annotations

import json
import random

_COUNT = 60  # of each kind of exercise

_EXPLAINED: tuple[tuple[str, str], ...] = (
    (
        "Why is the sky blue?",
        "Sunlight holds all colours, and air scatters the short waves far more than the long ones. So blue "
        "light reaches your eyes from every direction, while red and yellow mostly go straight on. At sunset "
        "the light crosses more air, the blue is lost on the way, and the sky turns red.",
    ),
    (
        "How does a refrigerator work?",
        "A liquid with a low boiling point evaporates in tubes inside the box and takes heat with it. A "
        "compressor squeezes the vapour, which makes it hot, and behind the box it gives that heat to the "
        "room and becomes liquid again. The machine moves heat; it does not make cold.",
    ),
    (
        "What is inflation?",
        "Inflation is a general rise of prices, so that the same money buys less than before. A little of it "
        "is normal in a growing economy. Central banks raise interest rates to slow it down, because loans "
        "then cost more and people spend less.",
    ),
    (
        "Explain what a hash table is.",
        "A hash table stores values under keys. A function turns each key into a number, and that number says "
        "in which bucket the value lies. Looking up a key therefore takes about the same time however many "
        "entries there are, as long as the function spreads them well.",
    ),
    (
        "What causes tides?",
        "The moon pulls on the side of the Earth that faces it more strongly than on the far side. The "
        "difference stretches the oceans a little along the line to the moon, and as the Earth turns, coasts "
        "pass through the high water about twice a day. The sun does the same, but less.",
    ),
    (
        "How do vaccines protect us?",
        "A vaccine shows the immune system a harmless part or a weak form of a germ. The body makes "
        "antibodies and keeps cells that remember it. When the real germ arrives, the answer comes within "
        "days instead of weeks, and often no illness follows.",
    ),
    (
        "What is photosynthesis?",
        "Plants take in carbon dioxide and water and use the energy of light to make sugar. Oxygen is left "
        "over and goes into the air. It happens in small green bodies inside the cells, which are called "
        "chloroplasts.",
    ),
    (
        "Why do leaves change colour in autumn?",
        "In summer the green of chlorophyll hides the other pigments in a leaf. When days grow short, trees "
        "stop making it and take back what is useful. The yellow and orange that were always there appear, "
        "and some trees make red pigments as well.",
    ),
    (
        "What is the difference between a virus and a bacterium?",
        "Bacteria are living cells that feed and divide by themselves; many are useful to us. A virus is far "
        "smaller, a piece of genetic material in a coat, and it must enter a cell to be copied. Antibiotics "
        "work against bacteria and not against viruses.",
    ),
    (
        "How does a sailing boat go against the wind?",
        "It does not go straight into it. The sail works like a wing when the wind comes from ahead at an "
        "angle, and the keel keeps the boat from sliding sideways. By turning from one side to the other "
        "again and again, a boat zigzags to a place that lies upwind.",
    ),
    (
        "What is a black hole?",
        "It is a region where gravity is so strong that nothing, not even light, can leave. Most form when a "
        "heavy star runs out of fuel and collapses. We see them by what they do to gas and stars nearby.",
    ),
    (
        "How do I make good coffee at home?",
        "Use fresh beans and grind them right before brewing. Take about sixty grams for a litre of water "
        "that is just below boiling. Pour slowly, let it stand for four minutes, and clean the equipment "
        "every time.",
    ),
    (
        "Give me advice for a job interview.",
        "Read about the company and think of three things that you have done and are proud of. Answer with "
        "short stories: what the problem was, what you did, what came of it. Ask a question or two at the "
        "end, because it shows that you are interested.",
    ),
    (
        "What is recursion in programming?",
        "A function is recursive if it calls itself on a smaller part of the problem. It needs a case that is "
        "answered directly, or it would never end. Trees and nested lists are handled most simply in this "
        "way.",
    ),
    (
        "How did writing begin?",
        "The oldest writing that we know comes from Mesopotamia, a little more than five thousand years ago. "
        "It began as marks on clay that counted grain and animals. Later signs stood for sounds, and then "
        "stories and laws could be written down.",
    ),
    (
        "Why does bread rise?",
        "Yeast eats the sugar in the dough and gives off carbon dioxide. The gluten of the flour holds the "
        "gas in many small bubbles. In the oven they grow once more, the walls set, and the crumb stays "
        "light.",
    ),
    (
        "What is a prime number?",
        "A prime number is larger than one and can be divided without remainder only by one and by itself. "
        "Two, three, five, seven and eleven are the first of them. There are infinitely many, as Euclid "
        "already proved.",
    ),
    (
        "What does a compiler do?",
        "It translates a program from a language that people write into instructions that a processor runs. "
        "On the way it checks types, finds mistakes, and rearranges the work so that it runs faster. An "
        "interpreter does the work line by line instead and leaves no translated program behind.",
    ),
    (
        "How do bees find their way?",
        "They use the sun as a compass and know how it moves during the day. Landmarks near the hive help at "
        "the end of the journey. A bee that found flowers dances in the hive, and the angle of the dance "
        "tells the others where to fly.",
    ),
    (
        "What is a contract?",
        "A contract is an agreement that the law will enforce. Somebody makes an offer, somebody accepts it, "
        "and both give or promise something. Many contracts need no paper, but paper helps when people "
        "remember differently.",
    ),
    (
        "Why is the sea salty?",
        "Rain dissolves a little of the rocks, and rivers carry these minerals to the sea. Water evaporates "
        "and the salt stays. Over millions of years it has reached about thirty-five grams in each litre.",
    ),
    (
        "How does GPS know where I am?",
        "Satellites send the time and their position. A receiver compares how long the signals of several of "
        "them were on the way and so finds its distance from each. With four satellites there is just one "
        "place and time that fits.",
    ),
    (
        "What is machine learning?",
        "Instead of rules that a person writes, a program adjusts many numbers until its answers fit the "
        "examples that it is shown. What it learned is tested on examples it has not seen. It works well "
        "where examples are many and rules are hard to say.",
    ),
    (
        "How can I sleep better?",
        "Go to bed and get up at the same time every day, also at weekends. Keep the room dark and cool, and "
        "put the phone away an hour before. Coffee in the afternoon still works at midnight.",
    ),
    (
        "What is an atom made of?",
        "In the middle is a nucleus of protons and neutrons, and around it are electrons. The number of "
        "protons decides which element it is. Almost all of the mass is in the nucleus, although it fills a "
        "tiny part of the space.",
    ),
    (
        "Why do we have leap years?",
        "The Earth needs about 365 days and six hours for its way around the sun. After four years the hours "
        "add up to a day, which we insert in February. Because it is a little less than that, most full "
        "centuries are left out.",
    ),
    (
        "How is glass made?",
        "Sand, soda and lime are melted together at about fifteen hundred degrees. The melt is blown, "
        "pressed, or poured on liquid tin, where it becomes a flat pane. Then it must cool slowly, or it "
        "would crack.",
    ),
    (
        "What is a database index?",
        "An index is a second structure that is sorted by some columns of a table, so that rows can be found "
        "without reading them all. It makes reading faster and writing slower, and it takes space. A good one "
        "matches the questions that are really asked.",
    ),
    (
        "Describe how rain forms.",
        "Warm air rises and cools, and it can hold less water when it is cold. The water settles on tiny "
        "particles and makes clouds of droplets. When these collide and grow heavy enough, they fall.",
    ),
    (
        "What was the printing press good for?",
        "Before it, books were copied by hand and cost as much as a house. With movable letters a page could "
        "be set once and printed hundreds of times. Knowledge spread, prices fell, and within decades there "
        "were millions of books in Europe.",
    ),
    (
        "How do noise-cancelling headphones work?",
        "Small microphones listen to the noise outside. The electronics play the same wave upside down, so "
        "that the two cancel at your ear. It works best for steady, low sounds such as engines.",
    ),
    (
        "What is compound interest?",
        "Interest is paid on the money and also on the interest of earlier years. At five percent a sum "
        "doubles in about fourteen years. That is why it pays to begin early, and why debts grow so fast.",
    ),
    (
        "Why do cats purr?",
        "Muscles in the throat move the vocal folds about twenty-five times a second, while the cat breathes "
        "in and out. They do it when they are content, but also when they are hurt or afraid. Kittens purr so "
        "that their mother finds them.",
    ),
    (
        "How does a lock on a canal work?",
        "A boat enters a chamber and the gates behind it are closed. Water is let in or out until the level "
        "is that of the next part of the canal. Then the gates ahead open and the boat goes on, without any "
        "pump.",
    ),
    (
        "What is a metaphor?",
        "A metaphor calls one thing by the name of another to show what they share: time is money, a sea of "
        "faces. It says that something is so, while a simile says that it is like it. We use them all day "
        "without noticing.",
    ),
    (
        "Explain the rules of chess in short.",
        "Two players move in turns on a board of sixty-four squares. Every kind of piece moves in its own way "
        "and takes what stands on its target. Whoever attacks the enemy king so that it cannot escape has "
        "won.",
    ),
    (
        "Why is unit testing useful?",
        "A unit test runs a small part of a program and compares what it does with what it should do. It "
        "finds mistakes early, when they are cheap. It also lets you change code without fear, because you "
        "see at once what breaks.",
    ),
    (
        "What is the greenhouse effect?",
        "Light of the sun warms the ground, which sends the energy back as infrared. Some gases let the light "
        "pass and hold the infrared back, so the air stays warm. Without it the Earth would be frozen; more "
        "of these gases make it warmer.",
    ),
    (
        "How do plants drink?",
        "Fine hairs on the roots take up water from the soil. It rises through thin tubes, pulled from above "
        "as water evaporates from the leaves. In a tall tree it travels more than a hundred metres.",
    ),
    (
        "What is the function of the heart?",
        "The heart is a muscle with four chambers that pumps blood. The right side sends it to the lungs, the "
        "left side to the rest of the body. It beats about a hundred thousand times a day.",
    ),
)

_NAMES = (
    "Anna",
    "Bilal",
    "Chen",
    "Dara",
    "Emil",
    "Fatima",
    "Goran",
    "Hana",
    "Ivo",
    "Jun",
    "Kofi",
    "Lena",
    "Marta",
    "Nils",
)
_CITIES = ("Lisbon", "Oslo", "Accra", "Lima", "Kyoto", "Hanoi", "Tunis", "Quito", "Riga", "Perth", "Cairo", "Turin")
_THINGS = ("lamp", "chair", "bicycle", "notebook", "kettle", "jacket", "camera", "guitar", "carpet", "radio", "ladder")
_UNITS = (("kilometres", "metres", 1000), ("hours", "minutes", 60), ("weeks", "days", 7), ("kilograms", "grams", 1000))
_CODE = (
    ("adds the numbers of a list that are greater than {n}", "return sum(x for x in values if x > {n})"),
    ("counts the words that have at least {n} letters", "return sum(len(word) >= {n} for word in text.split())"),
    ("gives every {n}th element of a list", "return values[::{n}]"),
    ("rounds a price up to a multiple of {n}", "return -(-price // {n}) * {n}"),
)


def conversations() -> list[list[dict[str, str]]]:
    """All of them, always the same."""
    rng = random.Random(7)
    pairs = [*_EXPLAINED]
    for exercise in (_sum, _record, _order, _convert, _program):
        pairs += [exercise(rng) for _ in range(_COUNT)]
    return [_conversation(question, answer) for question, answer in dict.fromkeys(pairs)]


def _conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _sum(rng: random.Random) -> tuple[str, str]:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    count, price, paid = rng.randint(2, 9), rng.randint(3, 40), 500
    question = (
        f"{name} buys {count} of a {thing} at {price} euros each and pays with {paid} euros. How much comes back?"
    )
    total = count * price
    back = paid - total
    answer = f"{count} times {price} is {total}. {paid} minus {total} is {back}. So {name} gets {back} euros back."
    return question, answer


def _record(rng: random.Random) -> tuple[str, str]:
    fields = {
        "name": rng.choice(_NAMES),
        "age": rng.randint(18, 80),
        "city": rng.choice(_CITIES),
        "order": rng.choice(_THINGS),
    }
    told = "{name} from {city}, who is {age}, ordered a {order} yesterday.".format(**fields)
    return f"Extract name, age, city and order as JSON: {told}", json.dumps(fields)


def _order(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), rng.randint(4, 8))
    asked = ", ".join(map(str, numbers))
    return f"Sort these numbers: {asked}", ", ".join(map(str, sorted(numbers)))


def _convert(rng: random.Random) -> tuple[str, str]:
    large, small, factor = rng.choice(_UNITS)
    count = rng.randint(2, 90)
    return f"How many {small} are {count} {large}?", f"{count} {large} are {count * factor} {small}."


def _program(rng: random.Random) -> tuple[str, str]:
    what, body = rng.choice(_CODE)
    n = rng.randint(2, 30)
    question = f"Write a Python function that {what.format(n=n)}."
    argument = next(name for name in ("values", "text", "price") if name in body)
    return question, f"```python\ndef run({argument}):\n    {body.format(n=n)}\n```"
