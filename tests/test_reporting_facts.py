from pathlib import Path

import pytest
from reporting_run import build_judgment, write_run

from hf_instruct.errors import DataError
from hf_instruct.records import append_rows
from hf_instruct.reporting.facts import Side, read_facts


def test_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    facts = read_facts(run, run.load_experiment())
    assert facts.name == "demo"
    assert facts.split_sizes == {"train": 34, "validation": 1, "test": 4}
    assert [row.validation_loss for row in facts.evaluations] == [1.193, 0.8, 0.722]
    assert facts.tuned.score_by_id == {"a": 85, "b": 100, "c": 20}
    assert (facts.base.stopped_share, facts.tuned.stopped_share) == (0.25, 1.0)
    assert facts.tuned.scores is not None
    assert (facts.tuned.scores.n, facts.tuned.scores.failures, facts.tuned.scores.total) == (3, 1, 4)


def test_an_empty_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=())
    facts = read_facts(run, run.load_experiment())
    assert facts.split_sizes == {}
    assert facts.evaluations == []
    assert facts.tuned == facts.base == Side([], {}, None)
    assert facts.tuned.stopped_share is None


def test_the_latest_judgment_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    append_rows(run.judgments, [build_judgment("a", 7), build_judgment("gone", 99)])
    assert read_facts(run, run.load_experiment()).tuned.score_by_id == {"a": 7, "b": 100, "c": 20}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"mean"', "EOF while parsing an object at column 7"),
        ("[1]", "input should be an object"),
        ('{"mean": "50"}', "`mean`: input should be a valid number"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, fault: str) -> None:
    run = write_run(tmp_path / "demo")
    run.scores.write_text(text)
    with pytest.raises(DataError) as caught:
        read_facts(run, run.load_experiment())
    assert str(caught.value).startswith(f"`{run.scores}` cannot be read ({fault})")
