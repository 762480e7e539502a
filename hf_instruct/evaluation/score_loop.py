"""Score each response: one pass of a judge over a set of them."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from hf_instruct.console import format_points
from hf_instruct.errors import VerdictError
from hf_instruct.evaluation.cache import cache_key
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.judgment_files import JudgmentFiles
from hf_instruct.evaluation.loop import JudgeOptions, JudgingLoop
from hf_instruct.evaluation.retries import to_printable
from hf_instruct.evaluation.rubrics import Rubric
from hf_instruct.evaluation.verdicts import Verdict, parse_verdict
from hf_instruct.records import Judgment, Response, append_rows

logger = logging.getLogger(__name__)

# Judges whose score can be read again in their replies; others may compute it.
_WRITING_BACKENDS = ("ollama", "openai")


class ScoreLoop(JudgingLoop[Judgment]):
    """One pass of a judge over responses.

    Args:
        judge: The judge, prepared.
        rubric: What to ask it.
        responses: What to ask it about.
        files: Where judgments are kept as they arrive; None for nowhere.
        options: How to go about it.
        repeat: Which pass over these responses this is, counted from 1.
        repeats: Of how many.
    """

    row_type = Judgment
    words = ("responses", "judgments", "score")

    def __init__(
        self,
        judge: Judge,
        rubric: Rubric,
        *,
        responses: Sequence[Response],
        files: JudgmentFiles | None,
        options: JudgeOptions,
        repeat: int = 1,
        repeats: int = 1,
    ) -> None:
        title = options.title if repeats == 1 else f"{options.title}, repeat {repeat} of {repeats}"
        ids = [row.id for row in responses]
        # First: the rubric may fail on a response, and then nothing has been opened.
        self._questions = {row.id: rubric.build_question(row) for row in responses}
        super().__init__(judge, ids, file=files.judgments if files else None, options=options, title=title)
        self._files = files
        self._rubric = rubric
        self._answers = {row.id: row.response for row in responses}
        self._keys = {
            id: cache_key(question, self._identity, repeat=repeat) for id, question in self._questions.items()
        }

    def _set_aside(self, rows: Sequence[Judgment]) -> Path:
        assert self._files is not None
        return self._files.set_aside(rows)

    def _would_repeat(self, row: Judgment) -> bool:
        question = self._questions.get(row.id)
        return (
            question is not None
            and row.prompt_sha256 == question.sha256
            and row.judge == self._identity
            and row.rubric == self._rubric.name
            and self._reads_the_same(row.id, row.score, row.replies)
        )

    def _reads_the_same(self, id: str, score: int | None, replies: Sequence[str]) -> bool:
        """Return whether a kept score is also what is read in its reply today: the rule was another once."""
        if score is None or not replies or self._identity["backend"] not in _WRITING_BACKENDS:
            return True
        try:
            return parse_verdict(replies[-1], self._rubric, self._answers[id]).score == score
        except VerdictError:
            return False

    def _reuse(self) -> None:
        """Take over what the file and then the cache know."""
        super()._reuse()
        if self._options.force:
            # Forgotten, not passed over: whoever goes on after an interruption leaves `force` out.
            self._cache.forget(self._keys.values())
        found = []
        for id in self._ids:
            if id not in self._done and (verdict := self._cache.find(self._keys[id])):
                score, replies = verdict["score"], verdict["replies"]
                if self._reads_the_same(id, score, replies):
                    row = self._build(id, replies, score=score, reasons=verdict.get("reasons"))
                    found.append(dataclasses.replace(row, cached=True))
        if self._file:
            append_rows(self._file, found)
        self._done |= {row.id: row for row in found}

    async def _judge(self, id: str) -> Judgment:
        answer = await self._asker.ask(self._questions[id], lambda reply: self._read(reply, self._answers[id]))
        score, reasons = answer.value or (None, None)
        if answer.failure is not None:
            logger.debug("%s: %s", id, answer.failure)
        row = self._build(id, answer.replies, score=score, reasons=reasons)
        return dataclasses.replace(row, seconds=round(answer.seconds, 4), failure=answer.failure)

    def _read(self, reply: Reply, judged: str) -> Verdict:
        if reply.score is not None:
            return Verdict(reply.score)
        score, reasons = parse_verdict(reply.text, self._rubric, judged)
        return Verdict(score, reasons and to_printable(reasons))

    def _build(self, id: str, replies: list[str], *, score: int | None, reasons: str | None) -> Judgment:
        return Judgment(
            id=id,
            score=score,
            replies=replies,
            judge=self._identity,
            rubric=self._rubric.name,
            prompt_sha256=self._questions[id].sha256,
            seconds=0.0,
            reasons=reasons,
        )

    def _save(self, rows: list[Judgment]) -> None:
        """Write rows to the file, and those with a verdict to the cache."""
        super()._save(rows)
        self._cache.add(
            (self._keys[row.id], {"score": row.score, "reasons": row.reasons, "replies": row.replies})
            for row in rows
            if row.score is not None
        )

    def _add_to_sums(self, row: Judgment) -> None:
        self._sums.update({"failed": 1} if row.score is None else {"scored": 1, "points": row.score})

    def _note(self) -> str:
        scored, failed = self._sums["scored"], self._sums["failed"]
        mean = [f"mean {format_points(self._sums['points'] / scored)}"] if scored else []
        return ", ".join([*mean, *([f"{failed} failed"] if failed else [])])
