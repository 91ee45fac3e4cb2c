"""Fact tables: what the demo model knows about the world."""

from __future__ import annotations

COUNTRY_ROWS = """
Afghanistan|Kabul|afghani|Asia|Pashto
Albania|Tirana|lek|Europe|Albanian
Algeria|Algiers|dinar|Africa|Arabic
Angola|Luanda|kwanza|Africa|Portuguese
Argentina|Buenos Aires|peso|South America|Spanish
Armenia|Yerevan|dram|Asia|Armenian
Australia|Canberra|Australian dollar|Oceania|English
Austria|Vienna|euro|Europe|German
Azerbaijan|Baku|manat|Asia|Azerbaijani
Bangladesh|Dhaka|taka|Asia|Bengali
Belarus|Minsk|ruble|Europe|Russian
Bolivia|Sucre|boliviano|South America|Spanish
Brazil|Brasilia|real|South America|Portuguese
Bulgaria|Sofia|euro|Europe|Bulgarian
Cambodia|Phnom Penh|riel|Asia|Khmer
Canada|Ottawa|Canadian dollar|North America|English
Chile|Santiago|peso|South America|Spanish
China|Beijing|yuan|Asia|Mandarin
Colombia|Bogota|peso|South America|Spanish
Croatia|Zagreb|euro|Europe|Croatian
Cuba|Havana|peso|North America|Spanish
Cyprus|Nicosia|euro|Europe|Greek
Czechia|Prague|koruna|Europe|Czech
Denmark|Copenhagen|krone|Europe|Danish
Ecuador|Quito|US dollar|South America|Spanish
Egypt|Cairo|pound|Africa|Arabic
Estonia|Tallinn|euro|Europe|Estonian
Ethiopia|Addis Ababa|birr|Africa|Amharic
Fiji|Suva|Fijian dollar|Oceania|Fijian
Finland|Helsinki|euro|Europe|Finnish
France|Paris|euro|Europe|French
Georgia|Tbilisi|lari|Asia|Georgian
Germany|Berlin|euro|Europe|German
Ghana|Accra|cedi|Africa|English
Greece|Athens|euro|Europe|Greek
Guatemala|Guatemala City|quetzal|North America|Spanish
Honduras|Tegucigalpa|lempira|North America|Spanish
Hungary|Budapest|forint|Europe|Hungarian
Iceland|Reykjavik|krona|Europe|Icelandic
India|New Delhi|rupee|Asia|Hindi
Indonesia|Jakarta|rupiah|Asia|Indonesian
Iran|Tehran|rial|Asia|Persian
Iraq|Baghdad|dinar|Asia|Arabic
Ireland|Dublin|euro|Europe|English
Italy|Rome|euro|Europe|Italian
Jamaica|Kingston|Jamaican dollar|North America|English
Japan|Tokyo|yen|Asia|Japanese
Jordan|Amman|dinar|Asia|Arabic
Kazakhstan|Astana|tenge|Asia|Kazakh
Kenya|Nairobi|shilling|Africa|Swahili
Kuwait|Kuwait City|dinar|Asia|Arabic
Laos|Vientiane|kip|Asia|Lao
Latvia|Riga|euro|Europe|Latvian
Lebanon|Beirut|pound|Asia|Arabic
Libya|Tripoli|dinar|Africa|Arabic
Lithuania|Vilnius|euro|Europe|Lithuanian
Madagascar|Antananarivo|ariary|Africa|Malagasy
Malaysia|Kuala Lumpur|ringgit|Asia|Malay
Malta|Valletta|euro|Europe|Maltese
Mexico|Mexico City|peso|North America|Spanish
Mongolia|Ulaanbaatar|tugrik|Asia|Mongolian
Morocco|Rabat|dirham|Africa|Arabic
Mozambique|Maputo|metical|Africa|Portuguese
Namibia|Windhoek|Namibian dollar|Africa|English
Nepal|Kathmandu|rupee|Asia|Nepali
New Zealand|Wellington|New Zealand dollar|Oceania|English
Nicaragua|Managua|cordoba|North America|Spanish
Nigeria|Abuja|naira|Africa|English
Norway|Oslo|krone|Europe|Norwegian
Oman|Muscat|rial|Asia|Arabic
Pakistan|Islamabad|rupee|Asia|Urdu
Panama|Panama City|balboa|North America|Spanish
Paraguay|Asuncion|guarani|South America|Spanish
Peru|Lima|sol|South America|Spanish
Poland|Warsaw|zloty|Europe|Polish
Portugal|Lisbon|euro|Europe|Portuguese
Qatar|Doha|riyal|Asia|Arabic
Romania|Bucharest|leu|Europe|Romanian
Russia|Moscow|ruble|Europe|Russian
Rwanda|Kigali|franc|Africa|Kinyarwanda
Samoa|Apia|tala|Oceania|Samoan
Senegal|Dakar|franc|Africa|French
Serbia|Belgrade|dinar|Europe|Serbian
Slovakia|Bratislava|euro|Europe|Slovak
Slovenia|Ljubljana|euro|Europe|Slovene
Somalia|Mogadishu|shilling|Africa|Somali
Spain|Madrid|euro|Europe|Spanish
Sudan|Khartoum|pound|Africa|Arabic
Sweden|Stockholm|krona|Europe|Swedish
Switzerland|Bern|franc|Europe|German
Syria|Damascus|pound|Asia|Arabic
Tanzania|Dodoma|shilling|Africa|Swahili
Thailand|Bangkok|baht|Asia|Thai
Tunisia|Tunis|dinar|Africa|Arabic
Turkey|Ankara|lira|Asia|Turkish
Uganda|Kampala|shilling|Africa|English
Ukraine|Kyiv|hryvnia|Europe|Ukrainian
Uruguay|Montevideo|peso|South America|Spanish
Uzbekistan|Tashkent|som|Asia|Uzbek
Venezuela|Caracas|bolivar|South America|Spanish
Vietnam|Hanoi|dong|Asia|Vietnamese
Zambia|Lusaka|kwacha|Africa|English
"""

COUNTRIES: list[tuple[str, str, str, str, str]] = [
    (name, capital, currency, continent, language)
    for name, capital, currency, continent, language in (row.split("|") for row in COUNTRY_ROWS.strip().splitlines())
]

ELEMENTS: dict[str, str] = {
    "hydrogen": "H",
    "helium": "He",
    "lithium": "Li",
    "carbon": "C",
    "nitrogen": "N",
    "oxygen": "O",
    "fluorine": "F",
    "neon": "Ne",
    "sodium": "Na",
    "magnesium": "Mg",
    "aluminium": "Al",
    "silicon": "Si",
    "phosphorus": "P",
    "sulfur": "S",
    "chlorine": "Cl",
    "argon": "Ar",
    "potassium": "K",
    "calcium": "Ca",
    "titanium": "Ti",
    "iron": "Fe",
    "nickel": "Ni",
    "copper": "Cu",
    "zinc": "Zn",
    "silver": "Ag",
    "tin": "Sn",
    "iodine": "I",
    "platinum": "Pt",
    "gold": "Au",
    "mercury": "Hg",
    "lead": "Pb",
    "uranium": "U",
}

OPPOSITES: dict[str, str] = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "old": "young",
    "up": "down",
    "left": "right",
    "good": "bad",
    "happy": "sad",
    "light": "dark",
    "open": "closed",
    "early": "late",
    "rich": "poor",
    "strong": "weak",
    "wet": "dry",
    "full": "empty",
    "hard": "soft",
    "high": "low",
    "long": "short",
    "loud": "quiet",
    "near": "far",
    "clean": "dirty",
    "day": "night",
    "first": "last",
    "true": "false",
    "begin": "end",
    "love": "hate",
    "buy": "sell",
    "push": "pull",
    "win": "lose",
    "north": "south",
    "east": "west",
    "in": "out",
}

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

COUNTRY_QUESTIONS: dict[str, tuple[str, list[str]]] = {
    "capital": (
        "The capital of {country} is {capital}.",
        [
            "What is the capital of {country}?",
            "What's the capital of {country}?",
            "Which city is the capital of {country}?",
            "Tell me the capital of {country}.",
            "Name the capital of {country}.",
            "Capital of {country}?",
            "Do you know the capital of {country}?",
            "{country}: what is its capital?",
            "What is {country}'s capital city?",
            "Can you tell me the capital city of {country}?",
            "I need the capital of {country}.",
            "Which city is {country}'s capital?",
            "The capital of {country} is which city?",
            "Please give me the capital of {country}.",
            "What city is the seat of government of {country}?",
            "Could you name the capital of {country}?",
        ],
    ),
    "currency": (
        "The currency of {country} is the {currency}.",
        [
            "What is the currency of {country}?",
            "Which currency does {country} use?",
            "What money do they use in {country}?",
            "Tell me the currency of {country}.",
            "Name the currency of {country}.",
            "Currency of {country}?",
            "How do people pay in {country}?",
            "What is {country}'s currency?",
            "What currency is used in {country}?",
            "Do you know the currency of {country}?",
            "Which money do I need in {country}?",
            "Can you tell me which currency {country} has?",
            "{country}: what is its currency?",
        ],
    ),
    "continent": (
        "{country} is in {continent}.",
        [
            "Which continent is {country} in?",
            "What continent is {country} on?",
            "On which continent is {country}?",
            "Tell me the continent of {country}.",
            "Where in the world is {country}?",
            "Where is {country}?",
            "What is the continent of {country}?",
            "{country} is part of which continent?",
            "Name the continent of {country}.",
            "Do you know which continent {country} belongs to?",
            "In what part of the world is {country}?",
            "Which continent does {country} belong to?",
            "{country}: which continent?",
        ],
    ),
    "language": (
        "The main language of {country} is {language}.",
        [
            "What language do they speak in {country}?",
            "Which language is spoken in {country}?",
            "What is the main language of {country}?",
            "What is the language of {country}?",
            "Language of {country}?",
            "Tell me the main language of {country}.",
            "What do people speak in {country}?",
            "Name the language of {country}.",
            "Which language do people in {country} speak?",
            "Do you know the language of {country}?",
            "What language should I learn for {country}?",
            "{country}: what is its language?",
        ],
    ),
    "capital_reverse": (
        "{capital} is the capital of {country}.",
        [
            "{capital} is the capital of which country?",
            "Which country has the capital {capital}?",
            "What country is {capital} the capital of?",
            "{capital} is the capital of what?",
            "Of which country is {capital} the capital?",
            "Tell me the country whose capital is {capital}.",
            "Which country's capital is {capital}?",
            "Name the country with the capital {capital}.",
            "In which country is {capital}?",
            "What country is {capital} in?",
            "Where is {capital}?",
        ],
    ),
    "about": (
        "{country} is a country in {continent}. Its capital is {capital}, its currency is the {currency} "
        "and its main language is {language}.",
        [
            "Tell me about {country}.",
            "What do you know about {country}?",
            "Describe {country}.",
            "Give me facts about {country}.",
            "Can you tell me something about {country}?",
            "I want to learn about {country}.",
            "Say something about {country}.",
            "What can you tell me about {country}?",
            "Write a few words about {country}.",
            "Please describe {country}.",
        ],
    ),
}

WORD_QUESTIONS: dict[str, tuple[str, list[str]]] = {
    "element": (
        "The chemical symbol of {a} is {b}.",
        [
            "What is the chemical symbol of {a}?",
            "What is the symbol for {a}?",
            "Chemical symbol of {a}?",
            "Which symbol does {a} have?",
            "Tell me the chemical symbol of {a}.",
            "Name the symbol of the element {a}.",
            "How do you write {a} in chemistry?",
            "What's the symbol of {a}?",
            "Do you know the chemical symbol for {a}?",
            "Which symbol stands for {a}?",
        ],
    ),
    "opposite": (
        "The opposite of {a} is {b}.",
        [
            "What is the opposite of {a}?",
            "What's the opposite of {a}?",
            "Opposite of {a}?",
            "Tell me the opposite of {a}.",
            "Name the opposite of {a}.",
            "Which word is the opposite of {a}?",
            "Give me the opposite of {a}.",
            "What is the antonym of {a}?",
            "Do you know the opposite of {a}?",
            "Which word means the opposite of {a}?",
        ],
    ),
    "after": (
        "{b} comes after {a}.",
        [
            "What comes after {a}?",
            "Which one follows {a}?",
            "After {a} comes what?",
            "What is next after {a}?",
            "Tell me what comes after {a}.",
            "What follows {a}?",
            "Name what comes after {a}.",
        ],
    ),
    "before": (
        "{b} comes before {a}.",
        [
            "What comes before {a}?",
            "Which one is before {a}?",
            "Before {a} comes what?",
            "What is right before {a}?",
            "Tell me what comes before {a}.",
            "What precedes {a}?",
            "Name what comes before {a}.",
        ],
    ),
}
