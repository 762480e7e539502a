from pathlib import Path

import pytest
from reporting_run import write_run

from hf_instruct.errors import DataError
from hf_instruct.reporting.stage import report


def test_report_writes_the_page_and_the_histogram(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    before = {path.name for path in run.path.iterdir()}
    assert report(run, run.load_experiment()) == run.report
    assert {path.name for path in run.path.iterdir()} - before == {"report.html", "scores.png"}
    assert run.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    first = run.report.read_bytes()
    report(run, run.load_experiment())
    assert run.report.read_bytes() == first


def test_report_without_scores_writes_no_histogram(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=())
    report(run, run.load_experiment())
    assert {path.name for path in run.path.iterdir()} == {"run.yaml", "report.html"}


def test_a_broken_file_leaves_the_old_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    run.report.write_text("old")
    run.judgments.write_text("{}\n")
    with pytest.raises(DataError, match=r"judgments\.jsonl` line 1 is not a Judgment row"):
        report(run, run.load_experiment())
    assert run.report.read_text() == "old"
