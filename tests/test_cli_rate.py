"""`hf-instruct rate` as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest
from rows import JUDGE, preference

from hf_instruct.cli.main import main
from hf_instruct.evaluation.ratings import rate_preferences
from hf_instruct.records import write_rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def play(path: str, pair: tuple[str, str], scores: list[float | None], **judge: Any) -> Path:
    known = {"first": pair[0], "second": pair[1], "judge": {**JUDGE, **judge}, "rubric": "pairwise"}
    write_rows(Path(path), [preference(str(n), score, **known) for n, score in enumerate(scores)])
    return Path(path)


def test_rate_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    play("runs/full/pairwise/untuned.jsonl", ("runs/full", "runs/full/untuned"), [1, 1, 1, 0.5, 0, 1, None])
    play("runs/lora/pairwise/untuned.jsonl", ("./runs/lora", "runs/full/untuned"), [1, 0.5, 0.5, 0.5, 0, 1])
    assert command("rate", "runs/full", "runs/lora", "runs/lora/pairwise/untuned.jsonl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 verdicts on 6 examples, 1 failed; judge llama3@365c0bd (ollama), rubric pairwise"
    assert lines[2].split() == ["answers", "rating", "95", "%", "interval", "verdicts", "wins", "ties", "losses"]
    names = [line.split()[0] for line in lines[3:6]]
    assert names == ["runs/full", "runs/lora", "runs/full/untuned"]
    assert lines[5].split()[-4:] == ["12", "2", "4", "6"]
    assert lines[7] == "The mean is 1000; 100 points more are preferred 64 % of the time, 200 points more 76 %."
    assert max(map(len, lines)) <= 100


def test_rate_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    file = play("a.jsonl", ("a", "b"), [1] * 10)
    assert command("rate", file, "--json") == 0
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
    judged = play("runs/a/pairwise/b.jsonl", ("a", "b"), [1, 0, 1])
    play("runs/a/votes.b.jsonl", ("a", "b"), [0, 1, 0], backend="person", model="Ann", digest=None)
    assert command("rate", "runs/a") == 1
    said = capsys.readouterr().err
    assert "The preferences are by 2 different judges" in said
    assert all(judge in said for judge in ("judge llama3@365c0bd (ollama), rubric pairwise", "people (Ann)"))
    assert command("rate", "runs/a", "--force") == 0
    assert "2 different judges are combined (`--force`): " in capsys.readouterr().out
    other = play("other.jsonl", ("a", "b"), [1, 0, 1], options={"seed": 2})
    assert command("rate", judged, other) == 1
    assert 'rubric pairwise, options {"seed": 2}' in capsys.readouterr().err


def test_equal_answers_are_by_the_same_judge_and_two_people_are_people() -> None:
    ben = {"backend": "person", "model": "Ben", "options": {"equal_answers": True}}
    rows = [preference("1", 0.5), preference("2", 0.5, judge=ben)]
    assert rate_preferences(rows, resamples=1).judges == ["people (Ann, Ben)"]


def test_a_set_against_itself_is_left_out() -> None:
    one, two = play("one.jsonl", ("a", "a"), [0.5, 0.5]), play("two.jsonl", ("a", "b"), [1, 0])
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
        (row(score=85), "line 1 is not a Preference row (`score`: input should be less than or equal to 1)"),
        (row(score=True), "line 1 is not a Preference row (`score`"),
        (row(first=""), "line 1 is not a Preference row (`first`"),
        (row(judge="x"), "Preference row (`judge`"),
        (row(score=None), "No verdict compares two different sets of responses"),
    ],
)
def test_bad_files_are_refused(content: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("votes.jsonl").write_text(content)
    assert command("rate", "votes.jsonl") == 1
    assert message in capsys.readouterr().err


def test_folder_without_preferences_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert command("rate", "empty") == 1
    assert capsys.readouterr().err.startswith(
        "hf-instruct: `empty` is a folder without preferences (`pairwise/*.jsonl`"
    )
