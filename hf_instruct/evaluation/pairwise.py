"""Ask a judge which of two answers is better, for every example in both sets, in both orders."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import JudgeSection, build_experiment
from hf_instruct.evaluation.judges import Judge, Reply, opened_judge
from hf_instruct.evaluation.loop import Answer, JudgeOptions, JudgingPass, Task
from hf_instruct.evaluation.pair_scores import build_pair_scores, format_pair_scores
from hf_instruct.evaluation.people import Corrected, correct_win_rate
from hf_instruct.evaluation.responses import JoinedPairs, Pair, build_responses, choose_folder, join_responses
from hf_instruct.evaluation.rubrics import PAIR_RUBRIC, build_questions
from hf_instruct.evaluation.verdicts import Verdict, parse_preference
from hf_instruct.records import write_json
from hf_instruct.run_folder import split_model
from hf_instruct.schema import PairSummary, Preference, Response
from hf_instruct.servers import run_sync

if TYPE_CHECKING:
    from datasets import Dataset


@dataclasses.dataclass(frozen=True)
class PreferenceSet:
    """The preferences between two sets of answers."""

    preferences: list[Preference]  # one for each example in both sets
    summary: PairSummary  # their summary; the content of the file next to the preferences
    corrected: Corrected | None = None  # the win rate, corrected with people's votes; None if there are no votes

    def __str__(self) -> str:
        return format_pair_scores(self.summary, self.corrected)


def judge_pairs(
    first: "Dataset | Iterable[Response | Mapping[str, Any]] | str | Path",
    second: "Dataset | Iterable[Response | Mapping[str, Any]] | str | Path",
    *,
    names: tuple[str, str] = ("first", "second"),
    judge: str | Judge = "auto",
    out: Path | str | None = None,
    cache: bool = True,
    **settings: Any,
) -> PreferenceSet:
    """Return which of two answers a judge prefers, for every example in both sets, and the win rate of the first.

    Each pair is judged in both orders; if these disagree, it is a tie.

    Args:
        first: A `Dataset` or mappings with `instruction`, `input`, `output` and `response` or `model_response`; a run
            folder or a file of them.
        second: The same for the baseline.
        names: Names of the two sets in the rows, and in ratings of several sets.
        judge: `auto`, `ollama`, `local` or `openai`, or a prepared `Judge` of your own.
        out: Folder for a file of preferences, named after the second set, and its summary; existing preferences are
            reused. None keeps everything in memory.
        cache: Read and write the user's verdict cache.
        settings: Other fields of an experiment's `judge` section, such as `model` or `concurrency`.

    Raises:
        ConfigError: A setting is invalid.
        DataError: The answers are invalid, or the sets have no example in common.
        JudgeError: Judging cannot continue; with `out`, finished judgments are kept.
    """
    values = {**settings, "backend": judge} if isinstance(judge, str) else settings
    section = build_experiment({"judge": values}, where="the arguments of `judge_pairs`", deep=False).judge
    candidates, baselines = (
        build_responses(rows, where=f"the answers of {name}") for rows, name in zip((first, second), names, strict=True)
    )
    return prefer(
        join_responses(candidates, baselines, names),
        section,
        options=JudgeOptions(use_cache=cache),
        file=None if out is None else Path(out) / f"{to_file_name(names[1])}.jsonl",
        judge=None if isinstance(judge, str) else judge,
    )


def prefer(
    joined: JoinedPairs,
    settings: JudgeSection,
    *,
    options: JudgeOptions,
    file: Path | None = None,
    judge: Judge | None = None,
) -> PreferenceSet:
    """Return the preferences between two joined sets, and write them to `file` if given.

    Args:
        joined: The pairs.
        settings: Which judge, and how to ask it.
        options: Options for judging.
        file: File for the preferences, and with the suffix `.json` for their summary; None for no files.
        judge: A prepared judge; by default the one in the settings.

    Raises:
        JudgeError: Judging cannot continue; the message says how many pairs are judged and how to continue.
    """

    async def work() -> PreferenceSet:
        async with opened_judge(settings, judge) as used:
            comparing = _Comparing(used, dataclasses.replace(options, title="Judging pairs"), file, joined)
            preferences = await comparing.run(concurrency=settings.concurrency)
        summary = build_pair_scores(preferences, joined, comparing.identity)
        if file:
            write_json(file.with_suffix(".json"), summary)
        return PreferenceSet(preferences, summary, correct_win_rate(file, preferences) if file else None)

    return run_sync(work())


def _build_task(pair: Pair) -> Task:
    questions = build_questions(pair)
    key = _hash("".join(question.sha256 for question in questions).encode())
    return Task(pair.id, [] if pair.is_identical else questions, f"{pair.first}\n{pair.second}", key)


class _Comparing(JudgingPass[Preference]):
    """A pass over pairs, each asked about in both orders."""

    row_type = Preference
    keeps_others = False

    def __init__(self, judge: Judge, options: JudgeOptions, path: Path | None, joined: JoinedPairs) -> None:
        super().__init__(judge, options, path, map(_build_task, joined.pairs))
        # Marked in the same way as votes: nobody was asked, so measures of agreement leave them out.
        self._unasked = self.identity.model_copy(update={"options": {**self.identity.options, "equal_answers": True}})
        self._names: dict[str, Any] = dict(zip(("first", "second"), joined.names, strict=True))
        self._pairs = {pair.id: pair for pair in joined.pairs}

    def show_mean(self, mean: float) -> str:
        """Return the win rate of the first answers."""
        return f"win rate {100 * mean:.0f} %"

    def read(self, reply: Reply, judged: str) -> Verdict:
        """Return the preference in a reply."""
        return Verdict(parse_preference(reply.text, judged))

    def build(self, task: Task, answers: list[Answer]) -> Preference:
        """Return the preference between two answers, given the answers in both orders."""
        pair = self._pairs[task.id]
        orders = [None if answer.verdict is None else answer.verdict.score for answer in answers]
        if orders and orders[1] is not None:
            orders[1] = 1 - orders[1]
        return Preference(
            **self._names,
            id=task.id,
            # A tie if the orders disagree or were not asked because the answers are identical.
            score=None if None in orders else orders[0] if len(set(orders)) == 1 else 0.5,
            judge=self._unasked if pair.is_identical else self.identity,
            rubric=PAIR_RUBRIC.name,
            orders=orders,
            replies=[answer.replies[-1] if answer.replies else "" for answer in answers],
            first_length=len(pair.first),
            second_length=len(pair.second),
            prompt_sha256=task.sha256,
            seconds=round(sum(answer.seconds for answer in answers), 4),
            failure=next((answer.failure for answer in answers if answer.failure), None),
            category=pair.example.category,
        )

    def belongs(self, row: Preference) -> bool:
        """Return whether a preference is from this judge, or a tie of identical answers in a pass of this judge."""
        return row.rubric == PAIR_RUBRIC.name and row.judge in (self.identity, self._unasked)

    def reuse(self, row: Preference) -> Preference:
        """Return a preference with the names of this pass, which may spell the same two paths differently."""
        return row.model_copy(update=self._names)

    def archive(self, path: Path, rows: Sequence[Preference]) -> Path:
        """Move a file and its summary to `earlier/`, and return its new path."""
        name = f"{path.stem}.{to_file_name(f'{rows[0].judge.model}-{_hash(path.read_bytes())[:12]}')}.jsonl"
        target = path.parent / "earlier" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for old, new in ((path, target), (path.with_suffix(".json"), target.with_suffix(".json"))):
            with contextlib.suppress(FileNotFoundError):
                old.replace(new)
        return target


def choose_pair_file(source: Path, baseline: Path, out: Path | None) -> Path:
    """Return the path for preferences: in `out`, otherwise in `pairwise/` in the run or next to the file."""
    run, _ = split_model(source)
    name = _name_answers(baseline, seen_from=source)
    if out is not None or not run.is_dir():
        # The folder may contain preferences between other sets.
        name = f"{_name_answers(source, seen_from=baseline)}-against-{name}"
    folder = out or (run if run.is_dir() else source.parent) / "pairwise"
    return choose_folder(source, folder).path / f"{to_file_name(name)}.jsonl"


def _name_answers(path: Path, *, seen_from: Path) -> str:
    """Return a short name for a set of answers; untuned ones of another run include its name."""
    (run, model), (other_run, _) = split_model(path), split_model(seen_from)
    if not run.is_dir():
        return path.resolve().stem
    if run == path:
        return run.resolve().name
    return model if run.resolve() == other_run.resolve() else f"{run.resolve().name}-{model}"


def to_file_name(name: str) -> str:
    """Return a name as a file name, with special characters replaced.

    >>> to_file_name("runs/full/untuned")
    'runs-full-untuned'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "pairs"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
