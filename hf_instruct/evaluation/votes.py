"""Votes of people between two sets of answers: the ballots, and the file of votes.

`VoteBook` provides ballots and records votes, independent of any web page. Each vote is on disk before the next ballot,
and ballots only depend on the seed and the voter's name, so a restart continues where the voter stopped, with the same
answers on the same sides.
"""

import contextlib
import random
import threading
from collections.abc import Iterator
from os.path import normpath
from pathlib import Path
from typing import NamedTuple

from hf_instruct.errors import DataError, RunError
from hf_instruct.evaluation.pairs import JoinedPairs, Pair, join_responses
from hf_instruct.evaluation.responses import load_responses
from hf_instruct.evaluation.verdict_table import PERSON
from hf_instruct.records import append_rows, recover_rows, write_rows
from hf_instruct.run_folder import locked, split_model
from hf_instruct.schema import JudgeIdentity, Preference

LEFT, RIGHT, TIE, SKIP = CHOICES = ("left", "right", "tie", "skip")
RUBRIC = "vote"
SKIPPED = "skipped by the voter"
_LONGEST_NAME = 60


class Ballot(NamedTuple):
    """The next pair for a voter, without the names of the sets."""

    number: int  # how many this voter has answered, and one
    total: int  # ballots this voter gets in all
    instruction: str
    input: str
    left: str  # the answer on the left
    right: str


@contextlib.contextmanager
def open_votes(
    first: Path, second: Path, out: Path | None = None, *, seed: int = 0, limit: int | None = None
) -> Iterator["VoteBook"]:
    """Open the ballots of two sets of answers, and lock their votes against other processes.

    Args:
        first: A run folder, or a file of responses.
        second: The other.
        out: Where votes go; by default `choose_vote_file` says so.
        seed: Of the sample, the order and the sides.
        limit: Vote on so many pairs only.

    Raises:
        DataError: The answers or the votes cannot be read, or there is nothing to choose.
        RunError: Another process has the file of the votes, it is a folder, or nothing can be written there.
    """
    names = (str(first), str(second))
    joined = join_responses(load_responses(first), load_responses(second), names)
    path = out or choose_vote_file(first, second)
    if path.is_dir():
        raise RunError(f"`{path}` is a folder; set the file for the votes with `--out`, such as `{path}/votes.jsonl`.")
    busy = (
        f"Another vote page is using `{path}`. Use that page (several people can vote at once), stop it, or use "
        "another file with `--out`."
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.parent / f".{path.name}.lock", busy))
        except OSError as error:
            raise RunError(
                f"Nothing can be written in `{path.parent}` ({error.strerror}), where the votes would be saved. Use "
                "another file with `--out`."
            ) from error
        yield VoteBook(joined, path, seed=seed, limit=limit)


def choose_vote_file(first: Path, second: Path) -> Path:
    """Return where votes go by default: into the first run's folder, under the second's name.

    Args:
        first: A run folder, or a file of responses.
        second: The other.
    """
    folder, (other, _) = split_model(first)[0], split_model(second)
    name = second.resolve().name if other.is_dir() else second.stem
    if folder.is_dir():
        return folder / f"votes.{name}.jsonl"
    return first.with_name(f"votes.{first.stem}.{name}.jsonl")


def check_voter(name: str) -> str:
    """Return a voter's name without white space around it.

    Raises:
        DataError: It is empty, too long, or holds characters that do not print.
    """
    name = name.strip()
    if not name:
        raise DataError("Please enter a name; your votes are saved under it.")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(f"Please enter a name of at most {_LONGEST_NAME} printable characters.")
    return name


class VoteBook:
    """The ballots of two sets of answers, and the file of their votes.

    Safe to use from several threads; one process at a time (see `open_votes`). The file may hold votes on other pairs
    of sets too: these are left as they are.

    Attributes:
        path: The file.
        num_alone: Answers that the other set has no answer beside.
        num_different: Pairs that each voter is shown.
        num_equal: Pairs of equal answers: counted as ties, shown to nobody.

    Args:
        joined: What to vote on.
        path: The file, of `Preference` rows; made by the first vote.
        seed: Of the sample, the order and the sides.
        limit: Vote on so many pairs only, the same ones for every voter; a larger limit adds to a smaller one.

    Raises:
        DataError: The file cannot be read, its votes were on other answers, or there is nothing to choose.
    """

    def __init__(self, joined: JoinedPairs, path: Path, *, seed: int = 0, limit: int | None = None) -> None:
        self.path = path
        self._first, self._second = map(normpath, joined.names)
        if self._first == self._second:
            raise DataError(f"`{self._first}` is given twice; use two different runs or files.")
        self._seed = seed
        # By id first, so that the sample does not depend on the order of the files.
        sample = sorted(joined.pairs, key=lambda pair: pair.id)
        random.Random(f"{seed}").shuffle(sample)
        self._pairs = sample[:limit]
        self.num_alone = joined.alone.first + joined.alone.second
        self.num_different = sum(not pair.is_identical for pair in self._pairs)
        self.num_equal = len(self._pairs) - self.num_different
        if not self.num_different:
            raise DataError(
                f"All {len(self._pairs)} pairs of answers of `{self._first}` and `{self._second}` are equal, so "
                "there is nothing to vote on. Use two other sets. Use two other sets."
            )
        self._lock = threading.Lock()
        self._rows = recover_rows(path, Preference)
        self._check_rows()

    def next_ballot(self, voter: str) -> Ballot | None:
        """Return the first ballot that this voter has not answered yet, or None when all are."""
        with self._lock:
            number, pair, _ = self._find_next(voter)
            if pair is None:
                return None
            sides = (pair.first, pair.second) if self._shows_first_left(voter, pair) else (pair.second, pair.first)
            return Ballot(number, self.num_different, pair.example.instruction, pair.example.input, *sides)

    def vote(self, voter: str, number: int, choice: str, *, seconds: float = 0.0) -> bool:
        """Keep what a voter says to a ballot, and return whether it was the one to answer next.

        A second click on the same ballot, or the same ballot in another tab, therefore counts once.

        Args:
            voter: Name, as `check_voter` returns it.
            number: Of the ballot.
            choice: One of `CHOICES`.
            seconds: Since the ballot was shown.
        """
        with self._lock:
            next_number, pair, passed = self._find_next(voter)
            if pair is None or next_number != number or choice not in CHOICES:
                return False
            first_wins = {LEFT: 1.0, RIGHT: 0.0, TIE: 0.5, SKIP: None}[choice]
            if first_wins is not None and not self._shows_first_left(voter, pair):
                first_wins = 1 - first_wins
            # Equal answers in between are ties without asking. Kept as the voter passes them, because a file of the
            # first half of the votes should hold half of them.
            rows = [
                self._build_row(voter, pair, first_wins, seconds=round(seconds, 1)),
                *(self._build_row(voter, tie, 0.5) for tie in passed),
            ]
            append_rows(self.path, rows)
            self._rows += rows
            return True

    def undo(self, voter: str) -> bool:
        """Take back the voter's last vote, and return whether there was one."""
        with self._lock:
            last = next((row for row in reversed(self._list_votes(voter)) if not row.is_identical), None)
            if last is not None:
                kept = [row for row in self._rows if row is not last]
                write_rows(self.path, kept)
                self._rows = kept
            return last is not None

    def count_votes(self) -> int:
        """Return how many ballots the voters have answered, skipped ones included."""
        return sum(not row.is_identical for row in self._list_votes())

    def voters(self) -> list[str]:
        """Return the names of those who have voted."""
        return sorted({row.judge.model for row in self._list_votes()})

    def _find_next(self, voter: str) -> tuple[int, Pair | None, list[Pair]]:
        """Return the number of the next ballot, its pair (None after the last), and the equal pairs to keep with it.

        Those are the ones in front of the ballot that are not kept yet, or with the last ballot all.
        """
        order = list(self._pairs)
        random.Random(f"{self._seed}\0{voter}").shuffle(order)
        done = {row.id for row in self._list_votes(voter)}
        number = 1 + sum(not pair.is_identical and pair.id in done for pair in order)
        waiting = [index for index, pair in enumerate(order) if not pair.is_identical and pair.id not in done]
        if not waiting:
            return number, None, []
        passed = order if len(waiting) == 1 else order[: waiting[0]]
        return number, order[waiting[0]], [pair for pair in passed if pair.is_identical and pair.id not in done]

    def _shows_first_left(self, voter: str, pair: Pair) -> bool:
        return random.Random(f"{self._seed}\0{voter}\0{pair.id}").random() < 0.5

    def _build_row(self, voter: str, pair: Pair, score: float | None, *, seconds: float = 0.0) -> Preference:
        return Preference(
            id=pair.id,
            first=self._first,
            second=self._second,
            score=score,
            judge=JudgeIdentity(
                backend=PERSON,
                model=voter,
                options={"seed": self._seed} | ({"equal_answers": True} if pair.is_identical else {}),
            ),
            rubric=RUBRIC,
            orders=[],
            replies=[],
            first_length=len(pair.first),
            second_length=len(pair.second),
            seconds=seconds,
            failure=SKIPPED if score is None else None,
            category=pair.example.category,
        )

    def _list_votes(self, voter: str | None = None) -> list[Preference]:
        """Return the votes on these two sets, of one voter if one is given; ties of equal answers are among them."""
        sets = {self._first, self._second}
        votes = [row for row in self._rows if {row.first, row.second} == sets and row.judge.backend == PERSON]
        return [row for row in votes if voter in (None, row.judge.model)]

    def _check_rows(self) -> None:
        lengths = {pair.id: (len(pair.first), len(pair.second)) for pair in self._pairs}
        for row in self._list_votes():
            seen = (row.first_length, row.second_length)
            if (seen if row.first == self._first else seen[::-1]) != lengths.get(row.id, seen):
                raise DataError(
                    f"`{self.path}` contains votes on older answers of `{self._first}` and `{self._second}` (example "
                    f"`{row.id}`), which were generated again since. Use another file with `--out`."
                )
