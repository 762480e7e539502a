"""Findings about the data before training: computed once, shown as a table or in a few lines."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.console import align, pluralize
from hf_instruct.data.examples import BATCH, find_repeats, hash_prompts, hash_texts
from hf_instruct.data.near_duplicates import METHOD, NEAR_THRESHOLD, find_near_duplicates
from hf_instruct.data.problems import Problem, shorten_text
from hf_instruct.data.tokens import TokenCounter
from hf_instruct.errors import DataError
from hf_instruct.records import SPLIT_NAMES
from hf_instruct.schema import (
    Leak,
    NearDuplicate,
    NearDuplicates,
    OtherInput,
    Preflight,
    SpecialTokens,
    TokenCounts,
)

if TYPE_CHECKING:
    from datasets import Dataset

    Splits = Mapping[str, Dataset]

HELD_OUT = ("test", "validation")
# With more rows, near-duplicates are searched in a sample, unless a threshold is given.
MAX_ROWS = 100_000
SAMPLE = {"train": 45_000, "test": 2_500, "validation": 2_500}
_LEAKS_SHOWN = 5
_PAIRS_SHOWN = 3


def find_warnings(examples: "Dataset", *, file: str, counter: TokenCounter | None = None) -> list[Problem]:
    """Return warnings about examples that are valid but may not be intended.

    These are equal instruction + input pairs, with one warning per pair; and, if tokens were counted, rows that
    training would truncate and rows whose text contains a special token.

    Args:
        examples: The examples, with the column `row`.
        file: The source as the user named it.
        counter: The token counter, if tokens were counted.
    """
    warnings = []
    rows = examples["row"][:]
    outputs = hash_texts(examples, "output")
    for indices in find_repeats(examples):
        first, *others = indices
        remedy = "keep one, or use the split `grouped`, which keeps them together"
        for words, is_equal in (("and output", True), ("but not output", False)):
            repeats = [rows[index] for index in others if (outputs[index] == outputs[first]) == is_equal]
            if repeats:
                what = f"has the same instruction and input ({words}) as {_enumerate(repeats)}"
                warnings.append(Problem(file, rows[first], None, what, remedy))
    if counter is None:
        return warnings
    counts = zip(rows, examples["num_tokens"][:], examples["special_tokens"][:], strict=True)
    for row, length, special in counts:
        if counter.max_length is not None and length > counter.max_length:
            what = f"has {length:,} tokens, more than `max_length` {counter.max_length:,}"
            remedy = "shorten it or raise `max_length`; otherwise training truncates it"
            warnings.append(Problem(file, row, None, what, remedy))
        if special:
            what = f"contains {', '.join(f'`{token}`' for token in special)}, a special token of `{counter.model}`"
            remedy = "delete it if another program left it there; otherwise it is treated as plain text"
            warnings.append(Problem(file, row, None, what, remedy))
    return warnings


def build_preflight(
    splits: "Splits",
    *,
    source: str,
    split: str | None = None,
    threshold: float | None = None,
    counter: TokenCounter | None = None,
    num_left_out: int = 0,
) -> Preflight:
    """Return the findings about data, without the checksum of the files and the prompt format.

    Args:
        splits: The examples of each split.
        source: The source of the examples, as the user named it.
        split: How they were split; None if they were not.
        threshold: Minimum cosine similarity of near-duplicates. None means `NEAR_THRESHOLD`, and a sample if there are
            more than `MAX_ROWS` examples.
        counter: The token counter, if tokens were counted; None leaves out findings about tokens.
        num_left_out: Rows of the source that are not in the splits because they have no output.
    """
    import numpy as np

    keys = {name: hash_prompts(splits[name]) for name in SPLIT_NAMES}
    prompts = np.concatenate(list(keys.values()))
    outputs = np.concatenate([hash_texts(splits[name], "output") for name in SPLIT_NAMES])
    _, groups, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    repeated = counts[groups] > 1
    whole = set(zip(prompts[repeated].tolist(), outputs[repeated].tolist(), strict=True))
    return Preflight(
        source=source,
        split=split,
        examples=_count({name: len(splits[name]) for name in SPLIT_NAMES}),
        empty_inputs=_count({name: _count_empty(splits[name]) for name in SPLIT_NAMES}),
        empty_outputs=_count({**dict.fromkeys(SPLIT_NAMES, 0), "left_out": num_left_out}),
        duplicate_rows=int(repeated.sum()) - len(whole),
        repeated_prompts=int((counts > 1).sum()),
        repeated_rows=len(prompts) - len(counts),
        seen_in_train=find_leaks(splits, keys),
        instruction_seen_in_train={
            name: _find_other_inputs(splits[name], splits["train"], np.isin(keys[name], keys["train"]))
            for name in HELD_OUT
        },
        near_duplicates=_describe_near(splits, threshold),
        tokens=None if counter is None else _sum_tokens(splits, counter),
    )


def find_leaks(splits: "Splits", keys: Mapping[str, Any] | None = None) -> dict[str, list[Leak]]:
    """Return, for test and validation, the examples whose instruction and input are in train."""
    import numpy as np

    keys = keys or {name: hash_prompts(splits[name]) for name in SPLIT_NAMES}
    held_out = np.concatenate([keys[name] for name in HELD_OUT])
    train_ids: dict[bytes, list[str]] = defaultdict(list)
    for index in np.flatnonzero(np.isin(keys["train"], held_out)).tolist():
        train_ids[keys["train"][index]].append(splits["train"][index]["id"])
    return {
        name: [
            Leak(id=splits[name][index]["id"], train_ids=train_ids[key])
            for index, key in enumerate(keys[name])
            if key in train_ids
        ]
        for name in HELD_OUT
    }


def refuse_leaks(
    splits: "Splits", *, source: str, strict: str, remedy: str, name_row: Callable[[str], str] | None = None
) -> None:
    """Raise if a test or validation example has the same instruction and input as a training example.

    Near-duplicates are accepted: they depend on the threshold, and no split is guaranteed to have none.

    Args:
        splits: The examples.
        source: The source of the examples, as the user named it.
        strict: The option that requests this check, as the user typed it.
        remedy: The option that keeps such pairs together, as the user would type it.
        name_row: Returns the location of the example with an id, for the message; by default, the id itself.

    Raises:
        DataError: There are such examples; the message contains their number and the first ones.
    """
    found = find_leaks(splits)
    leaks = [(name, leak) for name in HELD_OUT for leak in found[name]]
    if not leaks:
        return
    name_row = name_row or (lambda id: f"example `{id}`")
    instructions = {row["id"]: row["instruction"] for name in HELD_OUT for row in splits[name]}
    problems = []
    for name, leak in leaks[:_LEAKS_SHOWN]:
        first, *others = leak.train_ids
        more = f" and {len(others):,} more" if others else ""
        quoted = shorten_text(instructions[leak.id], 60)
        problems.append(f'{name}, {name_row(leak.id)} ("{quoted}"): also {name_row(first)}{more} of train')
    if len(leaks) > _LEAKS_SHOWN:
        problems.append(f"and {len(leaks) - _LEAKS_SHOWN:,} more")
    counts = " and ".join(f"{len(found[name]):,} {name}" for name in HELD_OUT)
    raise DataError(
        f"{counts} examples of `{source}` have the same instruction and input as a training example, so a score on "
        f"them would measure memorization, and {strict} refuses such data. Split with `{remedy}`, which keeps equal "
        "pairs in one split, or delete the repeats:",
        problems,
    )


def _find_other_inputs(examples: "Dataset", train: "Dataset", seen: Any) -> list[OtherInput]:
    import numpy as np

    instructions, others = hash_texts(examples, "instruction"), hash_texts(train, "instruction")
    counts = Counter(others[np.isin(others, instructions)].tolist())
    rows = zip(examples["id"][:], instructions.tolist(), seen, strict=True)
    return [OtherInput(id=id, num_train=counts[key]) for id, key, is_seen in rows if counts[key] and not is_seen]


def _describe_near(splits: "Splits", threshold: float | None) -> NearDuplicates:
    from datasets import concatenate_datasets

    held_out, train, sampled = {name: splits[name] for name in HELD_OUT}, splits["train"], None
    if threshold is None and sum(len(splits[name]) for name in SPLIT_NAMES) > MAX_ROWS:
        held_out = {name: _sample_evenly(rows, SAMPLE[name]) for name, rows in held_out.items()}
        train = _sample_evenly(train, SAMPLE["train"])
        counts = [len(rows) for rows in (*held_out.values(), train)]
        sampled = "{:,} test and {:,} validation examples with {:,} of train".format(*counts)
    threshold = NEAR_THRESHOLD if threshold is None else threshold
    both, train_ids = concatenate_datasets(list(held_out.values())), train["id"][:]
    found: dict[str, list[NearDuplicate]] = {name: [] for name in HELD_OUT}
    for near in find_near_duplicates(both, train, threshold=threshold):
        name = "test" if near.number < len(held_out["test"]) else "validation"
        pair = {"id": both[near.number]["id"], "train_id": train_ids[near.train_number]}
        found[name].append(NearDuplicate(**pair, cosine=round(near.cosine, 4)))
    compared = "instruction and input of test and validation examples, compared with all training examples"
    return NearDuplicates(threshold=threshold, method=METHOD, compared=compared, sampled=sampled, **found)


def _sample_evenly(rows: "Dataset", count: int) -> "Dataset":
    """Return at most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows.select([index * len(rows) // count for index in range(count)])


def _sum_tokens(splits: "Splits", counter: TokenCounter) -> TokenCounts:
    arrays = {name: splits[name].with_format("numpy") for name in SPLIT_NAMES}
    lengths = {name: rows["num_tokens"][:] for name, rows in arrays.items()}
    labels = {name: rows["num_labels"][:] for name, rows in arrays.items()}
    limit = counter.max_length or float("inf")
    return TokenCounts(
        model=counter.model,
        prompt_format=counter.prompt_format.name,
        max_length=counter.max_length,
        completion_only_loss=counter.completion_only_loss,
        longest=max(int(rows.max(initial=0)) for rows in lengths.values()),
        label_tokens=_count({name: int(rows.sum()) for name, rows in labels.items()}),
        cut=_count({name: int((rows > limit).sum()) for name, rows in lengths.items()}),
        without_labels=_count({name: int((rows == 0).sum()) for name, rows in labels.items()}),
        special_tokens={
            name: [
                SpecialTokens(id=id, tokens=tokens)
                for batch in splits[name].select_columns(["id", "special_tokens"]).iter(BATCH)
                for id, tokens in zip(batch["id"], batch["special_tokens"], strict=True)
                if tokens
            ]
            for name in SPLIT_NAMES
        },
    )


def _count_empty(rows: "Dataset") -> int:
    return sum(batch["input"].count("") for batch in rows.select_columns("input").iter(BATCH))


def _count(counts: dict[str, int]) -> dict[str, int]:
    return {**counts, "total": sum(counts.values())}


def _enumerate(rows: Sequence[str]) -> str:
    if len(rows) > 10:
        return f"{', '.join(rows[:10])} and {len(rows) - 10:,} more"
    return " and ".join(part for part in (", ".join(rows[:-1]), rows[-1]) if part)


class _Row(NamedTuple):
    """One line of the table: its label and its counts by column; columns without a count stay empty."""

    label: str
    counts: Mapping[str, int]


def format_preflight(preflight: Preflight) -> str:
    """Return the findings of `build_preflight` as a table; only the totals if nothing was split."""
    columns = (*SPLIT_NAMES, "total") if preflight.split else ("total",)
    sizes = [
        _Row("examples", preflight.examples),
        _Row("  without an input", preflight.empty_inputs),
        _Row("  without an output", preflight.empty_outputs),
    ]
    if preflight.tokens:
        sizes.append(_Row("label tokens", preflight.tokens.label_tokens))
    title = f"split `{preflight.split}`" if preflight.split else "not split"
    return _format_rows(title, [*sizes, *_build_findings(preflight)], columns)


def format_findings(preflight: Preflight) -> str:
    """Return the sizes of the splits in a line and, if anything was found, a table of the findings and advice."""
    text = f"{preflight.source}: " + ", ".join(f"{preflight.examples[name]:,} {name}" for name in SPLIT_NAMES)
    if tokens := preflight.tokens:
        text += "; label tokens: " + ", ".join(f"{tokens.label_tokens[name]:,}" for name in SPLIT_NAMES)
    if rows := [row for row in _build_findings(preflight) if any(row.counts.values())]:
        text += "\n" + _format_rows(f"split `{preflight.split}`", rows, (*SPLIT_NAMES, "total"))
    if sampled := preflight.near_duplicates.sampled:
        text += f"\nNear-duplicates were searched in a sample: {sampled}."
    advice = advise(preflight, prefix="data.", max_length="train.max_length")
    return f"{text}\n{advice}" if advice else text


def format_near_duplicates(preflight: Preflight, splits: "Splits") -> list[str]:
    """Return lines with the most similar near-duplicates, each next to its training example."""
    pairs = [pair for found in preflight.near_duplicates.by_split.values() for pair in found]
    nearest = sorted(pairs, key=lambda pair: -pair.cosine)[:_PAIRS_SHOWN]
    wanted = {id for pair in nearest for id in (pair.id, pair.train_id)}
    texts = {}
    for rows in splits.values():
        for index, id in enumerate(rows["id"][:]):
            if id in wanted:
                texts[id] = shorten_text(f"{rows[index]['instruction']} {rows[index]['input']}".strip(), 44)
    return [f"  {pair.cosine:.3f}  {texts[pair.id]} ~ {texts[pair.train_id]}" for pair in nearest]


def advise(preflight: Preflight, *, prefix: str = "", max_length: str = "max-length") -> str | None:
    """Return the advice for the findings in one line, or None if nothing is wrong.

    Args:
        preflight: The findings.
        prefix: The prefix of flags of the `data` section.
        max_length: Name of the flag for the maximum length of a row.
    """
    parts = []
    if any(preflight.seen_in_train.values()):
        parts.append(f"`--{prefix}split grouped` keeps training prompts out of test")
    if duplicates := preflight.duplicate_rows:
        parts.append(f"delete {pluralize(duplicates, 'row')} that repeat{'s' if duplicates == 1 else ''} another")
    if tokens := preflight.tokens:
        # The test split is never trained on.
        unlabelled = sum(tokens.without_labels[name] for name in ("train", "validation"))
        if unlabelled:
            parts.append(f"shorten {pluralize(unlabelled, 'row')} or raise `--{max_length}`; otherwise training stops")
        elif cut := tokens.cut["total"]:
            parts.append(f"shorten {pluralize(cut, 'row')} or raise `--{max_length}` (longest: {tokens.longest:,})")
    if any(preflight.near_duplicates.by_split.values()) and not parts:
        parts.append("check the near-duplicates before you trust a score on them")
    return f"What to do: {'; '.join(parts)}." if parts else None


def _build_findings(preflight: Preflight) -> list[_Row]:
    rows = [
        _Row("rows that repeat another row exactly", {"total": preflight.duplicate_rows}),
        _Row("rows that repeat an instruction + input", {"total": preflight.repeated_rows}),
    ]
    near = preflight.near_duplicates
    if preflight.split:
        rows += [
            _Row("instruction + input also in train", _count_found(preflight.seen_in_train)),
            _Row("instruction in train with another input", _count_found(preflight.instruction_seen_in_train)),
        ]
        where = "a sample of train" if near.sampled else "train"
        rows.append(_Row(f"near-duplicate in {where} (>= {near.threshold:g})", _count_found(near.by_split)))
    if tokens := preflight.tokens:
        limit = "no `max_length`" if tokens.max_length is None else f"`max_length` {tokens.max_length:,}"
        rows += [
            _Row(f"rows truncated at {limit}", tokens.cut),
            _Row("rows without any label after truncation", tokens.without_labels),
            _Row("rows whose text contains a special token", _count_found(tokens.special_tokens)),
        ]
    return rows


def _count_found(found: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: len(found[name]) for name in SPLIT_NAMES if name in found}
    return {**counts, "total": sum(counts.values())}


def _format_rows(title: str, rows: Sequence[_Row], columns: Sequence[str]) -> str:
    cells = [[f"{row.counts[name]:,}" if name in row.counts else "" for name in columns] for row in rows]
    table = [[title, *columns], *([row.label, *counts] for row, counts in zip(rows, cells, strict=True))]
    return "\n".join(align(table, right=range(1, len(columns) + 1)))
