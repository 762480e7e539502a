"""What counts as a verdict."""

import pytest

from hf_instruct.errors import VerdictError
from hf_instruct.judging.rubrics import Rubric, load_rubric
from hf_instruct.judging.verdicts import Verdict, parse_verdict

COURSE = Rubric("course", "")
CRITIQUE = Rubric("critique", "", reasons=True)
LEVELS = load_rubric("five-point")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 85}', 85),
        ('{"score": 0}', 0),
        ('{"score": 100.0}', 100),
        ('{"score": "85"}', 85),
        ('{"score": 1e2}', 100),
        ('```json\n{"score": 85}\n```', 85),
        ('{"thoughts": "of 2 facts, 1 is wrong", "score": 50}', 50),
        ("85", 85),
        (" 85.\n", 85),
        ("85.0", 85),
        ("007", 7),
        ("Score: 85", 85),
        ("**Score:** 85/100", 85),
        ("score is 85", 85),
        ("85/100", 85),
        ("85 / 100", 85),
        ("85 out of 100", 85),
        ("**85**", 85),
        ("`85`", 85),
        ("Score: 85\n\nThe response is right.", 85),
        ("<think>100? No, 40.</think>\n40", 40),
    ],
)
def test_readable_replies(text: str, score: int) -> None:
    assert parse_verdict(text, COURSE).score == score


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "The reply is empty."),
        ("  \n", "The reply is empty."),
        ("85 or 90", "holds more than one number"),
        ("80-90", "holds more than one number"),
        ("85/10", "holds more than one number"),
        ("Score: 85/10", "holds more than one number"),
        ("Score: 85 or Score: 90", "holds more than one number"),
        ("Score: 85. Two of 3 facts are right.", "holds more than one number"),
        ("The poem has 3 lines.", "holds a number, but not as the score"),
        ("I like it.", "holds no number"),
        ("eighty-five", "holds no number"),
        ("101", "gives 101; allowed are the integers from 0 to 100"),
        ("-5", "not as the score"),
        ("Score: -5", "not as the score"),
        ("85.5", "not as the score"),
        ("Score: 85.5", "not as the score"),
        ("85,5", "not as the score"),
        ("8 5", "holds more than one number"),
        ("85%", "not as the score"),
        ("\u0668\u0665", "not as the score"),
        ("\uff18\uff15", "not as the score"),
        ("9" * 5000, "not as the score"),
        ("Score: " + "9" * 5000, "not as the score"),
        ('{"score": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"score": 1e400}', "is not an integer"),
        ('{"score": NaN}', "is not an integer"),
        ('{"score": Infinity}', "is not an integer"),
        ('{"score": true}', "is not an integer"),
        ('{"score": null}', "is not an integer"),
        ('{"score": [85]}', "is not an integer"),
        ('{"score": 85.5}', "gives 85.5, which is not an integer"),
        ('{"score": -1}', "gives -1; allowed are"),
        ('{"score": 8', "begins like JSON and is not JSON"),
        ('{"score": 85} {"score": 90}', "begins like JSON and is not JSON"),
        ('{"score": 85, "score": 90}', "begins like JSON and is not JSON"),
        ('{"a": ' + "[" * 100_000, "begins like JSON and is not JSON"),
        ('{"grade": 85}', "is JSON without `score`"),
        ("[85]", "holds"),
    ],
)
def test_unreadable_replies(text: str, reason: str) -> None:
    with pytest.raises(VerdictError, match=r"^The reply") as caught:
        parse_verdict(text, COURSE)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 250


def test_reasons_are_kept_where_the_rubric_asks_for_them() -> None:
    text = '{"reasons": "Names 2 of 3 colors.", "score": 60}'
    assert parse_verdict(text, CRITIQUE) == Verdict(60, "Names 2 of 3 colors.")
    prose = "Reasons: names 2 of 3 colors.\nScore: 60/100"
    assert parse_verdict(prose, CRITIQUE) == Verdict(60, "names 2 of 3 colors.")
    assert parse_verdict("85", CRITIQUE) == Verdict(85, None)
    for unclear in ("Score: 60\nNo:\nScore: 70", "Score: 80 to 90", "Of 3 facts, 2 are right. Score: 60/10"):
        with pytest.raises(VerdictError, match="more than one number"):
            parse_verdict(unclear, CRITIQUE)


def test_levels_stand_for_scores() -> None:
    assert [parse_verdict(str(level), LEVELS).score for level in range(1, 6)] == [0, 25, 50, 75, 100]
    assert parse_verdict("4/5", LEVELS).score == 75
    with pytest.raises(VerdictError, match="gives 0; allowed are the integers from 1 to 5"):
        parse_verdict('{"score": 0}', LEVELS)
    with pytest.raises(VerdictError, match="gives 85"):
        parse_verdict("85", LEVELS)
