"""The answers before and after fine-tuning, side by side."""

import dataclasses
from collections.abc import Mapping, Sequence

from hf_instruct.evaluation.score_summary import SCORE, Leading
from hf_instruct.reporting.facts import RunFacts, Side
from hf_instruct.schema import Judgment, Response


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
        value: What the row is sorted by: the leading measure of the tuned answer, or of the base answer where it stands
            alone; None where it has none.
        gain: That of the tuned answer minus that of the base answer; None unless both have one.
    """

    number: int
    id: str
    instruction: str
    input: str
    reference: str
    category: str | None
    base: Answer | None
    tuned: Answer | None
    value: float | None
    gain: float | None


def pair_answers(facts: RunFacts) -> list[AnswerRow]:
    """Return a row for each answered example, in the order of the responses."""
    tuned, base = _index(facts.tuned), _index(facts.base)
    after, before = (_list_values(side, facts.leading) for side in (facts.tuned, facts.base))
    # A row that only the base model has answered comes last: the tuned model was interrupted.
    examples = list({response.id: response for response in [*facts.tuned.responses, *facts.base.responses]}.values())
    return [
        AnswerRow(
            number=number,
            id=(id := example.id),
            instruction=example.instruction,
            input=example.input,
            reference=example.output,
            category=example.category,
            base=base.get(id),
            tuned=tuned.get(id),
            value=(after if id in tuned else before).get(id),
            gain=after[id] - before[id] if id in after and id in before else None,
        )
        for number, example in enumerate(examples, start=1)
    ]


def _list_values(side: Side, leading: Leading) -> Mapping[str, float]:
    return side.score_by_id if leading.name == SCORE else side.values.get(leading.name, {})


def sort_worst_first(rows: Sequence[AnswerRow]) -> list[AnswerRow]:
    """Return the rows by rising value of the leading measure, those without one last; equal ones keep their order."""
    return sorted(rows, key=lambda row: (row.value is None, row.value or 0))


def pick_telling(rows: Sequence[AnswerRow], *, num_gains: int = 3) -> tuple[list[AnswerRow], AnswerRow | None]:
    """Return the rows that say most about a run in least space.

    Args:
        rows: All rows.
        num_gains: How many of the first kind.

    Returns:
        The rows with the biggest gains (without values: the first rows whose answer changed), and the row with the
        lowest value that is not among them, or None where nothing has a value.
    """
    gained = sorted((row for row in rows if (row.gain or 0) > 0), key=lambda row: -(row.gain or 0))
    if not any(row.value is not None for row in rows):
        gained = [row for row in rows if row.tuned and (row.base is None or row.base.text != row.tuned.text)]
    best = gained[:num_gains]
    rest = [row for row in sort_worst_first(rows) if row.value is not None and row not in best]
    return best, rest[0] if rest else None


def _index(side: Side) -> dict[str, Answer]:
    return {response.id: _build_answer(response, side) for response in side.responses}


def _build_answer(response: Response, side: Side) -> Answer:
    return Answer(text=response.response, stopped=response.stopped, judgment=side.judgments.get(response.id))
