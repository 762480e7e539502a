"""The judging loop: parallel questions, with each row saved as soon as it is complete."""

import abc
import asyncio
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from hf_instruct.errors import JudgeError, VerdictError
from hf_instruct.evaluation.cache import VerdictCache, cache_key
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.evaluation.verdicts import Verdict
from hf_instruct.models import cache_folder
from hf_instruct.progress import Advance, progress_bar
from hf_instruct.records import append_rows, recover_rows, write_rows
from hf_instruct.schema import JudgeIdentity, Judgment, Preference, Rewrite

logger = logging.getLogger(__name__)

Row = TypeVar("Row", Judgment, Preference, Rewrite)

_ATTEMPTS = 2
_FAILURES_IN_A_ROW = 8
_KEPT_CHARACTERS = 65_536
# Judges that write their verdict as text, so that a saved reply can be parsed again; others may compute it.
_WRITING_BACKENDS = ("ollama", "openai")
# Fields of a judgment that no longer counts.
_VOID: dict[str, Any] = {
    "score": None,
    "replies": [],
    "failure": "to be judged again",
    "reasons": None,
    "cached": False,
}


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """Options for judging that are not in the experiment.

    Attributes:
        use_cache: Read and write the verdict cache.
        force: Judge all answers again, and remove their verdicts from the cache.
        limit: Judge only the first N responses; their judgments are saved, but no scores are written.
        resume_hint: Tells the user how to continue after an interruption.
        title: Title of the progress bar; empty for no bar.
        refuse_failed: Raise an error if the judge failed the judge check, before it judges any response.
        repeat: Number of this pass over the same questions, from 1; each has separate verdicts in the cache.
    """

    use_cache: bool = True
    force: bool = False
    limit: int | None = None
    resume_hint: str = "Judge again to continue."
    title: str = "Judging"
    refuse_failed: bool = False
    repeat: int = 1


class Answer(NamedTuple):
    """The result of one question.

    Attributes:
        verdict: None if none could be read.
        replies: The judge's raw replies, one for each attempt with a reply, and an empty one if the last attempt had
            none, so that `failure` is about the last one.
        seconds: Time the judge took for all attempts.
        failure: Why there is no verdict.
        cached: Whether the answer is from the cache.
    """

    verdict: Verdict | None
    replies: list[str]
    seconds: float = 0.0
    failure: str | None = None
    cached: bool = False


class Task(NamedTuple):
    """The input for one row.

    Attributes:
        id: The row's id.
        questions: Questions to the judge; empty if the row needs none.
        judged: The text that is judged, which replies may quote.
        sha256: Hash of the questions; a saved row with another hash does not count.
    """

    id: str
    questions: Sequence[Question]
    judged: str
    sha256: str


class JudgingPass(abc.ABC, Generic[Row]):
    """One pass of a judge over texts: builds the rows, saves them, and reuses saved ones that still count.

    Args:
        judge: The judge, prepared.
        options: How to judge.
        path: The file in which rows are saved as they arrive; None for no file.
        tasks: The rows to make.
    """

    row_type: type[Row]
    # Whether rows of other judges stay in the file: then rows are only appended, and the newest one counts.
    keeps_others = True

    def __init__(self, judge: Judge, options: JudgeOptions, path: Path | None, tasks: Iterable[Task]) -> None:
        self.identity = JudgeIdentity.model_validate(judge.identity())
        self._judge = judge
        self._options = options
        self._path = path
        self._tasks = {task.id: task for task in tasks}
        self._cache = VerdictCache(cache_folder() / "judgments" if options.use_cache else None)
        # Verdicts that are not in the cache yet.
        self._new: list[tuple[str, dict[str, Any]]] = []
        self._done: dict[str, Row] = {}
        self._scored, self._sum, self._silent = 0, 0.0, 0

    @abc.abstractmethod
    def read(self, reply: Reply, judged: str) -> Verdict:
        """Return the verdict on a text in a reply, or raise VerdictError."""

    @abc.abstractmethod
    def build(self, task: Task, answers: list[Answer]) -> Row:
        """Return the row of a task, given the answers to its questions."""

    def show_mean(self, mean: float) -> str:
        """Return the mean score so far as text for the progress bar; empty to show none."""
        return ""

    def belongs(self, row: Row) -> bool:
        """Return whether a row in the file is from a pass like this one, over these texts or earlier ones."""
        return row.judge == self.identity

    def reuse(self, row: Row) -> Row | None:
        """Return a row for the same questions as this pass would write it, or None if its verdict would differ."""
        return row

    def archive(self, path: Path, rows: Sequence[Row]) -> Path:
        """Move the file, which contains these rows, out of the way, and return its new path."""
        raise NotImplementedError

    async def run(self, *, concurrency: int) -> list[Row]:
        """Return the row of each task, in order, with at most `concurrency` tasks in progress.

        Raises:
            JudgeError: Judging cannot continue; the message says how much is judged and how to continue. Finished
                judgments are saved, also if the coroutine is cancelled.
        """
        path, tasks, resume_hint = self._path, self._tasks.values(), self._options.resume_hint
        try:
            if path:
                self._restore(path)
            if self._options.force:
                # Deleted, not just ignored, because after an interruption the user continues without `force`.
                self._cache.forget(self._key(question) for task in tasks for question in task.questions)
            if waiting := [task for task in tasks if task.id not in self._done]:
                title = self._options.title
                bar = progress_bar(title, len(tasks), done=len(self._done)) if title else nullcontext(lambda *_: None)
                with bar as advance:
                    await self._make_rows(waiting, advance, concurrency)
            rows = [self._done[task.id] for task in tasks]
            if path and not self.keeps_others:
                write_rows(path, rows)
        except JudgeError as error:
            judged, failed = self._scored, len(self._done) - self._scored
            count = f"{judged} of {len(tasks)} are judged" + (f", {failed} failed" if failed else "")
            where = f", saved to `{path}`" if path else ""
            raise type(error)(f"{error} {count}{where}. {resume_hint}") from error
        except OSError as error:
            raise JudgeError(f"The verdicts cannot be written: {error}. {resume_hint}") from error
        finally:
            self._cache.close()
        if failures := [row for row in rows if row.score is None]:
            first, count = failures[0], f"{len(failures)} of {len(rows)}"
            logger.warning("%s have no verdict; the first is `%s`: %s", count, first.id, first.failure)
        return rows

    def _restore(self, path: Path) -> None:
        """Mark tasks as done whose row in the file can be reused."""
        rows = recover_rows(path, self.row_type)
        newest = {row.id: row for row in rows if row.id in self._tasks and self.belongs(row)}
        same = [row for row in newest.values() if row.prompt_sha256 == self._tasks[row.id].sha256]
        fitting = {row.id: reused for row in same if (reused := self.reuse(row))}
        reusable = {} if self._options.force else fitting
        if not self.keeps_others and len(reusable) < len({row.id for row in rows}):
            aside = self.archive(path, rows)
            logger.warning("Judging again; the old verdicts are kept in `%s`.", aside)
            append_rows(path, reusable.values())
        elif self._options.force and self.keeps_others:
            # Voided in the file too, because after an interruption the user continues without `force`.
            append_rows(path, [row.model_copy(update=_VOID) for row in fitting.values()])
        # If the last attempt got no reply, a new one may; a reply that could not be parsed is not requested again.
        complete = [row for row in reusable.values() if row.score is not None or (row.replies and all(row.replies))]
        self._finish(complete)

    def _finish(self, rows: Iterable[Row]) -> str:
        """Mark rows as done, and return the text for the progress bar.

        Keeps running sums, because summing all rows after each one is quadratic.
        """
        for row in rows:
            self._done[row.id] = row
            self._scored += row.score is not None
            self._sum += row.score or 0
        mean = self.show_mean(self._sum / self._scored) if self._scored else ""
        failed = len(self._done) - self._scored
        return ", ".join(filter(None, (mean, f"{failed} failed" if failed else "")))

    async def _make_rows(self, tasks: Sequence[Task], advance: Advance, concurrency: int) -> None:
        """Build the rows of tasks and save them as they arrive; the first error stops all workers."""
        waiting = iter(tasks)
        unsaved: list[Row] = []

        def save() -> None:
            if rows := unsaved[:]:
                if self._path:
                    append_rows(self._path, rows)
                advance(len(rows), self._finish(rows))
                self._cache.add(self._new)
                self._new.clear()
                del unsaved[: len(rows)]

        async def worker() -> None:
            # All workers share one iterator, so that a slow task does not delay others.
            for task in waiting:
                answers = [await self._answer(question, task.judged) for question in task.questions]
                unsaved.append(self.build(task, answers))
                if not all(answer.cached for answer in answers):
                    # Lets other workers add rows whose replies have arrived, so that they share one write.
                    await asyncio.sleep(0)
                    save()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(tasks))):
                    group.create_task(worker())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            save()

    async def _answer(self, question: Question, judged: str) -> Answer:
        """Return the answer to a question about a text, from the cache or the judge."""
        key = self._key(question)
        entry = self._cache.find(key)
        if entry:
            verdict = self.reread(entry["replies"], judged, Verdict(entry["score"], entry.get("reasons")))
            if verdict:
                return Answer(verdict, entry["replies"], cached=True)
        answer = await self._ask(question, judged)
        if answer.verdict:
            entry = {"score": answer.verdict.score, "reasons": answer.verdict.reasons, "replies": answer.replies}
            self._new.append((key, entry))
        return answer

    def _key(self, question: Question) -> str:
        return cache_key(question, self.identity, repeat=self._options.repeat)

    def reread(self, replies: Sequence[str], judged: str, known: Verdict) -> Verdict | None:
        """Parse saved replies again, because the rules for parsing may have changed.

        Returns:
            The verdict in the last reply; None if it cannot be parsed; `known` if the judge may have computed its
            verdict, or there is no reply.
        """
        if not replies or self.identity.backend not in _WRITING_BACKENDS:
            return known
        try:
            return self.read(Reply(replies[-1], 0.0), judged)
        except VerdictError:
            return None

    async def _ask(self, question: Question, judged: str) -> Answer:
        """Ask the judge a question, again if the reply failed or cannot be parsed.

        Raises:
            JudgeError: The judge did not reply to 8 questions in a row.
        """
        seconds, texts, failure = 0.0, [], ""
        for _ in range(_ATTEMPTS):
            reply = await self._judge.ask(question)
            seconds += reply.seconds
            if reply.text:
                texts.append(to_printable(reply.text))
            failure = reply.failure or ""
            if not failure:
                try:
                    verdict = self.read(reply, judged)
                except VerdictError as error:
                    failure = str(error)
                else:
                    self._silent = 0
                    return Answer(verdict, texts, seconds)
            if reply.final:
                break
        # A question that cannot be asked, such as one that is too long, does not mean that the judge is down.
        self._silent = 0 if texts or reply.final else self._silent + 1
        if texts and not reply.text:
            texts.append("")
        if self._silent >= _FAILURES_IN_A_ROW:
            raise JudgeError(
                f"The judge did not reply to {self._silent} questions in a row; the last reason: {failure}."
            )
        return Answer(None, texts, seconds, to_printable(failure))


def to_printable(text: str) -> str:
    """Return a text as it is saved in a row: its first and last 32,768 characters, without lone surrogates.

    A truncated reply may end in a lone surrogate, which UTF-8 cannot encode.
    """
    if len(text) > _KEPT_CHARACTERS:
        half = _KEPT_CHARACTERS // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half:,} characters are left out here]\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode("utf-8")
