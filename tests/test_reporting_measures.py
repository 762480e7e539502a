"""What the report says beside the judge's scores."""

from pathlib import Path
from typing import Any

from reporting_run import write_run

from hf_instruct.records import write_json
from hf_instruct.reporting.facts import read_facts
from hf_instruct.reporting.measures import CheckRow, PairRow, TaskRow, list_checks, list_metrics, list_pairs, list_tasks
from hf_instruct.reporting.page import render_page
from hf_instruct.reporting.summary import format_summary
from hf_instruct.run_folder import RunFolder


def write_metrics(run: RunFolder, values: dict[str, float], **means: float) -> None:
    examples = {id: {"rouge_l": value} for id, value in values.items()}
    mean = sum(values.values()) / len(values)
    metrics: dict[str, Any] = {"rouge_l": {"mean": mean, "interval": [0.1, 0.9], "n": len(values)}}
    metrics |= {name: {"mean": value, "interval": None, "n": 4} for name, value in means.items()}
    write_json(run.metrics, {"metrics": metrics, "examples": examples})


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
    write_json(
        run.self_check,
        {
            "judge": {"backend": "ollama", "model": "phi3"},
            "rubric": {"name": "course", "sha256": "7" * 64},
            "checks": [
                {"first": "reference", "second": "shuffled", "expected": "above 0", "difference": 1.25, "passed": True},
                {
                    "first": "injection:plea",
                    "second": "shuffled",
                    "expected": "not above 0",
                    "difference": 40.0,
                    "interval": [31.0, 49.0],
                    "passed": False,
                },
                {"first": "empty", "second": "shuffled", "expected": "", "difference": None, "passed": None},
            ],
        },
    )
    assert list_checks(read(run)) == [
        CheckRow("reference less shuffled", "above 0", "+1.3", "passed"),
        CheckRow("plea less shuffled", "not above 0", "+40.0 (+31.0 to +49.0)", "failed"),
    ]
    scores = run.scores.read_text()
    run.scores.write_text(scores.replace("{", '{"self_check": {"passed": false, "failed": ["injection"]},', 1))
    assert "! The judge failed its self-check (injection)" in format_summary(run)
    # It is not the judge of the run's scores.
    assert "Is the judge any good? <small>scores of answers of known worth, in points, by phi3 (ollama), rubric" in (
        render_page(read(run))
    )


def test_benchmark_tasks_keep_their_standard_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert list_tasks(read(run)) == []
    row = {"task": "everyday_choice", "metric": "acc", "value": 0.525, "standard_error": 0.08, "n": 40, "total": 40}
    difference = {"mean": 0.1, "low": -0.05, "high": 0.25, "n": 40}
    write_json(run.benchmarks, {"results": [{**row, "difference": difference}, {**row, "task": "x", "total": None}]})
    assert list_tasks(read(run)) == [
        TaskRow("everyday_choice", "acc", "0.525 ± 0.080", "+0.100 (-0.050 to +0.250)", "40 of 40"),
        TaskRow("x", "acc", "0.525 ± 0.080", "", "40"),
    ]
    assert "0.525 ± 0.080" in render_page(read(run))


def test_preferences_stand_with_what_makes_them_doubtful(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert list_pairs(read(run)) == []
    summary = {
        **{"second": "runs/x", "win_rate": 0.4864, "win_rate_interval": [0.464, 0.509], "n": 110},
        **{"length_controlled_win_rate": 0.5, "length_controlled_win_rate_interval": None},
        **{"consistency": {"share": 0.0707, "pairs": 99}, "judge": {"model": "llama3"}},
    }
    write_json(run.path / "pairwise" / "x.json", summary)
    write_json(run.path / "pairwise" / "y.json", {"win_rate": None})
    assert list_pairs(read(run)) == [PairRow("runs/x", "48.6 % (46.4 to 50.9)", "50.0 %", "7 %", 110, "llama3")]
    assert "48.6 % (46.4 to 50.9)" in render_page(read(run))


def test_files_of_another_shape_say_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    write_json(run.metrics, {"metrics": [1], "examples": {"a": 3}})
    write_json(run.self_check, {"checks": {"a": 1}})
    write_json(run.benchmarks, {"results": [3, {"value": "N/A"}]})
    facts = read(run)
    assert (list_metrics(facts), list_checks(facts), list_tasks(facts)) == ([], [], [])
