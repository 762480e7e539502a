"""The packaged instruction set `everyday`: complete, varied and plain, in every part of a split."""

import json
import re
from collections import Counter
from pathlib import Path

import hf_instruct

TEXT = (Path(hf_instruct.__file__).parent / "data" / "everyday.jsonl").read_text(encoding="utf-8")
ROWS = [json.loads(line) for line in TEXT.splitlines()]
CATEGORIES = {row["category"] for row in ROWS}


def template(row):
    """Return the instruction with numbers and quoted words replaced by a slot."""
    return re.sub(r"(?<!\w)'[^']+'(?!\w)|\"[^\"]+\"|\d[\d.,:/]*", "_", row["instruction"])


def test_rows_are_complete_short_plain_text():
    for row in ROWS:
        assert list(row) == ["instruction", "input", "output", "category"]
        assert all(isinstance(value, str) and value == value.strip() for value in row.values()), row
        assert all(row[name] for name in ("instruction", "output", "category")), row
        assert len(row["output"]) <= 240, row
        assert not re.search(r"[*#<>`_]{2}|https?://|\t", row["output"]), row
        assert not re.search(r"\bAs an AI\b|[\u2018-\u201f]", row["instruction"] + row["input"] + row["output"]), row


def test_rows_are_varied_in_every_part_of_a_sequential_split():
    assert len({(row["instruction"], row["input"]) for row in ROWS}) == len(ROWS) >= 1100
    assert sum(bool(row["input"]) for row in ROWS) >= len(ROWS) / 3
    assert Counter(map(template, ROWS)).most_common(1)[0][1] <= 60
    assert min(Counter(row["category"] for row in ROWS).values()) >= 20
    first, second = len(ROWS) * 85 // 100, len(ROWS) * 95 // 100
    assert {row["category"] for row in ROWS[:first]} == CATEGORIES
    assert len({row["category"] for row in ROWS[first:second]}) >= 14


def test_sorted_lists_hold_what_was_to_be_sorted():
    rows = [row for row in ROWS if row["category"] == "sorting"]
    assert len(rows) >= 50
    for row in rows:
        mark = next(mark for mark in ("\n", "; ", ", ") if mark in row["input"])
        assert sorted(row["output"].split(mark)) == sorted(row["input"].split(mark)), row
