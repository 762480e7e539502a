"""The local judge; what needs a model is slow."""

import asyncio
import json
from pathlib import Path

import pytest
from rows import response

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.local import LocalJudge, expected_score
from hf_instruct.evaluation.rubrics import Rubric, load_rubric
from hf_instruct.evaluation.scoring import judge_responses

ROWS = [
    response("a", "Jane Austen.", "Jane Austen.", instruction="Name the author of 'Pride and Prejudice'."),
    response("b", "{{ friend }} {0}", "friend", instruction="Fix the spelling.", input="freind"),
    response("c", "", "Red.", instruction="Name a color."),
]


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [([1, 0, 0], 0), ([0, 0, 1], 100), ([0.25, 0.5, 0.25], 50), ([0, 0.99, 0.01], 51), ([1e-9, 0, 0], 0)],
)
def test_expected_score(probabilities: list[float], score: int) -> None:
    assert expected_score(dict(zip((0, 50, 100), probabilities, strict=True))) == score


def test_rubric_without_a_question_is_refused() -> None:
    rubric = Rubric(name="mine", prompt="{{ instruction }} {{ input }} {{ output }} {{ response }}")
    with pytest.raises(JudgeUnavailable, match=r"this rubric has no `question` or no `levels`. Add both"):
        asyncio.run(LocalJudge(JudgeSection()).ask(rubric.build_question(ROWS[0])))


@pytest.mark.slow
def test_smollm2_judges_the_same_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = judge_responses(ROWS, judge="local", out=tmp_path, cache=False)
    again = judge_responses(ROWS, judge="local", cache=False, concurrency=1)
    assert [row.score for row in first.judgments] == [row.score for row in again.judgments]
    assert first.scores.n == 3
    for row in first.judgments:
        reply = json.loads(row.replies[0])
        assert reply["score"] == row.score
        assert list(reply["probabilities"]) == ["0", "20", "40", "60", "80", "100"]
        assert sum(reply["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert len(first.scores.judge.digest) == 64
    assert "is too small to judge well" in caplog.text


@pytest.mark.slow
def test_too_long_question_is_a_failure() -> None:
    judged = judge_responses([response("a", input="word " * 9000)], judge="local", cache=False)
    assert str(judged.judgments[0].failure).endswith("tokens; the judge's limit is 8192")


@pytest.mark.slow
def test_levels_of_the_rubric_are_the_judges() -> None:
    judged = judge_responses(ROWS[:1], judge="local", rubric="five-point", cache=False)
    assert list(json.loads(judged.judgments[0].replies[0])["probabilities"]) == ["0", "25", "50", "75", "100"]
    assert list(load_rubric("five-point").levels) == [0, 25, 50, 75, 100]
