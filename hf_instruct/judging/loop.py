"""The judging loop: many questions at once, each judgment kept as soon as it is there."""

import asyncio
import dataclasses
import logging
from collections.abc import Sequence

from hf_instruct.errors import JudgeError, VerdictError
from hf_instruct.judging.cache import VerdictCache, cache_key
from hf_instruct.judging.files import JudgmentFiles, label_judgments, set_aside
from hf_instruct.judging.judges import Judge, Reply
from hf_instruct.judging.rubrics import Question, Rubric
from hf_instruct.judging.verdicts import parse_verdict
from hf_instruct.models import cache_folder
from hf_instruct.progress import Advance, progress_bar
from hf_instruct.records import Judgment, Response, append_rows, recover_rows, write_rows

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_FAILURES_IN_A_ROW = 8


class JudgingLoop:
    """One pass of a judge over responses.

    Args:
        judge: The judge, prepared.
        rubric: What to ask it.
        responses: What to ask it about.
        files: Where judgments are kept as they arrive; None for nowhere.
        use_cache: Take verdicts from the cache and add to it.
        repeat: Which pass over these responses this is, counted from 1.
        repeats: Of how many.
    """

    def __init__(
        self,
        judge: Judge,
        rubric: Rubric,
        *,
        responses: Sequence[Response],
        files: JudgmentFiles | None,
        use_cache: bool,
        repeat: int = 1,
        repeats: int = 1,
    ) -> None:
        self._judge = judge
        self._rubric = rubric
        self._identity = judge.identity()
        self._files = files
        self._responses = responses
        self._repeat = repeat
        self._repeats = repeats
        self._questions: dict[str, Question] = {row.id: rubric.build_question(row) for row in responses}
        self._unsaved: list[tuple[Judgment, str]] = []
        self._failures_in_a_row = 0
        self._cache = VerdictCache(cache_folder() / "judgments" if use_cache else None)
        self._done: dict[str, Judgment] = {}

    async def run(self, concurrency: int, *, force: bool, go_on: str) -> list[Judgment]:
        """Return a judgment of each response, in their order, and write them where there are files for them.

        Args:
            concurrency: Questions under way at any moment.
            force: Judge anew what is judged already, and do not take verdicts from the cache.
            go_on: Tells the user how to go on after an interruption.

        Raises:
            JudgeError: Judging cannot go on; the text says how many responses are judged, and how to go on.
        """
        responses = self._responses
        try:
            if force:
                self._set_rows_aside()
            else:
                self._reuse_rows()
                self._reuse_cache()
            await self._judge_rest(concurrency)
            judgments = [self._done[response.id] for response in responses]
            if self._files:
                write_rows(self._files.judgments, judgments)
        except JudgeError as error:
            kept = f", kept in `{self._files.judgments}`" if self._files else ""
            text = f"{error} {len(self._done)} of {len(responses)} responses are judged{kept}. {go_on}"
            raise type(error)(text) from error
        except OSError as error:
            raise JudgeError(f"The judgments cannot be written: {error}. {go_on}") from error
        finally:
            self._cache.close()
        if failed := [judgment for judgment in judgments if judgment.score is None]:
            logger.warning(
                "%d of %d responses have no score; the first, `%s`, because: %s",
                len(failed),
                len(judgments),
                failed[0].id,
                failed[0].failure,
            )
        return judgments

    def _reuse_rows(self) -> None:
        """Take over the judgments in the file that this judge would make again; keep any others under another name."""
        if not self._files:
            return
        rows = recover_rows(self._files.judgments, Judgment)
        reusable = {row.id: row for row in rows if self._would_repeat(row)}
        if len(reusable) < len({row.id for row in rows}):
            self._set_aside(rows)
            append_rows(self._files.judgments, reusable.values())
        # A call that brought no reply at all is worth another try; an unreadable reply would be unreadable again.
        self._done |= {name: row for name, row in reusable.items() if row.score is not None or row.replies}

    def _set_rows_aside(self) -> None:
        """Keep the judgments in the file under another name, to start from none."""
        if self._files and (rows := recover_rows(self._files.judgments, Judgment)):
            self._set_aside(rows)

    def _set_aside(self, rows: Sequence[Judgment]) -> None:
        assert self._files is not None
        label = label_judgments(rows)
        kept = set_aside(self._files, label)
        if self._repeat == 1:
            # They are repeats of what is no longer there.
            for files in self._files.list_repeats():
                set_aside(files, label)
        logger.warning("Judging anew; the judgments that were there are kept as `%s`.", kept)

    def _would_repeat(self, row: Judgment) -> bool:
        question = self._questions.get(row.id)
        return (
            question is not None
            and row.prompt_sha256 == question.sha256
            and row.judge == self._identity
            and row.rubric == self._rubric.name
        )

    def _reuse_cache(self) -> None:
        """Take over the verdicts in the cache."""
        found = []
        for name in self._questions:
            if name in self._done or (verdict := self._cache.find(self._key(name))) is None:
                continue
            judgment = self._build(name, verdict["replies"], verdict["score"], verdict.get("reasons"))
            found.append(dataclasses.replace(judgment, cached=True))
        if self._files:
            append_rows(self._files.judgments, found)
        self._done |= {judgment.id: judgment for judgment in found}

    def _key(self, name: str) -> str:
        return cache_key(self._questions[name], self._identity, repeat=self._repeat)

    async def _judge_rest(self, concurrency: int) -> None:
        """Judge what is not judged yet, with `concurrency` questions under way at any moment.

        Raises:
            JudgeError: Judging cannot go on. What was judged until then is saved, also when the task is cancelled.
        """
        waiting = iter([name for name in self._questions if name not in self._done])
        total, done = len(self._questions), len(self._done)
        if done == total:
            return
        what = "judging" if self._repeats == 1 else f"judging, repeat {self._repeat} of {self._repeats}"
        with progress_bar(what, total, done=done) as advance:

            async def worker() -> None:
                # All workers draw from one iterator, so a slow reply holds up nobody else.
                for name in waiting:
                    self._finish(name, await self._judge_one(name), advance)
                    arrived.set()

            arrived = asyncio.Event()
            workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, total - done))]
            writer = asyncio.create_task(self._save_arrivals(arrived))
            try:
                await _wait_for_all(workers, writer)
            finally:
                for task in (*workers, writer):
                    task.cancel()
                await asyncio.gather(*workers, writer, return_exceptions=True)
                self._save()

    async def _save_arrivals(self, arrived: asyncio.Event) -> None:
        while True:
            await arrived.wait()
            arrived.clear()
            # In a thread: the loop sends questions while the disk takes its time. Shielded: a cancelled write goes on
            # in its thread, and nothing else may write until it ends.
            saving = asyncio.create_task(asyncio.to_thread(self._save))
            try:
                await asyncio.shield(saving)
            except asyncio.CancelledError:
                await saving
                raise

    def _save(self) -> None:
        """Write what arrived since the last time: to the file, and what is a verdict to the cache."""
        batch = self._unsaved[:]
        if not batch:
            return
        if self._files:
            append_rows(self._files.judgments, [judgment for judgment, _ in batch])
        del self._unsaved[: len(batch)]
        self._cache.add(
            (key, {"score": judgment.score, "reasons": judgment.reasons, "replies": judgment.replies})
            for judgment, key in batch
            if judgment.score is not None
        )

    def _finish(self, name: str, judgment: Judgment, advance: Advance) -> None:
        self._done[name] = judgment
        self._unsaved.append((judgment, self._key(name)))
        if judgment.score is None:
            logger.debug("%s: %s", name, judgment.failure)
        scores = [row.score for row in self._done.values() if row.score is not None]
        failed = len(self._done) - len(scores)
        note = f"mean {sum(scores) / len(scores):.1f}" if scores else ""
        advance(1, f"{note}, {failed} failed".lstrip(", ") if failed else note)
        self._failures_in_a_row = 0 if judgment.replies else self._failures_in_a_row + 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            raise JudgeError(
                f"The judge left {self._failures_in_a_row} questions in a row without a reply; the last time, "
                f"{judgment.failure}."
            )

    async def _judge_one(self, name: str) -> Judgment:
        """Return the judgment of one response; an unreadable reply is asked for once more."""
        question = self._questions[name]
        replies: list[Reply] = []
        failure = None
        for _ in range(_ATTEMPTS):
            reply = await self._judge.ask(question)
            replies.append(reply)
            texts = [_printable(reply.text) for reply in replies if reply.text]
            seconds = sum(reply.seconds for reply in replies)
            failure = reply.failure
            if failure is None:
                try:
                    score, reasons = self._read(reply)
                    return self._build(name, texts, score, reasons, seconds=seconds)
                except VerdictError as error:
                    failure = str(error)
            if reply.final:
                break
        judgment = self._build(name, texts, None, None, seconds=seconds)
        return dataclasses.replace(judgment, failure=_printable(failure or ""))

    def _read(self, reply: Reply) -> tuple[int, str | None]:
        if reply.score is not None:
            return reply.score, None
        verdict = parse_verdict(reply.text, self._rubric)
        return verdict.score, _printable(verdict.reasons) if verdict.reasons else None

    def _build(
        self, name: str, replies: list[str], score: int | None, reasons: str | None, *, seconds: float = 0.0
    ) -> Judgment:
        return Judgment(
            id=name,
            score=score,
            replies=replies,
            judge=self._identity,
            rubric=self._rubric.name,
            prompt_sha256=self._questions[name].sha256,
            seconds=round(seconds, 4),
            reasons=reasons,
        )


async def _wait_for_all(workers: list[asyncio.Task[None]], writer: asyncio.Task[None]) -> None:
    """Return when all workers are done; raise what any of them or the writer raises, as soon as it does."""
    left: set[asyncio.Task[None]] = set(workers)
    while left:
        finished, _ = await asyncio.wait({*left, writer}, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            task.result()
        left -= finished


def _printable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which a reply that was cut may end in and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
