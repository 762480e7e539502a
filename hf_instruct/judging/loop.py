"""The judging loop: many questions at once, each judgment kept as soon as it is there."""

import dataclasses
import logging
from collections.abc import Sequence

from hf_instruct.errors import JudgeError
from hf_instruct.judging.asking import Asker, to_printable, work_through
from hf_instruct.judging.cache import VerdictCache, cache_key
from hf_instruct.judging.files import JudgmentFiles, label_judgments, set_aside
from hf_instruct.judging.judges import Judge, Reply
from hf_instruct.judging.rubrics import Question, Rubric
from hf_instruct.judging.verdicts import parse_verdict
from hf_instruct.models import cache_folder
from hf_instruct.progress import progress_bar
from hf_instruct.records import Judgment, Response, append_rows, recover_rows, write_rows

logger = logging.getLogger(__name__)


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
        self._asker = Asker(judge)
        self._rubric = rubric
        self._identity = judge.identity()
        self._files = files
        self._responses = responses
        self._repeat = repeat
        self._repeats = repeats
        self._questions: dict[str, Question] = {row.id: rubric.build_question(row) for row in responses}
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
        waiting = [name for name in self._questions if name not in self._done]
        total, done = len(self._questions), len(self._done)
        if done == total:
            return
        what = "judging" if self._repeats == 1 else f"judging, repeat {self._repeat} of {self._repeats}"
        with progress_bar(what, total, done=done) as advance:

            async def judge(name: str) -> Judgment:
                judgment = await self._judge_one(name)
                self._done[name] = judgment
                advance(1, self._note())
                return judgment

            await work_through(waiting, judge, save=self._save, concurrency=concurrency)

    def _save(self, batch: list[Judgment]) -> None:
        """Write what arrived since the last time: to the file, and what is a verdict to the cache."""
        if self._files:
            append_rows(self._files.judgments, batch)
        self._cache.add(
            (self._key(row.id), {"score": row.score, "reasons": row.reasons, "replies": row.replies})
            for row in batch
            if row.score is not None
        )

    def _note(self) -> str:
        scores = [row.score for row in self._done.values() if row.score is not None]
        failed = len(self._done) - len(scores)
        mean = [f"mean {sum(scores) / len(scores):.1f}"] if scores else []
        return ", ".join([*mean, *([f"{failed} failed"] if failed else [])])

    async def _judge_one(self, name: str) -> Judgment:
        answer = await self._asker.ask(self._questions[name], self._read)
        score, reasons = answer.value or (None, None)
        judgment = self._build(name, answer.replies, score, reasons, seconds=answer.seconds)
        if answer.failure is None:
            return judgment
        logger.debug("%s: %s", name, answer.failure)
        return dataclasses.replace(judgment, failure=answer.failure)

    def _read(self, reply: Reply) -> tuple[int, str | None]:
        if reply.score is not None:
            return reply.score, None
        verdict = parse_verdict(reply.text, self._rubric)
        return verdict.score, to_printable(verdict.reasons) if verdict.reasons else None

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
