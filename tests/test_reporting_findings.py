import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reporting_run import with_sides, write_run

from hf_instruct.evaluation.intervals import Difference
from hf_instruct.evaluation.scores import Leading
from hf_instruct.reporting import findings as found
from hf_instruct.reporting.findings import Finding, list_findings, list_missing
from hf_instruct.reporting.page import render_page
from hf_instruct.reporting.results import MetricRow, RunResults, read_results
from hf_instruct.schema import (
    CheckOutcome,
    Interval,
    Leak,
    NearDuplicate,
    NearDuplicates,
    Preflight,
    Repeats,
    TrainingRow,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return read_results(write_run(tmp_path_factory.mktemp("runs") / "demo"))


def change_scores(
    results: RunResults, *, side: str = "tuned", judge: dict[str, Any] | None = None, **scores: Any
) -> RunResults:
    """Return results with other scores of one side; of `judge` only the given fields are other."""
    known = results.sides[side]
    assert known.scores is not None
    if judge:
        scores["judge"] = known.scores.judge.model_copy(update=judge)
    changed = dataclasses.replace(known, scores=known.scores.model_copy(update=scores))
    return with_sides(results, **{side: changed})


def find(results: RunResults) -> dict[str, Finding]:
    return {finding.name: finding for finding in list_findings(results)}


def build_difference(mean: float, low: float, high: float, **bounds: Interval) -> Difference:
    return Difference(mean, Interval(low, high), wins=60, ties=0, losses=40, p_value=0.05, smallest_found=1.0, **bounds)


@pytest.fixture
def judged_well(results: RunResults) -> RunResults:
    """Results of the tuned side alone, of which there is nothing to say."""
    alone = with_sides(results, untuned=dataclasses.replace(results.before, scores=None))
    return change_scores(alone, n=110, total=110, failures=0)


def test_a_small_sample_with_a_failure(results: RunResults) -> None:
    findings = find(results)
    assert list(findings) == ["no_difference", "few_scores", "failures"]
    assert "+35.0 points, 95 % interval -70.0 to +100.0, over the 3 examples" in findings["no_difference"].text
    assert findings["few_scores"].text.startswith("Only 3 answers have a score")
    assert "1 of 4 answers of the tuned model; counted as 0 or as 100, they would make the mean 51.3 or 76.3" in (
        findings["failures"].text
    )


def test_getting_worse(results: RunResults) -> None:
    worse = with_sides(results, tuned=results.before, untuned=results.tuned)
    judgments = {id: judgment.model_copy(update={"score": 99}) for id, judgment in worse.before.judgments.items()}
    worse = with_sides(worse, untuned=dataclasses.replace(worse.before, judgments=judgments))
    assert "lower than the untuned model: -72.8 points, 95 % interval " in find(worse)["scores_lower"].text


@pytest.mark.parametrize(
    ("metric", "judge", "words"),
    [
        (0.29, -0.2, "By ROUGE-L the tuned model is higher (+0.29 (+0.19 to +0.39)), by the judge's scores not shown"),
        (0.29, -4.0, "higher (+0.29 (+0.19 to +0.39)), by the judge's scores lower"),
        (0.02, 4.0, "not shown to differ (+0.02 (-0.08 to +0.12)), by the judge's scores higher"),
        (0.29, 4.0, ""),
        (0.02, 0.5, ""),
    ],
)
def test_measures_that_disagree_are_told(metric: float, judge: float, words: str) -> None:
    row = MetricRow("rouge_l", {}, {"untuned": build_difference(metric, metric - 0.1, metric + 0.1)})
    difference = build_difference(judge, judge - 1, judge + 1)
    results = SimpleNamespace(metrics=[row], difference=difference, leading=Leading("score", ""))
    assert words in "".join(finding.text for finding in found._find_disagreement(results))
    assert bool(words) == bool(list(found._find_disagreement(results)))


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ({"model": "llama3"}, ["weak_judge"]),
        ({"backend": "local", "model": "SmolLM2-135M-Instruct"}, ["weak_judge"]),
        ({"backend": "local", "model": "mine"}, ["weak_judge"]),
        ({"backend": "local", "model": "Qwen3-8B"}, []),
    ],
)
def test_judges(judged_well: RunResults, judge: dict[str, str], expected: list[str]) -> None:
    assert list(find(change_scores(judged_well, judge=judge, self_check=None))) == expected


def test_a_difference_that_failed_judgments_could_turn_round_is_not_shown(judged_well: RunResults) -> None:
    difference = build_difference(12.0, 3.0, 21.0, bounds=Interval(-4.0, 28.0))
    assert not difference.is_shown
    assert dataclasses.replace(difference, bounds=Interval(1.0, 23.0)).is_shown
    # `differences` are computed once, from the judgments.
    changed = dataclasses.replace(judged_well)
    changed.__dict__["differences"] = {"untuned": difference}
    assert "With each failed judgment at its worst or best it is -4.0 to +28.0, which includes zero." in (
        find(changed)["no_difference"].text
    )


def test_what_a_judge_gave_to_references_stands_beside_its_mean(judged_well: RunResults) -> None:
    equal = change_scores(judged_well, equal_mean=61.0, equal_n=18, mean=55.0)
    said = "answers equal to the reference scored 61.0 on average (n=18)"
    assert f"A{said[1:]}." in render_page(equal)
    assert equal.references == [said]
    check = CheckOutcome(passed=True, failed=[], n=20, probes=40, reference_mean=90.0)
    checked = change_scores(judged_well, self_check=check)
    assert checked.references == ["the references themselves scored 90.0 on average (n=20)"]


def test_a_judge_that_was_checked_and_asked_again(judged_well: RunResults) -> None:
    repeats = Repeats(
        count=3, seeds=[1, 2, 3], means=[60.0] * 3, n=[110] * 3, failures=[0] * 3, spread=4.71, changed=0.5
    )
    check = CheckOutcome(passed=False, failed=["order", "injection"], n=20)
    findings = find(change_scores(judged_well, self_check=check, constant=True, mean=60.0, repeats=repeats))
    assert list(findings) == ["weak_judge", "constant_scores", "judge_spread"]
    assert findings["weak_judge"].text.startswith("The judge failed its check on 20 examples: order (and 1 more), so ")
    assert "4.7 points per answer, and 50 % of its verdicts" in findings["judge_spread"].text


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"judge": {"digest": "other"}}, ["digest"]),
        ({"judge": {"server_version": "0.2"}}, []),
        ({"rubric": None}, ["rubric"]),
    ],
)
def test_sides_judged_differently_have_no_difference(
    results: RunResults, changes: dict[str, Any], fields: list[str]
) -> None:
    changed = change_scores(results, **changes)
    assert changed.judging_differences == fields
    assert (changed.difference is None) == bool(fields)
    assert ("judged_differently" in find(changed)) == bool(fields)


def test_leaks(judged_well: RunResults) -> None:
    leak, near = Leak(id="a", train_ids=["1"]), NearDuplicate(id="b", train_id="2", cosine=0.9)
    preflight = Preflight(
        examples={"test": 110},
        seen_in_train={"test": [leak], "validation": [leak]},
        near_duplicates=NearDuplicates(threshold=0.8, test=[near, near]),
    )
    findings = list_findings(dataclasses.replace(judged_well, preflight=preflight))
    assert [finding.text.split(" of 110 test examples ")[0] for finding in findings] == ["1", "2"]


def test_answers_and_training(judged_well: RunResults) -> None:
    rows = [
        TrainingRow(step=step, epoch=step / 4, tokens_seen=9, kind="evaluation", validation_loss=loss)
        for step, loss in {0: 1.2, 4: 0.7, 8: 0.9}.items()
    ]
    responses = [row.model_copy(update={"stopped": row.id != "a"}) for row in judged_well.tuned.responses]
    cut = with_sides(judged_well, tuned=dataclasses.replace(judged_well.tuned, responses=responses))
    changed = dataclasses.replace(cut, training_rows=rows)
    findings = find(changed)
    assert findings["cut_off"].text.startswith("25 % of the tuned model's answers did not finish")
    assert findings["overfitting"].text.startswith(
        "The validation loss was lowest at step 4 (0.700) and has risen to 0.900"
    )
    # The last of them is hardly higher than the lowest.
    flat = [row.model_copy(update={"validation_loss": 0.71}) if row.step == 8 else row for row in rows]
    assert "overfitting" not in find(dataclasses.replace(changed, training_rows=flat))


def test_nothing_is_missing_from_a_whole_run(results: RunResults) -> None:
    assert list_missing(results) == []


def test_missing_parts_and_their_commands(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", stages=())
    folder = f"'{run.path}'"
    assert [(part.what, part.command) for part in list_missing(read_results(run))] == [
        ("the examples and the training log", f"hf-instruct train EXPERIMENT.yaml --run-dir {folder} --resume"),
        ("the tuned model's answers", f"hf-instruct generate {folder}"),
        ("the untuned model's answers, to compare with", f"hf-instruct generate {folder}"),
    ]


def test_a_half_done_stage_is_missing_its_rest(results: RunResults) -> None:
    tuned = dataclasses.replace(results.tuned, responses=results.tuned.responses[:3], scores=None)
    assert [part.what for part in list_missing(with_sides(results, tuned=tuned))] == [
        "1 of the tuned model's answers",
        "the scores of the tuned model's answers (3 of 3 are judged)",
    ]


def test_base_answers_that_nobody_asked_for_are_not_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("data", "train"), generate={"base": False})
    assert [part.what for part in list_missing(read_results(run))] == ["the tuned model's answers"]
