"""Split examples into train, test and validation."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hf_instruct.config import DataSection
from hf_instruct.data.examples import BATCH, hash_prompts
from hf_instruct.data.sources import build_dataset, load_examples
from hf_instruct.errors import DataError, quote_names
from hf_instruct.records import SPLIT_NAMES, Example
from hf_instruct.validation import format_problems

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict

# 0.29 * 100 is 28.999999999999996 in floating point: a product this close below an integer means the integer.
_TOLERANCE = 1e-9


def split_examples(
    examples: "Dataset | str | Path | Iterable[Mapping[str, Any]]",
    *,
    split: str = "sequential",
    train_fraction: float = 0.85,
    test_fraction: float = 0.10,
    validation_fraction: float | None = None,
    seed: int = 123,
) -> "DatasetDict":
    """Return the splits `train`, `test` and `validation`; the first two are rounded down.

    Args:
        examples: All examples: a `Dataset`, rows as mappings, or a source of `load_examples`.
        split: `sequential` keeps their order (the course's split: 935/110/55 of 1,100); `shuffled` shuffles by a hash
            of `seed` and id, so the result does not depend on the machine or the order of the file; `grouped` does so
            too and keeps equal instruction + input pairs in one split.
        train_fraction: Share to train on, between 0 and 1.
        test_fraction: Share to answer and score.
        validation_fraction: Share to validate on; None means the rest. All three sum to 1.
        seed: Seed of `shuffled` and `grouped`.

    Raises:
        DataError: The fractions do not sum to 1, one is not between 0 and 1, a split would be empty, or
            the examples have problems.
    """
    values = {"split": split, "train_fraction": train_fraction, "test_fraction": test_fraction, "seed": seed}
    try:
        section = DataSection.model_validate({**values, "validation_fraction": validation_fraction})
    except ValidationError as error:
        raise DataError("The examples cannot be split:", format_problems(error, DataSection)) from error
    return split_dataset(load_examples(examples), section)


class CheckedSplits(dict[str, "Dataset"]):
    """The examples of `train`, `test` and `validation`, known to have no problems."""


def load_splits(data: Any) -> CheckedSplits:
    """Return the splits in a `DatasetDict` or a mapping with the keys `train`, `test` and `validation`.

    A split that is missing is empty. Anything else that `load_examples` takes is split as `split_examples` does.

    Raises:
        DataError: A key is not one of the three, or a split has problems.
    """
    if isinstance(data, CheckedSplits):
        return data
    if not isinstance(data, Mapping):
        return CheckedSplits(split_examples(data))
    if unknown := [str(name) for name in data if name not in SPLIT_NAMES]:
        raise DataError(
            f"The data has a split `{unknown[0]}`; the splits are {quote_names(SPLIT_NAMES)}. Rename it, or remove it."
        )
    return CheckedSplits(
        {name: load_examples(data[name]) if data.get(name) else build_dataset([], Example) for name in SPLIT_NAMES}
    )


def split_dataset(examples: "Dataset", section: DataSection) -> "DatasetDict":
    """Split a dataset with the settings of a `data` section, and keep all of its columns."""
    from datasets import DatasetDict

    sizes = _choose_sizes(len(examples), section.fractions)
    indices: Mapping[str, Any]
    if section.split == "grouped":
        indices = _split_groups(examples, sizes, section.seed)
    else:
        order = range(len(examples)) if section.split == "sequential" else _shuffle(examples, section.seed)
        first, second = sizes["train"], sizes["train"] + sizes["test"]
        indices = {"train": order[:first], "test": order[first:second], "validation": order[second:]}
    return DatasetDict({name: examples.select(indices[name]) for name in SPLIT_NAMES})


def _choose_sizes(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    # The course's arithmetic. Source:
    # https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/gpt_instruction_finetuning.py
    sizes = {name: math.floor(count * fractions[name] + _TOLERANCE) for name in ("train", "test")}
    sizes["validation"] = count - sizes["train"] - sizes["test"]
    _refuse_empty(sizes, f"{count:,} {'example' if count == 1 else 'examples'}", fractions)
    return sizes


def _refuse_empty(sizes: Mapping[str, int], what: str, fractions: Mapping[str, float] | None = None) -> None:
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        seen = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        at = f" at fractions {', '.join(f'{fractions[name]:g}' for name in SPLIT_NAMES)}" if fractions else ""
        raise DataError(
            f"{what} would be split into {seen}{at}, but no split may be empty. Add examples, or change "
            f"{', '.join(f'`{name}_fraction`' for name in empty)}."
        )


def _shuffle(examples: "Dataset", seed: int) -> "np.ndarray[Any, Any]":
    """Return the indices of examples in an order that only depends on `seed` and their ids."""
    import numpy as np

    ids = (id for batch in examples.select_columns("id").iter(BATCH) for id in batch["id"])
    draws = (hashlib.sha256(f"{seed}\0{id}".encode()).digest() for id in ids)
    return np.argsort(np.fromiter(draws, dtype="S32", count=len(examples)), kind="stable")


def _split_groups(examples: "Dataset", sizes: Mapping[str, int], seed: int) -> "dict[str, np.ndarray[Any, Any]]":
    """Return indices for splits of about these sizes that keep equal instruction + input pairs together."""
    import numpy as np

    order = _shuffle(examples, seed)
    found = np.unique(hash_prompts(examples)[order], return_index=True, return_inverse=True, return_counts=True)
    _, firsts, groups, counts = found
    left = dict(sizes)
    split_of = np.empty(len(counts), dtype=np.int8)
    # The largest groups first, while there is room; single examples then fill the splits exactly. Groups of equal size
    # stay shuffled.
    for done, group in enumerate(np.lexsort((firsts, -counts)).tolist()):
        count = int(counts[group])
        empty = [name for name in SPLIT_NAMES if left[name] == sizes[name]]
        # The last groups fill splits that are still empty.
        candidates = empty if empty and len(counts) - done <= len(empty) else list(SPLIT_NAMES)
        fitting = [name for name in candidates if left[name] >= count]
        if fitting:
            chosen = max(fitting, key=lambda name: left[name] / sizes[name])
        else:
            chosen = max(candidates, key=lambda name: left[name])
        left[chosen] -= count
        split_of[group] = SPLIT_NAMES.index(chosen)
    splits = {name: order[split_of[groups] == number] for number, name in enumerate(SPLIT_NAMES)}
    what = f"{len(examples):,} examples in {len(counts):,} groups of equal instruction and input"
    _refuse_empty({name: len(rows) for name, rows in splits.items()}, what)
    return splits
