"""Ask a judge which of two answers is better, for every example that both sets answer, in both orders."""

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

    preferences: list[Preference]  # one for each example that both answer
    summary: PairSummary  # what they amount to; the content of the file beside the preferences
    corrected: Corrected | None = None  # the win rate as people's votes correct it; None where there are none

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

    Each pair is judged in both orders; where these disagree it is a tie.

    Args:
        first: A `Dataset` or mappings with `instruction`, `input`, `output` and `response` or `model_response`; a run
            folder or a file of them.
        second: The same for the baseline.
        names: What the two sets are called in the rows, and in ratings over several of them.
        judge: `auto`, `ollama`, `local` or `openai`, or a prepared `Judge` of your own.
        out: Folder for a file of preferences, named after the second set, and its summary; what is there already is not
            judged again. None keeps everything in memory.
        cache: Read and write the user's verdict cache.
        settings: Other fields of an experiment's `judge` section, such as `model` or `concurrency`.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The answers are, or the sets have no example in common.
        JudgeError: Judging cannot continue; with `out`, finished judgments are kept.
    """
    values = {**settings, "backend": judge} if isinstance(judge, str) else settings
    section = build_experiment({"judge": values}, where="the arguments of `judge_pairs`", deep=False).judge
    one, two = (
        build_responses(rows, where=f"the answers of {name}") for rows, name in zip((first, second), names, strict=True)
    )
    return prefer(
        join_responses(one, two, names),
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
    """Return the preferences between two sets that are joined already, and write them where `file` says.

    Args:
        joined: The pairs.
        settings: Which judge, and how to ask it.
        options: How to go about it.
        file: Where preferences go, and their summary with the end `.json`; None for nowhere.
        judge: A prepared judge; by default the one of the settings, opened for this.

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
        # As votes mark them: nobody was asked, so measures of agreement leave these out.
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
            # Orders that disagree, or were never asked, are a tie.
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
        """Return whether a preference is this judge's, or a tie of equal answers in a pass of this judge."""
        return row.rubric == PAIR_RUBRIC.name and row.judge in (self.identity, self._unasked)

    def reuse(self, row: Preference) -> Preference:
        """Return a preference with this pass's names, which may spell the same two paths differently."""
        return row.model_copy(update=self._names)

    def archive(self, path: Path, rows: Sequence[Preference]) -> Path:
        """Move a file and its summary to `earlier/`, and return its new name there."""
        name = f"{path.stem}.{to_file_name(f'{rows[0].judge.model}-{_hash(path.read_bytes())[:12]}')}.jsonl"
        kept = path.parent / "earlier" / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old, new in ((path, kept), (path.with_suffix(".json"), kept.with_suffix(".json"))):
            with contextlib.suppress(FileNotFoundError):
                old.replace(new)
        return kept


def choose_pair_file(source: Path, baseline: Path, out: Path | None) -> Path:
    """Return where the preferences go: `pairwise/` in the run or beside the file, or `out`."""
    run, _ = split_model(source)
    name = _name_answers(baseline, seen_from=source)
    if out is not None or not run.is_dir():
        # Others may keep their preferences there.
        name = f"{_name_answers(source, seen_from=baseline)}-against-{name}"
    folder = out or (run if run.is_dir() else source.parent) / "pairwise"
    return choose_folder(source, folder).path / f"{to_file_name(name)}.jsonl"


def _name_answers(path: Path, *, seen_from: Path) -> str:
    """Return a short name for a set of answers; an untuned model's keep their run's name where that is another run."""
    (run, model), (other, _) = split_model(path), split_model(seen_from)
    if not run.is_dir():
        return path.resolve().stem
    if run == path:
        return run.resolve().name
    return model if run.resolve() == other.resolve() else f"{run.resolve().name}-{model}"


def to_file_name(name: str) -> str:
    """Return a name with nothing in it that a file name should not have.

    >>> to_file_name("runs/full/untuned")
    'runs-full-untuned'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "pairs"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
