"""Word pools from which the dialogues draw their names, places and things."""

from __future__ import annotations

import random

from sgl.bench.evals.demo.facts import COUNTRIES

NAMES_TEXT = """
Ada Adam Aisha Alan Albert Alex Alice Amara Amy Ana Andre Anna Anton Ben Bella Boris Bruno Carla Carlos Cecilia Chen
Clara Cora Daniel Daria David Dora Diego Edith Elena Eli Ella Emil Emma Erik Eva Felix Finn Fatima Frank Freya George
Gina Grace Greta Hana Hannah Hans Hassan Helen Henry Hugo Ida Igor Ines Iris Ivan Jack Jamal Jane Jonas Josef Julia
Karl Kate Kenji Kim Lara Laura Lena Leo Lin Lisa Liam Louis Lucas Lucy Luis Maja Marco Maria Marie Mark Martin Mary
Max Maya Mei Mia Mila Milan Mina Mohammed Nadia Nina Noah Nora Olga Olivia Omar Oscar Otto Pablo Paul Paula Pedro
Peter Petra Priya Rafael Raj Ravi Rita Robert Rosa Ruth Sam Sara Sasha Sofie Simon Sven Stella Tariq Theo Thomas Tim
Tina Tom Uma Vera Victor Wei Will Yara Yusuf Zara Zoe John James Bob Linda Susan Emily Sophia Ethan Mason Logan Ryan
"""

OTHER_CITIES_TEXT = """
London Barcelona Milan Munich Hamburg Zurich Geneva Boston Chicago Seattle Toronto Sydney Melbourne Mumbai Osaka Kyoto
Seoul Singapore Dubai Istanbul Porto Lyon Naples Krakow Dallas Denver Houston Miami Austin Manila Shanghai Lagos
"""

NAMES = NAMES_TEXT.split()
CITIES = sorted({row[1] for row in COUNTRIES} | set(OTHER_CITIES_TEXT.split()))

FRUITS = [
    "apple",
    "pear",
    "plum",
    "cherry",
    "banana",
    "mango",
    "lemon",
    "orange",
    "grape",
    "peach",
    "melon",
    "fig",
    "kiwi",
    "lime",
    "olive",
    "berry",
]
FOODS = [
    "pizza",
    "pasta",
    "rice",
    "soup",
    "bread",
    "cheese",
    "salad",
    "cake",
    "curry",
    "sushi",
    "tofu",
    "honey",
    "chocolate",
    "pancakes",
    "noodles",
    "yogurt",
]
ANIMALS = [
    "cat",
    "dog",
    "horse",
    "cow",
    "pig",
    "goat",
    "sheep",
    "lion",
    "tiger",
    "bear",
    "wolf",
    "fox",
    "rabbit",
    "mouse",
    "duck",
    "owl",
    "eagle",
    "whale",
    "shark",
    "frog",
    "snake",
    "turtle",
    "zebra",
    "camel",
    "monkey",
    "penguin",
    "dolphin",
    "elephant",
]
COLORS = ["red", "blue", "green", "yellow", "purple", "pink", "black", "white", "brown", "gray", "silver", "teal"]
THINGS = [
    "lamp",
    "chair",
    "table",
    "book",
    "pen",
    "cup",
    "plate",
    "knife",
    "spoon",
    "clock",
    "phone",
    "mirror",
    "basket",
    "blanket",
    "candle",
    "carpet",
    "drum",
    "guitar",
    "hammer",
    "kettle",
    "ladder",
    "pillow",
    "ring",
    "shirt",
    "shoe",
    "hat",
    "coat",
    "scarf",
    "bag",
    "ball",
    "bike",
    "tent",
    "rope",
    "key",
    "box",
    "desk",
]
JOBS = [
    "teacher",
    "doctor",
    "nurse",
    "baker",
    "farmer",
    "pilot",
    "lawyer",
    "writer",
    "painter",
    "singer",
    "driver",
    "cook",
    "engineer",
    "designer",
    "plumber",
    "student",
    "dentist",
    "judge",
    "tailor",
    "waiter",
    "chemist",
    "gardener",
    "librarian",
    "mechanic",
]
EVENTS = [
    "meeting",
    "concert",
    "party",
    "workshop",
    "lecture",
    "dinner",
    "wedding",
    "game",
    "lunch",
    "class",
    "interview",
    "picnic",
]
PLACES = [
    "office",
    "park",
    "library",
    "museum",
    "school",
    "hotel",
    "theater",
    "stadium",
    "garden",
    "station",
    "cafe",
    "beach",
]
ROOMS = ["kitchen", "bedroom", "bathroom", "hall", "garage", "cellar", "attic", "study"]
HOBBIES = [
    "chess",
    "tennis",
    "football",
    "swimming",
    "cooking",
    "reading",
    "painting",
    "hiking",
    "dancing",
    "music",
    "cycling",
    "fishing",
    "yoga",
    "skiing",
]
NATURE = [
    "river",
    "mountain",
    "forest",
    "island",
    "desert",
    "ocean",
    "storm",
    "cloud",
    "snow",
    "rain",
    "star",
    "moon",
    "sun",
    "stone",
    "sand",
    "leaf",
    "tree",
    "flower",
    "wind",
    "fire",
]

COMMON_WORDS = sorted(set(FRUITS + FOODS + ANIMALS + COLORS + THINGS + JOBS + EVENTS + PLACES + HOBBIES + NATURE))

CONSONANTS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"


def made_up_word(rng: random.Random) -> str:
    """Return a pronounceable word that is in no dictionary, so that copying cannot rely on known tokens."""
    syllables = rng.randint(2, 3)
    word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))
    return word + rng.choice(["", "n", "k", "s"])


def any_name(rng: random.Random) -> str:
    """Return a first name, one in six of them made up."""
    return made_up_word(rng).capitalize() if rng.random() < 1 / 6 else rng.choice(NAMES)


def any_word(rng: random.Random) -> str:
    """Return a lower-case word, one in eight of them made up."""
    return made_up_word(rng) if rng.random() < 1 / 8 else rng.choice(COMMON_WORDS)
