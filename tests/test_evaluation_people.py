"""A judge's mean corrected by people's scores: the arithmetic, what counts as a label, and where it is shown."""

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from reporting_run import write_run
from rows import ANN, judgment, preference, response

from benchmarks import coverage
from hf_instruct.cli.main import main
from hf_instruct.evaluation.people import Corrected, Labelled, correct_win_rate, hash_answer, read_people
from hf_instruct.evaluation.votes import SKIP, ScoreBook, open_votes
from hf_instruct.records import append_rows, read_rows, write_rows
from hf_instruct.reporting.page import render_page
from hf_instruct.reporting.results import read_results
from hf_instruct.reporting.summary import format_summary
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED, UNTUNED, Judgment, Response


def correct(judged: list[float | None], people: list[float]) -> Corrected | None:
    keyed = {str(index): score for index, score in enumerate(judged)}
    return Labelled(keyed, {str(index): score for index, score in enumerate(people)}).correct()


def test_mean_is_that_of_ppi_plus_plus() -> None:
    # Of https://arxiv.org/abs/2311.01453, example 6.1, with the answers without people's score unlabelled.
    draws = numpy.random.default_rng(5)
    people = draws.integers(0, 101, 40).astype(float)
    judged = numpy.concatenate([people * 0.3 + 35 + draws.normal(0, 5, 40), draws.normal(60, 20, 70)])
    weight = numpy.cov(people, judged[:40])[0, 1] / ((1 + 40 / 70) * judged.var(ddof=1))
    assert 0 < weight < 1
    expected = weight * judged[40:].mean() + (people - weight * judged[:40]).mean()
    found = correct(judged.tolist(), people.tolist())
    assert found
    assert found.mean == pytest.approx(expected)
    assert (found.n, found.total) == (40, 110)
    assert found.excess == pytest.approx(judged[:40].mean() - people.mean())


def test_judge_that_knows_nothing_or_has_scored_nothing_more_leaves_people_s_own_mean() -> None:
    assert correct([50.0] * 30, [0.0, 100.0] * 10).mean == 50.0
    assert correct([90.0] * 10, [float(score) for score in range(10)]).mean == 4.5


def test_answers_without_a_verdict_of_the_judge_are_in_the_corrected_mean() -> None:
    # The judge failed on all that people find worthless.
    found = correct([*[100.0] * 10, *[None] * 10], [*[100.0] * 10, *[0.0] * 10])
    assert found
    assert (found.mean, found.n, found.total, found.excess) == (50.0, 20, 20, 0.0)


def test_equal_labels_have_an_interval_with_a_width_inside_the_scale() -> None:
    found = correct([80.0] * 60, [100.0] * 20)
    assert found
    assert found.interval
    assert found.mean == 100.0
    assert 80 < found.interval.low < 90
    assert found.interval.high <= 100.0


def test_few_labels_correct_nothing_and_say_how_many_do() -> None:
    found = correct([50.0] * 30, [70.0] * 9)
    assert (found.mean, found.interval) == (None, None)
    assert found.describe() == "people scored 9 of 30 answers; from 10 on these correct the judge's mean"
    assert correct([50.0] * 30, []) is None
    # Nor is there a mean to correct where nothing was judged.
    assert correct([None] * 30, [70.0] * 12) is None


def test_difference_is_over_examples_that_people_scored_on_both_sides() -> None:
    one = Labelled({str(i): 90.0 for i in range(30)}, {str(i): 40.0 for i in range(20)})
    other = Labelled({str(i): 95.0 if i else None for i in range(30)}, {str(i): 60.0 + i % 2 for i in range(5, 25)})
    found = other.subtract(one).correct()
    assert found
    assert (found.n, found.total) == (15, 30)
    assert found.mean == pytest.approx(20.5, abs=0.1)
    assert found.describe("examples", signed=True).startswith("+20.5 points (95 % interval +")


@pytest.mark.parametrize("judge", coverage.JUDGES)
def test_intervals_cover_with_forty_labels(judge: str) -> None:
    found = coverage.measure_corrected("scores in two heaps", judge, 110, 40, samples=300)
    assert found.corrected >= 0.93
    assert found.half_width < 1.05 * found.people_half_width
    assert judge == "knows nothing" or found.judge < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("values", coverage.JUDGED)
@pytest.mark.parametrize("judge", coverage.JUDGES)
def test_intervals_cover_whatever_the_scores_are(judge: str, values: str) -> None:
    least = 0.92 if values == "scores, 80 % of them 100" else 0.93
    assert coverage.measure_corrected(values, judge, 110, 40, samples=2000).corrected >= least


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 examples whose judge gives 15 points too many; its tuned model is 30 points better."""
    path = write_run(tmp_path / "run", stages=("data",)).path
    for model in (UNTUNED, TUNED):
        rows = [response(f"id{i:02}", f"{model} {i}", model=model, category=None) for i in range(40)]
        append_rows(path / "responses.jsonl", rows)
        judged = [judgment(row.id, worth(row) + 15 + i % 3, model=model) for i, row in enumerate(rows)]
        append_rows(path / "judgments.jsonl", judged)
    return path


def worth(row: Response) -> int:
    number = int(row.response.split()[1])
    return 7 * number % 30 + (row.model == "tuned") * (20 + 11 * number % 21)


def score(path: Path, count: int, voter: str = "Ann", **options: Any) -> ScoreBook:
    """Give answers what they are worth, as `voter` does on the page."""
    texts = {row.response: worth(row) for row in read_rows(path / "responses.jsonl", Response)}
    with open_votes(path, **options) as book:
        assert isinstance(book, ScoreBook)
        for number in range(1, count + 1):
            ballot = book.next_ballot(voter)
            assert ballot
            assert (ballot.right, ballot.reference) == (None, "Done.")
            assert book.vote(voter, number, str(texts[ballot.left]))
        return book


def test_answers_of_both_models_are_scored_in_mixed_order_and_resumed(run: Path) -> None:
    score(run, 5, limit=12)
    book = score(run, 0, limit=12)
    ballot = book.next_ballot("Ann")
    assert ballot
    assert (ballot.number, ballot.total) == (6, 24)
    for choice in ("101", "-1", "7.5", "left", ""):
        assert not book.vote("Ann", 6, choice)
    assert book.vote("Ann", 6, SKIP)
    rows = read_rows(run / "judgments.people.jsonl", Judgment)
    assert {row.model for row in rows} == {UNTUNED, TUNED}
    assert [(row.score, row.failure) for row in rows][-1] == (None, "skipped by the voter")
    assert rows[0].judge.to_dict() == {**ANN, "digest": None, "server_version": None, "options": {"seed": 0}}
    assert book.undo("Ann")
    assert len(read_rows(run / "judgments.people.jsonl", Judgment)) == 5
    # The draw of examples is the same for everybody; a larger one adds to it.
    drawn = {row.id for row in score(run, 24, "Ben", limit=12)._items.values()}
    assert len(drawn) == 12
    assert drawn < {row.id for row in score(run, 0, limit=20)._items.values()}


def test_scores_of_answers_that_changed_do_not_count_and_several_people_are_averaged(tmp_path: Path) -> None:
    rows = [response("a", "Old."), response("b", "Same.")]
    people = [
        judgment(row.id, points, judge={**ANN, "model": voter}, prompt_sha256=hash_answer(row))
        for row in rows
        for voter, points in (("Ann", 20), ("Ben", 30))
    ]
    write_rows(tmp_path / "judgments.people.jsonl", people)
    assert read_people(RunFolder(tmp_path), [response("a", "New."), rows[1]]) == {"b": 25.0}


def test_corrected_means_stand_in_every_view(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hf_instruct.evaluation.rubrics import load_rubric
    from hf_instruct.evaluation.scores import build_scores

    folder = RunFolder(run)
    for model in (UNTUNED, TUNED):
        judged = folder.read_judgments(model)
        scores = build_scores(judged, rubric=load_rubric("course"), judge=judged[0].judge)
        folder.write_scores(model, scores)
    score(run, 16, limit=8)
    results = read_results(folder)
    assert results.people[1] == "tuned: people scored 8 of 40 answers; from 10 on these correct the judge's mean"
    score(run, 44, "Ben", limit=22)
    results = read_results(folder)
    assert results.tuned.corrected
    assert results.tuned.corrected.mean == pytest.approx(44.5, abs=1)
    for text in (render_page(results), format_summary(folder, width=400)):
        assert results.people[2].split(" (")[0].removeprefix("tuned - untuned: ").removesuffix(" points") in text
    assert main(["compare", str(run / "untuned"), str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"corrected by people: \+(29|30)\.\d points \(95 % interval \+2\d\.\d to \+3\d\.\d; ", said)
    assert "people scored 22 of 40 examples on both sides): higher" in said
    assert main(["compare", str(run / "untuned"), str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert [row["corrected"]["n"] for row in found] == [22, 22]
    # People agree with each other, and the judge is above them.
    assert main(["agree", str(run / "judgments.people.jsonl"), str(run)]) == 0
    assert "22 examples, joined by id" in " ".join(capsys.readouterr().out.split())
    assert main(["agree", *[str(run / "judgments.people.jsonl")] * 2, "--voter-a", "Ann", "--voter-b", "Ben"]) == 0


def test_votes_correct_a_win_rate(tmp_path: Path) -> None:
    file = tmp_path / "pairwise" / "b.jsonl"
    # The judge prefers the first always; people do in one pair of four, whichever side it is named on.
    judged = [preference(str(i), 1.0, judge={"backend": "ollama", "model": "m"}) for i in range(60)]
    votes = [preference(str(i), float(not i % 4)) for i in range(20)]
    turned = [preference(str(i), float(bool(i % 4)), first="runs/b", second="runs/a") for i in range(20, 40)]
    assert correct_win_rate(file, judged) is None
    assert correct_win_rate(file, []) is None
    other = [preference("0", 1.0, first_length=9), preference("1", 1.0, second="runs/c"), judged[2]]
    write_rows(tmp_path / "votes.b.jsonl", [*votes, *turned, *other])
    found = correct_win_rate(file, judged)
    assert found
    assert (found.mean, found.n, found.total) == (0.25, 40, 60)
    assert found.interval
    assert 0.13 < found.interval.low < 0.25 < found.interval.high < 0.42


@pytest.mark.parametrize("second", ["runs/b", "runs/b/untuned"])
def test_votes_in_the_other_run_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    judged = [preference(str(i), 1.0, second=second, judge={"backend": "ollama", "model": "m"}) for i in range(20)]
    write_rows(tmp_path / "runs" / "b" / "votes.a.jsonl", [preference(str(i), 0.5, second=second) for i in range(12)])
    (tmp_path / "runs" / "a").mkdir()
    for folder, home in ((".", "runs/a"), ("runs", "a"), ("runs/a", "."), ("runs/b", tmp_path / "runs" / "a")):
        monkeypatch.chdir(tmp_path / folder)
        found = correct_win_rate(Path(home) / "pairwise" / "b.jsonl", judged)
        assert found
        assert found.n == 12
