"""The answers before and after fine-tuning, side by side."""

import dataclasses
from collections.abc import Mapping, Sequence

from hf_instruct.records import Judgment, Response
from hf_instruct.reporting.facts import RunFacts, Side


@dataclasses.dataclass(frozen=True)
class Answer:
    """One model's answer with its verdict.

    Attributes:
        text: The response.
        stopped: Whether the model ended it itself; None where that is not known.
        judgment: None when the answer has not been judged.
    """

    text: str
    stopped: bool | None
    judgment: Judgment | None

    @property
    def score(self) -> int | None:
        """The score from 0 to 100; None when there is no judgment or no readable verdict."""
        return self.judgment.score if self.judgment else None


@dataclasses.dataclass(frozen=True)
class AnswerRow:
    """One test example with the answers to it.

    Attributes:
        number: Its place in the test split, from 1.
        base: The untuned model's answer; None when it gave none.
        tuned: The tuned model's answer; None when it gave none.
    """

    number: int
    id: str
    instruction: str
    input: str
    reference: str
    category: str | None
    base: Answer | None
    tuned: Answer | None

    @property
    def score(self) -> int | None:
        """The score that the row is sorted by: the tuned answer's, or the base answer's where it stands alone."""
        answer = self.tuned or self.base
        return answer.score if answer else None

    @property
    def gain(self) -> int | None:
        """Tuned score less base score; None unless both have one."""
        if self.base is None or self.tuned is None or self.base.score is None or self.tuned.score is None:
            return None
        return self.tuned.score - self.base.score


def pair_answers(facts: RunFacts) -> list[AnswerRow]:
    """Return a row for each answered example, in the order of the responses."""
    tuned, base = _index(facts.tuned), _index(facts.base)
    # A row that only the base model has answered comes last: the tuned model was interrupted.
    examples = list({response.id: response for response in [*facts.tuned.responses, *facts.base.responses]}.values())
    return [
        AnswerRow(
            number=number,
            id=example.id,
            instruction=example.instruction,
            input=example.input,
            reference=example.output,
            category=example.category,
            base=base.get(example.id),
            tuned=tuned.get(example.id),
        )
        for number, example in enumerate(examples, start=1)
    ]


def sort_worst_first(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Return the rows by rising score, those without one last; equal ones keep their order."""
    return sorted(rows, key=lambda row: (row.score is None, row.score or 0))


def pick_telling(
    rows: Sequence[AnswerRow], *, gains: Mapping[str, float] | None = None, num_gains: int = 3
) -> tuple[list[AnswerRow], AnswerRow | None]:
    """Return the rows that say most about a run in least space.

    Args:
        rows: All rows.
        gains: By example id, by how much the tuned answer is better; by default the gain in score.
        num_gains: How many of the first kind.

    Returns:
        The rows with the biggest gains (without scores: the first rows whose answer changed), and the worst-scored row
        that is not among them, or None where nothing has a score.
    """
    known = {row.id: row.gain or 0 for row in rows} if gains is None else gains
    gained = sorted((row for row in rows if known.get(row.id, 0) > 0), key=lambda row: -known[row.id])
    if gains is None and not any(row.score is not None for row in rows):
        gained = [row for row in rows if row.tuned and (row.base is None or row.base.text != row.tuned.text)]
    best = gained[:num_gains]
    scored = [row for row in sort_worst_first(rows) if row.score is not None and row not in best]
    return best, scored[0] if scored else None


def _index(side: Side) -> dict[str, Answer]:
    return {response.id: _build_answer(response, side) for response in side.responses}


def _build_answer(response: Response, side: Side) -> Answer:
    return Answer(text=response.response, stopped=response.stopped, judgment=side.judgments.get(response.id))
