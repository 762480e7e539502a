"""The judging loop: many questions at once, each row kept as soon as it is there, whatever is judged."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from hf_instruct.errors import JudgeError, VerdictError
from hf_instruct.evaluation.cache import VerdictCache, cache_key
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.evaluation.verdicts import Verdict
from hf_instruct.models import cache_folder
from hf_instruct.progress import progress_bar
from hf_instruct.records import append_rows, recover_rows, write_rows
from hf_instruct.schema import JudgeIdentity, Judgment, Preference

logger = logging.getLogger(__name__)

Row = TypeVar("Row", Judgment, Preference)

_ATTEMPTS = 2
_FAILURES_IN_A_ROW = 8
_KEPT_CHARACTERS = 65_536
# Judges whose verdict can be read again in their replies; others may compute it.
WRITING_BACKENDS = ("ollama", "openai")
_VOID: dict[str, Any] = {
    "score": None,
    "replies": [],
    "failure": "to be judged again",
    "reasons": None,
    "cached": False,
}


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """How to judge, beyond what an experiment says.

    Attributes:
        use_cache: Take verdicts from the cache and add to it.
        force: Judge again what is judged already, and drop its verdicts from the cache.
        limit: Only the first so many responses, for a first look: their judgments are kept, and no scores are written.
        go_on: Tells the user how to continue after an interruption.
        title: Of the progress bar.
        repeat: Which pass over the same questions this is, counted from 1: each has verdicts of its own in the cache.
    """

    use_cache: bool = True
    force: bool = False
    limit: int | None = None
    go_on: str = "Judge again to continue."
    title: str = "Judging"
    repeat: int = 1


class Answer(NamedTuple):
    """What came of one question.

    Attributes:
        verdict: None where none could be read.
        replies: The judge's raw replies, one for each attempt that brought any; then an empty one if the last attempt
            brought none, so that the last one is what `failure` is about.
        seconds: Time the judge took, all attempts together.
        failure: Why there is no verdict.
        cached: Whether an earlier, equal question was answered so.
    """

    verdict: Verdict | None
    replies: list[str]
    seconds: float = 0.0
    failure: str | None = None
    cached: bool = False


class Task(NamedTuple):
    """What one row is made of.

    Attributes:
        id: Of the row.
        questions: What to ask for it; none where the row is known without asking.
        judged: The text that is judged, which replies may quote.
    """

    id: str
    questions: Sequence[Question]
    judged: str


class KeptRows(NamedTuple, Generic[Row]):
    """The file that rows are kept in as they arrive, and what to do with those that it has.

    Attributes:
        path: The file.
        row_type: Type of its rows.
        reuse: Returns a row of it as this pass would make it again, or None where it would make another.
        set_aside: Moves the file, which holds these rows, to a name of its own, and returns that. None where rows of
            other judges stay in it: rows are only ever added, and the newest counts.
        belongs: Whether a row is of a pass like this one, over these answers or earlier ones.
    """

    path: Path
    row_type: type[Row]
    reuse: Callable[[Row], Row | None]
    set_aside: Callable[[Path, Sequence[Row]], Path] | None = None
    belongs: Callable[[Row], bool] = lambda row: True


async def judge_rows(
    judge: Judge,
    tasks: Sequence[Task],
    *,
    read: Callable[[Reply, str], Verdict],
    build: Callable[[str, list[Answer]], Row],
    kept: KeptRows[Row] | None,
    options: JudgeOptions,
    concurrency: int,
    show_mean: Callable[[float], str],
) -> list[Row]:
    """Return the row of each task, in their order.

    Args:
        judge: The judge, prepared.
        tasks: The rows to make.
        read: Takes the verdict on a text from a reply, or raises VerdictError.
        build: Makes the row with an id from an answer to each of its questions.
        kept: Where they are kept; None for nowhere.
        options: How to judge.
        concurrency: Rows under way at any moment.
        show_mean: Says what the mean score so far is, for the progress bar.

    Raises:
        JudgeError: Judging cannot continue; the text says how much is judged, and how to continue. What was judged is
            kept, also when the task is cancelled.
    """
    done: dict[str, Row] = {}
    cache = VerdictCache(cache_folder() / "judgments" if options.use_cache else None)
    asker = Asker(judge, read, cache, repeat=options.repeat)
    try:
        if kept:
            done |= _take_over(kept, force=options.force)
        if options.force:
            # Forgotten, not passed over: whoever continues after an interruption leaves `force` out.
            asker.forget(question for task in tasks for question in task.questions)
        if any(task.id not in done for task in tasks):
            with progress_bar(options.title, len(tasks), done=len(done)) as advance:
                keep = _keep_in(done, kept.path if kept else None, advance, show_mean)
                await _make_rows(asker, [task for task in tasks if task.id not in done], build, keep, concurrency)
        rows = [done[task.id] for task in tasks]
        if kept and kept.set_aside:
            write_rows(kept.path, rows)
    except JudgeError as error:
        failed = sum(row.score is None for row in done.values())
        count = f"{len(done) - failed} of {len(tasks)} are judged" + f", {failed} failed" * bool(failed)
        where = f", kept in `{kept.path}`" if kept else ""
        raise type(error)(f"{error} {count}{where}. {options.go_on}") from error
    except OSError as error:
        raise JudgeError(f"The verdicts cannot be written: {error}. {options.go_on}") from error
    finally:
        cache.close()
    if failures := [row for row in rows if row.score is None]:
        first = failures[0]
        logger.warning(
            "%d of %d have no verdict; the first, `%s`: %s", len(failures), len(rows), first.id, first.failure
        )
    return rows


def _take_over(kept: KeptRows[Row], *, force: bool) -> dict[str, Row]:
    """Return the rows of the file that count for this pass too, by id."""
    rows = recover_rows(kept.path, kept.row_type)
    newest = {row.id: row for row in rows if kept.belongs(row)}
    fitting = {id: again for id, row in newest.items() if (again := kept.reuse(row))}
    reusable = {} if force else fitting
    if kept.set_aside and len(reusable) < len({row.id for row in rows}):
        logger.warning("Judging again; the verdicts that were there are kept as `%s`.", kept.set_aside(kept.path, rows))
        append_rows(kept.path, reusable.values())
    elif force and not kept.set_aside:
        # They no longer count, also for whoever continues after an interruption and leaves `force` out.
        append_rows(kept.path, [row.model_copy(update=_VOID) for row in fitting.values()])
    # A last call that brought no reply is worth another try; an unreadable reply would be unreadable again.
    return {id: row for id, row in reusable.items() if row.score is not None or (row.replies and all(row.replies))}


def _keep_in(
    done: dict[str, Row], path: Path | None, advance: Callable[[int, str], None], show_mean: Callable[[float], str]
) -> Callable[[Sequence[Row]], None]:
    """Return a function that keeps new rows in a file and in `done`, and says beside the progress bar what came of all.

    It adds up what it gets: to look at all rows after each would be quadratic.
    """
    scores = [row.score for row in done.values() if row.score is not None]
    total, n = sum(scores), len(scores)

    def keep(rows: Sequence[Row]) -> None:
        nonlocal total, n
        if path:
            append_rows(path, rows)
        done.update((row.id, row) for row in rows)
        scores = [row.score for row in rows if row.score is not None]
        total, n = total + sum(scores), n + len(scores)
        notes = [show_mean(total / n)] if n else []
        advance(len(rows), ", ".join(notes + [f"{len(done) - n} failed"] * (len(done) > n)))

    return keep


async def _make_rows(
    asker: "Asker",
    tasks: Sequence[Task],
    build: Callable[[str, list[Answer]], Row],
    keep: Callable[[Sequence[Row]], None],
    concurrency: int,
) -> None:
    """Make the rows of tasks, several at a time, and keep them as they come; what any of it raises ends it all."""
    waiting = iter(tasks)
    unkept: list[Row] = []

    def keep_all() -> None:
        if rows := unkept[:]:
            keep(rows)
            asker.keep_verdicts()
            del unkept[: len(rows)]

    async def worker() -> None:
        # All workers draw from one iterator, so a slow task holds up nobody else.
        for task in waiting:
            answers = [await asker.ask(question, task.judged) for question in task.questions]
            unkept.append(build(task.id, answers))
            if not all(answer.cached for answer in answers):
                # Rows whose replies have come by now share the write.
                await asyncio.sleep(0)
                keep_all()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(tasks))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        keep_all()


class Asker:
    """Puts questions to a judge, an unreadable or failed one once more, and gives up on a judge that stays silent.

    Args:
        judge: The judge, prepared.
        read: Takes the verdict on a text from a reply, or raises VerdictError.
        cache: Of earlier verdicts.
        repeat: Which pass over the same questions this is.
    """

    def __init__(
        self, judge: Judge, read: Callable[[Reply, str], Verdict], cache: VerdictCache, *, repeat: int = 1
    ) -> None:
        self._judge = judge
        self._read = read
        self._identity = JudgeIdentity.model_validate(judge.identity())
        self._cache = cache
        self._repeat = repeat
        self._silent = 0
        self._new: list[tuple[str, dict[str, Any]]] = []

    def _key(self, question: Question) -> str:
        return cache_key(question, self._identity, repeat=self._repeat)

    def forget(self, questions: Iterable[Question]) -> None:
        """Drop what the cache knows of questions."""
        self._cache.forget(map(self._key, questions))

    def keep_verdicts(self) -> None:
        """Add the verdicts since the last time to the cache."""
        self._cache.add(self._new)
        self._new.clear()

    async def ask(self, question: Question, judged: str) -> Answer:
        """Return what the judge says to a question, now or at an earlier time.

        Args:
            question: What to ask.
            judged: The text that it is about.

        Raises:
            JudgeError: The judge cannot continue, or has not replied at all to eight questions in a row.
        """
        key = self._key(question)
        if answer := self._recall(key, judged):
            return answer
        answer = await self._ask(question, judged)
        if answer.verdict:
            known = {"score": answer.verdict.score, "reasons": answer.verdict.reasons, "replies": answer.replies}
            self._new.append((key, known))
        return answer

    def _recall(self, key: str, judged: str) -> Answer | None:
        known = self._cache.find(key)
        if known is None:
            return None
        verdict, replies = Verdict(known["score"], known.get("reasons")), known["replies"]
        if self._identity.backend in WRITING_BACKENDS:
            # Read again: the rule may have been another when the reply came.
            try:
                verdict = self._read(Reply(replies[-1], 0.0), judged)
            except VerdictError:
                return None
        return Answer(verdict, replies, cached=True)

    async def _ask(self, question: Question, judged: str) -> Answer:
        seconds, texts, failure = 0.0, [], ""
        for _ in range(_ATTEMPTS):
            reply = await self._judge.ask(question)
            seconds += reply.seconds
            if reply.text:
                texts.append(to_printable(reply.text))
            failure = reply.failure or ""
            if not failure:
                try:
                    verdict = self._read(reply, judged)
                except VerdictError as error:
                    failure = str(error)
                else:
                    self._silent = 0
                    return Answer(verdict, texts, seconds)
            if reply.final:
                break
        self._silent = 0 if texts else self._silent + 1
        texts += [""] * bool(texts and not reply.text)
        if self._silent >= _FAILURES_IN_A_ROW:
            raise JudgeError(
                f"The judge left {self._silent} questions in a row without a reply; the last time, {failure}."
            )
        return Answer(None, texts, seconds, to_printable(failure))


def to_printable(text: str) -> str:
    """Return a text as rows keep it: its first and last 32,768 characters, without halves of surrogate pairs.

    A reply that was cut may end in such a half, which UTF-8 cannot hold.
    """
    if len(text) > _KEPT_CHARACTERS:
        half = _KEPT_CHARACTERS // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half:,} characters are left out here]\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode("utf-8")
