"""People's votes between two sets of answers, and their scores of answers: the ballots, and their files.

A `Book` provides ballots and records votes, independent of any web page. Each vote is on disk before the next ballot,
and ballots only depend on the seed and the voter's name, so a restart continues where the voter stopped, with the same
answers on the same sides.
"""

import contextlib
import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any, NamedTuple

from hf_instruct.errors import DataError, RunError
from hf_instruct.evaluation.people import hash_answer
from hf_instruct.evaluation.responses import JoinedPairs, Pair, join_responses, load_responses
from hf_instruct.evaluation.verdict_table import PERSON
from hf_instruct.records import append_rows, recover_rows, write_rows
from hf_instruct.run_folder import RunFolder, locked, split_model
from hf_instruct.schema import MODELS, JudgeIdentity, Judgment, Preference, Response

LEFT, RIGHT, TIE, SKIP = CHOICES = ("left", "right", "tie", "skip")
RUBRIC = "vote"
SKIPPED = "skipped by the voter"
_LONGEST_NAME = 60


class Ballot(NamedTuple):
    """The next pair for a voter, without the names of the sets."""

    number: int  # its position among this voter's ballots, from 1
    total: int  # number of ballots for this voter
    instruction: str
    input: str
    left: str  # the answer on the left, or the only one
    right: str | None = None  # None if a single answer is scored from 0 to 100
    reference: str = ""  # shown next to an answer to score


@contextlib.contextmanager
def open_votes(
    first: Path, second: Path | None = None, out: Path | None = None, *, seed: int = 0, limit: int | None = None
) -> Iterator["Book"]:
    """Open the ballots of two sets of answers, or of one to score, and lock their votes against other processes.

    Args:
        first: A run folder, or a file of responses.
        second: The other set; None to score answers, which for a run are those of all models.
        out: File for the votes; by default that of `choose_vote_file`.
        seed: Seed of the sample, the order and the sides.
        limit: Show at most this many examples.

    Raises:
        DataError: The answers or the votes cannot be read, or there is nothing to choose.
        RunError: Another process is using the file for the votes, or it is a folder or cannot be written.
    """
    responses = load_responses(first)
    if second:
        joined = join_responses(responses, load_responses(second), (str(first), str(second)))
    elif RunFolder(first).config.is_file():
        responses = [row for model in MODELS for row in RunFolder(first).read_responses(model)]
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
        if second:
            yield VoteBook(joined, path, seed=seed, limit=limit)
        else:
            yield ScoreBook(responses, path, seed=seed, limit=limit)


def choose_vote_file(first: Path, second: Path | None = None) -> Path:
    """Return the default file for votes: in the first run's folder, named after the second.

    Args:
        first: A run folder, or a file of responses.
        second: The other set; None for scores of one set, whose file is also read by `judge` and the report.
    """
    folder = split_model(first)[0]
    if second is None:
        return RunFolder(folder if folder.is_dir() else first.parent).people
    second_folder = split_model(second)[0]
    name = second.resolve().name if second_folder.is_dir() else second.stem
    if folder.is_dir():
        return folder / f"votes.{name}.jsonl"
    return first.with_name(f"votes.{first.stem}.{name}.jsonl")


def check_voter(name: str) -> str:
    """Return a voter's name without surrounding whitespace.

    Raises:
        DataError: It is empty, too long, or contains characters that are not printable.
    """
    name = name.strip()
    if not name:
        raise DataError("Please enter a name; your votes are saved under it.")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise DataError(f"Please enter a name of at most {_LONGEST_NAME} printable characters.")
    return name


def _draw(ids: Iterable[str], seed: int, limit: int | None) -> list[str]:
    """Return a random draw of examples, the same for every voter; a larger limit extends the draw of a smaller one."""
    # Sorted, so that the draw does not depend on the order of the files.
    drawn = sorted(set(ids))
    random.Random(f"{seed}").shuffle(drawn)
    return drawn[:limit]


class Book:
    """The ballots of a vote, and the file of people's votes.

    Safe to use from several threads, but only in one process at a time (see `open_votes`). The file may also contain
    votes on other sets of answers; these stay unchanged.

    Attributes:
        path: The file of the votes.
        total: Number of ballots for each voter.

    Args:
        items: Items to vote on, by a unique key, in an order that is always the same.
        path: The file of the votes; created by the first vote.
        seed: Seed of the order and the sides.

    Raises:
        DataError: The file cannot be read.
    """

    row_type: type[Preference | Judgment]

    def __init__(self, items: Mapping[Any, Any], path: Path, *, seed: int) -> None:
        self.path = path
        self._seed = seed
        self._items = items
        self.total = sum(map(self._is_asked, items.values()))
        self._lock = threading.Lock()
        self._rows: list[Any] = recover_rows(path, self.row_type)

    def next_ballot(self, voter: str) -> Ballot | None:
        """Return the first ballot that this voter has not answered yet, or None if all are answered."""
        with self._lock:
            number, item, _ = self._find_next(voter)
            return None if item is None else self._show(number, voter, item)

    def vote(self, voter: str, number: int, choice: str, *, seconds: float = 0.0) -> bool:
        """Record a voter's choice on a ballot, and return whether it was the voter's next ballot.

        Other ballots are ignored, so a second click on a ballot, or a click in another tab, does not count again.

        Args:
            voter: The voter's name, as returned by `check_voter`.
            number: Number of the ballot.
            choice: One of `CHOICES`; if answers are scored, a number from 0 to 100 or `SKIP`.
            seconds: Seconds since the ballot was shown.
        """
        with self._lock:
            next_number, item, passed = self._find_next(voter)
            if item is None or next_number != number or not self.is_choice(choice):
                return False
            # Equal answers in between are ties without a ballot. They are recorded as the voter passes them, so that a
            # file with the first half of the votes contains half of them.
            rows = [
                self._build_row(voter, item, choice, round(seconds, 1)),
                *(self._build_row(voter, tie, TIE, 0.0) for tie in passed),
            ]
            append_rows(self.path, rows)
            self._rows += rows
            return True

    def undo(self, voter: str) -> bool:
        """Remove the voter's last vote, and return whether there was one."""
        with self._lock:
            last = next(reversed(self._list_asked(voter)), None)
            if last is not None:
                kept = [row for row in self._rows if row is not last]
                write_rows(self.path, kept)
                self._rows = kept
            return last is not None

    def count_votes(self) -> int:
        """Return the number of ballots that the voters have answered, including skipped ones."""
        return len(self._list_asked())

    def voters(self) -> list[str]:
        """Return the names of the voters, sorted."""
        return sorted({row.judge.model for row in self._list_votes()})

    def _find_next(self, voter: str) -> tuple[int, Any, list[Any]]:
        """Return the number of the next ballot, its item (None after the last), and the equal pairs to record with it.

        These are the pairs before the ballot that are not recorded yet; for the last ballot, also those after it.
        """
        order = list(self._items.items())
        random.Random(f"{self._seed}\0{voter}").shuffle(order)
        done = {self._find_key(row) for row in self._list_votes(voter)}
        left = [(index, item) for index, (key, item) in enumerate(order) if key not in done]
        waiting = [(index, item) for index, item in left if self._is_asked(item)]
        number = 1 + self.total - len(waiting)
        if not waiting:
            return number, None, []
        index, item = waiting[0]
        end = len(order) if len(waiting) == 1 else index
        return number, item, [tie for position, tie in left if position < end and not self._is_asked(tie)]

    def _list_votes(self, voter: str | None = None) -> list[Any]:
        """Return the rows of this vote, or those of one voter, including the ties of equal answers."""
        votes = [row for row in self._rows if row.judge.backend == PERSON and self._find_key(row) is not None]
        return [row for row in votes if voter in (None, row.judge.model)]

    def _list_asked(self, voter: str | None = None) -> list[Any]:
        return [row for row in self._list_votes(voter) if not row.judge.options.get("equal_answers")]

    def _identify_person(self, voter: str, **options: Any) -> JudgeIdentity:
        return JudgeIdentity(backend=PERSON, model=voter, options={"seed": self._seed, **options})

    def is_choice(self, choice: str) -> bool:
        """Return whether a ballot allows this choice."""
        return choice in CHOICES

    def _is_asked(self, item: Any) -> bool:
        return True

    def _find_key(self, row: Any) -> Any:
        """Return the key of the item that a row of the file is about; None if it belongs to another vote."""
        raise NotImplementedError

    def _show(self, number: int, voter: str, item: Any) -> Ballot:
        raise NotImplementedError

    def _build_row(self, voter: str, item: Any, choice: str, seconds: float) -> Any:
        raise NotImplementedError


class VoteBook(Book):
    """The ballots of two sets of answers: which of two is better.

    Attributes:
        num_alone: Answers without a counterpart in the other set.
        num_equal: Pairs of equal answers, which count as ties and are never shown.

    Args:
        joined: The pairs to vote on.
        path: The file, with `Preference` rows.
        seed: Seed of the sample, the order and the sides.
        limit: Vote on at most this many pairs.

    Raises:
        DataError: The file cannot be read, its votes were on other answers, or there is nothing to choose.
    """

    row_type = Preference

    def __init__(self, joined: JoinedPairs, path: Path, *, seed: int = 0, limit: int | None = None) -> None:
        self._first, self._second = map(normpath, joined.names)
        if self._first == self._second:
            raise DataError(f"`{self._first}` is given twice; use two different runs or files.")
        pairs = {pair.id: pair for pair in joined.pairs}
        super().__init__({id: pairs[id] for id in _draw(pairs, seed, limit)}, path, seed=seed)
        self.num_alone = joined.alone.first + joined.alone.second
        self.num_equal = len(self._items) - self.total
        if not self.total:
            raise DataError(
                f"All {len(self._items)} pairs of answers of `{self._first}` and `{self._second}` are equal, so "
                "there is nothing to vote on. Use two other sets."
            )
        self._check_rows()

    def _is_asked(self, item: Pair) -> bool:
        return not item.is_identical

    def _find_key(self, row: Preference) -> str | None:
        return row.id if {row.first, row.second} == {self._first, self._second} else None

    def _show(self, number: int, voter: str, item: Pair) -> Ballot:
        sides = (item.first, item.second) if self._shows_first_left(voter, item) else (item.second, item.first)
        return Ballot(number, self.total, item.example.instruction, item.example.input, *sides)

    def _shows_first_left(self, voter: str, pair: Pair) -> bool:
        return random.Random(f"{self._seed}\0{voter}\0{pair.id}").random() < 0.5

    def _build_row(self, voter: str, item: Pair, choice: str, seconds: float) -> Preference:
        score = {LEFT: 1.0, RIGHT: 0.0, TIE: 0.5, SKIP: None}[choice]
        if score is not None and not self._shows_first_left(voter, item):
            score = 1 - score
        return Preference(
            id=item.id,
            first=self._first,
            second=self._second,
            score=score,
            judge=self._identify_person(voter, **({"equal_answers": True} if item.is_identical else {})),
            rubric=RUBRIC,
            orders=[],
            replies=[],
            first_length=len(item.first),
            second_length=len(item.second),
            seconds=seconds,
            failure=SKIPPED if score is None else None,
            category=item.example.category,
        )

    def _check_rows(self) -> None:
        lengths = {pair.id: (len(pair.first), len(pair.second)) for pair in self._items.values()}
        for row in self._list_votes():
            seen = (row.first_length, row.second_length)
            if (seen if row.first == self._first else seen[::-1]) != lengths.get(row.id, seen):
                raise DataError(
                    f"`{self.path}` contains votes on older answers of `{self._first}` and `{self._second}` (example "
                    f"`{row.id}`), which were generated again since. Use another file with `--out`."
                )


class ScoreBook(Book):
    """The ballots of answers to score from 0 to 100, one at a time; those of several models are in random order.

    Args:
        responses: The answers to score.
        path: The file, with `Judgment` rows.
        seed: Seed of the sample and the order.
        limit: Score the answers to at most this many examples.

    Raises:
        DataError: The file cannot be read.
    """

    row_type = Judgment

    def __init__(self, responses: Sequence[Response], path: Path, *, seed: int = 0, limit: int | None = None) -> None:
        drawn = set(_draw((row.id for row in responses), seed, limit))
        items = {(row.model, row.id, hash_answer(row)): row for row in responses if row.id in drawn}
        super().__init__(items, path, seed=seed)
        self.models = list(dict.fromkeys(row.model for row in responses))

    def is_choice(self, choice: str) -> bool:
        """Return whether this is a whole number from 0 to 100, or `SKIP`."""
        return choice == SKIP or (choice.isdecimal() and int(choice) <= 100)

    def _find_key(self, row: Judgment) -> tuple[str, str, str] | None:
        # Scores of answers that have since been generated again stay in the file, and the new answers are shown.
        key = row.model, row.id, row.prompt_sha256
        return key if key in self._items else None

    def _show(self, number: int, voter: str, item: Response) -> Ballot:
        return Ballot(number, self.total, item.instruction, item.input, item.response, reference=item.output)

    def _build_row(self, voter: str, item: Response, choice: str, seconds: float) -> Judgment:
        return Judgment(
            id=item.id,
            model=item.model,
            score=None if choice == SKIP else int(choice),
            replies=[],
            judge=self._identify_person(voter),
            rubric=RUBRIC,
            prompt_sha256=hash_answer(item),
            seconds=seconds,
            failure=SKIPPED if choice == SKIP else None,
        )
