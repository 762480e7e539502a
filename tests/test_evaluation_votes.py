import json
import random
from pathlib import Path

import pytest
from rows import response

from hf_instruct.errors import DataError, RunError
from hf_instruct.evaluation.responses import JoinedPairs, Pair
from hf_instruct.evaluation.votes import (
    LEFT,
    RIGHT,
    SKIP,
    TIE,
    Ballot,
    VoteBook,
    check_voter,
    open_votes,
)
from hf_instruct.records import append_rows, read_rows, write_rows
from hf_instruct.schema import JudgeIdentity, Preference, Unpaired

NAMES = ("runs/a", "runs/b")


def pair(number: int, second: str | None = None) -> Pair:
    answer = f"first {number}"
    example = response(f"id{number:02}", answer, instruction=f"Task {number}?")
    return Pair(example, answer, second or f"the second {number}")


def join(pairs: list[Pair], names: tuple[str, str] = NAMES) -> JoinedPairs:
    return JoinedPairs(pairs, names, "id", Unpaired(first=0, second=0))


def open_book(path: Path, *, count: int = 10, equal: int = 0, seed: int = 0, limit: int | None = None) -> VoteBook:
    pairs = [pair(number) for number in range(count)]
    pairs += [pair(number, f"first {number}\n") for number in range(count, count + equal)]
    return VoteBook(join(pairs), path, seed=seed, limit=limit)


def ballot_of(book: VoteBook, voter: str) -> Ballot:
    ballot = book.next_ballot(voter)
    assert ballot is not None
    return ballot


def prefer_first(book: VoteBook, voter: str, count: int = 1) -> None:
    for _ in range(count):
        ballot = ballot_of(book, voter)
        assert book.vote(voter, ballot.number, LEFT if ballot.left.startswith("first") else RIGHT)


def test_a_vote_is_on_disk_at_once_and_names_the_preferred_set(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    book = open_book(path)
    assert not path.exists()
    ballot = ballot_of(book, "Ann")
    assert ballot[:2] == (1, 10)
    assert book.vote("Ann", 1, LEFT, seconds=3.14159)
    row = json.loads(path.read_text())
    number = int(ballot.instruction.split()[1].strip("?"))
    assert row == {
        "id": f"id{number:02}",
        "first": "runs/a",
        "second": "runs/b",
        "score": 1.0 if ballot.left == f"first {number}" else 0.0,
        "judge": JudgeIdentity(backend="person", model="Ann", options={"seed": 0}).to_dict(),
        "rubric": "vote",
        "orders": [],
        "replies": [],
        "first_length": 7,
        "second_length": 12,
        "prompt_sha256": "",
        "seconds": 3.1,
    }


def test_a_restart_goes_on_where_each_voter_was(tmp_path: Path) -> None:
    whole = open_book(tmp_path / "whole.jsonl")
    broken = open_book(tmp_path / "broken.jsonl")
    for step in range(10):
        for voter in ("Ann", "Ben"):
            assert ballot_of(broken, voter) == ballot_of(whole, voter)
            choice = random.Random(f"{voter}{step}").choice((LEFT, RIGHT, TIE))
            whole.vote(voter, step + 1, choice)
            broken.vote(voter, step + 1, choice)
        broken = open_book(tmp_path / "broken.jsonl")
    assert (tmp_path / "whole.jsonl").read_text() == (tmp_path / "broken.jsonl").read_text()
    assert broken.next_ballot("Ann") is None
    assert ballot_of(broken, "Cas").number == 1
    assert broken.voters() == ["Ann", "Ben"]
    assert broken.count_votes() == 20


def test_voters_have_orders_and_sides_of_their_own_and_seeds_change_them(tmp_path: Path) -> None:
    def tour(voter: str, seed: int = 0) -> list[tuple[str, str]]:
        book = open_book(tmp_path / f"{voter}{seed}.jsonl", count=12, seed=seed)
        seen = []
        while ballot := book.next_ballot(voter):
            seen.append((ballot.instruction, ballot.left))
            book.vote(voter, ballot.number, TIE)
        return seen

    ann, ben, other = tour("Ann"), tour("Ben"), tour("Ann", seed=1)
    assert sorted(task for task, _ in ann) == sorted(task for task, _ in ben)
    assert [task for task, _ in ann] != [task for task, _ in ben] != [task for task, _ in other]
    assert dict(ann) != dict(ben)


def test_a_second_click_counts_once(tmp_path: Path) -> None:
    book = open_book(tmp_path / "votes.jsonl")
    assert book.vote("Ann", 1, LEFT)
    assert not book.vote("Ann", 1, RIGHT)
    assert not book.vote("Ann", 3, RIGHT)
    assert not book.vote("Ann", 2, "upwards")
    assert book.count_votes() == 1
    assert book.vote("Ann", 2, SKIP)
    skipped = read_rows(tmp_path / "votes.jsonl", Preference)[1]
    assert (skipped.score, skipped.failure) == (None, "skipped by the voter")


def test_undo_takes_back_the_voter_s_own_last_vote(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    book = open_book(path)
    assert not book.undo("Ann")
    prefer_first(book, "Ann", 2)
    shown = ballot_of(book, "Ann")
    prefer_first(book, "Ann")
    prefer_first(book, "Ben")
    before = path.read_text().splitlines(keepends=True)
    assert book.undo("Ann")
    assert path.read_text() == "".join([*before[:2], before[3]])
    assert ballot_of(book, "Ann") == shown
    assert [book.undo("Ann") for _ in range(3)] == [True, True, False]
    assert (book.count_votes(), book.voters()) == (1, ["Ben"])


def test_equal_answers_are_ties_that_nobody_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    book = open_book(path, count=6, equal=6)
    assert (book.total, book.num_equal) == (6, 6)
    for number in range(1, 7):
        ballot = ballot_of(book, "Ann")
        assert ballot[:2] == (number, 6)
        assert ballot.left != ballot.right
        # Those in front of the ballot, and none behind it, so that half of the votes are half of a sample.
        prefer_first(book, "Ann")
    rows = read_rows(path, Preference)
    assert len(rows) == 12
    assert len({row.id for row in rows}) == 12
    ties = [row for row in rows if row.score == 0.5]
    assert [row.judge.options for row in ties] == [{"seed": 0, "equal_answers": True}] * 6
    assert rows[0].score == 1.0
    assert book.count_votes() == 6
    assert book.undo("Ann")
    assert ballot_of(book, "Ann").number == 6
    prefer_first(book, "Ann")
    assert len(read_rows(path, Preference)) == 12


def test_a_limit_draws_the_same_examples_for_all_and_a_larger_one_adds(tmp_path: Path) -> None:
    def tasks(limit: int, voter: str) -> set[str]:
        book = open_book(tmp_path / f"{limit}{voter}.jsonl", count=30, limit=limit)
        for number in range(1, limit + 1):
            assert book.vote(voter, number, TIE)
        assert book.next_ballot(voter) is None
        return {row.id for row in read_rows(tmp_path / f"{limit}{voter}.jsonl", Preference)}

    five = tasks(5, "Ann")
    assert five == tasks(5, "Ben")
    assert five < tasks(8, "Ann")
    assert five != {f"id{number:02}" for number in range(5)}


def test_other_rows_of_the_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    first = open_book(path)
    prefer_first(first, "Ann", 2)
    other = VoteBook(join([pair(1)], ("runs/a", "runs/c")), path)
    prefer_first(other, "Ann")
    kept = path.read_text().splitlines()
    assert other.undo("Ann")
    assert not other.undo("Ann")
    assert path.read_text().splitlines() == kept[:2]
    judged = read_rows(path, Preference)[0].model_copy(update={"judge": JudgeIdentity(backend="ollama", model="Ann")})
    append_rows(path, [judged])
    assert open_book(path).count_votes() == 2


def test_the_runs_may_be_named_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    prefer_first(open_book(path), "Ann", 10)
    swapped = [Pair(p.example, p.second, p.first) for p in map(pair, range(10))]
    assert VoteBook(join(swapped, ("runs/b/", "./runs/a")), path).next_ballot("Ann") is None


def test_votes_on_answers_that_changed_since_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    prefer_first(open_book(path), "Ann", 10)
    with pytest.raises(DataError, match=r"contains votes on older answers of `runs/a` and `runs/b` \(example `id..`\)"):
        VoteBook(join([pair(number, "new") for number in range(10)]), path)
    with pytest.raises(DataError, match="`runs/a` is given twice"):
        VoteBook(join([pair(1)], ("runs/a", "runs/a/")), path)


def test_a_torn_last_vote_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    prefer_first(open_book(path), "Ann", 2)
    path.write_text(path.read_text()[:-5])
    book = open_book(path)
    assert book.count_votes() == 1
    prefer_first(book, "Ann")
    assert len(read_rows(path, Preference)) == 2


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\nb", "a\x1b[31mb"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(DataError, match="Please enter a name"):
        check_voter(name)
    assert check_voter(" Ann Müller ") == "Ann Müller"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        write_rows(run / "responses.jsonl", [response("x", f"{run.name}!"), response(run.name)])
    path = tmp_path / "new" / "votes.jsonl"
    with (
        open_votes(*runs, path) as book,
        pytest.raises(RunError, match=r"Another vote page is using `.*votes\.jsonl`"),
        open_votes(*runs, path),
    ):
        pass
    assert (book.total, book.num_alone) == (1, 2)
    with open_votes(*runs) as book:
        assert book.path == runs[0] / "votes.b.jsonl"
    (tmp_path / "file").touch()
    with (
        pytest.raises(RunError, match="Nothing can be written in"),
        open_votes(*runs, tmp_path / "file" / "votes.jsonl"),
    ):
        pass
