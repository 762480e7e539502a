import hashlib
from collections import Counter
from typing import Any

import pytest
from datasets import DatasetDict

from hf_instruct.data.splits import split_examples
from hf_instruct.errors import DataError

METHODS = ("sequential", "shuffled", "grouped")


def build(count: int, prompts: int | None = None) -> list[dict[str, str]]:
    """Return examples of which `count - prompts` repeat a prompt."""
    return [{"id": f"id{n}", "instruction": f"Task {n % (prompts or count)}.", "output": str(n)} for n in range(count)]


def sizes(splits: DatasetDict) -> tuple[int, ...]:
    return tuple(splits[name].num_rows for name in ("train", "test", "validation"))


def ids(rows: Any) -> list[str]:
    return [row["id"] for row in rows]


def test_the_courses_split() -> None:
    examples = build(1100)
    splits = split_examples(examples)
    assert sizes(splits) == (935, 110, 55)
    assert [id for part in splits.values() for id in ids(part)] == ids(examples)
    assert list(splits) == ["train", "test", "validation"]


def test_the_sizes_are_the_courses_for_every_number_of_examples() -> None:
    from hf_instruct.data.splits import _choose_sizes

    fractions = {"train": 0.85, "test": 0.1, "validation": 0.05}
    for count in range(20, 20_000):
        found = _choose_sizes(count, fractions)
        assert (found["train"], found["test"]) == (int(count * 0.85), int(count * 0.1))


def test_fractions_mean_what_they_say_in_decimals() -> None:
    # In floating point 0.29 * 100 is a little below 29 and 0.57 * 100 a little below 57.
    assert sizes(split_examples(build(100), train_fraction=0.57, test_fraction=0.29)) == (57, 29, 14)
    assert sizes(split_examples(build(99), train_fraction=1 / 3, test_fraction=1 / 3)) == (33, 33, 33)
    assert sizes(split_examples(build(10), train_fraction=0.7, test_fraction=0.2, validation_fraction=0.1)) == (7, 2, 1)


@pytest.mark.parametrize(
    ("fractions", "problems"),
    [
        (
            {"validation_fraction": 0.0, "train_fraction": 0.9},
            ["`validation_fraction` is 0.0; it must be greater"],
        ),
        (
            {"train_fraction": 0, "test_fraction": 1.5},
            ["`train_fraction` is 0; it must be greater", "`test_fraction` is 1.5; it must be less"],
        ),
        ({"train_fraction": 0.9, "test_fraction": 0.1}, ["fractions sum to 1 and leave nothing for validation; "]),
        ({"validation_fraction": 0.1}, ["fractions sum to 1.05; "]),
        ({"train_fraction": float("nan")}, ["`train_fraction` is nan; it must be "]),
    ],
)
def test_bad_fractions(fractions: dict[str, float], problems: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        split_examples(build(100), **fractions)  # type: ignore[arg-type]
    found = caught.value.problems
    assert [text[: len(start)] for text, start in zip(found, problems, strict=True)] == problems


@pytest.mark.parametrize("split", METHODS)
def test_no_split_may_be_empty(split: str) -> None:
    with pytest.raises(DataError) as caught:
        split_examples(build(5), split=split)
    assert "4 train, 0 test, 1 validation at fractions 0.85, 0.1, 0.05, but no split may be" in str(caught.value)


def test_an_unknown_method() -> None:
    with pytest.raises(DataError, match=r"`split` is 'random'; it must be 'sequential', 'shuffled' or 'grouped'"):
        split_examples(build(100), split="random")


def test_shuffled_depends_on_seed_and_ids_only() -> None:
    examples = build(100)
    splits = split_examples(examples, split="shuffled")
    assert sizes(splits) == (85, 10, 5)
    assert sorted(id for part in splits.values() for id in ids(part)) == sorted(ids(examples))
    again = split_examples(examples[::-1], split="shuffled")
    assert [ids(part) for part in again.values()] == [ids(part) for part in splits.values()]
    assert ids(split_examples(examples, split="shuffled", seed=7)["train"]) != ids(splits["train"])
    # Pinned, so that no version of anything changes who is tested on what.
    assert ids(splits["validation"]) == ["id79", "id91", "id25", "id11", "id37"]


def test_splits_of_the_packaged_examples_are_pinned() -> None:
    pinned = {
        "sequential": "e6262c0e945b b11a72584b2b 34a33cd68a90",
        "shuffled": "175b4c2036a3 5038d4fdd8dc 7e340fb2694c",
        "grouped": "5fa8e223eda3 ade300192c91 ebcd14ed047d",
    }
    for split in METHODS:
        parts = split_examples("everyday", split=split).values()
        assert pinned[split].split() == [hashlib.sha256("".join(ids(part)).encode()).hexdigest()[:12] for part in parts]


def test_grouped_keeps_equal_prompts_together_at_the_exact_sizes() -> None:
    examples = build(1100, prompts=900)
    splits = split_examples(examples, split="grouped")
    assert sizes(splits) == (935, 110, 55)
    homes: dict[str, set[str]] = {}
    for name, part in splits.items():
        for row in part:
            homes.setdefault(row["instruction"], set()).add(name)
    assert {len(home) for home in homes.values()} == {1}
    assert Counter(id for part in splits.values() for id in ids(part)) == Counter(ids(examples))
    counts = Counter(row["instruction"] for row in examples)
    # Pairs are not all heaped into train.
    assert sum(counts[row["instruction"]] > 1 for row in splits["test"]) > 10
    assert ids(split_examples(examples, split="grouped", seed=1)["train"]) != ids(splits["train"])


def test_grouped_with_a_group_larger_than_a_split() -> None:
    examples = [{"id": f"id{n}", "instruction": "Same.", "output": str(n)} for n in range(40)]
    examples += [{"id": f"other{n}", "instruction": f"Task {n}.", "output": "x"} for n in range(60)]
    splits = split_examples(examples, split="grouped")
    assert sizes(splits) == (85, 10, 5)
    assert sum(row["instruction"] == "Same." for row in splits["train"]) == 40


def test_grouped_leaves_no_split_empty_while_there_are_groups_for_it() -> None:
    examples = build(12, prompts=3)
    assert sizes(split_examples(examples, split="grouped", train_fraction=0.8, test_fraction=0.1)) == (4, 4, 4)


def test_grouped_with_too_few_groups() -> None:
    with pytest.raises(DataError) as caught:
        split_examples(build(100, prompts=2), split="grouped")
    assert str(caught.value).startswith("100 examples in 2 groups of equal instruction and input would be split into ")
