"""Summarize the judgments of a set of responses: numbers, facts about the judge, and text."""

import hashlib
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_instruct.console import format_interval, format_points, pluralize
from hf_instruct.evaluation.intervals import bootstrap_mean, design_effect
from hf_instruct.evaluation.metrics import format_metric, label_metric
from hf_instruct.evaluation.rubrics import Rubric
from hf_instruct.models import parse_num_parameters
from hf_instruct.schema import CheckOutcome, JudgeIdentity, Judgment, Repeats, RubricName, Scores, ScoreSummary

# Fewer equal scores may be due to chance.
MIN_CONSTANT = 5
# With fewer answers the interval of their mean is itself uncertain.
FEW_ANSWERS = 30
# Smaller judges have to show that they distinguish good answers from bad ones.
_SMALL_JUDGE_PARAMETERS = 3e9
_SHOWN_DIGEST_CHARACTERS = 7
SCORE = "score"
# The metric that leads if a judge's scores should not: unlike exact match, it gives partly right answers some credit.
LEADING_METRIC = "rouge_l"


def build_scores(
    judgments: Sequence[Judgment],
    *,
    rubric: Rubric,
    judge: JudgeIdentity,
    categories: Mapping[str, str | None] | None = None,
    tasks: Mapping[str, str] | None = None,
    equal: Collection[str] = (),
) -> Scores:
    """Summarize judgments.

    Args:
        judgments: One for each response.
        rubric: The rubric.
        judge: The judge.
        categories: Category of each example id, for the scores by category.
        tasks: Instruction of each example id; rows with the same one count as one draw in the intervals.
        equal: Ids of the answers that equal their reference.

    >>> known = {"replies": [], "judge": JudgeIdentity(), "rubric": "course", "prompt_sha256": "", "seconds": 0.0}
    >>> rows = [Judgment(id=str(i), score=s, **known) for i, s in enumerate([80, 60, None])]
    >>> rubric = Rubric(name="course", prompt="{{ instruction }} {{ input }} {{ output }} {{ response }}")
    >>> scores = build_scores(rows, rubric=rubric, judge=JudgeIdentity(backend="local", model="m"))
    >>> scores.mean, scores.standard_error, scores.n, scores.failures, scores.total
    (70.0, 10.0, 2, 1, 3)
    """
    groups: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        if category := (categories or {}).get(judgment.id):
            groups.setdefault(category, []).append(judgment)
    summary = _summarize(judgments, tasks or {})
    equal_scores = [judgment.score for judgment in judgments if judgment.id in equal and judgment.score is not None]
    prompts = "\n".join(judgment.prompt_sha256 for judgment in judgments)
    return Scores(
        **summary,
        constant=summary["n"] >= MIN_CONSTANT and summary["minimum"] == summary["maximum"],
        equal_mean=statistics.fmean(equal_scores) if equal_scores else None,
        equal_n=len(equal_scores),
        judge=judge,
        rubric=RubricName(name=rubric.name, sha256=rubric.sha256),
        prompts_sha256=hashlib.sha256(prompts.encode()).hexdigest(),
        cached=sum(judgment.cached for judgment in judgments),
        seconds=round(sum(judgment.seconds for judgment in judgments), 3),
        by_category={name: ScoreSummary(**_summarize(groups[name], tasks or {})) for name in sorted(groups)},
    )


def _summarize(judgments: Sequence[Judgment], tasks: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a `ScoreSummary`."""
    scores = [judgment.score for judgment in judgments if judgment.score is not None]
    alike = [tasks.get(judgment.id, judgment.id) for judgment in judgments if judgment.score is not None]
    n, total = len(scores), len(judgments)
    return {
        "mean": statistics.fmean(scores) if scores else None,
        # Of the mean: sample standard deviation / square root of n, or of the effective sample size.
        "standard_error": statistics.stdev(scores) / math.sqrt(n / design_effect(scores, alike)) if n > 1 else None,
        "interval": bootstrap_mean(scores, alike),
        "mean_failures_as_0": sum(scores) / total if total else None,
        "mean_failures_as_100": (sum(scores) + 100 * (total - n)) / total if total else None,
        "n": n,
        "failures": total - n,
        "total": total,
        "coverage": n / total if total else None,
        "minimum": min(scores, default=None),
        "median": statistics.median(scores) if scores else None,
        "maximum": max(scores, default=None),
    }


def format_scores(scores: Scores) -> str:
    """Return a score with everything needed to quote it, in one line.

    >>> from hf_instruct.schema import Interval
    >>> judge = JudgeIdentity(model="phi3", digest="365c0bd3c000")
    >>> format_scores(Scores(mean=49.45, standard_error=2.88, interval=Interval(43.8, 55.01), n=110, total=110,
    ...                      judge=judge, rubric=RubricName(name="course")))
    '49.5 ± 2.9 (standard error; 95 % interval 43.8 to 55.0; n 110 of 110, 0 failed; judge phi3@365c0bd, rubric course)'
    """
    about = ["standard error"]
    if scores.standard_error is None:
        about = ["no reply could be parsed" if scores.mean is None else "one verdict has no standard error"]
    if scores.interval:
        about.append(f"95 % interval {format_interval(scores.interval)}")
    about.append(f"n {scores.n} of {scores.total}, {scores.failures} failed")
    if bounds := format_bounds(scores):
        about.append(f"{bounds} with each failure counted as 0 or as 100")
    if scores.constant:
        about.append("every answer got the same score")
    if references := describe_references(scores):
        about.append(references)
    about.append(f"judge {label_judge(scores.judge, scores.rubric)}")
    if scores.self_check:
        about.append(f"the judge {describe_check(scores.self_check)}")
    return f"{format_mean(scores)} ({'; '.join(about)})"


def format_bounds(scores: ScoreSummary, joint: str = " to ") -> str:
    """Return the bounds of the mean if every failure counts as 0 or as 100; empty without failures."""
    ends = scores.mean_failures_as_0, scores.mean_failures_as_100
    if not scores.failures or None in ends:
        return ""
    return joint.join(format_points(end) for end in ends if end is not None)


def build_repeats(repeats: Sequence[Sequence[Judgment]], *, seeds: Sequence[int | None]) -> Repeats:
    """Return statistics of the judgments of several repeats.

    Args:
        repeats: The judgments of each repeat, the same responses in the same order.
        seeds: The seed of each repeat; None if it was left to the server.

    >>> known = {"replies": [], "judge": JudgeIdentity(), "rubric": "", "prompt_sha256": "", "seconds": 0.0}
    >>> rows = [[Judgment(id="a", score=s, **known), Judgment(id="b", score=50, **known)] for s in (60, 80)]
    >>> found = build_repeats(rows, seeds=[1, 2])
    >>> found.means, found.mean, found.spread, found.changed, found.means_standard_deviation
    ([55.0, 65.0], 60.0, 10.0, 0.5, 7.0710678118654755)
    """
    scored = [[row.score for row in rows if row.score is not None] for rows in repeats]
    means = [statistics.fmean(scores) if scores else None for scores in scored]
    defined = [mean for mean in means if mean is not None]
    verdicts = [[row.score for row in rows] for rows in zip(*repeats, strict=True)]
    examples = [[score for score in scores if score is not None] for scores in verdicts]
    example_means = [statistics.fmean(scores) for scores in examples if scores]
    variances = [statistics.variance(scores) for scores in examples if len(scores) > 1]
    return Repeats(
        count=len(repeats),
        seeds=list(seeds),
        means=means,
        n=[len(scores) for scores in scored],
        failures=[len(rows) - len(scores) for rows, scores in zip(repeats, scored, strict=True)],
        mean=statistics.fmean(example_means) if example_means else None,
        interval=bootstrap_mean(example_means),
        spread=math.sqrt(statistics.fmean(variances)) if variances else None,
        changed=sum(len(set(scores)) > 1 for scores in verdicts) / len(verdicts) if verdicts else None,
        means_standard_deviation=statistics.stdev(defined) if len(defined) > 1 else None,
    )


def format_repeats(scores: Scores) -> str:
    """Return the repeats of scores as lines of text; empty if there are none."""
    repeats = scores.repeats
    if not repeats:
        return ""
    means = ", ".join("no score" if mean is None else format_points(mean) for mean in repeats.means)
    seeds = ", ".join("the server's default" if seed is None else str(seed) for seed in repeats.seeds)
    lines = [f"{repeats.count} repeats (seeds {seeds}): means {means}"]
    if repeats.mean is not None:
        ends = f", 95 % interval {format_interval(repeats.interval)}" if repeats.interval else ""
        lines.append(f"mean over the repeats {format_points(repeats.mean)}{ends}")
    if repeats.spread is not None:
        spread = f"variation of the judge: {format_points(repeats.spread)} points per example"
        if repeats.means_standard_deviation is not None:
            spread += f", {format_points(repeats.means_standard_deviation)} points per mean"
        lines.append(f"{spread}; {100 * (repeats.changed or 0):.0f} % of the verdicts changed")
        if scores.judge.backend == "local":
            lines.append("The local judge is deterministic, so one repeat is enough.")
        elif scores.judge.options.get("temperature") == 0:
            lines.append(
                "At temperature 0 the variation only comes from the server; `--judge.temperature 0.7` shows how "
                "certain the judge is."
            )
    return "\n".join(lines)


class Leading(NamedTuple):
    """The measure that all views show first and sort by.

    Attributes:
        name: `score`, or the name of a reference metric; empty if there is neither.
        reason: Why the judge's scores do not lead, in a clause; empty if they do. With a reason, no view may call a
            difference in scores higher or lower.
    """

    name: str
    reason: str

    @property
    def is_metric(self) -> bool:
        """Whether a reference metric leads."""
        return self.name not in (SCORE, "")

    @property
    def label(self) -> str:
        """The display name of the measure."""
        return label_metric(self.name)

    def show(self, value: float, *, signed: bool = False) -> str:
        """Return one example's value as printed."""
        if self.is_metric:
            return format_metric(self.name, value, signed=signed)
        return f"{value:{'+' if signed else ''}g}"


def choose_leading(weaknesses: Iterable[str], metrics: Collection[str], *, is_scored: bool = True) -> Leading:
    """Return the leading measure: the judge's scores, unless there are none or a judge is too weak.

    Args:
        weaknesses: The result of `find_weakness` for each judge whose scores are shown.
        metrics: Names of the reference metrics that all sets of answers have.
        is_scored: Whether there are scores.

    >>> choose_leading(["", "the judge is of unknown size and unchecked"], {"rouge_l"}).name
    'rouge_l'
    """
    reason = next(filter(None, weaknesses), "") if is_scored else ""
    if is_scored and not reason:
        return Leading(SCORE, "")
    return Leading(LEADING_METRIC if LEADING_METRIC in metrics else "", reason)


def find_weakness(judge: JudgeIdentity, self_check: CheckOutcome | None) -> str:
    """Return why a judge's scores should not lead, in a clause; empty if they may.

    A judge that passed its check may lead, whatever its size.

    >>> find_weakness(JudgeIdentity(model="smollm2-135m"), None)
    'the judge is small (135 million parameters) and unchecked'
    """
    if self_check and not self_check.probes and self_check.passed:
        # A check by an older version, which useless judges passed too.
        self_check = None
    if self_check and self_check.passed is not None:
        return "" if self_check.passed else f"the judge {describe_check(self_check)}"
    size = parse_num_parameters(judge.model)
    if size is not None and size >= _SMALL_JUDGE_PARAMETERS:
        return ""
    what = "of unknown size"
    if size is not None:
        count = f"{size / 1e9:.3g} billion" if size >= 1e9 else f"{size / 1e6:.3g} million"
        what = f"small ({count} parameters)"
    return f"the judge is {what} and {'unchecked' if self_check is None else describe_check(self_check)}"


def describe_check(outcome: CheckOutcome) -> str:
    """Return the result of a judge's check, as a clause after its name.

    >>> describe_check(CheckOutcome(passed=True, failed=[], n=20))
    'passed its check on 20 examples'
    """
    if outcome.passed is None:
        return f"was checked on only {outcome.n} examples, which is too few"
    if outcome.passed:
        return f"passed its check on {outcome.n} examples"
    more = f" (and {len(outcome.failed) - 1} more)" if len(outcome.failed) > 1 else ""
    return f"failed its check on {outcome.n} examples: {outcome.failed[0]}{more}"


def describe_references(scores: Scores) -> str:
    """Describe the judge's scores of answers equal to the reference, for comparison; empty if unknown."""
    if scores.equal_mean is not None:
        mean = format_points(scores.equal_mean)
        return f"answers equal to the reference scored {mean} on average (n={scores.equal_n})"
    check = scores.self_check
    if check and check.reference_mean is not None:
        return f"the references themselves scored {format_points(check.reference_mean)} on average (n={check.n})"
    return ""


def format_mean(scores: ScoreSummary | None) -> str:
    """Return a mean with its standard error, as in `49.6 ± 2.8`; empty if nothing was judged."""
    if scores is None:
        return ""
    if scores.mean is None:
        return "no score"
    error = "" if scores.standard_error is None else f" ± {format_points(scores.standard_error)}"
    return f"{format_points(scores.mean)}{error}"


def format_counts(scores: ScoreSummary) -> str:
    """Return how many answers have a score: `n=109 of 110, 1 failure`."""
    failures = f", {pluralize(scores.failures, 'failure')}" if scores.failures else ""
    return f"n={scores.n} of {scores.total}{failures}"


def identify_judge(judge: JudgeIdentity) -> dict[str, Any]:
    """Return the fields that identify a judge: all except the version of its server."""
    return {name: value for name, value in judge.to_dict().items() if name != "server_version"}


def label_judge(judge: JudgeIdentity, rubric: RubricName | None = None) -> str:
    """Return a label of the judge and the rubric on one line, with only the last part of a local path.

    >>> label_judge(JudgeIdentity(backend="ollama", model="llama3", digest="365c0bd3c000"), RubricName(name="course"))
    'llama3@365c0bd (ollama), rubric course'
    """
    digest = (judge.digest or "").removeprefix("sha256:")[:_SHOWN_DIGEST_CHARACTERS]
    label = (short_name(judge.model) or "unnamed judge") + (f"@{digest}" if digest else "")
    label += f" ({judge.backend})" if judge.backend else ""
    if rubric is None or not rubric.name:
        return label
    return f"{label}, rubric {rubric.name}" + (f"@{rubric.sha256[:_SHOWN_DIGEST_CHARACTERS]}" if rubric.sha256 else "")


def short_name(name: str) -> str:
    """Return the last part of a local path; a Hub id or an alias is returned unchanged.

    >>> short_name("./models/SmolLM2/"), short_name("Qwen/Qwen3-8B")
    ('SmolLM2', 'Qwen/Qwen3-8B')
    """
    return Path(name).name if name.startswith(("/", ".", "~")) else name
