"""Ask a judge which of two answers is better, for every example that both sets answer, in both orders."""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.config import JudgeSection, build_experiment
from hf_instruct.evaluation.cache import cache_key
from hf_instruct.evaluation.factory import opened_judge
from hf_instruct.evaluation.judges import Judge
from hf_instruct.evaluation.judgment_files import build_responses
from hf_instruct.evaluation.loop import JudgeOptions, JudgingLoop
from hf_instruct.evaluation.pair_scores import build_pair_scores, format_pair_scores
from hf_instruct.evaluation.pairing import JoinedPairs, Pair, is_identical, join_responses
from hf_instruct.evaluation.pairs import RUBRIC, PairQuestion, build_questions
from hf_instruct.evaluation.retries import Answer
from hf_instruct.evaluation.scoring import run_sync
from hf_instruct.evaluation.verdicts import parse_preference
from hf_instruct.records import Preference, Response, write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreferenceSet:
    """The preferences between two sets of answers.

    Attributes:
        preferences: One for each example that both answer.
        summary: What they amount to; the content of the file beside the preferences.
    """

    preferences: list[Preference]
    summary: dict[str, Any]

    def __str__(self) -> str:
        return format_pair_scores(self.summary)


@dataclasses.dataclass(frozen=True)
class PairFiles:
    """The files that judging two sets of answers writes.

    Attributes:
        folder: Where they lie.
        name: Their name without its end, such as the baseline's.
    """

    folder: Path
    name: str

    @property
    def preferences(self) -> Path:
        """`Preference` rows."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def summary(self) -> Path:
        """What they amount to."""
        return self.folder / f"{self.name}.json"

    def set_aside(self, label: str) -> Path:
        """Move both files to names of their own in `earlier/`, where nothing takes them for the present ones.

        Returns:
            The new name of the preferences.
        """
        kept, number = self.folder / "earlier" / f"{self.name}.{label}.jsonl", 1
        while kept.exists():
            number += 1
            kept = kept.with_name(f"{self.name}.{label}-{number}.jsonl")
        kept.parent.mkdir(parents=True, exist_ok=True)
        self.preferences.replace(kept)
        if self.summary.exists():
            self.summary.replace(kept.with_suffix(".json"))
        return kept


def judge_pairs(
    first: Iterable[Response | Mapping[str, Any]],
    second: Iterable[Response | Mapping[str, Any]],
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
        first: `Response` rows, or mappings with `instruction`, `input`, `output` and `response` or `model_response`.
        second: The same for the baseline.
        names: What the two sets are called in the rows, and in ratings over several of them.
        judge: `auto`, `ollama`, `local` or `openai`, or a prepared `Judge` of your own.
        out: Folder for a file of preferences, named after the second set, and its summary; what is there already is not
            judged again. None keeps everything in memory.
        cache: Take verdicts from the user's cache and add to it.
        settings: Other fields of an experiment's `judge` section, such as `model` or `concurrency`.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The answers are, or the sets have no example in common.
        JudgeError: Judging cannot go on; with `out`, what was judged is kept.
    """
    values = {**settings, "backend": judge} if isinstance(judge, str) else settings
    section = build_experiment({"judge": values}, where="the arguments of `judge_pairs`", deep=False).judge
    one, two = (
        build_responses(rows, where=f"the answers of {name}") for rows, name in zip((first, second), names, strict=True)
    )
    joined = join_responses(one, two, names=names)
    files = None if out is None else PairFiles(Path(out), to_file_name(names[1]))
    options = JudgeOptions(use_cache=cache)
    used = None if isinstance(judge, str) else judge
    return prefer(joined, section, names=names, files=files, options=options, judge=used)


def prefer(
    joined: JoinedPairs,
    settings: JudgeSection,
    *,
    names: tuple[str, str],
    files: PairFiles | None = None,
    options: JudgeOptions | None = None,
    judge: Judge | None = None,
) -> PreferenceSet:
    """Return the preferences between two sets that are joined already, and write them where `files` says.

    Args:
        joined: The pairs.
        settings: Which judge, and how to ask it.
        names: What the two sets are called.
        files: Where preferences and summary go; None for nowhere.
        options: How to go about it.
        judge: A prepared judge; by default the one of the settings, opened for this.

    Raises:
        JudgeError: Judging cannot go on; the text says how many pairs are judged, and how to go on.
    """
    options = options or JudgeOptions()

    async def work() -> PreferenceSet:
        async with opened_judge(settings, judge) as used:
            loop = _PairLoop(used, joined.pairs, names=names, files=files, options=options)
            preferences = await loop.run(settings.concurrency)
            identity = used.identity()
        summary = build_pair_scores(preferences, names=names, joined=joined, judge=identity)
        if files:
            write_json(files.summary, summary)
        return PreferenceSet(preferences, summary)

    return run_sync(work())


def to_file_name(name: str) -> str:
    """Return a name with nothing in it that a file name should not have.

    >>> to_file_name("runs/full/base")
    'runs-full-base'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "pairs"


class _PairLoop(JudgingLoop[Preference]):
    """One pass of a judge over pairs of answers."""

    row_type = Preference
    words = ("pairs", "preferences", "verdict")

    def __init__(
        self,
        judge: Judge,
        pairs: Sequence[Pair],
        *,
        names: tuple[str, str],
        files: PairFiles | None,
        options: JudgeOptions,
    ) -> None:
        self._pairs = {pair.id: pair for pair in pairs}
        file = files.preferences if files else None
        super().__init__(judge, list(self._pairs), file=file, options=options, title="Judging pairs")
        self._questions = {pair.id: build_questions(pair) for pair in pairs}
        self._names = names
        self._files = files

    def _reuse(self) -> None:
        super()._reuse()
        if self._options.force:
            # Forgotten, not passed over: whoever goes on after an interruption leaves `force` out.
            self._cache.forget(
                cache_key(question, self._identity) for both in self._questions.values() for question in both
            )
        # The file's own pair of names may be another way to write the same two paths.
        first, second = self._names
        self._done = {id: dataclasses.replace(row, first=first, second=second) for id, row in self._done.items()}

    def _set_aside(self, rows: Sequence[Preference]) -> Path:
        assert self._files is not None
        asked = hashlib.sha256("".join(f"{row.prompt_sha256}{row.judge}" for row in rows).encode()).hexdigest()
        return self._files.set_aside(to_file_name(f"{rows[0].judge.get('model', 'judge')}-{asked[:6]}"))

    def _would_repeat(self, row: Preference) -> bool:
        questions = self._questions.get(row.id)
        if questions is None or row.prompt_sha256 != _hash(questions) or row.rubric != RUBRIC:
            return False
        return row.judge in (self._identity, self._describe_judge(identical=True))

    def _describe_judge(self, *, identical: bool) -> dict[str, Any]:
        if not identical:
            return self._identity
        # As votes mark them: nobody was asked, so measures of agreement leave these out.
        return {**self._identity, "options": {**(self._identity.get("options") or {}), "equal_answers": True}}

    async def _judge(self, id: str) -> Preference:
        pair, questions = self._pairs[id], self._questions[id]
        orders: list[float | None] = []
        answers: list[Answer[float]] = []
        if not pair.identical:
            answers = [await self._ask(question, f"{pair.first}\n{pair.second}") for question in questions]
            first, second = (answer.value for answer in answers)
            orders = [first, None if second is None else 1 - second]
        failures = [answer.failure for answer in answers if answer.failure]
        return Preference(
            id=pair.id,
            first=self._names[0],
            second=self._names[1],
            score=combine_orders(orders),
            judge=self._describe_judge(identical=pair.identical),
            rubric=RUBRIC,
            orders=orders,
            replies=[answer.replies[-1] if answer.replies else "" for answer in answers],
            first_length=len(pair.first),
            second_length=len(pair.second),
            prompt_sha256=_hash(questions),
            seconds=round(sum(answer.seconds for answer in answers), 4),
            failure=failures[0] if failures else None,
            category=pair.example.category,
        )

    async def _ask(self, question: PairQuestion, judged: str) -> Answer[float]:
        """Return whether the answer shown first is better: 1, 0, or 0.5 for a tie."""
        key = cache_key(question, self._identity)
        if known := self._cache.find(key):
            return Answer(float(known["score"]), known["replies"])
        answer = await self._asker.ask(question, lambda reply: parse_preference(reply.text, judged))
        if answer.value is not None:
            self._cache.add([(key, {"score": answer.value, "replies": answer.replies})])
        return answer

    def _add_to_sums(self, row: Preference) -> None:
        if is_identical(row):
            return
        self._sums.update({"failed": 1} if row.score is None else {"read": 1, "same": row.orders[0] == row.orders[1]})

    def _note(self) -> str:
        read, same, failed = (self._sums[name] for name in ("read", "same", "failed"))
        note = f"{100 * same / read:.0f} % alike in both orders" if read else ""
        return f"{note}, {failed} failed".lstrip(", ") if failed else note


def combine_orders(orders: Sequence[float | None]) -> float | None:
    """Return the score of a pair by its score in each order; orders that disagree, or were never asked, are a tie.

    >>> [combine_orders(orders) for orders in ([1, 1], [0, 0], [1, 0], [1, 0.5], [1, None], [])]
    [1, 0, 0.5, 0.5, None, 0.5]
    """
    if not orders:
        return 0.5
    if None in orders:
        return None
    return orders[0] if orders[0] == orders[1] else 0.5


def _hash(questions: Sequence[PairQuestion]) -> str:
    return hashlib.sha256("".join(question.sha256 for question in questions).encode()).hexdigest()
