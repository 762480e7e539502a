"""The answers of the models, side by side."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from hf_instruct.reporting.results import RunResults
from hf_instruct.schema import TUNED, Response

_NUM_HIGHLIGHTS = 3


@dataclasses.dataclass(frozen=True)
class AnswerRow:
    """One test example with the answers to it.

    Attributes:
        number: Its position in the test split, from 1.
        example: One of the answers to it, for the example's fields.
        answers: The answer of each model that gave one, in the order of `schema.MODELS`.
        value: The value to sort by: the leading measure of the tuned answer or, if there is no tuned answer, of the one
            by the model that training began with; None if it has none.
        gain: The value of the tuned answer minus that of the model that training began with; None unless both have one.
        kinds: The options of the page's `Show` filter that include the row.
    """

    number: int
    example: Response
    answers: Mapping[str, Response]
    value: float | None
    gain: float | None
    kinds: list[str]

    @property
    def tuned(self) -> Response | None:
        """The tuned model's answer; None if there is none."""
        return self.answers.get(TUNED)


def pair_answers(results: RunResults) -> list[AnswerRow]:
    """Return a row for each answered example, in the order of the responses."""
    sides = {model: {row.id: row for row in side.responses} for model, side in results.sides.items()}
    before, after = (side.list_values(results.leading.name) for side in (results.before, results.tuned))
    failed = {id for side in results.sides.values() for id, row in side.judgments.items() if row.score is None}
    tuned = sides[TUNED]
    others = {id: row for model in results.others for id, row in sides[model].items()}
    rows = []
    # Rows without a tuned answer come last: the stage was interrupted.
    for number, (id, example) in enumerate({**tuned, **others, **tuned}.items(), start=1):
        answers = {model: by_id[id] for model, by_id in sides.items() if id in by_id}
        value = after.get(id) if id in tuned else before.get(id)
        gain = after[id] - before[id] if id in after and id in before else None
        kinds = [] if gain is None else ["up" if gain > 0 else "down" if gain < 0 else "same"]
        kinds += ["failed"] if id in failed else []
        kinds += ["cut"] if id in tuned and tuned[id].stopped is False else []
        rows.append(AnswerRow(number, example, answers, value, gain, kinds))
    return rows


def sort_worst_first(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Return the rows by ascending value of the leading measure, those without one last; the sort is stable."""
    return sorted(rows, key=lambda row: (row.value is None, row.value or 0))


def sort_by_change(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Return the rows with the largest gains and losses in turn, then the others, lowest value first."""
    losses = sorted((row for row in rows if (row.gain or 0) < 0), key=lambda row: row.gain or 0)
    turns = itertools.chain.from_iterable(itertools.zip_longest(_list_gains(rows), losses))
    return [*filter(None, turns), *sort_worst_first([row for row in rows if not row.gain])]


def _list_gains(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Return the rows with a gain, the largest first."""
    return sorted((row for row in rows if (row.gain or 0) > 0), key=lambda row: -(row.gain or 0))


def pick_highlights(rows: Sequence[AnswerRow]) -> tuple[list[AnswerRow], AnswerRow | None]:
    """Return the rows that show the most about a run in little space.

    Returns:
        The three rows with the largest gains (without values: the first three whose answer changed), and the row with
        the lowest value that is not among them, or None if no row has a value.
    """
    with_value = [row for row in rows if row.value is not None]
    if not with_value:
        # The tuned answer is the last one. A row with no other answer counts as changed.
        texts = [(row, [answer.response for answer in row.answers.values()][-2:]) for row in rows if row.tuned]
        changed = [row for row, last in texts if len(last) == 1 or last[0] != last[1]]
        return changed[:_NUM_HIGHLIGHTS], None
    best = _list_gains(rows)[:_NUM_HIGHLIGHTS]
    return best, next((row for row in sort_worst_first(with_value) if row not in best), None)
