"""Score each response: one pass of a judge over a set of them."""

from collections.abc import Mapping, Sequence

from hf_instruct.console import format_points
from hf_instruct.errors import VerdictError
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.loop import (
    WRITING_BACKENDS,
    Answer,
    JudgeOptions,
    KeptRows,
    Task,
    judge_rows,
    to_printable,
)
from hf_instruct.evaluation.rubrics import Question, Rubric
from hf_instruct.evaluation.verdicts import Verdict, parse_verdict
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import JudgeIdentity, Judgment, Response


async def score_responses(
    judge: Judge,
    rubric: Rubric,
    responses: Sequence[Response],
    questions: Mapping[str, Question],
    *,
    files: RunFolder | None,
    options: JudgeOptions,
    concurrency: int,
) -> list[Judgment]:
    """Return the judgment of each response by a prepared judge.

    Args:
        judge: The judge.
        rubric: What it is asked.
        responses: What to judge.
        questions: What the rubric asks about each, by id.
        files: Where judgments are kept as they arrive; None for nowhere.
        options: How to judge.
        concurrency: Questions under way at any moment.

    Raises:
        JudgeError: Judging cannot continue; what was judged is kept.
    """
    identity = JudgeIdentity.model_validate(judge.identity())
    answers = {row.id: row.response for row in responses}
    models = {row.id: row.model for row in responses}

    def read(reply: Reply, judged: str) -> Verdict:
        if reply.score is not None:
            return Verdict(reply.score)
        score, reasons = parse_verdict(reply.text, rubric, judged)
        return Verdict(score, reasons and to_printable(reasons))

    def build(id: str, found: list[Answer]) -> Judgment:
        answer = found[0]
        verdict = answer.verdict
        return Judgment(
            id=id,
            model=models[id],
            score=None if verdict is None else int(verdict.score),
            replies=answer.replies,
            judge=identity,
            rubric=rubric.name,
            rubric_sha256=rubric.sha256,
            repeat=options.repeat,
            prompt_sha256=questions[id].sha256,
            seconds=round(answer.seconds, 4),
            failure=answer.failure,
            reasons=verdict.reasons if verdict else None,
            cached=answer.cached,
        )

    def reuse(row: Judgment) -> Judgment | None:
        asked = questions.get(row.id)
        if asked is None or row.prompt_sha256 != asked.sha256:
            return None
        if (row.model, row.judge, row.rubric, row.repeat) != (models[row.id], identity, rubric.name, options.repeat):
            return None
        if row.score is not None and row.replies and identity.backend in WRITING_BACKENDS:
            # The rule by which scores are read was another once.
            try:
                return row if read(Reply(row.replies[-1], 0.0), answers[row.id]).score == row.score else None
            except VerdictError:
                return None
        return row

    return await judge_rows(
        judge,
        [Task(row.id, [questions[row.id]], row.response) for row in responses],
        read=read,
        build=build,
        kept=KeptRows(files.judgments, Judgment, reuse) if files else None,
        options=options,
        concurrency=concurrency,
        show_mean=lambda mean: f"mean {format_points(mean)}",
    )
