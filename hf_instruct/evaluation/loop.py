"""The judging loop: many questions at once, each result kept as soon as it is there, whatever is judged."""

import abc
import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hf_instruct.errors import JudgeError
from hf_instruct.evaluation.cache import VerdictCache
from hf_instruct.evaluation.judges import Judge
from hf_instruct.evaluation.retries import Asker, work_through
from hf_instruct.models import cache_folder
from hf_instruct.progress import progress_bar
from hf_instruct.records import Judgment, Preference, append_rows, recover_rows, write_rows

logger = logging.getLogger(__name__)

Row = TypeVar("Row", Judgment, Preference)


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """How to judge, beyond what an experiment says.

    Attributes:
        use_cache: Take verdicts from the cache and add to it.
        force: Judge anew what is judged already, and drop its verdicts from the cache.
        go_on: Tells the user how to go on after an interruption.
        title: Of the progress bar of a pass over responses.
    """

    use_cache: bool = True
    force: bool = False
    go_on: str = "Judge again to go on."
    title: str = "Judging"


class JudgingLoop(abc.ABC, Generic[Row]):
    """One pass of a judge over responses or pairs of them.

    Args:
        judge: The judge, prepared.
        ids: Of what to judge.
        file: Where rows are kept as they arrive; None for nowhere.
        options: How to go about it.
        title: Of the progress bar.
    """

    # Set by each kind of pass: the type of its rows, and what messages call what is judged, the rows and their scores.
    row_type: type[Row]
    words: tuple[str, str, str]

    def __init__(
        self, judge: Judge, ids: Sequence[str], *, file: Path | None, options: JudgeOptions, title: str
    ) -> None:
        self._asker = Asker(judge)
        self._identity = judge.identity()
        self._ids = ids
        self._file = file
        self._options = options
        self._title = title
        self._cache = VerdictCache(cache_folder() / "judgments" if options.use_cache else None)
        self._done: dict[str, Row] = {}
        # What the progress bar needs of the rows so far; to look at all of them after each would be quadratic.
        self._sums: Counter[str] = Counter()

    @abc.abstractmethod
    def _would_repeat(self, row: Row) -> bool:
        """Return whether this pass would make a row of the file again."""

    @abc.abstractmethod
    def _set_aside(self, rows: Sequence[Row]) -> Path:
        """Move the file, which holds these rows, to a name of its own, and return that."""

    @abc.abstractmethod
    async def _judge(self, id: str) -> Row:
        """Return the row of one response or pair."""

    @abc.abstractmethod
    def _add_to_sums(self, row: Row) -> None:
        """Add a row to the sums that `_note` shows."""

    @abc.abstractmethod
    def _note(self) -> str:
        """Return what the progress bar says of the rows so far."""

    async def run(self, concurrency: int) -> list[Row]:
        """Return a row for each id, in their order, and write them where there is a file for them.

        Args:
            concurrency: Questions under way at any moment.

        Raises:
            JudgeError: Judging cannot go on; the text says how much is judged, and how to go on. What was judged until
                then is kept, also when the task is cancelled.
        """
        items, results, value = self.words
        try:
            self._reuse()
            await self._judge_rest(concurrency)
            rows = [self._done[id] for id in self._ids]
            if self._file:
                write_rows(self._file, rows)
        except JudgeError as error:
            num_failed = sum(row.score is None for row in self._done.values())
            count = f"{len(self._done) - num_failed} of {len(self._ids)} {items} are judged"
            also = f", {num_failed} failed" * bool(num_failed) + f", kept in `{self._file}`" * bool(self._file)
            text = f"{error} {count}{also}. {self._options.go_on}"
            raise type(error)(text) from error
        except OSError as error:
            raise JudgeError(f"The {results} cannot be written: {error}. {self._options.go_on}") from error
        finally:
            self._cache.close()
        if failed := [row for row in rows if row.score is None]:
            logger.warning(
                "%d of %d %s have no %s; the first, `%s`, because: %s",
                len(failed),
                len(rows),
                items,
                value,
                failed[0].id,
                failed[0].failure,
            )
        return rows

    def _reuse(self) -> None:
        """Take over the rows in the file that this pass would make again; keep any others under another name."""
        if not self._file:
            return
        rows = recover_rows(self._file, self.row_type)
        reusable = {} if self._options.force else {row.id: row for row in rows if self._would_repeat(row)}
        if len(reusable) < len({row.id for row in rows}):
            kept = self._set_aside(rows)
            logger.warning("Judging anew; the %s that were there are kept as `%s`.", self.words[1], kept)
            append_rows(self._file, reusable.values())
        # A last call that brought no reply is worth another try; an unreadable reply would be unreadable again.
        self._done |= {
            id: row for id, row in reusable.items() if row.score is not None or (row.replies and all(row.replies))
        }

    async def _judge_rest(self, concurrency: int) -> None:
        waiting = [id for id in self._ids if id not in self._done]
        if not waiting:
            return
        for row in self._done.values():
            self._add_to_sums(row)
        with progress_bar(self._title, len(self._ids), done=len(self._done)) as advance:

            async def judge(id: str) -> Row:
                row = self._done[id] = await self._judge(id)
                self._add_to_sums(row)
                advance(1, self._note())
                return row

            await work_through(waiting, judge, save=self._save, concurrency=concurrency)

    def _save(self, rows: list[Row]) -> None:
        """Write the rows that arrived since the last time."""
        if self._file:
            append_rows(self._file, rows)
