"""The packaged instruction set `everyday`: shape, variety, and every answer that code can compute again."""

import json
import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

import pytest
from everyday_answers import MONTHS, NUMBER, WEEKDAYS, expected_answer
from spellchecker import SpellChecker

import hf_instruct

EVERYDAY_PATH = Path(hf_instruct.__file__).parent / "data" / "everyday.jsonl"
KEYS = ["instruction", "input", "output", "category"]
SPELLING = SpellChecker()  # American English
WORD = r"[A-Za-z]+(?:'[a-z]+)?"
FACT = re.compile(rf"{NUMBER}|\b(?:{'|'.join(WEEKDAYS + MONTHS)})\b")


def load_rows():
    return [json.loads(line) for line in EVERYDAY_PATH.read_text(encoding="utf-8").splitlines()]


ROWS = load_rows()


def template(row):
    """Return the instruction with numbers and quoted words replaced by a slot."""
    return re.sub(r"(?<!\w)'[^']+'(?!\w)|\"[^\"]+\"|\d[\d.,:/]*", "_", row["instruction"])


def rows_of(category):
    return [row for row in ROWS if row["category"] == category]


def question(row):
    return f"{row['instruction']}\n{row['input']}"


def contains(output, answer):
    return re.search(rf"(?<![\w.,:/$-]){re.escape(answer)}(?!\w|[.,:/]\d)", output) is not None


def misspelled_and_corrected(row):
    """Return the unknown words of the question and the words that the output offers instead."""
    corrected = re.findall(r"(?<!\w)'(\w+)'", row["output"]) or re.findall(WORD, row["output"])
    asked = row["input"] or " ".join(re.findall(r"(?<!\w)'(\w+)'", row["instruction"]))
    unknown = sorted(SPELLING.unknown(re.findall(WORD, asked)))
    return unknown, corrected


def test_rows_are_complete_and_hold_text_only():
    assert len(ROWS) >= 1100
    for row in ROWS:
        assert list(row) == KEYS
        assert all(isinstance(value, str) and value == value.strip() for value in row.values()), row
        assert all(row[name] for name in ("instruction", "output", "category")), row


def test_rows_are_varied():
    assert len({row["category"] for row in ROWS}) >= 14
    assert sum(bool(row["input"]) for row in ROWS) >= len(ROWS) / 3
    assert Counter((row["instruction"], row["input"]) for row in ROWS).most_common(1)[0][1] == 1
    assert Counter(map(template, ROWS)).most_common(1)[0][1] <= 60
    assert all(len(rows_of(category)) >= 20 for category in {row["category"] for row in ROWS})


def test_sequential_split_keeps_every_category():
    first, second = len(ROWS) * 85 // 100, len(ROWS) * 95 // 100
    categories = {row["category"] for row in ROWS}
    assert {row["category"] for row in ROWS[:first]} == categories
    assert len({row["category"] for row in ROWS[first:second]}) >= 14


@pytest.mark.parametrize("category", ["sorting", "formatting"])
def test_rewritten_input_is_exact(category):
    rows = rows_of(category)
    assert len(rows) >= 50
    for row in rows:
        assert row["output"] == expected_answer(category, row["instruction"], row["input"]), row


@pytest.mark.parametrize(
    ("category", "least", "share"),
    [("unit_conversion", 60, 1), ("arithmetic", 60, 1), ("calendar_and_time", 45, 1), ("word_puzzles", 40, 0.8)],
)
def test_computed_answer_stands_in_output(category, least, share):
    rows, num_checked = rows_of(category), 0
    for row in rows:
        answer = expected_answer(category, row["instruction"], row["input"])
        if answer is None:
            continue
        num_checked += 1
        assert contains(row["output"], answer), (row, answer)
        # A number, day or month that neither the question nor the answer names would be a second, wrong answer.
        assert set(FACT.findall(row["output"])) <= set(FACT.findall(question(row) + "\n" + answer)), (row, answer)
    assert num_checked >= least
    assert num_checked >= share * len(rows)


def test_computed_answers_catch_a_wrong_output():
    assert expected_answer("unit_conversion", "Convert 26 miles to kilometers.", "") == "about 41.84 kilometers"
    assert not contains("26 miles is about 141.84 kilometers.", "41.84 kilometers")
    assert not contains("The sum is 122.5.", "122")
    assert expected_answer("sorting", "Order the numbers from smallest to largest.", "0.5, 0.25") == "0.25, 0.5"
    assert expected_answer("calendar_and_time", "How long is it from 9:40 a.m. to 11:05 a.m.?", "") == (
        "1 hour and 25 minutes"
    )


def test_spelling_rows_replace_one_unknown_word_by_a_known_one():
    rows = rows_of("spelling")
    assert len(rows) >= 50
    for row in rows:
        unknown, corrected = misspelled_and_corrected(row)
        assert len(unknown) == 1, (row, unknown)
        assert corrected, row
        assert not SPELLING.unknown(corrected), row
        assert get_close_matches(unknown[0], map(str.lower, corrected), cutoff=0.7), row
        assert not contains(row["output"].lower(), unknown[0]), row


def test_outputs_are_short_plain_text():
    for row in ROWS:
        assert len(row["output"]) <= 240, row
        assert not re.search(r"[*#<>`_]{2}|https?://|\t", row["output"]), row
        assert not re.search(r"\bAs an AI\b|[\u2018-\u201f]", row["instruction"] + row["input"] + row["output"]), row
