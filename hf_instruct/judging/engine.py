"""Put every response to a judge, many at once, keeping each judgment as soon as it is there."""

import asyncio
import dataclasses
import hashlib
import logging
import re
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from hf_instruct.config import JudgeSection, build_experiment
from hf_instruct.errors import JudgeError, VerdictError
from hf_instruct.judging.cache import VerdictCache, cache_key
from hf_instruct.judging.files import JudgmentFiles, build_responses, set_aside
from hf_instruct.judging.judges import Judge, Reply, open_judge
from hf_instruct.judging.rubrics import Question, Rubric, load_rubric
from hf_instruct.judging.scores import build_scores, format_scores
from hf_instruct.judging.verdicts import parse_verdict
from hf_instruct.models import cache_folder
from hf_instruct.progress import Advance, progress_bar
from hf_instruct.records import Judgment, Response, append_rows, recover_rows, write_json, write_rows

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_FAILURES_IN_A_ROW = 8

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class JudgmentSet:
    """The judgments of a set of responses.

    Attributes:
        judgments: One for each response, in their order.
        scores: What they amount to; the content of `scores.json`.
    """

    judgments: list[Judgment]
    scores: dict[str, Any]

    def __str__(self) -> str:
        return format_scores(self.scores)


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """How to judge, beyond what an experiment says.

    Attributes:
        use_cache: Take verdicts from the cache and add to it.
        force: Judge anew what is judged already, and do not take verdicts from the cache.
        go_on: Tells the user how to go on after an interruption.
    """

    use_cache: bool = True
    force: bool = False
    go_on: str = "Judge again to go on."


def judge_responses(
    responses: Iterable[Response | Mapping[str, Any]],
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
        responses: `Response` rows, or mappings with `instruction`, `input`, `output` and `response` or
            `model_response`.
        judge: `auto`, `ollama`, `local` or `openai`, or a prepared `Judge` of your own.
        model: The judge's model; each kind of judge has a default.
        rubric: `course`, `critique`, `five-point` or the path of a YAML file.
        out: Folder for `judgments.jsonl` and `scores.json`; judgments already there are not made again. None keeps
            everything in memory.
        cache: Take verdicts from the user's cache and add to it.
        settings: Other fields of an experiment's `judge` section, such as `concurrency` or `base_url`.

    Raises:
        ConfigError: A setting or the rubric is wrong.
        DataError: The responses are; all faults are listed.
        JudgeError: Judging cannot go on; with `out`, what was judged is kept.
    """
    values: dict[str, Any] = {**settings, "rubric": rubric, "model": model}
    if isinstance(judge, str):
        values["backend"] = judge
    section = build_experiment({"judge": values}, where="the arguments of `judge_responses`", deep=False).judge
    checked = build_responses(responses)
    options = JudgeOptions(use_cache=cache)
    folder = None if out is None else JudgmentFiles(Path(out))

    async def work() -> JudgmentSet:
        used = await open_judge(section) if isinstance(judge, str) else judge
        try:
            return await judge_with(used, checked, section, files=folder, options=options)
        finally:
            if isinstance(judge, str):
                await used.close()

    return run_sync(work())


def run_sync(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what a coroutine returns, also where an event loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def judge_with(
    judge: Judge,
    responses: Sequence[Response],
    settings: JudgeSection,
    *,
    files: JudgmentFiles | None = None,
    options: JudgeOptions | None = None,
) -> JudgmentSet:
    """Return the judgments of responses by a prepared judge, and write them where `files` says.

    Raises:
        ConfigError: The rubric is not usable.
        JudgeError: Judging cannot go on; the text says how many responses are judged, and how to go on.
    """
    options = options or JudgeOptions()
    rubric = load_rubric(settings.rubric)
    loop = _JudgingLoop(judge, rubric, responses, files, options)
    try:
        if options.force:
            loop.set_rows_aside()
        else:
            loop.reuse_rows()
            loop.reuse_cache()
        await loop.judge_rest(settings.concurrency)
        judgments = [loop.done[response.id] for response in responses]
        categories = {response.id: response.category for response in responses}
        scores = build_scores(judgments, rubric=rubric, judge=judge.identity(), categories=categories)
        if files:
            write_rows(files.judgments, judgments)
            write_json(files.scores, scores)
    except JudgeError as error:
        kept = f", kept in `{files.judgments}`" if files else ""
        text = f"{error} {len(loop.done)} of {len(responses)} responses are judged{kept}. {options.go_on}"
        raise type(error)(text) from error
    except OSError as error:
        raise JudgeError(f"The judgments cannot be written: {error}. {options.go_on}") from error
    finally:
        loop.cache.close()
    if failed := [judgment for judgment in judgments if judgment.score is None]:
        logger.warning(
            "%d of %d responses have no score; the first, `%s`, because: %s",
            len(failed),
            len(judgments),
            failed[0].id,
            failed[0].failure,
        )
    return JudgmentSet(judgments, scores)


class _JudgingLoop:
    """One pass over the responses that have no judgment yet."""

    def __init__(
        self,
        judge: Judge,
        rubric: Rubric,
        responses: Sequence[Response],
        files: JudgmentFiles | None,
        options: JudgeOptions,
    ) -> None:
        self._judge = judge
        self._rubric = rubric
        self._identity = judge.identity()
        self._files = files
        self._questions: dict[str, Question] = {row.id: rubric.build_question(row) for row in responses}
        self._unsaved: list[tuple[Judgment, str]] = []
        self._failures_in_a_row = 0
        self.cache = VerdictCache(cache_folder() / "judgments" if options.use_cache else None)
        self.done: dict[str, Judgment] = {}

    def reuse_rows(self) -> None:
        """Take over the judgments in the file that this judge would make again; keep any others under another name."""
        if not self._files:
            return
        rows = recover_rows(self._files.judgments, Judgment)
        reusable = {row.id: row for row in rows if self._would_repeat(row)}
        if len(reusable) < len({row.id for row in rows}):
            self._set_aside(rows)
            append_rows(self._files.judgments, reusable.values())
        # A call that brought no reply at all is worth another try; an unreadable reply would be unreadable again.
        self.done |= {name: row for name, row in reusable.items() if row.score is not None or row.replies}

    def set_rows_aside(self) -> None:
        """Keep the judgments in the file under another name, to start from none."""
        if self._files and (rows := recover_rows(self._files.judgments, Judgment)):
            self._set_aside(rows)

    def _set_aside(self, rows: Sequence[Judgment]) -> None:
        assert self._files is not None
        kept = set_aside(self._files, _label(rows))
        logger.warning("Judging anew; the judgments that were there are kept as `%s`.", kept)

    def _would_repeat(self, row: Judgment) -> bool:
        question = self._questions.get(row.id)
        return (
            question is not None
            and row.prompt_sha256 == question.sha256
            and row.judge == self._identity
            and row.rubric == self._rubric.name
        )

    def reuse_cache(self) -> None:
        """Take over the verdicts in the cache."""
        found = []
        for name, question in self._questions.items():
            if name in self.done or (verdict := self.cache.find(cache_key(question, self._identity))) is None:
                continue
            judgment = self._build(name, verdict["replies"], verdict["score"], verdict.get("reasons"))
            found.append(dataclasses.replace(judgment, cached=True))
        if self._files:
            append_rows(self._files.judgments, found)
        self.done |= {judgment.id: judgment for judgment in found}

    async def judge_rest(self, concurrency: int) -> None:
        """Judge what is not judged yet, with `concurrency` questions under way at any moment.

        Raises:
            JudgeError: Judging cannot go on. What was judged until then is saved, also when the task is cancelled.
        """
        waiting = iter([name for name in self._questions if name not in self.done])
        total, done = len(self._questions), len(self.done)
        if done == total:
            return
        with progress_bar("judging", total, done=done) as advance:

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
        self.cache.add(
            (key, {"score": judgment.score, "reasons": judgment.reasons, "replies": judgment.replies})
            for judgment, key in batch
            if judgment.score is not None
        )

    def _finish(self, name: str, judgment: Judgment, advance: Advance) -> None:
        self.done[name] = judgment
        self._unsaved.append((judgment, cache_key(self._questions[name], self._identity)))
        if judgment.score is None:
            logger.debug("%s: %s", name, judgment.failure)
        scores = [row.score for row in self.done.values() if row.score is not None]
        failed = len(self.done) - len(scores)
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


def _label(rows: Sequence[Judgment]) -> str:
    """Return a file name's part for judgments: who made them, and a hash that tells apart what was judged."""
    first = rows[0]
    asked = hashlib.sha256("\n".join(sorted(f"{row.prompt_sha256}{row.judge}" for row in rows)).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{first.judge.get('model', 'judge')}-{first.rubric}-{asked[:6]}")
