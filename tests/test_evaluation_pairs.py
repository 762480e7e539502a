import pytest
from rows import response

from hf_instruct.errors import DataError
from hf_instruct.evaluation.pairs import join_responses
from hf_instruct.schema import Unpaired

NAMES = ("runs/a", "b.json")
ANSWERS = [response(f"id{number}", f"Blue {number}.", instruction=f"Name color {number}.") for number in range(20)]


def test_answers_are_joined_by_id_with_the_category_that_either_has() -> None:
    first = [ANSWERS[0].model_copy(update={"category": "x"}), *ANSWERS[1:3]]
    second = [ANSWERS[2].model_copy(update={"response": "4", "category": "y"}), ANSWERS[7], ANSWERS[0]]
    joined = join_responses(first, second, NAMES)
    assert [(pair.id, pair.first, pair.second, pair.example.category) for pair in joined.pairs] == [
        ("id0", "Blue 0.", "Blue 0.", "x"),
        ("id2", "Blue 2.", "4", "y"),
    ]
    assert joined[1:] == (NAMES, "id", Unpaired(first=1, second=1))


def test_without_common_ids_the_same_tasks_in_the_same_order_are_joined() -> None:
    other = [row.model_copy(update={"id": f"x{row.id}", "output": "Cyan."}) for row in ANSWERS]
    joined = join_responses(ANSWERS, other, NAMES)
    assert (joined.by, len(joined.pairs), joined.pairs[0].id) == ("order", 20, "id0")


def test_no_overlap_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        join_responses(ANSWERS[:2], ANSWERS[2:5], NAMES)
    assert str(caught.value) == (
        "`runs/a` (2 answers) and `b.json` (3) have no example in common: no id is in both (the first are `id0` and "
        "`id2`), and the instructions differ. Use answers to the same examples."
    )


def test_one_id_for_two_examples_is_an_error() -> None:
    other = [ANSWERS[0].model_copy(update={"instruction": "Name a river."}), *ANSWERS[1:]]
    with pytest.raises(DataError, match=r"1 id.* refer to different examples .*\n  - `id0` asks 'Name color 0\.' in"):
        join_responses(ANSWERS, other, NAMES)
