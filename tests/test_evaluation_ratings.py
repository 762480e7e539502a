"""Bradley–Terry ratings: exact numbers, a search without shortcuts, and `hf-instruct rate` as a user types it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from rows import JUDGE, preference

from hf_instruct.cli.main import main
from hf_instruct.errors import DataError
from hf_instruct.evaluation.ratings import Rating, rate_preferences
from hf_instruct.records import write_rows
from hf_instruct.schema import Preference


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rated(rows: list[Preference], resamples: int = 1) -> dict[str, Rating]:
    return {row.name: row for row in rate_preferences(rows, resamples=resamples).ratings}


def play(games: dict[tuple[str, str], tuple[int, int, int]]) -> list[Preference]:
    """Return preferences with so many wins, ties and losses of the first of each pair."""
    rows = []
    for (first, second), counts in games.items():
        scores = [score for score, count in zip((1.0, 0.5, 0.0), counts, strict=True) for _ in range(count)]
        rows += [preference(str(number), score, first=first, second=second) for number, score in enumerate(scores)]
    return rows


def test_ratings_are_the_likeliest_ones() -> None:
    """Against a plain minimisation of the negative log-likelihood, written out pair by pair, with the prior."""
    from scipy.optimize import minimize

    games = {("a", "b"): (12, 3, 5), ("b", "c"): (9, 0, 11), ("a", "c"): (7, 4, 9), ("d", "a"): (2, 2, 16)}
    names = ["a", "b", "c", "d"]

    def loss(strengths: numpy.ndarray, prior: float) -> float:
        total = prior * float((strengths**2).sum()) / 200
        for (first, second), (wins, ties, losses) in games.items():
            lead = strengths[names.index(first)] - strengths[names.index(second)]
            total += (wins + ties / 2) * math.log1p(math.exp(-lead)) + (losses + ties / 2) * math.log1p(math.exp(lead))
        return total

    table = rated(play(games))
    for prior, tolerance in ((1.0, 0.02), (0.0, 1.0)):
        found = minimize(loss, numpy.zeros(4), args=(prior,), method="BFGS", options={"gtol": 1e-9}).x
        points = 1000 + 400 / math.log(10) * (found - found.mean())
        assert [table[name].rating for name in names] == pytest.approx(list(points), abs=tolerance)


def test_interval_is_over_examples() -> None:
    """The same verdict in three comparisons of one example is one observation, not three."""
    rows = play({("a", "b"): (14, 0, 6)})
    single, tripled = rated(rows, resamples=200)["a"].interval, rated(rows * 3, resamples=200)["a"].interval
    assert single is not None
    assert tripled is not None
    assert tripled == pytest.approx(single, rel=0.01)


def test_sets_that_never_met_are_an_error_that_names_the_groups() -> None:
    rows = play({("a", "b"): (1, 0, 1), ("c", "d"): (1, 0, 1), ("c", "e"): (1, 0, 1)})
    with pytest.raises(DataError) as caught:
        rate_preferences(rows)
    assert "2 groups without a comparison between them: `c`, `d`, `e`; `a`, `b`." in str(caught.value)


def test_nothing_to_rate_is_an_error() -> None:
    for rows in ([preference("0", None), preference("1", 0.5, first="a", second="a")], []):
        with pytest.raises(DataError, match="No verdict compares two different sets of responses"):
            rate_preferences(rows)


def test_an_example_that_joins_the_sets_alone_leaves_no_interval() -> None:
    rows = [*play({("a", "b"): (5, 0, 5)}), preference("only", 1.0, first="b", second="c")]
    assert rated(rows, resamples=50)["c"].interval is None


def rate(*arguments: object) -> int:
    return main(["rate", *map(str, arguments)])


def save(path: str, pair: tuple[str, str], scores: list[float | None], **judge: Any) -> Path:
    known = {"first": pair[0], "second": pair[1], "judge": {**JUDGE, **judge}, "rubric": "pairwise"}
    write_rows(Path(path), [preference(str(n), score, **known) for n, score in enumerate(scores)])
    return Path(path)


def test_rate_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    save("runs/full/pairwise/untuned.jsonl", ("runs/full", "runs/full/untuned"), [1, 1, 1, 0.5, 0, 1, None])
    save("runs/lora/pairwise/untuned.jsonl", ("./runs/lora", "runs/full/untuned"), [1, 0.5, 0.5, 0.5, 0, 1])
    assert rate("runs/full", "runs/lora", "runs/lora/pairwise/untuned.jsonl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 verdicts on 6 examples, 1 failed; judge llama3@365c0bd (ollama), rubric pairwise"
    assert lines[2].split() == ["answers", "rating", "95", "%", "interval", "verdicts", "wins", "ties", "losses"]
    names = [line.split()[0] for line in lines[3:6]]
    assert names == ["runs/full", "runs/lora", "runs/full/untuned"]
    assert lines[5].split()[-4:] == ["12", "2", "4", "6"]
    assert lines[7] == "The mean is 1000; 100 points more are preferred 64 % of the time, 200 points more 76 %."
    assert max(map(len, lines)) <= 100


def test_rate_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    file = save("a.jsonl", ("a", "b"), [1] * 10)
    assert rate(file, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["ratings"]] == ["a", "b"]
    assert table["ratings"][0]["interval"][0] == pytest.approx(table["ratings"][0]["rating"])
    assert table["notices"] == [
        "a won every comparison: its rating has no limit in that direction, and how high it is only depends on the "
        "prior.",
        "b lost every comparison: its rating has no limit in that direction, and how low it is only depends on the "
        "prior.",
    ]


def test_different_judges_are_refused_unless_forced(capsys: pytest.CaptureFixture[str]) -> None:
    judged = save("runs/a/pairwise/b.jsonl", ("a", "b"), [1, 0, 1])
    save("runs/a/votes.b.jsonl", ("a", "b"), [0, 1, 0], backend="person", model="Ann", digest=None)
    assert rate("runs/a") == 1
    said = capsys.readouterr().err
    assert "The preferences are by 2 different judges" in said
    assert all(judge in said for judge in ("judge llama3@365c0bd (ollama), rubric pairwise", "people (Ann)"))
    assert rate("runs/a", "--force") == 0
    assert "2 different judges are combined (`--force`): " in capsys.readouterr().out
    other = save("other.jsonl", ("a", "b"), [1, 0, 1], options={"seed": 2})
    assert rate(judged, other) == 1
    assert 'rubric pairwise, options {"seed": 2}' in capsys.readouterr().err


def test_equal_answers_are_by_the_same_judge_and_two_people_are_people() -> None:
    ben = {"backend": "person", "model": "Ben", "options": {"equal_answers": True}}
    rows = [preference("1", 0.5), preference("2", 0.5, judge=ben)]
    assert rate_preferences(rows, resamples=1).judges == ["people (Ann, Ben)"]


def test_a_set_against_itself_is_left_out() -> None:
    one, two = save("one.jsonl", ("a", "a"), [0.5, 0.5]), save("two.jsonl", ("a", "b"), [1, 0])
    table = rate_preferences([one, two], resamples=1)
    assert table.notices == ["2 preferences compare a set with itself and are left out."]
    assert [row.comparisons for row in table.ratings] == [2, 2]


def row(**changes: Any) -> str:
    return json.dumps(preference("1", 1.0).to_dict() | changes) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "`votes.jsonl` does not exist; use a file of preferences"),
        ("", "`votes.jsonl` contains no preferences."),
        ("[1, 2]\n", "`votes.jsonl` line 1 is not a Preference row"),
        ('{"id": "1", "score": 85}\n', "use a file of preferences, written by `hf-instruct judge pairwise` or"),
        (row(score=float("nan")), "line 1 is not a Preference row"),
        (row(score=85), "line 1 is not a Preference row (`score`: it must be less than or equal to 1)"),
        (row(score=True), "line 1 is not a Preference row (`score`"),
        (row(first=""), "line 1 is not a Preference row (`first`"),
        (row(judge="x"), "Preference row (`judge`"),
        (row(score=None), "No verdict compares two different sets of responses"),
    ],
)
def test_bad_files_are_refused(content: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("votes.jsonl").write_text(content)
    assert rate("votes.jsonl") == 1
    assert message in capsys.readouterr().err


def test_folder_without_preferences_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert rate("empty") == 1
    assert capsys.readouterr().err.startswith(
        "hf-instruct: `empty` is a folder without preferences (`pairwise/*.jsonl`"
    )
