"""Preference pairs: from files, or the reference and the model's own answer."""

import dataclasses
import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hf_instruct.data.near_duplicates import find_near_duplicates
from hf_instruct.data.sources import build_dataset, find_file, iterate_examples, load_split, read_examples
from hf_instruct.errors import DataError, list_first
from hf_instruct.prompts import build_user_message
from hf_instruct.records import Example
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import PreferencePair

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Row = TypeVar("Row", Example, PreferencePair)

REFERENCES = "references"
# The splits that pairs are made from; the test split stays unseen.
SPLITS = ("train", "validation")
_SIDES = ("chosen", "rejected")
_MIN_GAP = 1e-9


def load_pairs(source: "str | Path | Dataset | Iterable[Mapping[str, Any]]", *, limit: int | None = None) -> "Dataset":
    """Return the pairs of a source: an example's columns (`output` is the chosen answer), `chosen` and `rejected`.

    Pairs of equal answers are left out, with a warning.

    Args:
        source: Anything that `load_examples` accepts, with the columns `chosen` and `rejected`, text or messages, and
            with `instruction` and `input`, or `prompt`; if both are whole conversations, no other column is needed.
        limit: Use only the first `limit` rows.

    Raises:
        DataError: The source cannot be read, a side is empty, or the prompts of both differ.
    """
    return build_dataset(read_pairs(source, limit=limit), PreferencePair)


def find_pairs(source: str) -> None:
    """Raise DataError if pairs are to be read from a local file or folder that does not exist."""
    if source != REFERENCES:
        find_file(source)


def read_pairs(source: Any, *, limit: int | None = None) -> list[PreferencePair]:
    """Return the pairs of a source as rows; see `load_pairs`."""
    source = source if isinstance(source, str | Path) or hasattr(source, "column_names") else list(source)
    chosen, rejected = (_load_side(source, side, limit) for side in _SIDES)
    if len(chosen) != len(rejected):
        raise DataError(f"`chosen` has {len(chosen)} rows and `rejected` {len(rejected)}; each pair needs both.")
    pairs = [build_pair(better, worse.output, origin="file") for better, worse in zip(chosen, rejected, strict=True)]
    prompts = [[(example.format_task(), example.input) for example in side] for side in (chosen, rejected)]
    if different := [str(number) for number, (a, b) in enumerate(zip(*prompts, strict=True)) if a != b]:
        raise DataError(f"`chosen` and `rejected` answer different prompts in rows {', '.join(list_first(different))}.")
    if equal := [str(number) for number, pair in enumerate(pairs) if pair.chosen == pair.rejected]:
        logger.warning(
            "%d of %d pairs are left out because `chosen` and `rejected` are equal: rows %s",
            len(equal),
            len(pairs),
            ", ".join(list_first(equal)),
        )
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def _load_side(source: Any, side: str, limit: int | None) -> list[Example]:
    try:
        return read_examples(source, map={"output": side}, limit=limit)
    except DataError as error:
        try:
            # Both sides are whole conversations.
            return read_examples(source, map={"messages": side}, limit=limit)
        except DataError:
            raise error from None


def build_pair(example: Example, rejected: str, *, origin: str) -> PreferencePair:
    """Return a pair that prefers an example's output to another answer."""
    values = dataclasses.asdict(example)
    return PreferencePair(**values, chosen=example.output, rejected=rejected, origin=origin)


def leave_out_tested(run: RunFolder, rows: Sequence[Row], left_out: Counter[str]) -> list[Row]:
    """Return the examples or pairs whose prompt is neither in the test split nor a near-duplicate of a test prompt.

    Args:
        run: The run folder, with prepared data.
        rows: The examples or pairs.
        left_out: Counts of the rows that are left out, by reason; updated.
    """
    examples = [row if isinstance(row, Example) else Example.of(vars(row)) for row in rows]
    test = load_split(run, "test")
    tested = set(map(key_prompt, iterate_examples(test)))
    same = {number for number, example in enumerate(examples) if key_prompt(example) in tested}
    duplicates = find_near_duplicates(build_dataset(examples, Example), test)
    near = {pair.number for pair in duplicates} - same
    left_out.update({"prompts in the test split": len(same), "near-duplicates of test prompts": len(near)})
    return [row for number, row in enumerate(rows) if number not in same | near]


def key_prompt(row: Example | PreferencePair) -> str:
    """Return the prompt of a row as a user message, which is the same for all formats of the row."""
    example = row if isinstance(row, Example) else Example.of(vars(row))
    return build_user_message(example.format_task(), example.input)["content"]


class Candidate(NamedTuple):
    """An answer that can be part of a pair."""

    text: str
    score: float | None  # higher is better; None if there is no score, for example because judging failed
    sample: int | None = None  # which of the sampled answers it is, from 1


def reference_candidates(example: Example, response: str) -> list[Candidate]:
    """Return an example's output and the model's own answer to it; the output is assumed to be better."""
    return [Candidate(example.output, 1.0), Candidate(response, 0.0)]


def choose_pair(
    candidates: Iterable[Candidate], left_out: Counter[str], *, min_gap: float = 0.0
) -> tuple[Candidate, Candidate] | None:
    """Return the best and the worst answer to a prompt, or None if their scores are too close.

    Args:
        candidates: The answers; only the first of equal ones is used.
        left_out: Counts of what is left out, by reason; updated.
        min_gap: Smallest allowed difference of the two scores; ties never make a pair.

    >>> left_out = Counter()
    >>> answers = [Candidate("Red.", 0.5), Candidate("Blue.", 1.0), Candidate("Red. ", 0.5), Candidate("No.", 0.0)]
    >>> [one.text for one in choose_pair(answers, left_out)], dict(left_out)
    (['Blue.', 'No.'], {'duplicate answers': 1})
    """
    scores: dict[str, float] = {}
    different: dict[str, Candidate] = {}
    for candidate in candidates:
        text = candidate.text.strip()
        if candidate.score is None:
            left_out["answers without a score"] += 1
        elif not text or text in different:
            left_out["duplicate answers" if text else "empty answers"] += 1
        else:
            different[text], scores[text] = candidate._replace(text=text), candidate.score
    if len(different) < 2:
        left_out["prompts with fewer than two different answers"] += 1
        return None
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    # Differences of scores have rounding errors.
    if scores[best] - scores[worst] < max(min_gap, _MIN_GAP) - _MIN_GAP / 2:
        left_out["prompts with too small a gap"] += 1
        return None
    return different[best], different[worst]


def describe_pairs(answers: Sequence[tuple[str, str]], left_out: Mapping[str, int]) -> str:
    """Describe how often the chosen answer of (chosen, rejected) is the longer one, and what was left out."""
    longer = statistics.fmean(len(chosen) > len(rejected) for chosen, rejected in answers)
    return f"the chosen answer is the longer one in {100 * longer:.0f} %\n{list_counts(left_out)}"


def list_counts(left_out: Mapping[str, int]) -> str:
    """Describe what was left out, by reason."""
    return f"left out: {', '.join(f'{what} {count}' for what, count in left_out.items() if count) or 'nothing'}"
