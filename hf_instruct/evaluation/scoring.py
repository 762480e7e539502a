"""Judge a set of responses, once or several times, and summarize the result."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import JudgeSection, build_experiment
from hf_instruct.console import format_points
from hf_instruct.evaluation.cache import find_self_check
from hf_instruct.evaluation.judges import Judge, Reply, opened_judge
from hf_instruct.evaluation.loop import Answer, JudgeOptions, JudgingPass, Task, to_printable
from hf_instruct.evaluation.people import Corrected, Labelled, read_people
from hf_instruct.evaluation.responses import build_responses
from hf_instruct.evaluation.rubrics import Rubric, load_rubric
from hf_instruct.evaluation.scores import build_repeats, build_scores, format_repeats, format_scores
from hf_instruct.evaluation.text_metrics import exact_match
from hf_instruct.evaluation.verdicts import Verdict, parse_verdict
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import JudgeIdentity, Judgment, Response, Scores
from hf_instruct.servers import run_sync

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class JudgmentSet:
    """The judgments of a set of responses.

    Attributes:
        judgments: One for each response, in the same order.
        scores: Their summary; the content of `scores.json`.
        repeats: The judgments of the second and later repeats.
        left_out: Number of responses beyond `JudgeOptions.limit`.
        corrected: The mean, corrected with people's scores of some responses; None if nobody scored any.
    """

    judgments: list[Judgment]
    scores: Scores
    repeats: list[list[Judgment]] = dataclasses.field(default_factory=list)
    left_out: int = 0
    corrected: Corrected | None = None

    def __str__(self) -> str:
        total = self.scores.total + self.left_out
        first_look = f"a first look: {self.scores.total} of {total} answers; judged without a limit, the rest follow"
        corrected = f"corrected by people: {self.corrected.describe()}" if self.corrected else ""
        more = corrected, first_look if self.left_out else "", format_repeats(self.scores)
        return "\n".join(filter(None, (format_scores(self.scores), *more)))


def judge_responses(
    responses: "Dataset | Iterable[Response | Mapping[str, Any]] | str | Path",
    *,
    judge: str | Judge = "auto",
    model: str | None = None,
    rubric: str = "course",
    out: Path | str | None = None,
    cache: bool = True,
    **settings: Any,
) -> JudgmentSet:
    """Return the judgments of responses and their scores.

    Args:
        responses: A `Dataset` or mappings with `instruction`, `input`, `output` and `response` or `model_response`; a
            run folder or a file of them.
        judge: `auto`, `ollama`, `local` or `openai`, or a prepared `Judge` of your own.
        model: The judge's model; each kind of judge has a default.
        rubric: `course`, `fenced`, `critique`, `five-point` or the path of a YAML file.
        out: Folder for `judgments.jsonl` and `scores.json`; existing judgments are reused. None keeps everything in
            memory.
        cache: Read and write the user's verdict cache.
        settings: Other fields of an experiment's `judge` section, such as `concurrency` or `base_url`.

    Raises:
        ConfigError: A setting or the rubric is invalid.
        DataError: The responses are invalid; all problems are listed.
        JudgeError: Judging cannot continue; with `out`, finished judgments are kept.
    """
    values: dict[str, Any] = {**settings, "rubric": rubric, "model": model}
    if isinstance(judge, str):
        values["backend"] = judge
    section = build_experiment({"judge": values}, where="the arguments of `judge_responses`", deep=False).judge
    checked = build_responses(responses)
    options = JudgeOptions(use_cache=cache)
    folder = None if out is None else RunFolder(Path(out))

    async def work() -> JudgmentSet:
        async with opened_judge(section, None if isinstance(judge, str) else judge) as used:
            return await judge_with(used, checked, section, files=folder, options=options)

    return run_sync(work())


async def judge_with(
    judge: Judge,
    responses: Sequence[Response],
    settings: JudgeSection,
    *,
    files: RunFolder | None = None,
    options: JudgeOptions | None = None,
) -> JudgmentSet:
    """Return the judgments of responses by a prepared judge, and write them to `files` if given.

    With `repeats` in the settings the judge is asked that many times, with seeds that count up from `seed` if set.

    Raises:
        ConfigError: The rubric is not usable.
        JudgeError: Judging cannot continue; the message says how many responses are judged and how to continue.
    """
    options = options or JudgeOptions()
    responses, left_out = responses[: options.limit], len(responses[options.limit or len(responses) :])
    rubric = load_rubric(settings.rubric)
    seeds = [None if settings.seed is None else settings.seed + number for number in range(settings.repeats)]
    identities: list[JudgeIdentity] = []
    repeats: list[list[Judgment]] = []
    try:
        for number, seed in enumerate(seeds, start=1):
            title = options.title
            if len(seeds) > 1:
                judge.reseed(seed)
                title += f", repeat {number} of {len(seeds)}"
            once = dataclasses.replace(options, title=title, repeat=number)
            scoring = _Scoring(judge, once, files.judgments if files else None, rubric, responses)
            identities.append(scoring.identity)
            repeats.append(await scoring.run(concurrency=settings.concurrency))
    finally:
        if len(seeds) > 1:
            judge.reseed(settings.seed)
    categories = {row.id: row.category for row in responses}
    equal = {row.id for row in responses if exact_match(row.response, row.output)}
    tasks = {row.id: row.instruction for row in responses}
    scores = build_scores(
        repeats[0], rubric=rubric, judge=identities[0], categories=categories, tasks=tasks, equal=equal
    )
    repeat_summary = build_repeats(repeats, seeds=seeds) if len(seeds) > 1 else None
    scores = scores.model_copy(update={"repeats": repeat_summary, "self_check": find_self_check(identities[0], rubric)})
    if files and not left_out:
        files.write_scores(responses[0].model, scores)
    if scores.constant:
        logger.warning(
            "The judge gave all %d answers the score %d, so it does not discriminate. Read its replies in "
            "`judgments.jsonl`, test it with `hf-instruct judge check`, or use another judge.",
            scores.n,
            scores.minimum,
        )
    people = read_people(files, responses) if files and not left_out else {}
    corrected = Labelled({row.id: row.score for row in repeats[0]}, people).correct()
    return JudgmentSet(repeats[0], scores, repeats[1:], left_out, corrected)


async def judge_alone(judge: Judge, responses: Sequence[Response], settings: JudgeSection) -> list[Judgment]:
    """Return the judgments of responses by a prepared judge, once, without files, statistics or a progress bar.

    Raises:
        JudgeError: Judging cannot continue.
    """
    options = JudgeOptions(title="", resume_hint="What was judged is in the cache; continue with `--resume`.")
    scoring = _Scoring(judge, options, None, load_rubric(settings.rubric), responses)
    return await scoring.run(concurrency=settings.concurrency)


class _Scoring(JudgingPass[Judgment]):
    """A pass over responses."""

    row_type = Judgment

    def __init__(
        self, judge: Judge, options: JudgeOptions, path: Path | None, rubric: Rubric, responses: Sequence[Response]
    ) -> None:
        questions = [(row, rubric.build_question(row)) for row in responses]
        tasks = (Task(row.id, [question], row.response, question.sha256) for row, question in questions)
        super().__init__(judge, options, path, tasks)
        self._rubric = rubric
        self._models = {row.id: row.model for row in responses}

    def show_mean(self, mean: float) -> str:
        """Return the mean score in points."""
        return f"mean {format_points(mean)}"

    def read(self, reply: Reply, judged: str) -> Verdict:
        """Return the verdict on a response in a reply."""
        if reply.score is not None:
            return Verdict(reply.score)
        score, reasons = parse_verdict(reply.text, self._rubric, judged)
        return Verdict(score, reasons and to_printable(reasons))

    def build(self, task: Task, answers: list[Answer]) -> Judgment:
        """Return the judgment of a response, given the answer to the one question about it."""
        answer = answers[0]
        return Judgment(
            id=task.id,
            model=self._models[task.id],
            score=int(answer.verdict.score) if answer.verdict else None,
            replies=answer.replies,
            judge=self.identity,
            rubric=self._rubric.name,
            rubric_sha256=self._rubric.sha256,
            repeat=self._options.repeat,
            prompt_sha256=task.sha256,
            seconds=round(answer.seconds, 4),
            failure=answer.failure,
            reasons=answer.verdict.reasons if answer.verdict else None,
            cached=answer.cached,
        )

    def belongs(self, row: Judgment) -> bool:
        """Return whether a judgment is from a pass like this one, over these responses or earlier versions of them."""
        expected = self._models[row.id], self.identity, self._rubric.name, self._options.repeat
        is_expected = (row.model, row.judge, row.rubric, row.repeat) == expected
        return is_expected and row.rubric_sha256 in ("", self._rubric.sha256)

    def reuse(self, row: Judgment) -> Judgment | None:
        """Return a judgment if this pass would produce the same, otherwise None."""
        if row.score is None:
            return row
        verdict = self.reread(row.replies, self._tasks[row.id].judged, Verdict(row.score))
        return row if verdict and verdict.score == row.score else None
