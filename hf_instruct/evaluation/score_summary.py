"""The summary of a judge's verdicts, `scores.json`, as all views read it, and which measure these show first."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_instruct.evaluation.intervals import Interval, parse_interval
from hf_instruct.evaluation.metrics import format_metric, label_metric
from hf_instruct.models import parse_num_parameters
from hf_instruct.records import as_number, read_json_object

# Which of a judge's identity makes it another judge. A server's version is told apart only in a note.
JUDGE_IDENTITY = ("backend", "model", "digest", "options")
# With fewer answers the interval of their mean is itself uncertain.
FEW_ANSWERS = 30
# Judges below this hardly tell good answers from bad ones.
_SMALL_JUDGE_PARAMETERS = 3e9
SCORE = "score"
# The metric that leads where a judge's scores should not: it has a value between for a partly right answer.
LEADING_METRIC = "rouge_l"


class Leading(NamedTuple):
    """The measure that every view shows first and sorts by.

    Attributes:
        name: `score`, the name of a reference metric, or empty where there is none to go by.
        reason: Why the judge's scores follow, in a clause; empty where they lead. With a reason no view may say of a
            difference in scores that it is higher or lower.
    """

    name: str
    reason: str

    @property
    def is_metric(self) -> bool:
        """Whether a reference metric leads."""
        return self.name not in (SCORE, "")

    @property
    def label(self) -> str:
        """What the measure is called."""
        return label_metric(self.name)

    def show(self, value: float, *, signed: bool = False) -> str:
        """Return one example's value as it is printed."""
        if self.is_metric:
            return format_metric(self.name, value, signed=signed)
        return f"{value:{'+' if signed else ''}g}"


def choose_leading(weaknesses: Iterable[str], metrics: Collection[str]) -> Leading:
    """Return which measure leads: the judge's scores, unless a judge is too weak.

    Args:
        weaknesses: Of each judge whose scores are shown, as `find_weakness` returns it.
        metrics: Names of the reference metrics that all sets of answers have.

    >>> choose_leading(["", "the judge is a small model (135 million parameters)"], {"rouge_l"}).name
    'rouge_l'
    """
    reason = next(filter(None, weaknesses), "")
    if not reason:
        return Leading(SCORE, "")
    return Leading(LEADING_METRIC if LEADING_METRIC in metrics else "", reason)


def find_weakness(judge: Mapping[str, Any], failed_checks: Sequence[str]) -> str:
    """Return why a judge's scores should not lead, in a clause; empty where they may.

    >>> find_weakness({"model": "smollm2-135m"}, [])
    'the judge is a small model (135 million parameters)'
    """
    if failed_checks:
        return f"the judge failed its self-check ({', '.join(failed_checks)})"
    size = parse_num_parameters(str(judge.get("model") or ""))
    if size is not None and size < _SMALL_JUDGE_PARAMETERS:
        return f"the judge is a small model ({format_parameters(size)} parameters)"
    return ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """One `scores.json`, or one category in it.

    Attributes:
        mean: Mean score from 0 to 100; None when no answer has a score.
        standard_error: Of the mean; None when fewer than two answers have a score.
        n: Answers with a score.
        failures: Answers judged without a readable verdict.
        total: Answers to judge.
        judge: `backend`, `model`, `digest` and the like.
        rubric: Name of the rubric.
        rubric_sha256: Hash of what the rubric asks.
        prompts_sha256: Hash of all prompts that the judge was sent.
        by_category: The same numbers for each category, where the examples have one.
        interval: Ends of the mean's 95 % interval.
        as_zero: Mean with every failure counted as 0; None where that is not known.
        as_full: Mean with every failure counted as 100.
        failed_checks: What this judge failed when it was checked itself.
        constant: The score that the judge gave to every answer; None where it did tell them apart.
        repeats: How often each answer was judged, and what differed; empty for once.
    """

    mean: float | None
    standard_error: float | None
    n: int
    failures: int
    total: int
    judge: dict[str, Any] = dataclasses.field(default_factory=dict)
    rubric: str = ""
    rubric_sha256: str = ""
    prompts_sha256: str = ""
    by_category: "dict[str, Scores]" = dataclasses.field(default_factory=dict)
    interval: Interval | None = None
    as_zero: float | None = None
    as_full: float | None = None
    failed_checks: tuple[str, ...] = ()
    constant: float | None = None
    repeats: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def judge_details(self) -> str:
        """The judge's backend and digest, in brackets after its name; empty where neither is known."""
        details = [str(self.judge["backend"])] if self.judge.get("backend") else []
        if self.judge.get("digest"):
            details.append(f"digest {str(self.judge['digest']).removeprefix('sha256:')[:12]}")
        return f" ({', '.join(details)})" if details else ""

    @property
    def weakness(self) -> str:
        """Why these scores should not lead, in a clause; empty where they may."""
        return find_weakness(self.judge, self.failed_checks)

    @property
    def has_unknown_judge(self) -> bool:
        """Whether the judge is a local model whose name does not tell its size."""
        return self.judge.get("backend") == "local" and parse_num_parameters(str(self.judge.get("model") or "")) is None

    def judged_as(self, other: "Scores") -> bool:
        """Return whether the same judge gave these scores and others, under the same rubric."""
        same_judge = all(self.judge.get(name) == other.judge.get(name) for name in JUDGE_IDENTITY)
        return same_judge and (self.rubric, self.rubric_sha256) == (other.rubric, other.rubric_sha256)


def read_scores(path: Path) -> Scores | None:
    """Return what a `scores.json` holds; None where there is no such file.

    Raises:
        DataError: It holds something else than named values.
    """
    return parse_scores(read_json_object(path)) if path.is_file() else None


def parse_scores(values: Mapping[str, Any]) -> Scores:
    """Return the numbers of a `scores.json`; what is missing or of another type counts as unknown.

    >>> parse_scores({"mean": 50, "n": 3, "total": 4, "failures": 1}).mean
    50.0
    """
    judge, rubric, categories, check = (values.get(n) for n in ("judge", "rubric", "by_category", "self_check"))
    if not isinstance(rubric, Mapping):
        rubric = {"name": rubric}
    n, failures = (_whole(values.get(name)) for name in ("n", "failures"))
    return Scores(
        mean=as_number(values.get("mean")),
        standard_error=as_number(values.get("standard_error")),
        n=n,
        failures=failures,
        total=max(_whole(values.get("total")), n + failures),
        judge=dict(judge) if isinstance(judge, Mapping) else {},
        rubric=str(rubric.get("name") or ""),
        rubric_sha256=str(rubric.get("sha256") or ""),
        prompts_sha256=str(values.get("prompts_sha256") or ""),
        by_category={
            str(name): parse_scores(numbers)
            for name, numbers in (categories.items() if isinstance(categories, Mapping) else ())
            if isinstance(numbers, Mapping)
        },
        interval=parse_interval(values.get("interval")),
        as_zero=as_number(values.get("mean_failures_as_0")),
        as_full=as_number(values.get("mean_failures_as_100")),
        constant=as_number(values.get("mean")) if values.get("constant") is True else None,
        repeats=dict(repeats) if isinstance(repeats := values.get("repeats"), Mapping) else {},
        failed_checks=tuple(map(str, check.get("failed") or ())) if isinstance(check, Mapping) else (),
    )


def format_parameters(count: float) -> str:
    """Return a number of parameters in words.

    >>> format_parameters(135e6), format_parameters(1.7e9)
    ('135 million', '1.7 billion')
    """
    return f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def _whole(value: Any) -> int:
    number = as_number(value)
    return int(number) if number is not None else 0
