"""Scores: never averaged over failures, never NaN."""

import json
import math

import pytest
from rows import judgment

from hf_instruct.evaluation.intervals import bootstrap_mean
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.evaluation.scores import build_scores, format_scores
from hf_instruct.schema import JudgeIdentity, Judgment, RubricName

RUBRIC = load_rubric("course")
JUDGE = JudgeIdentity(backend="ollama", model="llama3", digest="365c0bd3c000", server_version="0.33.0")


def judgments(*scores: int | None) -> list[Judgment]:
    return [judgment(str(i), score, seconds=0.5) for i, score in enumerate(scores)]


def test_scores_with_failures() -> None:
    scores = build_scores(judgments(80, None, 60, 10), rubric=RUBRIC, judge=JUDGE)
    assert scores.mean == 50.0
    assert scores.standard_error == pytest.approx(math.sqrt((30**2 + 10**2 + 40**2) / 2 / 3))
    assert (scores.n, scores.failures, scores.total, scores.coverage) == (3, 1, 4, 0.75)
    assert (scores.minimum, scores.median, scores.maximum) == (10, 60, 80)
    assert scores.judge == JUDGE
    assert scores.rubric == RubricName(name="course", sha256=RUBRIC.sha256)
    assert scores.seconds == 2.0
    assert scores.by_category == {}


@pytest.mark.parametrize(
    ("values", "mean", "error"), [((), None, None), ((None, None), None, None), ((70,), 70.0, None)]
)
def test_too_few_scores_give_none_not_nan(values: tuple[int | None, ...], mean: float | None, error: None) -> None:
    scores = build_scores(judgments(*values), rubric=RUBRIC, judge=JUDGE)
    assert (scores.mean, scores.standard_error) == (mean, error)
    json.dumps(scores.to_dict(), allow_nan=False)


def test_scores_by_category() -> None:
    categories = {"0": "grammar", "1": "units", "2": "units", "3": None}
    scores = build_scores(judgments(80, None, 60, 10), rubric=RUBRIC, judge=JUDGE, categories=categories)
    assert list(scores.by_category) == ["grammar", "units"]
    units = scores.by_category["units"]
    assert (units.mean, units.n, units.failures, units.standard_error) == (60.0, 1, 1, None)


def test_prompts_hash_changes_with_any_prompt() -> None:
    one, other = judgments(1, 2), judgments(1, 2, 3)
    hashes = {build_scores(rows, rubric=RUBRIC, judge=JUDGE).prompts_sha256 for rows in (one, one[:1], other)}
    assert len(hashes) == 3


def test_failures_leave_a_range_open() -> None:
    scores = build_scores(judgments(80, None, 60, 10), rubric=RUBRIC, judge=JUDGE, categories={"0": "a", "1": "a"})
    assert (scores.mean_failures_as_0, scores.mean_failures_as_100) == (37.5, 62.5)
    whole = scores.by_category["a"]
    assert (whole.mean_failures_as_0, whole.mean, whole.mean_failures_as_100) == (40.0, 80.0, 90.0)
    none = build_scores(judgments(None, None), rubric=RUBRIC, judge=JUDGE)
    assert (none.mean_failures_as_0, none.mean_failures_as_100, none.interval) == (0.0, 100.0, None)
    nothing = build_scores([], rubric=RUBRIC, judge=JUDGE)
    assert (nothing.mean_failures_as_0, nothing.mean_failures_as_100) == (None, None)


def test_interval_is_the_bootstrap_interval_of_the_scores_alone() -> None:
    values = [80, 60, 10, 95, 40, 70]
    scores = build_scores(judgments(*values, None), rubric=RUBRIC, judge=JUDGE)
    assert scores.interval == bootstrap_mean(values)
    assert scores.interval
    assert scores.mean
    low, high = scores.interval
    assert 20 < low < scores.mean < high < 90


@pytest.mark.parametrize(
    ("values", "constant"),
    [((50,) * 5, True), ((50,) * 4, False), ((50,) * 5 + (None,), True), ((50,) * 5 + (51,), False), ((), False)],
)
def test_judge_of_one_mind_is_called_out(values: tuple[int | None, ...], constant: bool) -> None:
    scores = build_scores(judgments(*values), rubric=RUBRIC, judge=JUDGE)
    assert scores.constant is constant
    assert ("every answer got the same score" in format_scores(scores)) is constant


def test_one_line() -> None:
    scores = build_scores(judgments(80, None, 60, 10), rubric=RUBRIC, judge=JUDGE)
    assert format_scores(scores) == (
        "50.0 ± 20.8 (standard error; 95 % interval 10.0 to 80.0; n 3 of 4, 1 failed; 37.5 to 62.5 with each failure "
        "counted as 0 or as 100; judge llama3@365c0bd (ollama), rubric course@f870155)"
    )
    assert format_scores(build_scores(judgments(None), rubric=RUBRIC, judge=JUDGE)) == (
        "no score (no reply could be parsed; n 0 of 1, 1 failed; 0.0 to 100.0 with each failure counted as 0 or as "
        "100; judge llama3@365c0bd (ollama), rubric course@f870155)"
    )
    nameless = JUDGE.model_copy(update={"digest": None})
    assert format_scores(build_scores(judgments(70), rubric=RUBRIC, judge=nameless)) == (
        "70.0 (one verdict has no standard error; n 1 of 1, 0 failed; judge llama3 (ollama), rubric course@f870155)"
    )
