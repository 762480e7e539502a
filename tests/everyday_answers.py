"""Recompute the checkable answers of `data/everyday.jsonl` from the instruction and the input alone.

`expected_answer` returns the text that must stand in the output, or `None` for a row that code cannot answer.
In every table the first pattern that matches decides; `#` in a pattern stands for a number in digits or words.
"""

import ast
import json
import operator
import re
from datetime import date, timedelta
from fractions import Fraction
from statistics import median

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [date(2001, number, 1).strftime("%B") for number in range(1, 13)]
ANIMALS = ["ant", "bee", "mouse", "robin", "rabbit", "fox", "bear", "horse", "elephant"]
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
SHIRT_SIZES = ["small", "medium", "large", "extra large"]
NUMBER = r"-?\d+(?:\.\d+)?"
GALLON = "3.785411784"  # liters in a U.S. gallon, exact by definition
UNITS = {  # size in the base unit of the kind; all factors are exact
    "length": {"kilometer": "1000", "meter": "1", "centimeter": "0.01", "millimeter": "0.001", "mile": "1609.344",
               "yard": "0.9144", "foot": "0.3048", "inch": "0.0254"},
    "mass": {"metric ton": "1000000", "kilogram": "1000", "gram": "1", "milligram": "0.001",
             "pound": "453.59237", "ounce": "28.349523125"},
    "volume": {"liter": "1", "milliliter": "0.001", "gallon": GALLON, "quart": (GALLON, 4), "pint": (GALLON, 8),
               "cup": (GALLON, 16), "fluid ounce": (GALLON, 128), "tablespoon": (GALLON, 256),
               "teaspoon": (GALLON, 768)},
    "time": {"second": "1", "minute": "60", "hour": "3600", "day": "86400", "week": "604800"},
    "speed": {"meter per second": "1", "kilometer per hour": "5/18", "mile per hour": "0.44704"},
    "data": {"bit": "1", "byte": "8", "kilobyte": "8000", "megabyte": "8000000", "gigabyte": "8000000000",
             "terabyte": "8000000000000"},
    "temperature": {"kelvin": "1", "degree Celsius": "1", "degree Fahrenheit": "5/9"},
}  # fmt: skip
ZERO_POINTS = {"degree Celsius": Fraction("273.15"), "degree Fahrenheit": Fraction("459.67") * 5 / 9}  # in kelvins


def plural(unit):
    head, gap, tail = re.fullmatch(r"(metric ton|fluid ounce|\w+)( |$)(.*)", unit).groups()
    return {"foot": "feet", "inch": "inches"}.get(head, head + "s") + gap + tail


def unit_size(unit):
    size = next(units[unit] for units in UNITS.values() if unit in units)
    return Fraction(size[0]) / size[1] if isinstance(size, tuple) else Fraction(size)


UNIT_OF_NAME = {name: unit for units in UNITS.values() for unit in units for name in (unit, plural(unit))}
UNIT_NAME = r"\b(" + "|".join(sorted(UNIT_OF_NAME, key=len, reverse=True)) + r")\b"


def number(text):
    text = text.replace(",", "").strip("$%")
    return Fraction(DIGITS.index(text.lower()) if text.lower() in DIGITS else text)


def decimal(value):
    """Write a number exactly, or "about" with two decimals when three are not enough."""
    for places in range(4):
        if (value * 10**places).denominator == 1:
            return f"{float(value):,.{places}f}" if abs(value) >= 10000 else f"{float(value):.{places}f}"
    return f"about {float(value):,.2f}"


def money(value):
    return f"${value}" if value.denominator == 1 else f"${float(value):.2f}"


def first_match(table, text):
    """Apply the function of the first matching pattern to its groups, or to the match when it has none."""
    for pattern, function in table:
        match = re.search(pattern.replace("#", r"\$?(\d+(?:\.\d+)?|" + "|".join(DIGITS) + ")"), text, re.I)
        if match:
            return function(*match.groups()) if match.groups() else function(text)
    return None


# Conversions


def conversion(instruction, given):
    text = f"{instruction}\n{given}"
    found = re.search(f"({NUMBER})[ -]{UNIT_NAME}", text)
    source = UNIT_OF_NAME[found[2]]
    target = next(unit for unit in map(UNIT_OF_NAME.get, re.findall(UNIT_NAME, text)) if unit != source)
    if not any(source in units and target in units for units in UNITS.values()):
        return None
    base = Fraction(found[1]) * unit_size(source) + ZERO_POINTS.get(source, 0)
    value = (base - ZERO_POINTS.get(target, 0)) / unit_size(target)
    return f"{decimal(value)} {target if abs(value) == 1 else plural(target)}"


# Arithmetic


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def expression(text):
    def value_of(node):
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))

    value = value_of(ast.parse(text.replace("x", "*"), mode="eval").body)
    return str(value) if re.search(r"\d/\d", text) else decimal(value)


def of_numbers(function):
    return lambda *texts: decimal(function(*map(number, texts)))


def of_all_numbers(function):
    return lambda text: decimal(function([Fraction(found) for found in re.findall(NUMBER, text)]))


def in_money(function):
    return lambda *texts: money(function(*map(number, texts)))


ARITHMETIC = [
    (r"(?:What is|Calculate|expression\.)\s([\d(][\d ./x*()+-]* [\d ./x*()+-]*[\d)])[.?]?$", expression),
    (r"sum of|Add the numbers", of_all_numbers(sum)),
    (r"average of|mean of", of_all_numbers(lambda values: sum(values) / len(values))),
    (r"median of", of_all_numbers(median)),
    (r"largest number exceed", of_all_numbers(lambda values: max(values) - min(values))),
    (r"next number", of_all_numbers(lambda values: 2 * values[-1] - values[-2])),
    (r"product of #, #, and #", of_numbers(lambda a, b, c: a * b * c)),
    (r"product of # and #", of_numbers(lambda a, b: a * b)),
    (r"difference between # and #", of_numbers(lambda a, b: abs(a - b))),
    (r"remainder when # is divided by #", of_numbers(lambda a, b: a % b)),
    (r"Divide # by #", of_numbers(lambda a, b: a / b)),
    (r"Subtract # from #", of_numbers(lambda a, b: b - a)),
    (r"Multiply # by #", of_numbers(lambda a, b: a * b)),
    (r"#(?:%| percent) of #", of_numbers(lambda a, b: a * b / 100)),
    (r"What percentage of # is #", lambda a, b: decimal(100 * number(b) / number(a)) + "%"),
    (r"Increase # by #%", of_numbers(lambda a, b: a * (100 + b) / 100)),
    (r"Decrease # by #%", of_numbers(lambda a, b: a * (100 - b) / 100)),
    (r"costs # is reduced by #%", in_money(lambda a, b: a * (100 - b) / 100)),
    (r"is #, and you leave a tip of #%", in_money(lambda a, b: a * b / 100)),
    (r"Simplify the fraction (\S+\d)", lambda fraction: str(Fraction(fraction))),
    (r"Write (\S+) as a decimal", lambda fraction: decimal(Fraction(fraction))),
    (r"Write (\S+) as a fraction", lambda value: str(Fraction(value))),
    (r"three quarters of #", of_numbers(lambda a: a * 3 / 4)),
    (r"two thirds of #", of_numbers(lambda a: a * 2 / 3)),
    (r"half of #", of_numbers(lambda a: a / 2)),
    (r"square of #", of_numbers(lambda a: a**2)),
    (r"square root of #", of_numbers(lambda a: next(Fraction(root) for root in range(100) if root**2 == a))),
    (r"cube of #", of_numbers(lambda a: a**3)),
    (r"# to the power of #", of_numbers(lambda a, b: a ** int(b))),
    (r"Round # to the nearest hundred", of_numbers(lambda a: (a + 50) // 100 * 100)),
    (r"Round # to the nearest whole", of_numbers(lambda a: Fraction((a + Fraction(1, 2)) // 1))),
    (r"# \w+ long and # \w+ wide. What is its area", of_numbers(lambda a, b: a * b)),
    (r"# \w+ long and # \w+ wide. What is its perimeter", of_numbers(lambda a, b: 2 * (a + b))),
    (r"side of a square is # \w+. What is its perimeter", of_numbers(lambda a: 4 * a)),
    (r"# \w+ share # .*equally", of_numbers(lambda a, b: b / a)),
    (r"holds # \w+. How many \w+ are in #", of_numbers(lambda a, b: a * b)),
    (r"had # \w+ and (?:gave away|sold) #", of_numbers(lambda a, b: a - b)),
    (r"# (?:pages|apples) .* and # (?:pages|apples) .* in all", of_numbers(lambda a, b: a + b)),
    (r"costs #. How much do # ", in_money(lambda a, b: a * b)),
    (r"for a # \w+ with a # bill", in_money(lambda a, b: b - a)),
    (r"at # miles per hour for # hours", of_numbers(lambda a, b: a * b)),
]


# Dates and times


def minutes(text):
    """Return minutes after midnight of "3:45 p.m." or "15:45"."""
    hour, minute, half = re.fullmatch(r"(\d+):(\d\d) ?([ap]\.m\.)?", text).groups()
    return (int(hour) % 12 + 12 * (half == "p.m.") if half else int(hour)) * 60 + int(minute)


def clock_12(count):
    return f"{(count // 60 - 1) % 12 + 1}:{count % 60:02} {'p.m.' if count // 60 % 24 >= 12 else 'a.m.'}"


def clock_24(text):
    return f"{minutes(text) // 60:02}:{minutes(text) % 60:02}"


def duration(start, end):
    hours, rest = divmod((minutes(end) - minutes(start)) % 1440, 60)
    parts = [f"{count} {unit}{'s' * (count > 1)}" for count, unit in ((hours, "hour"), (rest, "minute")) if count]
    return " and ".join(parts)


def step(names, name, offset):
    return names[(names.index(name) + offset) % len(names)]


def day_of_year(text, year="2001"):
    month, day = text.split()
    return date(int(year), MONTHS.index(month) + 1, int(day))


def days_of_month(month, year=2001):
    start = MONTHS.index(month) + 1
    return str((date(int(year) + start // 12, start % 12 + 1, 1) - date(int(year), start, 1)).days)


def shift_date(weeks, way, start):
    moved = day_of_year(start) + timedelta(weeks=int(number(weeks)) * (-1 if way == "before" else 1))
    return f"{moved:%B} {moved.day}"


DAY, MONTH, TIME = f"({'|'.join(WEEKDAYS)})", f"({'|'.join(MONTHS)})", r"(\d+:\d\d(?: [ap]\.m\.)?)"
MONTH_DAY = f"((?:{'|'.join(MONTHS)}) \\d+)"
SIGN = {"before": -1, "after": 1}
CALENDAR = [
    (f"day .* comes # days (before|after) {DAY}", lambda n, way, day: step(WEEKDAYS, day, SIGN[way] * int(number(n)))),
    (f"today is {DAY}, .* in # days", lambda day, n: step(WEEKDAYS, day, int(n))),
    (f"yesterday was {DAY}, what day is tomorrow", lambda day: step(WEEKDAYS, day, 2)),
    (f"day comes right (before|after) {DAY}", lambda way, day: step(WEEKDAYS, day, SIGN[way])),
    (f"from {TIME} to {TIME}", duration),
    (f"between the two times\\?\\s{TIME}, {TIME}", duration),
    (f"at {TIME} and (?:arrives|gets in) at {TIME}", duration),
    (f"at {TIME} and lasts # minutes", lambda start, n: clock_12(minutes(start) + int(n))),
    (f"for # minutes. .* at {TIME}", lambda n, start: clock_12(minutes(start) + int(n))),
    (f"{TIME} in 24-hour time|24-hour clock.\\s{TIME}", lambda first, second: clock_24(first or second)),
    (f"12-hour clock.\\s{TIME}", lambda text: clock_12(minutes(text))),
    (f"days did {MONTH} have in (\\d+)", days_of_month),
    (f"days are there in {MONTH}", days_of_month),
    (f"number of days in the month.\\s{MONTH}", days_of_month),
    (r"(\d+) a leap year", lambda year: "Yes" if days_of_month("February", year) == "29" else "No"),
    (f"month comes # months (before|after) {MONTH}",
     lambda n, way, month: step(MONTHS, month, SIGN[way] * int(number(n)))),
    (r"is the (\w+) month of the year", lambda word: MONTHS[ORDINALS.index(word)]),
    (f"days is it from {MONTH_DAY} to {MONTH_DAY}", lambda a, b: str((day_of_year(b) - day_of_year(a)).days)),
    (f"date is # weeks? (before|after) {MONTH_DAY}", shift_date),
    (r"century .*\s(\d+)$", lambda year: f"{(int(year) + 99) // 100}th century"),
    (f"born in {MONTH} (\\d+) and died in {MONTH} (\\d+)",
     lambda month, born, last, died: str(int(died) - int(born) - (MONTHS.index(last) < MONTHS.index(month)))),
]  # fmt: skip


# Sorting


def sort_date(text):
    found = re.fullmatch(r"(\w+ \d+)(?:, (\d+))?", text)
    return day_of_year(found[1], found[2] or 2001)


def sort_measure(text):
    count, name = text.split(" ", 1)
    return Fraction(count) * unit_size(UNIT_OF_NAME[name])


SORT_KEYS = [
    (r"alphabetical|A to Z|Z to A", str.lower),
    (r"words (?:by length|from longest)", len),
    (r"lengths|weights|durations", sort_measure),
    (r"numbers|fractions|prices|percentages", number),
    (r"by points|by number of items|by age", lambda item: int(item.split(": ")[1])),
    (r"days of the week", WEEKDAYS.index),
    (r"months", MONTHS.index),
    (r"dates", sort_date),
    (r"times of day", minutes),
    (r"animals", ANIMALS.index),
    (r"planets", PLANETS.index),
    (r"shirt sizes", SHIRT_SIZES.index),
    (r"ordinal", ORDINALS.index),
]
DOWNWARD = r"reverse|Z to A|descending|(largest|longest|heaviest|highest) to|(highest|oldest) first"


def sorted_list(instruction, given):
    separator = next(mark for mark in ("\n", "; ", ", ") if mark in given)
    items = given.split(separator)
    if "reverse order" in instruction:
        return separator.join(reversed(items))
    key = next((key for pattern, key in SORT_KEYS if re.search(pattern, instruction)), None)
    return key and separator.join(sorted(items, key=key, reverse=bool(re.search(DOWNWARD, instruction))))


# Formatting: the functions get the instruction and the input


def any_date(text):
    if match := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", text):
        return date(*map(int, match.groups()))
    if match := re.fullmatch(r"(\d+)/(\d+)/(\d{4})", text):
        return date(int(match[3]), int(match[1]), int(match[2]))
    return sort_date(text)


def json_object(text):
    pairs = (pair.split(": ") for pair in text.split(", "))
    return json.dumps({key: int(value) if value.isdigit() else value for key, value in pairs})


def numbered(text):
    return "\n".join(f"{count}. {item}" for count, item in enumerate(text.split(", "), 1))


def phone_number(text):
    digits = re.sub(r"\D", "", text)
    return f"({digits[:3]}) {digits[3:6]}-{digits[6:]}"


FORMATTING = [
    (r"Month D, YYYY", lambda text: f"{any_date(text):%B} {any_date(text).day}, {any_date(text).year}"),
    (r"YYYY-MM-DD", lambda text: any_date(text).isoformat()),
    (r"MM/DD/YYYY", lambda text: f"{any_date(text):%m/%d/%Y}"),
    (r"title case", str.title),
    (r"into bullet points", lambda text: "- " + text.replace(", ", "\n- ")),
    (r"into a numbered list", numbered),
    (r"Join the bullet points", lambda text: text.removeprefix("- ").replace("\n- ", ", ")),
    (r"JSON object", json_object),
    (r"JSON array", lambda text: json.dumps(text.split(", "))),
    (r"\(XXX\) XXX-XXXX", phone_number),
    (r"only the digits", lambda text: re.sub(r"\D", "", text)),
    (r"upper case|capital letters", str.upper),
    (r"sentence case", str.capitalize),
    (r"snake case", lambda text: text.lower().replace(" ", "_")),
    (r"text in lower case", str.lower),
    (r"How many words", lambda text: str(len(text.split()))),
    (r"last name first", lambda text: ", ".join(reversed(text.split()))),
    (r"initials", lambda text: "".join(word[0] + "." for word in text.split())),
    (r"space with a hyphen", lambda text: text.replace(" ", "-")),
    (r"thousands separators", lambda text: f"{int(text):,}"),
    (r"amount in dollars", lambda text: f"${float(text):,.2f}"),
    (r"extra spaces", lambda text: " ".join(text.split())),
    (r"on its own line", lambda text: re.sub(r"(?<=[.!?]) ", "\n", text)),
    (r"semicolons with commas", lambda text: text.replace(";", ",")),
    (r"quotes around each word", lambda text: re.sub(r"\w+", r'"\g<0>"', text)),
    (r"as a percentage", lambda text: decimal(100 * Fraction(text)) + "%"),
]


def formatted(instruction, given):
    text = given or re.search(r"'(.+)'", instruction)[1]
    return next((function(text) for pattern, function in FORMATTING if re.search(pattern, instruction)), None)


# Word puzzles


def yes_or_no(truth):
    return "Yes" if truth else "No"


def vowels(word):
    return [letter for letter in word.lower() if letter in "aeiou"]


def letter_at(place, word):
    index = {"last": -1, "middle": len(word) // 2}.get(place)
    return f"'{word[ORDINALS.index(place) if index is None else index]}'"


WORD = r"'(\w+)'"
PUZZLES = [
    (f"letters are in the word {WORD}", lambda word: str(len(word))),
    (r"Count the letters .*\s(\w+)$", lambda word: str(len(word))),
    (f"times does the letter {WORD} appear in {WORD}", lambda letter, word: str(word.count(letter))),
    (f"(\\w+) letter of the word {WORD}", letter_at),
    (f"word {WORD} backward", lambda word: f"'{word[::-1]}'"),
    (r"Reverse the letters .*\s(\w+)$", lambda word: word[::-1]),
    (r"Reverse the order of the words.\s(.+)", lambda text: " ".join(reversed(text.split()))),
    (r"How many vowels .*\s(\w+)$", lambda word: str(len(vowels(word)))),
    (r"Which vowels .*\s(\w+)$", lambda word: ", ".join(vowels(word))),
    (r"Remove all vowels .*\s(\w+)$", lambda word: re.sub("[aeiou]", "", word)),
    (r"acronym .*\s(.+)$", lambda text: "".join(word[0] for word in text.split()).upper()),
    (f"first in the dictionary, {WORD} or {WORD}", lambda a, b: f"'{min(a, b)}' comes"),
    (f"word {WORD} a palindrome", lambda word: yes_or_no(word == word[::-1])),
    (f"{WORD} and {WORD} anagrams", lambda a, b: yes_or_no(sorted(a) == sorted(b))),
    (f"remove the first letter of {WORD}", lambda word: f"'{word[1:]}'"),
    (f"remove the last letter of {WORD}", lambda word: f"'{word[:-1]}'"),
    (f"replace the first letter of {WORD} with {WORD}", lambda word, letter: f"'{letter}{word[1:]}'"),
    (r"two words together .*\s(\w+), (\w+)$", lambda first, second: first + second),
    (f"more letters, {WORD} or {WORD}", lambda a, b: f"'{max(a, b, key=len)}' has"),
]


def expected_answer(category, instruction, given):
    """Return the text that must stand in the output, or `None` when code cannot tell."""
    functions = {"unit_conversion": conversion, "sorting": sorted_list, "formatting": formatted}
    tables = {"arithmetic": ARITHMETIC, "calendar_and_time": CALENDAR, "word_puzzles": PUZZLES}
    if category in functions:
        return functions[category](instruction, given)
    if category in tables:
        return first_match(tables[category], f"{instruction}\n{given}".strip())
    return None
