"""A judge's mean, corrected by people's scores of some of the same answers: prediction-powered inference.

A judge scores all answers, perhaps with a bias; people score a random sample of them. The difference between the two on
this sample corrects the judge's mean over all answers, however good or bad the judge is. The interval is narrow if the
judge's scores are close to people's, and never much wider than that of people's scores alone.

Source: Angelopoulos et al., Prediction-Powered Inference, Science 382, 2023, with the weight of PPI++ (Angelopoulos,
Duchi and Zrnic, https://arxiv.org/abs/2311.01453). `python -m benchmarks.coverage` shows how often the intervals cover.
"""

import dataclasses
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hf_instruct.console import format_interval, format_points, format_signed
from hf_instruct.evaluation.intervals import FEWEST, bounded_interval
from hf_instruct.evaluation.verdict_table import PERSON
from hf_instruct.records import build_example_id, read_rows
from hf_instruct.run_folder import RunFolder, split_model
from hf_instruct.schema import Interval, Judgment, Preference, Response


@dataclasses.dataclass(frozen=True)
class Corrected:
    """A judge's mean over all answers, corrected by people's verdicts on some of them."""

    mean: float | None  # None if people gave fewer than `FEWEST` verdicts
    interval: Interval | None  # 95 %
    n: int  # answers with a verdict by people
    total: int  # all answers
    excess: float | None  # the judge's mean minus people's, over the answers with both verdicts

    def describe(self, noun: str = "answers", *, signed: bool = False) -> str:
        """Return the mean in points with its interval, or how many verdicts are needed for one.

        >>> Corrected(52.3, Interval(44.1, 60.5), 40, 110, 14.8).describe()
        '52.3 (95 % interval 44.1 to 60.5; people scored 40 of 110 answers, and the judge gave these 14.8 more)'
        """
        counts = f"people scored {self.n} of {self.total} {noun}"
        if self.mean is None or self.interval is None:
            return f"{counts}; from {FEWEST} on these correct the judge's mean"
        if not signed and self.excess is not None:
            more = "more" if self.excess >= 0 else "less"
            counts += f", and the judge gave these {format_points(abs(self.excess))} {more}"
        mean = format_signed(self.mean) + " points" if signed else format_points(self.mean)
        return f"{mean} (95 % interval {format_interval(self.interval, signed=signed)}; {counts})"


class Labelled(NamedTuple):
    """The verdicts of a judge and of people on the same answers, or on the same pairs of answers.

    Attributes:
        judged: The judge's verdict by id; None if it gave none.
        people: People's verdict by id, on a random sample of these.
        scale: The smallest and the largest possible value.
    """

    judged: Mapping[str, float | None]
    people: Mapping[str, float]
    scale: Interval = Interval(0.0, 100.0)

    def subtract(self, base: "Labelled") -> "Labelled":
        """Return these verdicts minus others on the same examples, id by id."""
        judged = {
            id: None if score is None or (base_score := base.judged[id]) is None else score - base_score
            for id, score in self.judged.items()
            if id in base.judged
        }
        people = {id: score - base.people[id] for id, score in self.people.items() if id in base.people}
        reach = self.scale.high - base.scale.low
        return Labelled(judged, people, Interval(-reach, reach))

    def correct(self) -> Corrected | None:
        """Return the mean over all answers as people would give it; None if people, or the judge, gave no verdict.

        An answer without a verdict by the judge counts as the judge's mean, so that people's verdicts on such answers
        are part of the corrected mean.
        """
        import numpy

        labels = {id: score for id, score in self.people.items() if id in self.judged}
        scores = [score for score in self.judged.values() if score is not None]
        n, total = len(labels), len(self.judged)
        if not labels or not scores:
            return None
        if n < FEWEST:
            return Corrected(None, None, n, total, None)
        middle = statistics.fmean(scores)
        guesses = {id: middle if score is None else score for id, score in self.judged.items()}
        people, judged = numpy.array([(score, guesses[id]) for id, score in labels.items()]).T
        others = numpy.array([score for id, score in guesses.items() if id not in labels])
        # The weight of the judge: 0 if it is uninformative, or if people have scored all answers.
        spread, weight = numpy.var(list(guesses.values()), ddof=1), 0.0
        if len(others) > 1 and spread:
            weight = float(numpy.clip(numpy.cov(people, judged)[0, 1] / spread * len(others) / total, 0, 1))
        left = people - weight * judged
        mean, variance = left.mean(), left.var(ddof=2) / n
        if weight:
            mean, variance = mean + weight * others.mean(), variance + weight**2 * others.var(ddof=1) / len(others)
        mean = float(numpy.clip(mean, *self.scale))
        interval = bounded_interval(mean, float(variance), n, self.scale)
        both = [score - label for id, label in labels.items() if (score := self.judged[id]) is not None]
        return Corrected(mean, interval, n, total, statistics.fmean(both) if both else None)


def hash_answer(row: Response) -> str:
    """Return the hash of an example and an answer to it."""
    return build_example_id(row.instruction, row.input, row.output, row.response)


def read_people(folder: RunFolder, responses: Iterable[Response]) -> dict[str, float]:
    """Return people's scores of responses by id; the mean, if several people scored one.

    Scores of answers that have been generated again since then do not count.
    """
    if not folder.people.is_file():
        return {}
    answers = {(row.model, row.id): hash_answer(row) for row in responses}
    scores_by_id: dict[str, list[int]] = {}
    for row in read_rows(folder.people, Judgment):
        if row.score is not None and answers.get((row.model, row.id)) == row.prompt_sha256:
            scores_by_id.setdefault(row.id, []).append(row.score)
    return {id: statistics.fmean(scores) for id, scores in scores_by_id.items()}


def correct_win_rate(file: Path, preferences: Sequence[Preference]) -> Corrected | None:
    """Return a judge's win rate corrected by votes on the same two sets of answers; None without votes.

    Args:
        file: The file of the preferences, in a run's `pairwise/`; votes are read from that run and the other one.
        preferences: The judge's preferences on one pair of sets.
    """
    if not preferences:
        return None
    sides = {row.id: ((row.first, row.first_length), (row.second, row.second_length)) for row in preferences}
    folders = _list_vote_folders(file.parent.parent, preferences[0])
    votes: dict[str, list[float]] = {}
    for path in {path.resolve() for folder in folders for path in folder.glob("votes*.jsonl")}:
        for row in read_rows(path, Preference):
            pair = (row.first, row.first_length), (row.second, row.second_length)
            if row.score is None or row.judge.backend != PERSON or sides.get(row.id) not in (pair, pair[::-1]):
                continue
            votes.setdefault(row.id, []).append(row.score if sides[row.id] == pair else 1 - row.score)
    people = {id: statistics.fmean(scores) for id, scores in votes.items()}
    return Labelled({row.id: row.score for row in preferences}, people, Interval(0.0, 1.0)).correct()


def _list_vote_folders(home: Path, named: Preference) -> list[Path]:
    """Return the folders that may contain votes on two sets: the run with the judge's preferences, and the other one.

    Relative names are relative to the folder in which the judge was started, which need not be the current one. The
    other run is therefore also looked up relative to the first.
    """
    first, second = Path(named.first), Path(named.second)
    # A set is named after its run, or after a model or a file in it.
    start = first if first.name == home.resolve().name else first.parent
    others = [second]
    if not (start.is_absolute() or second.is_absolute()):
        others.append(Path(os.path.normpath(home / os.path.relpath(second, start))))
    return [home, *(split_model(path)[0] for path in others)]
