from collections import Counter

import pytest

from hf_instruct.data.checks import group_by_prompt
from hf_instruct.data.splits import SPLIT_METHODS, split_rows
from hf_instruct.errors import DataError
from hf_instruct.records import Example, Splits


def build(count: int, prompts: int | None = None) -> list[Example]:
    """Return examples of which `count - prompts` repeat a prompt."""
    return [Example(f"id{n}", f"Task {n % (prompts or count)}.", "", str(n)) for n in range(count)]


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.test), len(splits.validation)


def test_the_courses_split() -> None:
    examples = build(1100)
    splits = split_rows(examples)
    assert sizes(splits) == (935, 110, 55)
    assert splits.train + splits.test + splits.validation == examples
    assert repr(splits) == "Splits(train: 935 examples, test: 110 examples, validation: 55 examples)"
    assert splits.named() == {"train": splits.train, "test": splits.test, "validation": splits.validation}


def test_the_sizes_are_the_courses_for_every_number_of_examples() -> None:
    from hf_instruct.data.splits import _choose_sizes

    fractions = {"train": 0.85, "test": 0.1, "validation": 0.05}
    for count in range(20, 60_000):
        found = _choose_sizes(count, fractions)
        assert (found["train"], found["test"]) == (int(count * 0.85), int(count * 0.1))


def test_fractions_mean_what_they_say_in_decimals() -> None:
    # In floating point 0.29 * 100 is a little below 29 and 0.57 * 100 a little below 57.
    assert sizes(split_rows(build(100), train_fraction=0.57, test_fraction=0.29)) == (57, 29, 14)
    assert sizes(split_rows(build(99), train_fraction=1 / 3, test_fraction=1 / 3)) == (33, 33, 33)
    assert sizes(split_rows(build(10), train_fraction=0.7, test_fraction=0.2, validation_fraction=0.1)) == (7, 2, 1)


@pytest.mark.parametrize(
    ("fractions", "lines"),
    [
        (
            {"validation_fraction": 0.0, "train_fraction": 0.9},
            ["`validation_fraction` is 0.0; it should be above 0 and below 1, so that no split is empty"],
        ),
        (
            {"train_fraction": 0, "test_fraction": 1.5},
            [
                "`train_fraction` is 0; it should be above 0 and below 1, so that no split is empty",
                "`test_fraction` is 1.5; it should be above 0 and below 1, so that no split is empty",
                "`train_fraction` 0, `test_fraction` 1.5 sum to 1.5 and leave nothing for validation; lower one of "
                "them",
            ],
        ),
        (
            {"train_fraction": 0.9, "test_fraction": 0.1},
            ["`train_fraction` 0.9, `test_fraction` 0.1 sum to 1 and leave nothing for validation; lower one of them"],
        ),
        (
            {"validation_fraction": 0.1},
            [
                "`train_fraction` 0.85, `test_fraction` 0.1, `validation_fraction` 0.1 sum to 1.05; they should sum to "
                "1 "
                "(leave `validation_fraction` out to give it the rest)"
            ],
        ),
        (
            {"train_fraction": float("nan")},
            ["`train_fraction` is nan; it should be above 0 and below 1, so that no split is empty"],
        ),
    ],
)
def test_bad_fractions(fractions: dict[str, float], lines: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        split_rows(build(100), **fractions)  # type: ignore[arg-type]
    assert str(caught.value).splitlines() == ["The examples cannot be split:", *(f"  - {line}" for line in lines)]


@pytest.mark.parametrize("split", SPLIT_METHODS)
def test_no_split_may_be_empty(split: str) -> None:
    with pytest.raises(DataError) as caught:
        split_rows(build(5), split=split)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "5 examples would split into 4 train, 0 test, 1 validation at fractions 0.85, 0.1, 0.05, and no split may be "
        "empty. Add examples, or change `test_fraction`."
    )
    with pytest.raises(DataError, match=r"^0 examples would split into 0 train, 0 test, 0 validation at"):
        split_rows([], split=split)  # type: ignore[arg-type]


def test_an_unknown_method() -> None:
    with pytest.raises(DataError, match=r"^`split` is `random`; allowed are `sequential`, `shuffled`, `grouped`\.$"):
        split_rows(build(100), split="random")  # type: ignore[arg-type]


def test_shuffled_depends_on_seed_and_ids_only() -> None:
    examples = build(100)
    splits = split_rows(examples, split="shuffled")
    assert sizes(splits) == (85, 10, 5)
    assert sorted(e.id for part in splits.named().values() for e in part) == sorted(e.id for e in examples)
    assert split_rows(examples[::-1], split="shuffled") == splits
    assert split_rows(examples, split="shuffled", seed=7) != splits
    # Pinned, so that no version of anything changes who is tested on what.
    assert [e.id for e in splits.validation] == ["id79", "id91", "id25", "id11", "id37"]


def test_grouped_keeps_equal_prompts_together_at_the_exact_sizes() -> None:
    examples = build(1100, prompts=900)
    splits = split_rows(examples, split="grouped")
    assert sizes(splits) == (935, 110, 55)
    homes: dict[str, set[str]] = {}
    for name, part in splits.named().items():
        for example in part:
            homes.setdefault(example.instruction, set()).add(name)
    assert {len(home) for home in homes.values()} == {1}
    assert Counter(e.id for part in splits.named().values() for e in part) == Counter(e.id for e in examples)
    repeated = {i for (i, _), places in group_by_prompt(examples).items() if len(places) > 1}
    # Pairs are not all heaped into train.
    assert sum(e.instruction in repeated for e in splits.test) > 10
    assert split_rows(examples, split="grouped") == splits
    assert split_rows(examples, split="grouped", seed=1) != splits


def test_grouped_with_a_group_larger_than_a_split() -> None:
    examples = [Example(f"id{n}", "Same.", "", str(n)) for n in range(40)]
    examples += [Example(f"other{n}", f"Task {n}.", "", "x") for n in range(60)]
    splits = split_rows(examples, split="grouped")
    assert sizes(splits) == (85, 10, 5)
    assert sum(e.instruction == "Same." for e in splits.train) == 40


def test_grouped_leaves_no_split_empty_while_there_are_groups_for_it() -> None:
    examples = build(12, prompts=3)
    assert sizes(split_rows(examples, split="grouped", train_fraction=0.8, test_fraction=0.1)) == (4, 4, 4)


def test_grouped_with_too_few_groups() -> None:
    with pytest.raises(DataError) as caught:
        split_rows(build(100, prompts=2), split="grouped")
    assert str(caught.value).startswith("100 examples in 2 groups of equal instruction and input would split into ")
