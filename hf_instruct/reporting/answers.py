"""The answers before and after fine-tuning, side by side."""

import dataclasses
from collections.abc import Sequence

from hf_instruct.reporting.results import ModelResults, RunResults
from hf_instruct.schema import Judgment, Response


@dataclasses.dataclass(frozen=True)
class Answer:
    """One model's answer with its verdict.

    Attributes:
        response: The answer, with the example.
        judgment: None when the answer has not been judged.
    """

    response: Response
    judgment: Judgment | None

    @property
    def text(self) -> str:
        """What the model answered."""
        return self.response.response

    @property
    def score(self) -> int | None:
        """The score from 0 to 100; None when there is no judgment or no readable verdict."""
        return self.judgment.score if self.judgment else None


@dataclasses.dataclass(frozen=True)
class AnswerRow:
    """One test example with the answers to it.

    Attributes:
        number: Its position in the test split, from 1.
        example: Any response to it, for the example's own fields.
        base: The base model's answer; None when it gave none.
        tuned: The tuned model's answer; None when it gave none.
        value: What the row is sorted by: the leading measure of the tuned answer, or of the base answer where it stands
            alone; None where it has none.
        gain: That of the tuned answer minus that of the base answer; None unless both have one.
    """

    number: int
    example: Response
    base: Answer | None
    tuned: Answer | None
    value: float | None
    gain: float | None

    @property
    def kinds(self) -> list[str]:
        """The values of the page's `Show` filter that the row answers to."""
        kinds = []
        if self.gain is not None:
            kinds.append("up" if self.gain > 0 else "down" if self.gain < 0 else "same")
        if any(
            side is not None and side.judgment is not None and side.score is None for side in (self.base, self.tuned)
        ):
            kinds.append("failed")
        if self.tuned is not None and self.tuned.response.stopped is False:
            kinds.append("cut")
        return kinds


def pair_answers(results: RunResults) -> list[AnswerRow]:
    """Return a row for each answered example, in the order of the responses."""
    base, tuned = _index(results.base), _index(results.tuned)
    before, after = (side.list_values(results.leading.name) for side in (results.base, results.tuned))
    rows = []
    # A row that only the base model has answered comes last: the tuned model was interrupted.
    for number, id in enumerate(dict.fromkeys([*tuned, *base]), start=1):
        value = after.get(id) if id in tuned else before.get(id)
        gain = after[id] - before[id] if id in after and id in before else None
        example = (tuned.get(id) or base[id]).response
        rows.append(AnswerRow(number, example, base.get(id), tuned.get(id), value, gain))
    return rows


def _index(side: ModelResults) -> dict[str, Answer]:
    return {response.id: Answer(response, side.judgments.get(response.id)) for response in side.responses}


def sort_worst_first(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Return the rows by rising value of the leading measure, those without one last; equal ones keep their order."""
    return sorted(rows, key=lambda row: (row.value is None, row.value or 0))


def pick_highlights(rows: Sequence[AnswerRow], *, num_gains: int = 3) -> tuple[list[AnswerRow], AnswerRow | None]:
    """Return the rows that say most about a run in the least space.

    Args:
        rows: All rows.
        num_gains: How many of the first kind.

    Returns:
        The rows with the biggest gains (without values: the first rows whose answer changed), and the row with the
        lowest value that is not among them, or None where nothing has a value.
    """
    with_value = [row for row in rows if row.value is not None]
    if not with_value:
        changed = [row for row in rows if row.tuned and (row.base is None or row.base.text != row.tuned.text)]
        return changed[:num_gains], None
    best = sorted((row for row in rows if (row.gain or 0) > 0), key=lambda row: -(row.gain or 0))[:num_gains]
    return best, next((row for row in sort_worst_first(with_value) if row not in best), None)
