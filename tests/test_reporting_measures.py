"""What the report says beside the judge's scores."""

from pathlib import Path
from typing import Any

from reporting_run import JUDGE, RUBRIC, build_judgment, write_run

from hf_instruct.evaluation.pair_scores import build_pair_scores
from hf_instruct.evaluation.pairing import join_responses
from hf_instruct.evaluation.probes import build_probes
from hf_instruct.evaluation.self_check import check_judgments
from hf_instruct.records import Example, read_file, write_json
from hf_instruct.reporting.facts import read_facts
from hf_instruct.reporting.measures import CheckRow, TaskRow, list_checks, list_metrics, list_pairs, list_tasks
from hf_instruct.reporting.page import render_page
from hf_instruct.reporting.summary import format_summary
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    BenchmarkResult,
    CheckOutcome,
    Interval,
    JudgeIdentity,
    MeanDifference,
    Metrics,
    MetricValue,
    Preference,
    Response,
    Scores,
)


def write_metrics(run: RunFolder, values: dict[str, float], **means: float) -> None:
    mean = sum(values.values()) / len(values)
    metrics = {"rouge_l": MetricValue(mean=mean, interval=Interval(0.1, 0.9), n=len(values))}
    metrics |= {name: MetricValue(mean=value, interval=None, n=4) for name, value in means.items()}
    write_json(run.metrics, Metrics(metrics=metrics, examples={id: {"rouge_l": value} for id, value in values.items()}))


def read(run: RunFolder) -> Any:
    return read_facts(run, run.load_experiment())


def test_metrics_stand_side_by_side_with_their_paired_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    write_metrics(run.base, {"a": 0.25, "b": 0.25, "c": 0.5}, exact_match=0.04, perplexity=12.5)
    write_metrics(run, {"a": 0.5, "b": 0.5, "c": 0.75}, exact_match=0.171, perplexity=6.0)
    rows = {row.name: row for row in list_metrics(read(run))}
    assert list(rows) == ["exact_match", "rouge_l", "perplexity"]
    assert rows["rouge_l"].show_difference() == "+0.25 (+0.25 to +0.25)"
    assert rows["exact_match"].show(0.171) == "17 %"
    assert rows["exact_match"].show(0.171, signed=True) == "+17 %"
    # A mean of ratios is not the ratio that is shown.
    assert rows["perplexity"].show_difference() == ""
    lines = format_summary(run).splitlines()
    assert "exact match       4 %           17 %" in lines
    assert "ROUGE-L           0.33          0.58          +0.25 (+0.25 to +0.25)" in lines
    assert "perplexity        12.5          6.00" in lines
    page = render_page(read(run))
    assert "Beside the judge" in page
    assert "+0.25 (+0.25 to +0.25)" in page


def test_one_side_alone_has_no_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    write_metrics(run, {"a": 0.5}, mine=3.0)
    rows = list_metrics(read(run))
    assert [(row.label, row.base, row.show_difference()) for row in rows] == [("ROUGE-L", None, ""), ("mine", None, "")]
    assert "Tuned less base, paired" not in render_page(read(run))


def test_the_check_of_the_judge_is_shown_wherever_its_score_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert list_checks(read(run)) == []
    examples = [Example(str(n), f"Add 1 to {n}.", "", str(n + 1)) for n in range(12)]
    probes = build_probes(examples)
    # Right on everything, but talked into 100 by the injection that looks like a verdict.
    scores = {"reference": 90, "doubled": 90, "injection-json": 100, "empty": 0, "repeated": 0}
    judgments = [build_judgment(probe.response.id, scores.get(probe.kind, 10)) for probe in probes]
    judge = JudgeIdentity(backend="ollama", model="phi3")
    result = check_judgments(probes, judgments).model_copy(update={"judge": judge, "rubric": RUBRIC})
    write_json(run.self_check, result)
    rows = {row.pair: row for row in list_checks(read(run))}
    assert rows["reference - shuffled"] == CheckRow("reference - shuffled", "> 0", "+80.0 (none: all equal)", "passed")
    assert rows["json - shuffled"] == CheckRow("json - shuffled", "not > 0", "+90.0 (none: all equal)", "failed")
    assert rows["control - shuffled"].result == ""
    check = CheckOutcome(passed=False, failed=["injection"], n=12)
    write_json(run.scores, read_file(run.scores, Scores).model_copy(update={"self_check": check}))
    assert "! The judge failed its self-check (injection)" in format_summary(run)
    # It is not the judge of the run's scores.
    assert "Is the judge any good? <small>scores of answers of known worth, in points, by phi3 (ollama), rubric" in (
        render_page(read(run))
    )


def test_benchmark_tasks_keep_their_standard_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert list_tasks(read(run)) == []
    row = BenchmarkResult(
        task="everyday_choice",
        metric="acc",
        filter="none",
        value=0.525,
        standard_error=0.08,
        n=40,
        total=40,
        num_fewshot=0,
        higher_is_better=True,
        version="1",
        questions_sha256=None,
        limit=None,
        chat_template=False,
        dtype="float32",
        model="m",
        lm_eval_version="0.4",
        seconds=1.0,
        measured_at="",
        difference=MeanDifference(0.1, -0.05, 0.25, 40),
    )
    group = row.model_copy(update={"task": "x", "total": None, "difference": None})
    write_json(
        run.benchmarks, {"tuned": [part.to_dict() for part in (row, group, row.model_copy(update={"value": None}))]}
    )
    assert list_tasks(read(run)) == [
        TaskRow("everyday_choice", "acc", "0.525 ± 0.080", "+0.100 (-0.050 to +0.250)", "40 of 40"),
        TaskRow("x", "acc", "0.525 ± 0.080", "", "40"),
    ]
    assert "0.525 ± 0.080" in render_page(read(run))


def test_preferences_stand_with_what_makes_them_doubtful(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert list_pairs(read(run)) == []
    answers = [
        [Response(id=str(n), instruction=f"Task {n}.", input="", output="x", response=f"{text} {n}") for n in range(20)]
        for text in ("a", "b")
    ]
    preferences = [
        Preference(
            id=str(n),
            first="runs/a",
            second="runs/x",
            score=1.0 if n < 8 else 0.5,
            judge=JUDGE,
            rubric="pairwise",
            orders=[1.0, 1.0 if n < 8 else 0.0],
            replies=[],
            first_length=3,
            second_length=3,
        )
        for n in range(20)
    ]
    joined = join_responses(*answers)
    summary = build_pair_scores(preferences, names=("runs/a", "runs/x"), joined=joined, judge=JUDGE)
    write_json(run.path / "pairwise" / "x.json", summary)
    (row,) = list_pairs(read(run))
    assert (row.baseline, row.win_rate[:6], row.consistency, row.n, row.judge) == (
        "runs/x",
        "70.0 %",
        "40 %",
        20,
        "llama3",
    )
    assert row.win_rate in render_page(read(run))
