"""Votes of people between two sets of answers: what to show whom, and the file that keeps what they say.

Nothing here knows of a page: `VoteBook` hands out ballots and takes votes. Each vote is on disk before the next ballot
is handed out, and everything about a ballot follows from the seed and the voter's name, so that a restart goes on where
the voter was, with the same answers on the same sides.
"""

import contextlib
import dataclasses
import functools
import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from os.path import normpath
from pathlib import Path
from typing import NamedTuple

from hf_instruct.errors import DataError, RunError
from hf_instruct.evaluation.pairing import Pair, is_identical
from hf_instruct.records import Preference, append_rows, recover_rows, write_rows

LEFT, RIGHT, TIE, SKIP = CHOICES = ("left", "right", "tie", "skip")
BACKEND = "person"
RUBRIC = "vote"
SKIPPED = "skipped by the voter"
_LONGEST_NAME = 60


class Ballot(NamedTuple):
    """What one voter sees next; it does not say which set an answer is from.

    Attributes:
        number: How many this voter has answered, and one.
        total: Ballots this voter gets in all.
        left: The answer on the left.
        right: The answer on the right.
    """

    number: int
    total: int
    instruction: str
    input: str
    left: str
    right: str


def choose_vote_file(first: Path, second: Path) -> Path:
    """Return where votes go by default: into the first run's folder, under the second's name.

    Args:
        first: A run folder, or a file of responses.
        second: The other.
    """
    other = second.resolve().name if second.is_dir() else second.stem
    if first.is_dir():
        return first / f"votes.{other}.jsonl"
    return first.with_name(f"votes.{first.stem}.{other}.jsonl")


def check_voter(name: str) -> str:
    """Return a voter's name without white space around it.

    Raises:
        DataError: It is empty, too long, or holds characters that do not print.
    """
    name = name.strip()
    if not name:
        raise DataError("Please give a name: votes are kept under it.")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(f"Please give a name of at most {_LONGEST_NAME} printable characters.")
    return name


@dataclasses.dataclass
class _Progress:
    """How far one voter is, kept so that a vote costs the same however many there are.

    Attributes:
        order: The pairs in this voter's order.
        done: Ids of those with a vote.
        answered: How many of those were ballots, rather than ties between equal answers.
        place: All ballots before this index in `order` have a vote.
        kept: All equal pairs before this index are kept as ties.
    """

    order: list[Pair]
    done: set[str]
    answered: int
    place: int = 0
    kept: int = 0


class VoteBook:
    """The ballots of two sets of answers, and the file of their votes.

    Safe to use from several threads; one process at a time (see `locked_votes`). The file may hold votes on other pairs
    of sets too: these are left as they are.

    Args:
        pairs: What to vote on.
        path: The file, of `Preference` rows; made by the first vote.
        names: What the two sets are called in the file.
        seed: Of the sample, the order and the sides.
        limit: Vote on so many pairs only, the same ones for every voter; a larger limit adds to a smaller one.

    Raises:
        DataError: The file cannot be read, its votes were on other answers, or there is nothing to choose.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        path: Path,
        *,
        names: tuple[str, str],
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self._first, self._second = (normpath(name) for name in names)
        if self._first == self._second:
            raise DataError(f"`{self._first}` is named twice; name two different runs or files.")
        self._seed = seed
        # By id first, so that the sample does not depend on the order of the files.
        sample = sorted(pairs, key=lambda pair: pair.id)
        random.Random(f"{seed}").shuffle(sample)
        self._pairs = sample[:limit]
        if all(pair.identical for pair in self._pairs):
            raise DataError(
                f"All {len(self._pairs)} pairs of answers of `{self._first}` and `{self._second}` are equal, so there "
                "is nothing to vote on."
            )
        self._progress: dict[str, _Progress] = {}
        self._lock = threading.Lock()
        self._rows = recover_rows(path, Preference)
        self._check_rows()

    @functools.cached_property
    def num_different(self) -> int:
        """Pairs that each voter is shown."""
        return sum(not pair.identical for pair in self._pairs)

    @property
    def num_equal(self) -> int:
        """Pairs of equal answers: counted as ties, shown to nobody."""
        return len(self._pairs) - self.num_different

    def next_ballot(self, voter: str) -> Ballot | None:
        """Return the first ballot that this voter has not answered yet, or None when all are."""
        with self._lock:
            found = self._find_next(voter)
            if found is None:
                return None
            number, pair = found
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
            found = self._find_next(voter)
            if found is None or found[0] != number or choice not in CHOICES:
                return False
            pair = found[1]
            first_wins = {LEFT: 1.0, RIGHT: 0.0, TIE: 0.5, SKIP: None}[choice]
            if first_wins is not None and not self._shows_first_left(voter, pair):
                first_wins = 1 - first_wins
            row = self._build_row(voter, pair, first_wins, seconds=round(seconds, 1))
            # Equal answers in between are ties without asking. Kept as the voter passes them, because a file of the
            # first half of the votes should hold half of them.
            rows = [row, *(self._build_row(voter, tie, 0.5) for tie in self._find_equal(voter))]
            append_rows(self.path, rows)
            self._rows += rows
            progress = self._follow(voter)
            progress.done |= {row.id for row in rows}
            progress.answered += 1
            progress.kept = progress.place
            return True

    def undo(self, voter: str) -> bool:
        """Take back the voter's last vote, and return whether there was one."""
        with self._lock:
            for place in range(len(self._rows) - 1, -1, -1):
                row = self._rows[place]
                if self._is_vote(row, voter) and not is_identical(row):
                    kept = self._rows[:place] + self._rows[place + 1 :]
                    write_rows(self.path, kept)
                    self._rows = kept
                    self._progress.pop(voter, None)
                    return True
            return False

    def count_votes(self, voter: str | None = None) -> int:
        """Return how many ballots a voter, or all of them, have answered, skipped ones included."""
        return sum(self._is_vote(row, voter) and not is_identical(row) for row in self._rows)

    def voters(self) -> list[str]:
        """Return the names of those who have voted."""
        return sorted({str(row.judge.get("model")) for row in self._rows if self._is_vote(row, None)})

    def _follow(self, voter: str) -> _Progress:
        if voter not in self._progress:
            order = list(self._pairs)
            random.Random(f"{self._seed}\0{voter}").shuffle(order)
            done = {row.id for row in self._rows if self._is_vote(row, voter)}
            answered = sum(not pair.identical and pair.id in done for pair in order)
            self._progress[voter] = _Progress(order, done, answered)
        return self._progress[voter]

    def _find_next(self, voter: str) -> tuple[int, Pair] | None:
        progress = self._follow(voter)
        for pair in itertools.islice(progress.order, progress.place, None):
            if not pair.identical and pair.id not in progress.done:
                return progress.answered + 1, pair
            progress.place += 1
        return None

    def _find_equal(self, voter: str) -> list[Pair]:
        """Return the pairs of equal answers before the next ballot that are not kept yet; with the last ballot, all."""
        progress = self._follow(voter)
        is_last = progress.answered + 1 == self.num_different
        passed = progress.order[progress.kept : None if is_last else progress.place]
        return [pair for pair in passed if pair.identical and pair.id not in progress.done]

    def _shows_first_left(self, voter: str, pair: Pair) -> bool:
        return random.Random(f"{self._seed}\0{voter}\0{pair.id}").random() < 0.5

    def _build_row(self, voter: str, pair: Pair, score: float | None, *, seconds: float = 0.0) -> Preference:
        options: dict[str, int] = {"seed": self._seed}
        if pair.identical:
            options["equal_answers"] = True
        return Preference(
            id=pair.id,
            first=self._first,
            second=self._second,
            score=score,
            judge={"backend": BACKEND, "model": voter, "options": options},
            rubric=RUBRIC,
            orders=[],
            replies=[],
            first_length=len(pair.first),
            second_length=len(pair.second),
            seconds=seconds,
            failure=SKIPPED if score is None else None,
            category=pair.example.category,
        )

    def _is_vote(self, row: Preference, voter: str | None) -> bool:
        return (
            {row.first, row.second} == {self._first, self._second}
            and row.judge.get("backend") == BACKEND
            and voter in (None, row.judge.get("model"))
        )

    def _check_rows(self) -> None:
        lengths = {pair.id: (len(pair.first), len(pair.second)) for pair in self._pairs}
        for row in self._rows:
            known = lengths.get(row.id)
            if known is None or not self._is_vote(row, None):
                continue
            seen = (row.first_length, row.second_length)
            if (seen if row.first == self._first else seen[::-1]) != known:
                raise DataError(
                    f"`{self.path}` holds votes on other answers of `{self._first}` and `{self._second}` (example "
                    f"`{row.id}`): they were generated anew since. Name another file with `--out`."
                )


@contextlib.contextmanager
def locked_votes(path: Path) -> Iterator[None]:
    """Keep other processes from adding to a file of votes meanwhile.

    Raises:
        RunError: Another process has it, it is a folder, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    if path.is_dir():
        raise RunError(f"`{path}` is a folder; name the file for the votes with `--out`, such as `{path}/votes.jsonl`.")
    lock = FileLock(path.parent / f".{path.name}.lock", blocking=False, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"Another vote page keeps its votes in `{path}`. Use that one (several people may vote there at once), "
            "stop it, or name another file with `--out`."
        ) from error
    except OSError as error:
        raise RunError(
            f"Nothing can be written in `{path.parent}` ({error.strerror}), where the votes would go. Name another "
            "file with `--out`."
        ) from error
    try:
        yield
    finally:
        lock.release()
