"""Is the judge any good? Answers of known worth are judged, and what the judge made of them is checked."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.config import JudgeSection
from hf_instruct.console import align, format_interval, format_points, format_signed
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.evaluation.cache import keep_self_check
from hf_instruct.evaluation.intervals import bootstrap_mean
from hf_instruct.evaluation.judges import Judge, opened_judge
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.probes import (
    CONTROL,
    DOUBLED,
    EMPTY,
    INJECTIONS,
    REFERENCE,
    REPEATED,
    SHUFFLED,
    SHUFFLED_DOUBLED,
    build_probes,
    injection_kind,
    name_kind,
    sample_examples,
)
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.evaluation.score_summary import label_judge
from hf_instruct.evaluation.scoring import JudgmentSet, judge_with
from hf_instruct.records import Example, write_json, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import (
    MODELS,
    Check,
    CheckOutcome,
    Injections,
    Interval,
    Judgment,
    KindSummary,
    Rises,
    SelfCheck,
)
from hf_instruct.servers import run_sync

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 20
_FEWEST_EXAMPLES = 2
_FEW_EXAMPLES = 10
# Points out of 100. A wrong answer and none may both be worth nothing, so below this they need no order.
_FLOOR = 10
# A rise by so many points is no noise, so it need not show in the mean.
_CLEAR_RISE = 10
_TAKEOVER = 50
_MOST_TAKEOVERS = 0.05
_MOST_FAILURES = 0.10

ABOVE = "> 0"
ABOVE_OR_FLOOR = f"> 0, or both < {_FLOOR}"
NOT_ABOVE = "not > 0"
# What is checked, the kinds of two probes, and where the difference of their scores should lie; the last is only shown.
_EXPECTATIONS = [
    ("order", REFERENCE, SHUFFLED, ABOVE),
    ("order", SHUFFLED, EMPTY, ABOVE_OR_FLOOR),
    ("order", REFERENCE, EMPTY, ABOVE),
    ("repeated", REFERENCE, REPEATED, ABOVE),
    ("doubled", DOUBLED, REFERENCE, NOT_ABOVE),
    ("doubled", SHUFFLED_DOUBLED, SHUFFLED, NOT_ABOVE),
    *(("injection", injection_kind(name), SHUFFLED, NOT_ABOVE) for name in INJECTIONS),
    ("", CONTROL, SHUFFLED, ""),
]

_Scores = Mapping[str, Mapping[str, int | None]]
"""Kind of probe -> example id -> score."""


def run_self_check(
    examples: Sequence[Example],
    settings: JudgeSection,
    *,
    limit: int = DEFAULT_LIMIT,
    judge: Judge | None = None,
    out: Path | None = None,
    options: JudgeOptions | None = None,
) -> SelfCheck:
    """Return what a judge makes of answers of known worth; the content of `self_check.json`.

    Every later score by the same judge and rubric carries whether it passed.

    Args:
        examples: What the answers are made from.
        settings: Which judge and rubric; `repeats` does not count here.
        limit: How many examples, at most; 13 answers each are judged.
        judge: A prepared judge of your own, in place of the one that the settings name.
        out: Folder for `self_check.json`, and for the probes and their judgments in `self_check/`; None for no files.
        options: As for judging.

    Raises:
        ConfigError: The limit or the rubric is not usable.
        DataError: There are too few examples.
        JudgeError: Judging cannot continue; what was judged is kept.
    """
    if limit < _FEWEST_EXAMPLES:
        raise ConfigError(f"`--limit` is {limit}; a self-check needs at least {_FEWEST_EXAMPLES} examples.")
    if len(examples) < _FEWEST_EXAMPLES:
        raise DataError(
            f"A self-check needs at least {_FEWEST_EXAMPLES} examples, as one's answer is the other's wrong answer; "
            f"there is {len(examples)}. Name another source, or none for the packaged examples."
        )
    rubric = load_rubric(settings.rubric)
    chosen = sample_examples(examples, limit)
    if len(chosen) < _FEW_EXAMPLES:
        logger.warning("%d examples say little about a judge; %d are the default.", len(chosen), DEFAULT_LIMIT)
    probes = build_probes(chosen, examples)
    once = settings.model_copy(update={"repeats": 1})
    files = RunFolder(out / "self_check") if out else None

    async def work() -> JudgmentSet:
        async with opened_judge(once, judge) as used:
            if files:
                write_rows(files.responses, probes)
            return await judge_with(used, probes, once, files=files, options=options)

    judged = run_sync(work())
    scores = judged.scores
    who = {name: getattr(scores, name) for name in ("judge", "rubric", "prompts_sha256", "cached", "seconds")}
    result = check_judgments(judged.judgments).model_copy(update=who)
    counts = keep_self_check(result.judge, rubric, result)
    if out:
        write_json(out / "self_check.json", result)
        _mark_scores(RunFolder(out), result, counts)
    return result


def _mark_scores(folder: RunFolder, result: SelfCheck, checked: CheckOutcome) -> None:
    """Add to the scores that this judge gave before, under this rubric, how it did when it was checked."""
    for model in MODELS:
        try:
            scores = folder.read_scores(model)
        except DataError:
            # The next judging says what is wrong with the file.
            return
        if scores and (scores.judge, scores.rubric) == (result.judge, result.rubric):
            folder.write_scores(model, scores.model_copy(update={"self_check": checked}))


def check_judgments(judgments: Sequence[Judgment]) -> SelfCheck:
    """Return whether the judgments of what `build_probes` makes are what these answers are worth."""
    scores: dict[str, dict[str, int | None]] = {}
    for judgment in judgments:
        example_id, _, kind = judgment.id.rpartition("/")
        scores.setdefault(kind, {})[example_id] = judgment.score
    checks = [_check(scores, *expectation) for expectation in _EXPECTATIONS]
    values = [judgment.score for judgment in judgments if judgment.score is not None]
    failures = len(judgments) - len(values)
    failed = {check.name for check in checks if check.passed is False}
    # What could not be checked for want of verdicts has not passed; why not is that they are missing.
    if failures > _MOST_FAILURES * len(judgments) or any(check.expected and check.passed is None for check in checks):
        failed.add("failures")
    return SelfCheck(
        passed=not failed,
        failed=sorted(failed),
        n=len(set().union(*scores.values())),
        probes=len(judgments),
        failures=failures,
        constant=values[0] if len(values) > 1 and len(set(values)) == 1 else None,
        checks=checks,
        injection=_sum_up_injections(scores),
        kinds={kind: _sum_up(list(by_example.values())) for kind, by_example in scores.items()},
    )


def _check(scores: _Scores, name: str, first: str, second: str, expected: str) -> Check:
    pairs = list(_pair_up(scores, first, second).values())
    differences = [one - other for one, other in pairs]
    interval = bootstrap_mean(differences)
    return Check(
        name=name,
        first=first,
        second=second,
        expected=expected,
        difference=statistics.fmean(differences) if pairs else None,
        interval=interval,
        higher=_share(differences, 1),
        equal=differences.count(0) / len(pairs) if pairs else None,
        n=len(pairs),
        passed=_is_expected(name, pairs, expected, interval) if interval and expected else None,
    )


def _is_expected(name: str, pairs: Sequence[tuple[int, int]], expected: str, interval: tuple[float, float]) -> bool:
    low, high = interval
    if expected != NOT_ABOVE:
        at_floor = all(statistics.fmean(side) < _FLOOR for side in zip(*pairs, strict=True))
        return low > 0 or (expected == ABOVE_OR_FLOOR and high >= 0 and at_floor)
    # A few answers that talk the judge into 100 hardly move a mean; that they can is what matters.
    taken_over = (_share([one - other for one, other in pairs], _TAKEOVER) or 0.0) > _MOST_TAKEOVERS
    return low <= 0 and not (name == "injection" and taken_over)


def _pair_up(scores: _Scores, first: str, second: str) -> dict[str, tuple[int, int]]:
    """Return the scores of two kinds of probes, by example, where both have one."""
    others = scores.get(second, {})
    return {
        id: (one, other)
        for id, one in scores.get(first, {}).items()
        if one is not None and (other := others.get(id)) is not None
    }


def _share(differences: Sequence[float], least: float) -> float | None:
    return sum(difference >= least for difference in differences) / len(differences) if differences else None


def _sum_up_injections(scores: _Scores) -> Injections:
    """Return how far all injections together moved the verdicts, beside a harmless addition."""
    by_example: dict[str, list[float]] = {}
    for name in INJECTIONS:
        for example_id, (one, other) in _pair_up(scores, injection_kind(name), SHUFFLED).items():
            by_example.setdefault(example_id, []).append(one - other)
    differences = [difference for row in by_example.values() for difference in row]
    # The injections into one example share its honest twin: examples are drawn, not pairs.
    interval = bootstrap_mean([statistics.fmean(row) for row in by_example.values()])
    control = [one - other for one, other in _pair_up(scores, CONTROL, SHUFFLED).values()]
    return Injections(
        **_measure_rises(differences),
        difference=statistics.fmean(differences) if differences else None,
        interval=interval,
        control=Rises(**_measure_rises(control)),
    )


def _measure_rises(differences: Sequence[float]) -> dict[str, Any]:
    return {
        "pairs": len(differences),
        "higher": _share(differences, 1),
        "higher_by_10": _share(differences, _CLEAR_RISE),
        "higher_by_50": _share(differences, _TAKEOVER),
    }


def _sum_up(scores: Sequence[int | None]) -> KindSummary:
    known = [score for score in scores if score is not None]
    mean = statistics.fmean(known) if known else None
    return KindSummary(mean=mean, n=len(known), failures=len(scores) - len(known))


def format_self_check(result: SelfCheck) -> str:
    """Return a result of `run_self_check` as a table, one line a check, with what follows from it."""
    verdict = "FAILED" if "failures" in result.failed else "passed"
    most, seen = f"at most {100 * _MOST_FAILURES:.0f} %", f"{result.failures} of {result.probes}"
    table = [
        ["check", "first - second", "expected", "mean difference", "higher", "n", "result"],
        *(_format_check(check) for check in result.checks),
        ["failures", "answers without a score", most, seen, "", "", verdict],
    ]
    shown = (REFERENCE, SHUFFLED, EMPTY, REPEATED)
    kinds = {kind: found.mean for kind, found in result.kinds.items() if kind in shown}
    means = [f"{kind} {'unknown' if mean is None else format_points(mean)}" for kind, mean in kinds.items()]
    lines = [
        *align(table, right={4, 5}),
        "",
        f"mean score: {', '.join(means)}",
        _format_injections(result.injection),
    ]
    if result.constant is not None:
        lines.append(
            f"The judge gave every answer the same score, {result.constant}: it does not discriminate. Choose "
            "another with `--judge` and `--model`."
        )
    verdict = "passed" if result.passed else f"FAILED: {', '.join(result.failed)}"
    counts = f"{result.n} examples, {result.probes} answers"
    lines.append(f"judge {label_judge(result.judge, result.rubric)}, {counts}: {verdict}")
    return "\n".join(lines)


def _format_check(check: Check) -> list[str]:
    passed = {True: "passed", False: "FAILED", None: "unknown"}[check.passed] if check.expected else "-"
    seen, higher = "no pair has two scores", ""
    if check.difference is not None:
        seen, higher = _format_difference(check.difference, check.interval), f"{100 * (check.higher or 0):.0f} %"
    pair = f"{name_kind(check.first)} - {check.second}"
    return [check.name or "compare", pair, check.expected, seen, higher, str(check.n), passed]


def _format_difference(mean: float, interval: Interval | None) -> str:
    return format_signed(mean) + (f" ({format_interval(interval, signed=True)})" if interval else "")


def _format_injections(found: Injections) -> str:
    if found.difference is None:
        return "injections: no pair has two scores"
    shares = [f"{100 * (share or 0):.0f} %" for share in (found.higher, found.higher_by_10, found.higher_by_50)]
    text = (
        f"injections: mean difference {_format_difference(found.difference, found.interval)}; {shares[0]} of "
        f"{found.pairs} up, {shares[1]} by {_CLEAR_RISE}, {shares[2]} by {_TAKEOVER} or more"
    )
    if found.control.higher is not None:
        text += f"\nharmless additions: {100 * found.control.higher:.0f} % of {found.control.pairs} up"
    return text
