"""What is known of the data before anything is trained on it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_instruct.data.checks import group_by_prompt, shorten
from hf_instruct.data.near_duplicates import METHOD, MOST_ROWS, NEAR_THRESHOLD, find_near_duplicates
from hf_instruct.data.tokens import TokenCounter
from hf_instruct.errors import DataError
from hf_instruct.records import Example, Splits

HELD_OUT = ("test", "validation")
_SHOWN = 5


def build_preflight(
    splits: Splits,
    *,
    source: str,
    split: str | None = None,
    threshold: float | None = None,
    counter: TokenCounter | None = None,
    num_left_out: int = 0,
) -> dict[str, Any]:
    """Return what `preflight.json` holds, but for the checksum of the files.

    Args:
        splits: The examples.
        source: Where they come from, as the user named it.
        split: How they were split; None where they were not.
        threshold: Least cosine similarity of near-duplicates. None takes `NEAR_THRESHOLD`, and leaves near-duplicates
            out with more than `MOST_ROWS` examples.
        counter: Counts tokens as training will; None leaves out what needs that.
        num_left_out: Rows of the source that are not in the splits because they have no output.

    Returns:
        `examples`, `empty_inputs`, `empty_outputs`: how many, for each split and in `total`; in the last with
        `left_out`. `duplicate_rows`: how many rows repeat an earlier one in instruction, input and output.
        `repeated_prompts`: how many instruction + input pairs stand on more than one row, and `repeated_rows` how many
        rows repeat such a pair after its first. For `test` and for `validation`: `seen_in_train`, the examples whose
        instruction and input also stand in train, as `id` and `train_ids`; `instruction_seen_in_train`, the others
        whose instruction does, with another input, as `id` and `num_train`; `near_duplicates`, the examples not in
        `seen_in_train` that are nearly a training example, as `id`, `train_id` and `cosine`, beside `threshold`,
        `method`, `compared` and, where they were not looked for, the reason, `skipped`. `tokens`: None, or `model`,
        `prompt_format`, `max_length`, `completion_only_loss`, `longest` (tokens of the longest row before the cut) and,
        for each split and in `total`, `label_tokens` (after the cut), `cut` (rows longer than `max_length`),
        `without_labels` (rows that have no label left); and `special_tokens`, for each split the examples whose text
        contains some, as `id` and `tokens`.
    """
    named = splits.named()
    everything = [example for examples in named.values() for example in examples]
    groups = group_by_prompt(everything).values()
    empty_outputs = {name: sum(not e.output.strip() for e in examples) for name, examples in named.items()}
    return {
        "source": source,
        "split": split,
        "examples": _count({name: len(examples) for name, examples in named.items()}),
        "empty_inputs": _count({name: sum(not e.input for e in examples) for name, examples in named.items()}),
        "empty_outputs": _count({**empty_outputs, "left_out": num_left_out}),
        "duplicate_rows": len(everything) - len({(e.instruction, e.input, e.output) for e in everything}),
        "repeated_prompts": sum(len(group) > 1 for group in groups),
        "repeated_rows": sum(len(group) - 1 for group in groups),
        "seen_in_train": find_leaks(splits),
        "instruction_seen_in_train": {name: _find_other_inputs(named[name], splits.train) for name in HELD_OUT},
        "near_duplicates": _describe_near(splits, threshold),
        "tokens": None if counter is None else _count_tokens(named, counter),
    }


def find_leaks(splits: Splits) -> dict[str, list[dict[str, Any]]]:
    """Return, for test and validation, the examples whose instruction and input stand in train: `id`, `train_ids`."""
    train_ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for example in splits.train:
        train_ids[example.instruction, example.input].append(example.id)
    return {
        name: [
            {"id": example.id, "train_ids": train_ids[pair]}
            for example in splits.named()[name]
            if (pair := (example.instruction, example.input)) in train_ids
        ]
        for name in HELD_OUT
    }


def refuse_leaks(
    splits: Splits, *, source: str, strict: str, remedy: str, name_row: Callable[[str], str] | None = None
) -> None:
    """Raise where a test or validation example has the instruction and input of a training example.

    Near-duplicates are no reason: where they begin is a matter of the threshold, and no way of splitting would be sure
    to have none.

    Args:
        splits: The examples.
        source: Where they come from, as the user named it.
        strict: What asked for this, as the user typed it.
        remedy: The setting that keeps such pairs together, as the user would type it.
        name_row: Says where the example with an id stands; by default by its id.

    Raises:
        DataError: There are some; their number and the first of them are named.
    """
    found = find_leaks(splits)
    leaks = [(name, leak) for name in HELD_OUT for leak in found[name]]
    if not leaks:
        return
    name_row = name_row or (lambda id: f"example `{id}`")
    instructions = {example.id: example.instruction for name in HELD_OUT for example in splits.named()[name]}
    problems = []
    for name, leak in leaks[:_SHOWN]:
        first, *others = leak["train_ids"]
        more = f" and {len(others):,} more" if others else ""
        quoted = shorten(instructions[leak["id"]], 60)
        problems.append(f'{name}, {name_row(leak["id"])} ("{quoted}"): also {name_row(first)}{more} of train')
    if len(leaks) > _SHOWN:
        problems.append(f"and {len(leaks) - _SHOWN:,} more")
    counts = " and ".join(f"{len(found[name]):,} {name}" for name in HELD_OUT)
    raise DataError(
        f"{counts} examples of `{source}` have the same instruction and input as a training example, so that a score "
        f"on them would measure memory; {strict} refuses such data. Split with `{remedy}`, which keeps equal pairs in "
        "one split, or delete the repeats:",
        problems,
    )


def _count(counts: dict[str, int]) -> dict[str, int]:
    return {**counts, "total": sum(counts.values())}


def _find_other_inputs(examples: Sequence[Example], train: Sequence[Example]) -> list[dict[str, Any]]:
    pairs = {(example.instruction, example.input) for example in train}
    counts = Counter(example.instruction for example in train)
    return [
        {"id": example.id, "num_train": counts[example.instruction]}
        for example in examples
        if example.instruction in counts and (example.instruction, example.input) not in pairs
    ]


def _describe_near(splits: Splits, threshold: float | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "threshold": NEAR_THRESHOLD if threshold is None else threshold,
        "method": METHOD,
        "compared": "instruction and input of each test and validation example with those of every training example",
        "skipped": None,
        "test": [],
        "validation": [],
    }
    held_out = [*splits.test, *splits.validation]
    if threshold is None and len(splits.train) + len(held_out) > MOST_ROWS:
        return {**described, "skipped": f"more than {MOST_ROWS:,} rows"}
    for near in find_near_duplicates(held_out, splits.train, threshold=described["threshold"]):
        name = "test" if near.number < len(splits.test) else "validation"
        described[name].append(
            {
                "id": held_out[near.number].id,
                "train_id": splits.train[near.train_number].id,
                "cosine": round(near.cosine, 4),
            }
        )
    return described


def _count_tokens(named: Mapping[str, Sequence[Example]], counter: TokenCounter) -> dict[str, Any]:
    counts = {name: [counter.count(example) for example in examples] for name, examples in named.items()}
    limit = counter.max_length
    return {
        "model": counter.model,
        "prompt_format": counter.prompt_format.name,
        "max_length": limit,
        "completion_only_loss": counter.completion_only_loss,
        "longest": max((count.length for rows in counts.values() for count in rows), default=0),
        "label_tokens": _count({name: sum(count.labels for count in rows) for name, rows in counts.items()}),
        "cut": _count(
            {name: sum(limit is not None and c.length > limit for c in rows) for name, rows in counts.items()}
        ),
        "without_labels": _count({name: sum(not count.labels for count in rows) for name, rows in counts.items()}),
        "special_tokens": {
            name: [{"id": e.id, "tokens": found} for e in examples if (found := counter.find_special_tokens(e))]
            for name, examples in named.items()
        },
    }
