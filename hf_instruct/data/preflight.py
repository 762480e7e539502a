"""What is known of the data before anything is trained on it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hf_instruct.data.checks import group_by_prompt
from hf_instruct.records import Example, Splits


def build_preflight(splits: Splits, *, source: str, data_sha256: str) -> dict[str, Any]:
    """Return what `preflight.json` holds.

    Args:
        splits: The examples.
        source: Where they come from, as the user named it.
        data_sha256: Hash of the bytes of `train.jsonl`, `test.jsonl` and `validation.jsonl`, in this order.

    Returns:
        `examples` and `empty_inputs`: how many, for each split and in `total`. `repeated_prompts`: how many
        instruction + input pairs stand on more than one row, and `repeated_rows` how many rows repeat such a pair
        after its first. `seen_in_train`: for `test` and for `validation`, the examples whose instruction and input
        also stand in train, as `id` and `train_ids`.
    """
    named = splits.named()
    everything = [example for examples in named.values() for example in examples]
    groups = group_by_prompt(everything).values()
    return {
        "source": source,
        "data_sha256": data_sha256,
        "examples": _count({name: len(examples) for name, examples in named.items()}),
        "empty_inputs": _count({name: sum(not e.input for e in examples) for name, examples in named.items()}),
        "repeated_prompts": sum(len(places) > 1 for places in groups),
        "repeated_rows": sum(len(places) - 1 for places in groups),
        "seen_in_train": {name: _find_seen(named[name], splits.train) for name in ("test", "validation")},
    }


def _count(counts: dict[str, int]) -> dict[str, int]:
    return {**counts, "total": sum(counts.values())}


def _find_seen(examples: Sequence[Example], train: Sequence[Example]) -> list[dict[str, Any]]:
    train_ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for example in train:
        train_ids[example.instruction, example.input].append(example.id)
    return [
        {"id": example.id, "train_ids": train_ids[pair]}
        for example in examples
        if (pair := (example.instruction, example.input)) in train_ids
    ]
