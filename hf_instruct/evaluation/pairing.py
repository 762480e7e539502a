"""Two sets of answers to the same examples, joined: what a judge is asked about, and what people vote on."""

from collections.abc import Sequence
from typing import NamedTuple

from hf_instruct.errors import DataError
from hf_instruct.schema import Preference, Response

_MOST_FAULTS = 20
_SHOWN_CHARACTERS = 60


class Pair(NamedTuple):
    """Two answers to one example.

    Attributes:
        example: The first answer with the example it is to.
        first: The first answer.
        second: The second answer.
    """

    example: Response
    first: str
    second: str

    @property
    def id(self) -> str:
        """The example's id."""
        return self.example.id

    @property
    def identical(self) -> bool:
        """Whether there is nothing to choose: the answers are the same but for white space around them."""
        return self.first.strip() == self.second.strip()


class JoinedPairs(NamedTuple):
    """Two sets of answers, joined.

    Attributes:
        pairs: The answers to the examples that both have, in the order of the first.
        by: `id`, or `order` where the ids differ and the examples do not.
        first_alone: Answers of the first set without a counterpart.
        second_alone: Answers of the second set without a counterpart.
    """

    pairs: list[Pair]
    by: str
    first_alone: int
    second_alone: int


def is_identical(row: Preference) -> bool:
    """Return whether a preference is a tie between equal answers that nobody was asked about."""
    return bool(row.judge.options.get("equal_answers"))


def join_responses(
    first: Sequence[Response], second: Sequence[Response], *, names: tuple[str, str] = ("the first", "the second")
) -> JoinedPairs:
    """Return the answers of two sets to the same examples, joined by id; where no id is in both, by order.

    Args:
        first: The one set.
        second: The other.
        names: What error texts call them.

    Raises:
        DataError: The sets have no example in common, or give one id to different examples.
    """
    others = {response.id: response for response in second}
    joined = [(response, others[response.id]) for response in first if response.id in others]
    by = "id"
    if not joined and [_task(row) for row in first] == [_task(row) for row in second]:
        joined, by = list(zip(first, second, strict=True)), "order"
    if not joined:
        raise DataError(
            f"`{names[0]}` ({len(first)} answers) and `{names[1]}` ({len(second)}) have no example in common: no id is "
            f"in both (the first are `{first[0].id}` and `{second[0].id}`), and the instructions are not the same ones "
            "in the same order. Name answers to the same examples."
        )
    faults = [
        f"`{one.id}` asks {one.instruction[:_SHOWN_CHARACTERS]!r} in `{names[0]}` and "
        f"{two.instruction[:_SHOWN_CHARACTERS]!r} in `{names[1]}`"
        for one, two in joined
        if _task(one) != _task(two)
    ]
    if faults:
        raise DataError(
            f"{len(faults)} id(s) stand for different examples in the two sets of answers; name answers to the same "
            "examples, or leave the ids out:",
            faults[:_MOST_FAULTS],
        )
    pairs = [
        Pair(one.model_copy(update={"category": one.category or two.category}), one.response, two.response)
        for one, two in joined
    ]
    return JoinedPairs(pairs, by, len(first) - len(pairs), len(second) - len(pairs))


def _task(response: Response) -> tuple[str, str]:
    return response.instruction, response.input
