"""What preflight found, as text: the table of `data check`, and the shorter one of a run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hf_instruct.data.checks import shorten
from hf_instruct.data.preflight import HELD_OUT
from hf_instruct.records import SPLIT_NAMES, Splits

_LABEL_WIDTH = 46
_NUMBER_WIDTH = 11
_PAIRS_SHOWN = 3


class _Row(NamedTuple):
    """One line of the table: its label and its counts, by column; a column without one stays empty."""

    label: str
    counts: Mapping[str, int]


def format_table(preflight: Mapping[str, Any]) -> str:
    """Return the whole table of what `build_preflight` found; where nothing was split, of the total alone."""
    columns = (*SPLIT_NAMES, "total") if preflight["split"] else ("total",)
    sizes = [
        _Row("examples", preflight["examples"]),
        _Row("  without an input", preflight["empty_inputs"]),
        _Row("  without an output", preflight["empty_outputs"]),
    ]
    if preflight["tokens"]:
        sizes.append(_Row("label tokens", preflight["tokens"]["label_tokens"]))
    title = f"split `{preflight['split']}`" if preflight["split"] else "not split"
    return _format_rows(title, [*sizes, *_build_findings(preflight)], columns)


def format_findings(preflight: Mapping[str, Any]) -> str:
    """Return the sizes of the splits in a line and, where anything was found, a table of that and what to do."""
    text = f"{preflight['source']}: " + ", ".join(f"{preflight['examples'][name]:,} {name}" for name in SPLIT_NAMES)
    if tokens := preflight["tokens"]:
        text += "; label tokens: " + ", ".join(f"{tokens['label_tokens'][name]:,}" for name in SPLIT_NAMES)
    if rows := [row for row in _build_findings(preflight) if any(row.counts.values())]:
        text += "\n" + _format_rows(f"split `{preflight['split']}`", rows, (*SPLIT_NAMES, "total"))
    if skipped := preflight["near_duplicates"]["skipped"]:
        text += f"\nNear-duplicates were not looked for: {skipped}."
    advice = advise(preflight, prefix="data.", max_length="train.max_length")
    return f"{text}\n{advice}" if advice else text


def format_near_duplicates(preflight: Mapping[str, Any], splits: Splits) -> list[str]:
    """Return lines that show the most similar of the near-duplicates beside what they are like."""
    near = preflight["near_duplicates"]
    found = sorted((pair for name in HELD_OUT for pair in near[name]), key=lambda pair: -pair["cosine"])
    examples = {example.id: example for rows in splits.named().values() for example in rows}
    lines = []
    for pair in found[:_PAIRS_SHOWN]:
        own, other = (
            shorten(f"{examples[id].instruction} {examples[id].input}".strip(), 44)
            for id in (pair["id"], pair["train_id"])
        )
        lines.append(f"  {pair['cosine']:.3f}  {own} ~ {other}")
    return lines


def advise(preflight: Mapping[str, Any], *, prefix: str = "", max_length: str = "max-length") -> str | None:
    """Return one line of what to do about what was found, or None where nothing is wrong.

    Args:
        preflight: What was found.
        prefix: What stands before the names of the flags of the `data` section.
        max_length: Name of the flag for the longest row.
    """
    leaks, near = (sum(len(preflight[key][name]) for name in HELD_OUT) for key in ("seen_in_train", "near_duplicates"))
    parts = []
    if leaks:
        parts.append(f"`--{prefix}split grouped` keeps what stands in train out of test")
    if duplicates := preflight["duplicate_rows"]:
        parts.append(f"delete {_count_rows(duplicates)} that repeat{'s' if duplicates == 1 else ''} another")
    if tokens := preflight["tokens"]:
        # The test split is never trained on.
        unlabelled = sum(tokens["without_labels"][name] for name in ("train", "validation"))
        if unlabelled:
            parts.append(f"shorten {_count_rows(unlabelled)} or raise `--{max_length}`, else training stops")
        elif cut := tokens["cut"]["total"]:
            parts.append(f"shorten {_count_rows(cut)} or raise `--{max_length}` (longest: {tokens['longest']:,})")
    if near and not parts:
        parts.append("read the near-duplicates before you trust a score on them")
    return f"What to do: {'; '.join(parts)}." if parts else None


def _build_findings(preflight: Mapping[str, Any]) -> list[_Row]:
    rows = [
        _Row("rows that repeat another whole", {"total": preflight["duplicate_rows"]}),
        _Row("rows that repeat an instruction + input", {"total": preflight["repeated_rows"]}),
    ]
    near = preflight["near_duplicates"]
    if preflight["split"]:
        rows += [
            _Row("instruction + input also in train", _count_found(preflight["seen_in_train"])),
            _Row("instruction in train with another input", _count_found(preflight["instruction_seen_in_train"])),
        ]
        if not near["skipped"]:
            rows.append(_Row(f"near-duplicate in train (cosine >= {near['threshold']:g})", _count_found(near)))
    if tokens := preflight["tokens"]:
        limit = "no `max_length`" if tokens["max_length"] is None else f"`max_length` {tokens['max_length']:,}"
        rows += [
            _Row(f"rows that lose their end at {limit}", tokens["cut"]),
            _Row("rows that lose all labels", tokens["without_labels"]),
            _Row("rows whose text contains a special token", _count_found(tokens["special_tokens"])),
        ]
    return rows


def _count_found(found: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: len(found[name]) for name in SPLIT_NAMES if name in found}
    return {**counts, "total": sum(counts.values())}


def _count_rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _format_rows(title: str, rows: Sequence[_Row], columns: Sequence[str]) -> str:
    def join(label: str, cells: Sequence[str]) -> str:
        return (f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>{_NUMBER_WIDTH}}" for cell in cells)).rstrip()

    lines = [join(title, columns)]
    for row in rows:
        lines.append(join(row.label, [f"{row.counts[name]:,}" if name in row.counts else "" for name in columns]))
    return "\n".join(lines)
