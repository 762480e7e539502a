import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import scipy.stats
import sklearn.metrics
from rows import judgment, preference, response

from hf_instruct.cli.main import main
from hf_instruct.errors import DataError
from hf_instruct.evaluation import agreement, intervals
from hf_instruct.evaluation.agreement import Side, measure_agreement
from hf_instruct.evaluation.verdict_table import load_verdicts
from hf_instruct.records import write_rows
from hf_instruct.schema import Preference

# The scores that GPT-4 and Llama 3 8B gave to the same 100 answers, and the course's correlations of them.
# Source: https://github.com/rasbt/LLMs-from-scratch at 28c65cd, ch07/03_model-evaluation/scores/
GPT4 = json.loads(
    "[0,50,20,100,0,100,0,100,100,100,55,0,100,100,100,100,100,0,98,100,100,0,100,100,100,100,100,100,0,100,100,0,100,100,85,100,0,0,100,100,100,100,100,100,0,100,100,95,20,50,85,100,100,100,100,55,100,100,100,0,100,98,100,100,100,0,85,100,100,98,100,100,100,0,100,100,100,100,0,100,0,100,100,0,0,100,50,100,100,10,100,100,100,100,0,100,100,25,100,30]"
)
LLAMA3 = json.loads(
    "[20,92,85,90,20,90,22,97,60,96,20,20,98,95,90,98,95,20,98,98,92,20,96,96,100,98,98,95,20,95,98,20,85,95,80,97,40,21,100,85,95,98,92,98,69,98,80,60,60,20,80,68,80,96,96,68,80,95,80,20,95,98,80,98,94,20,40,98,100,85,98,90,95,85,95,80,98,98,25,98,40,92,95,82,87,98,80,90,95,4,90,90,80,98,20,98,98,40,92,98]"
)
COURSE = {"pearson": 0.80489, "spearman": 0.698406, "kendall": 0.57292}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand would take a second each; `test_golden_statistics` has their intervals."""
    monkeypatch.setattr(agreement, "estimate", functools.partial(intervals.estimate, resamples=50))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def votes(scores: Sequence[float | None], **values: Any) -> list[Preference]:
    return [preference(str(number), score, **values) for number, score in enumerate(scores)]


def test_the_course_s_correlations_from_its_own_files(tmp_path: Path) -> None:
    first = write(tmp_path / "gpt4.json", json.dumps(GPT4))
    second = write(tmp_path / "llama3.json", json.dumps(LLAMA3, indent=4))
    agreement = measure_agreement(first, second)
    assert agreement.n == 100
    assert agreement.joined_by == "order"
    for name, value in COURSE.items():
        estimate = agreement.estimates[name]
        assert estimate.value == pytest.approx(value, abs=5e-6), name
        assert estimate.interval is not None
        assert estimate.interval.low < value - 0.05
        assert estimate.interval.high > value + 0.05
    assert agreement.estimates["mean_difference"].value == pytest.approx(numpy.mean(LLAMA3) - numpy.mean(GPT4))
    assert agreement.estimates["within_10"].value == 0.58
    assert agreement.notices == []


def test_correlations_are_those_of_scipy_with_and_without_ties() -> None:
    generator = numpy.random.default_rng(1)
    for a, b in (
        (generator.normal(size=60), generator.normal(size=60)),
        (generator.integers(4, size=60), generator.integers(3, size=60)),
    ):
        estimates = measure_agreement(list(a), list(b)).estimates
        assert estimates["pearson"].value == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
        assert estimates["spearman"].value == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
        assert estimates["kendall"].value == pytest.approx(scipy.stats.kendalltau(a, b).statistic)


def test_a_judge_agrees_with_itself_and_not_with_its_opposite() -> None:
    same = measure_agreement(GPT4, GPT4).estimates
    assert same["pearson"] == (1.0, (1.0, 1.0))
    assert same["kendall"].value == pytest.approx(1)
    assert same["mean_absolute_difference"] == (0.0, (0.0, 0.0))
    opposite = measure_agreement(GPT4, [100 - score for score in GPT4]).estimates
    assert [opposite[name].value for name in COURSE] == pytest.approx([-1, -1, -1])


def test_two_examples_are_enough() -> None:
    assert [measure_agreement([1, 2], [2, 1]).estimates[name].value for name in COURSE] == pytest.approx([-1, -1, -1])


def test_ids_join_in_any_order_and_failures_are_counted(tmp_path: Path) -> None:
    rows = [judgment("a", 10), judgment("b", 50), judgment("c", None), judgment("d", 90)]
    write_rows(tmp_path / "judgments.jsonl", rows)
    other = write(tmp_path / "people.csv", "id,score,name\nd,95\nb,40\na,20\nz,1\n")
    agreement = measure_agreement(tmp_path, other)
    assert agreement.n == 3
    assert agreement.joined_by == "id"
    assert agreement.first == Side(str(tmp_path), "judge llama3@365c0bd (ollama), rubric course", 4, 1, 1, 50.0)
    assert agreement.second == Side(str(other), "", 4, 0, 1, pytest.approx(155 / 3))
    assert agreement.estimates["mean_difference"].value == pytest.approx(5 / 3)
    assert measure_agreement(rows, {"d": 95, "b": 40, "a": 20}).estimates == agreement.estimates


def test_verdicts_on_other_answers_are_called_that(tmp_path: Path) -> None:
    for name, answer in (("x", "yes"), ("y", "no")):
        write_rows(tmp_path / name / "judgments.jsonl", [judgment(i, int(i)) for i in "123"])
        answers = [response(i, "yes" if i == "1" else answer) for i in "123"]
        write_rows(tmp_path / name / "responses.jsonl", answers)
    notices = measure_agreement(tmp_path / "x", tmp_path / "y").notices
    assert notices[0] == ("The answers differ in 2 of 3 examples: the verdicts are on different answers.")
    assert not any("answers differ" in notice for notice in measure_agreement(tmp_path / "x", tmp_path / "x").notices)


def test_constant_scores_have_no_correlation_and_no_nan() -> None:
    # A mean of 0.1 ten times over is not exactly 0.1.
    agreement = measure_agreement([0.1] * 10, range(10))
    assert [agreement.estimates[name] for name in COURSE] == [(None, None)] * 3
    assert agreement.estimates["mean_difference"].value == pytest.approx(4.4)
    assert "A gives 0.1 to every example, so no correlation is defined." in agreement.notices
    assert re.search(r"Pearson +not defined\n", str(agreement))
    assert "NaN" not in json.dumps(agreement.to_dict())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2, 3], [1, 2], "`A` has 3 scores and `B` 2, without ids to join them by"),
        ([1, 2, 3], {"a": 1, "b": 2, "c": 3}, "`B` has ids and `A` has none"),
        ({"a": 1, "b": 2}, {"c": 1, "d": 2}, "`A` and `B` have nothing in common (the first are a and c)"),
        ([1, float("nan"), 3], [1, 2, 3], "row 2 is nan, not a number"),
        ([1, "x", True], [1, 2, 3], "row 3 is True, not a number"),
        ([], [], "`A` contains no scores"),
        ([1, None, 2], [None, 1, 3], "share 3 examples, 1 of them with a verdict"),
        ([1, 2], votes([1, 0]), "`A` contains scores and `B` preferences"),
        (3, [1], "A is 3; give a path, numbers, a mapping of ids to numbers, or rows."),
        ([{"id": "a", "score": 1}, {"score": 1}], [1, 2], "1 of 2 rows have an `id`; add ids to all rows, or to none"),
        ([{"points": 1}], [1], "row 1 has no `score`; it has `points`"),
        (votes([1, 0]), votes([1, 0], second="runs/c"), "nothing in common (the first are ('0', 'runs/a', 'runs/b')"),
    ],
)
def test_what_cannot_be_compared(first: Any, second: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        measure_agreement(first, second)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.json", "", "cannot be read (EOF while parsing a value"),
        ("scores.json", '{"mean": 3, "rubric": "course"}', "`rubric` is 'course', not a number"),
        ("one.json", "5", "contains one int; allowed are"),
        ("nan.json", "[1, NaN]", "cannot be read (expected value at column 5)"),
        ("inf.jsonl", '{"id": "a", "score": 1e999}\n', "`a` is inf, not a number; a failure is `null`"),
        ("bad.jsonl", '{"id": "a", "score": 1}\nwhat\n', "line 2 is not a dict row"),
        ("names.csv", "name,points\na,1\n", "row 1 has no `score`; it has `name`, `points`"),
        ("bad.csv", "id,score\na,good\n", "`a` is 'good', not a number"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_verdicts(write(tmp_path / name, text))
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without `judgments.jsonl`; judge the run first") as caught:
        load_verdicts(tmp_path)
    assert "It has" not in str(caught.value)
    (tmp_path / "votes.base.jsonl").touch()
    with pytest.raises(DataError, match=r"It has `votes\.base\.jsonl`\."):
        load_verdicts(tmp_path)
    with pytest.raises(DataError, match=r"`nothing\.json` cannot be read \(No such file"):
        load_verdicts(Path("nothing.json"))
    (tmp_path / "picture.json").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="can't decode byte 0x89 in position 0"):
        load_verdicts(tmp_path / "picture.json")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "judgments.x.jsonl", '{"id": "a", "score": 1}\n{"id": "b", "score": 2}\n{"id": "c", "sc')
    assert load_verdicts(path).by_example().to_dict() == {"a": 1.0, "b": 2.0}


def test_kappa_is_that_of_scikit_learn() -> None:
    generator = numpy.random.default_rng(4)
    a = generator.choice([0, 0.5, 1], size=80)
    b = numpy.where(generator.random(80) < 0.6, a, generator.choice([0, 0.5, 1], size=80))
    agreement = measure_agreement(votes(list(a)), votes(list(b)))
    kappa = agreement.estimates["kappa"]
    assert kappa.value == pytest.approx(sklearn.metrics.cohen_kappa_score((2 * a).astype(int), (2 * b).astype(int)))
    assert kappa.interval is not None
    assert kappa.interval.low < kappa.value < kappa.interval.high
    assert agreement.estimates["agreement"].value == pytest.approx((a == b).mean())
    table = sklearn.metrics.confusion_matrix((2 * a).astype(int), (2 * b).astype(int))
    assert agreement.counts == table.tolist()


def test_kappa_is_not_defined_where_both_say_one_thing() -> None:
    agreement = measure_agreement(votes([1, 1]), votes([1, 1]))
    assert agreement.estimates["kappa"] == (None, None)
    assert re.search(r"Cohen's kappa +not defined", str(agreement))
    assert "! All verdicts of both sides are equal, so kappa is not defined." in str(agreement)


def test_the_other_way_round_is_turned() -> None:
    turned = votes([0, 1, 0.5, None], first="runs/b/", second="./runs/a")
    agreement = measure_agreement(votes([1, 0, 0.5, 1]), turned)
    assert agreement.counts == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert "B has the two sets in the opposite order; its wins are counted as losses." in agreement.notices


def test_several_voters_become_what_most_prefer_or_one_is_picked(tmp_path: Path) -> None:
    rows = votes([1, 1, 0])
    rows += votes([1, 0, 0], judge={"backend": "person", "model": "Ben"})
    rows += votes([0, None, 0], judge={"backend": "person", "model": "Cas"})
    equal = {"backend": "person", "model": "Ann", "options": {"equal_answers": True}}
    write_rows(tmp_path / "votes.jsonl", [*rows, preference("e", 0.5, judge=equal)])
    every = load_verdicts(tmp_path / "votes.jsonl")
    assert every.by_example().tolist() == [1, 0.5, 0]
    assert every.judge == "Ann (person), Ben (person), Cas (person)"
    assert [notice.partition(": ")[2] for notice in every.list_notices()] == [
        "several verdicts on 3 of 3 pairs; what most prefer is used.",
        "1 pairs of equal answers, which were not judged, are left out.",
    ]
    path = tmp_path / "votes.jsonl"
    ann_and_ben = measure_agreement(path, path, voters=("Ann", "Ben"))
    assert ann_and_ben.estimates["agreement"].value == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="has votes of Ann, Ben, Cas"):
        load_verdicts(tmp_path / "votes.jsonl", voter="Dan")
    scores = write(tmp_path / "scores.json", "[1, 2]")
    with pytest.raises(DataError, match="contains scores, not votes, so it has no voter `Ann`"):
        load_verdicts(scores, voter="Ann")
    write(tmp_path / "votes.jsonl", json.dumps({"id": "a", "first": "a", "second": "b"}) + "\n")
    with pytest.raises(DataError, match="line 1 is not a Preference row"):
        load_verdicts(tmp_path / "votes.jsonl")


SHOWN = """\
A  {0}
   6 scores; mean 50.0 where both have one
B  {1}
   6 scores; 1 of them failed; mean 46.0 where both have one
"""


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text("[10, 30, 50, 70, 90, 20]")
    b.write_text("[20, 10, 50, 70, 80, null]")
    assert main(["agree", str(a), str(b)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith(SHOWN.format(a, b))
    cells = [re.split(r"  +", line) for line in shown.out.splitlines()[6:12]]
    lines = {name: [value, *(ends[0].split() if ends else [])] for name, value, *ends in cells}
    assert lines["Pearson"][0] == "0.933"
    assert lines["Spearman"][0] == "0.900"
    assert lines["Kendall tau-b"][0] == "0.800"
    assert lines["mean of B - A, points"] == ["-4.0", "-18.0", "to", "+8.0"]
    assert lines["mean distance, points"][0] == "8.0"
    assert lines["within 10 points"][0] == "80 %"
    assert "\n! Only 5 examples: " in shown.out


def test_the_command_prints_json_that_the_seed_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scores in (("a.json", range(0, 100, 5)), ("b.json", [5, 0, *range(10, 100, 5)])):
        (tmp_path / name).write_text(json.dumps(list(scores)))
    printed = []
    for seed in ("0", "0", "1"):
        assert main(["agree", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json", "--seed", seed]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["estimates"]["kendall"]["value"] == printed[2]["estimates"]["kendall"]["value"]
    assert printed[0]["estimates"]["pearson"]["interval"] != printed[2]["estimates"]["pearson"]["interval"]
    assert (printed[0]["n"], printed[0]["kind"], printed[0]["counts"], printed[0]["notices"]) == (
        20,
        "scores",
        None,
        [],
    )


def test_a_mistake_of_the_command_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    assert main(["agree", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"hf-instruct: `{tmp_path / 'b.json'}` cannot be read")
