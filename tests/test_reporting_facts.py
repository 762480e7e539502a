from pathlib import Path

import pytest
from reporting_run import build_judgment, write_run

from hf_instruct.errors import DataError
from hf_instruct.evaluation.score_summary import parse_scores
from hf_instruct.records import append_rows
from hf_instruct.reporting.answers import pair_answers, pick_telling, sort_worst_first
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
    assert "experiment" not in facts.provenance


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
        ('{"mean"', "is not JSON (EOF while parsing an object at column 7)"),
        ("[1]", "holds a list, not an object with named values"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, fault: str) -> None:
    run = write_run(tmp_path / "demo")
    run.scores.write_text(text)
    with pytest.raises(DataError) as caught:
        read_facts(run, run.load_experiment())
    assert str(caught.value) == (f"`{run.scores}` {fault}; delete the file and run the stage that writes it again.")


def test_scores_of_other_shapes() -> None:
    assert parse_scores({"mean": None, "n": "many", "judge": "llama3", "by_category": [1]}) == parse_scores({})
    scores = parse_scores({"n": 2, "failures": 1, "by_category": {"x": {"mean": 3}, "y": 4}})
    assert scores.total == 3
    assert list(scores.by_category) == ["x"]


def test_rows_pair_the_answers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    rows = pair_answers(read_facts(run, run.load_experiment()))
    assert [(row.id, row.number, row.value, row.gain) for row in rows] == [
        ("a", 1, 85, 75),
        ("b", 2, 100, 100),
        ("c", 3, 20, -70),
        ("d", 4, None, None),
    ]
    assert [row.id for row in sort_worst_first(rows)] == ["c", "a", "b", "d"]
    best, worst = pick_telling(rows)
    assert [row.id for row in best] == ["b", "a"]
    assert worst is not None
    assert worst.id == "c"


def test_rows_of_one_side_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    run.responses.unlink()
    rows = pair_answers(read_facts(run, run.load_experiment()))
    assert [(row.id, row.tuned, row.value) for row in rows] == [
        ("a", None, 10),
        ("b", None, 0),
        ("c", None, 90),
        ("d", None, 5),
    ]


def test_telling_rows_without_scores_are_changed_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", stages=("generate",))
    best, worst = pick_telling(pair_answers(read_facts(run, run.load_experiment())), num_gains=2)
    assert [row.id for row in best] == ["a", "b"]
    assert worst is None
