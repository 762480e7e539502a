from pathlib import Path

import pytest
from rows import response

from hf_instruct.cli.main import main
from hf_instruct.evaluation.votes import TIE, Book, choose_vote_file
from hf_instruct.local_server import open_socket
from hf_instruct.records import append_rows
from hf_instruct.ui import vote_tab


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # As on a machine without a desktop, or with one: no test opens a browser.
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, model in (("a", "tuned"), ("a", "untuned"), ("c", "tuned")):
        rows = [response(f"id{number}", f"{name} {model} {number}", model=model) for number in range(4)]
        append_rows(tmp_path / name / "responses.jsonl", rows if name != "c" else rows[2:])
    return tmp_path


def serve_votes(monkeypatch: pytest.MonkeyPatch, votes: int, choice: str = TIE) -> None:
    """Put somebody who votes so often, and then ends it with Ctrl-C, in the page's place."""

    def serve(book: Book, server: object, *, hosts: list[str], voter: str | None = None) -> None:
        assert "localhost" in hosts
        for number in range(1, votes + 1):
            assert book.vote(voter or "Ann", number, choice)
        raise KeyboardInterrupt

    monkeypatch.setattr(vote_tab, "serve_votes", serve)


def test_it_says_where_votes_go_and_how_to_go_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_votes(monkeypatch, 1)
    assert main(["vote", "a", "a/untuned", "--port", "0", "--voter", " Ann "]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["Pairs of answers to vote on: 4", "Votes are stored in a/votes.untuned.jsonl"]
    assert said[2].startswith("Open http://127.0.0.1:")
    assert said[2].endswith("/   (press Ctrl-C to stop)")
    assert said[3:] == [
        "",
        "1 vote by Ann stored in a/votes.untuned.jsonl",
        "Continue with:  hf-instruct rate a/votes.untuned.jsonl",
        "                hf-instruct agree a/votes.untuned.jsonl PREFERENCES_OF_A_JUDGE",
    ]
    serve_votes(monkeypatch, 0)
    assert main(["vote", "a", "a/untuned", "--port", "0", "--voter", "Ann"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[1]
        == "Votes are stored in a/votes.untuned.jsonl (already stored: 1 by Ann)"
    )
    # The votes are what `agree` reads.
    assert main(["agree", "a/votes.untuned.jsonl", "a/votes.untuned.jsonl"]) == 1
    assert "share 1 examples, 1 of them with a verdict on both sides" in capsys.readouterr().err


def test_answers_of_one_run_are_scored(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_votes(monkeypatch, 3, "70")
    assert main(["vote", "a", "--port", "0", "--voter", "Ann", "--limit", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["Answers to score: 3", "Votes are stored in a/judgments.people.jsonl"]
    assert said[-3:] == [
        "3 votes by Ann stored in a/judgments.people.jsonl",
        "Continue with:  hf-instruct judge a    (the judge's means, corrected by these)",
        "                hf-instruct agree a/judgments.people.jsonl a",
    ]
    # A run's untuned answers are among them; a file of responses has its scores beside it.
    (runs / "a" / "run.yaml").touch()
    serve_votes(monkeypatch, 0)
    assert main(["vote", "a", "--port", "0", "--limit", "3"]) == 0
    assert "Answers to score: 6, of 2 models in random order" in capsys.readouterr().out
    assert choose_vote_file(Path("x/course.json")) == Path("x/judgments.people.jsonl")


def test_no_votes_and_examples_of_one_side_only(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    serve_votes(monkeypatch, 0)
    assert main(["vote", "a", "c", "--port", "0", "--host", "0.0.0.0", "--out", "new/votes.jsonl"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Pairs of answers to vote on: 2\nVotes are stored in new/votes.jsonl\nOpen http://0.0.0.0:")
    assert said.endswith("\nNo votes stored.\n")
    assert caplog.messages == [
        "2 answers are left out, because only one side has them.",
        "`--host 0.0.0.0`: everybody who can reach this machine can read the answers and vote.",
    ]
    assert not Path("new/votes.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "nowhere"], "`nowhere` does not exist"),
        (["a", "."], "`.` has no answers of the tuned model"),
        (["a", "a/"], "`a` is given twice; use two different runs or files."),
        (["a", "c", "--voter", " "], "Please enter a name"),
        (["a", "c", "--out", "a"], "`a` is a folder"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    runs: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in runs.rglob("*") if not path.name.startswith("."))
    assert main(["vote", *words, "--port", "0"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert sorted(path.name for path in runs.rglob("*") if not path.name.startswith(".")) == before


def test_a_port_in_use(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_socket("127.0.0.1", 0) as taken:
        assert main(["vote", "a", "c", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another port with `--port`" in capsys.readouterr().err


def test_where_votes_go_by_default(runs: Path) -> None:
    assert choose_vote_file(Path("a"), Path("c")) == Path("a/votes.c.jsonl")
    assert choose_vote_file(Path("a"), Path("a/untuned")) == Path("a/votes.untuned.jsonl")
    assert choose_vote_file(Path("a/untuned"), Path("a/../a")) == Path("a/votes.a.jsonl")
    assert choose_vote_file(Path("x/course.json"), Path("a/responses.jsonl")) == Path("x/votes.course.responses.jsonl")
