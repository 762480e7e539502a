"""Is the judge any good? Answers of known worth are judged, and what the judge made of them is checked."""

import dataclasses
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.config import JudgeSection
from hf_instruct.console import format_interval, format_points, format_signed
from hf_instruct.errors import ConfigError, DataError, JudgeError
from hf_instruct.evaluation.cache import keep_self_check
from hf_instruct.evaluation.intervals import Interval, bootstrap_mean
from hf_instruct.evaluation.judges import Judge, opened_judge
from hf_instruct.evaluation.judgment_files import JudgmentFiles, write_scores
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
    Probe,
    build_probes,
    injection_kind,
    sample_examples,
)
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.evaluation.scores import format_judge
from hf_instruct.evaluation.scoring import JudgmentSet, judge_with, run_sync
from hf_instruct.records import Example, Judgment, parse_json, write_json, write_rows

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


@dataclasses.dataclass(frozen=True)
class Check:
    """What the judge made of one kind of probe beside another, over the same examples.

    Attributes:
        name: What is checked: `order`, `repeated`, `doubled` or `injection`; empty for a row shown for comparison.
        first: Kind of the one probe.
        second: Kind of the other.
        expected: Where the mean difference, first less second, should lie.
        difference: That mean, in points; None without a pair.
        interval: Ends of its 95 % interval; None for fewer than two pairs.
        higher: Share of the pairs in which the first got the higher score; None without a pair.
        equal: Share in which both got the same.
        n: Pairs in which both got a score.
        passed: Whether it lies there; None where nothing was expected or there are too few pairs.
    """

    name: str
    first: str
    second: str
    expected: str
    difference: float | None
    interval: Interval | None
    higher: float | None
    equal: float | None
    n: int
    passed: bool | None


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


def run_self_check(
    examples: Sequence[Example],
    settings: JudgeSection,
    *,
    limit: int = DEFAULT_LIMIT,
    judge: Judge | None = None,
    out: Path | None = None,
    options: JudgeOptions | None = None,
) -> dict[str, Any]:
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
        JudgeError: Judging cannot go on; what was judged is kept.
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
    judged = _judge_probes(probes, settings, judge=judge, out=out, options=options)
    result = check_judgments(probes, judged.judgments)
    result |= {name: judged.scores[name] for name in ("judge", "rubric", "prompts_sha256", "cached", "seconds")}
    counts = keep_self_check(result["judge"], rubric, result)
    if out:
        _write(out / "self_check.json", result)
        for folder in (out, out / "base"):
            _mark_scores(JudgmentFiles(folder), result, counts)
    return result


def _judge_probes(
    probes: Sequence[Probe],
    settings: JudgeSection,
    *,
    judge: Judge | None,
    out: Path | None,
    options: JudgeOptions | None,
) -> JudgmentSet:
    responses = [probe.response for probe in probes]
    once = settings.model_copy(update={"repeats": 1})
    files = JudgmentFiles(out / "self_check") if out else None

    async def work() -> JudgmentSet:
        async with opened_judge(once, judge) as used:
            if files:
                _write(files.folder / "responses.jsonl", responses)
            return await judge_with(used, responses, once, files=files, options=options)

    return run_sync(work())


def _write(path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            write_rows(path, content)
        else:
            write_json(path, content)
    except OSError as error:
        raise JudgeError(f"`{path}` cannot be written: {error.strerror}. Name a folder with `--out DIR`.") from error


def _mark_scores(files: JudgmentFiles, result: Mapping[str, Any], checked: Mapping[str, Any]) -> None:
    """Add to the scores that this judge gave before, under this rubric, how it did when it was checked."""
    try:
        scores = parse_json(files.scores.read_bytes())
    except (OSError, ValueError):
        # Nothing was scored yet, or the next judging replaces what cannot be read.
        return
    if isinstance(scores, dict) and all(scores.get(name) == result[name] for name in ("judge", "rubric")):
        write_scores(files, {**scores, "self_check": dict(checked)})


def check_judgments(probes: Sequence[Probe], judgments: Sequence[Judgment]) -> dict[str, Any]:
    """Return whether the judgments of probes are what the probes are worth.

    Args:
        probes: As `build_probes` makes them.
        judgments: One for each, in their order.

    Returns:
        `passed`; `failed` (names of what failed); `n` (examples); `probes`, `failures` (without a score); `constant`
        (the one score that all got, else None); `checks` (as `Check`); `injection` (all injections together); `kinds`
        (mean, n and failures of each kind of probe).
    """
    scores: dict[str, dict[str, int | None]] = {}
    for probe, judgment in zip(probes, judgments, strict=True):
        scores.setdefault(probe.kind, {})[probe.example_id] = judgment.score
    checks = [_check(scores, *expectation) for expectation in _EXPECTATIONS]
    values = [score for by_example in scores.values() for score in by_example.values() if score is not None]
    failures = len(probes) - len(values)
    failed = {check.name for check in checks if check.passed is False}
    # What could not be checked for want of verdicts has not passed; why not is that they are missing.
    if failures > _MOST_FAILURES * len(probes) or any(check.expected and check.passed is None for check in checks):
        failed.add("failures")
    return {
        "passed": not failed,
        "failed": sorted(failed),
        "n": len({probe.example_id for probe in probes}),
        "probes": len(probes),
        "failures": failures,
        "constant": values[0] if len(values) > 1 and len(set(values)) == 1 else None,
        "checks": [dataclasses.asdict(check) for check in checks],
        "injection": _sum_up_injections(scores),
        "kinds": {kind: _sum_up(list(by_example.values())) for kind, by_example in scores.items()},
    }


def _check(scores: Mapping[str, Mapping[str, int | None]], name: str, first: str, second: str, expected: str) -> Check:
    pairs = list(_pair_up(scores, first, second).values())
    differences = [one - other for one, other in pairs]
    n = len(pairs)
    interval = bootstrap_mean(differences)
    return Check(
        name=name,
        first=first,
        second=second,
        expected=expected,
        difference=statistics.fmean(differences) if n else None,
        interval=interval,
        higher=_share(differences, 1),
        equal=sum(difference == 0 for difference in differences) / n if n else None,
        n=n,
        passed=_judge_pairs(name, pairs, expected, interval) if interval and expected else None,
    )


def _judge_pairs(name: str, pairs: Sequence[tuple[int, int]], expected: str, interval: tuple[float, float]) -> bool:
    """Return whether paired scores lie where expected."""
    low, high = interval
    if expected != NOT_ABOVE:
        at_floor = all(statistics.fmean(side) < _FLOOR for side in zip(*pairs, strict=True))
        return low > 0 or (expected == ABOVE_OR_FLOOR and high >= 0 and at_floor)
    # A few answers that talk the judge into 100 hardly move a mean; that they can is what matters.
    taken_over = (_share([one - other for one, other in pairs], _TAKEOVER) or 0.0) > _MOST_TAKEOVERS
    return low <= 0 and not (name == "injection" and taken_over)


def _pair_up(scores: Mapping[str, Mapping[str, int | None]], first: str, second: str) -> dict[str, tuple[int, int]]:
    """Return the scores of two kinds of probes, by example, where both have one."""
    found = {}
    others = scores.get(second, {})
    for example_id, one in scores.get(first, {}).items():
        other = others.get(example_id)
        if one is not None and other is not None:
            found[example_id] = (one, other)
    return found


def _share(differences: Sequence[float], least: float) -> float | None:
    return sum(difference >= least for difference in differences) / len(differences) if differences else None


def _sum_up_injections(scores: Mapping[str, Mapping[str, int | None]]) -> dict[str, Any]:
    """Return how far all injections together moved the verdicts, beside a harmless addition."""
    by_example: dict[str, list[float]] = {}
    for name in INJECTIONS:
        for example_id, (one, other) in _pair_up(scores, injection_kind(name), SHUFFLED).items():
            by_example.setdefault(example_id, []).append(one - other)
    differences = [difference for row in by_example.values() for difference in row]
    # The injections into one example share its honest twin: examples are drawn, not pairs.
    interval = bootstrap_mean([statistics.fmean(row) for row in by_example.values()])
    control = [one - other for one, other in _pair_up(scores, CONTROL, SHUFFLED).values()]
    return {
        "pairs": len(differences),
        "difference": statistics.fmean(differences) if differences else None,
        "interval": list(interval) if interval else None,
        **{name: _share(differences, least) for name, least in _RISES.items()},
        "control": {"pairs": len(control), **{name: _share(control, least) for name, least in _RISES.items()}},
    }


_RISES = {"higher": 1, f"higher_by_{_CLEAR_RISE}": _CLEAR_RISE, f"higher_by_{_TAKEOVER}": _TAKEOVER}


def _sum_up(scores: Sequence[int | None]) -> dict[str, Any]:
    known = [score for score in scores if score is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "n": len(known),
        "failures": len(scores) - len(known),
    }


def format_self_check(result: Mapping[str, Any]) -> str:
    """Return a result of `run_self_check` as a table, one line a check, with what follows from it."""
    lines = [
        f"{'check':<11}{'first - second':<28}{'expected':<19}{'mean difference':<23}{'higher':>6}{'n':>4}  result",
        *(_format_check(check) for check in result["checks"]),
        _format_failures(result),
        "",
        "mean score: " + _format_kinds(result["kinds"]),
        _format_injections(result["injection"]),
    ]
    if result["constant"] is not None:
        lines.append(
            f"The judge gave every answer the same score, {result['constant']}: it tells nothing apart. Choose another "
            "with `--judge` and `--model`."
        )
    judge, rubric = result["judge"], result["rubric"]
    verdict = "passed" if result["passed"] else f"FAILED: {', '.join(result['failed'])}"
    counts = f"{result['n']} examples, {result['probes']} answers"
    lines.append(f"judge {format_judge(judge)}, rubric {rubric['name']}, {counts}: {verdict}")
    return "\n".join(lines)


def _format_check(check: Mapping[str, Any]) -> str:
    pair = f"{check['first'].removeprefix(injection_kind(''))} - {check['second']}"
    if check["difference"] is None:
        seen, higher = "no pair has two scores", ""
    else:
        ends = f" ({format_interval(check['interval'], signed=True)})" if check["interval"] else ""
        seen, higher = f"{format_signed(check['difference'])}{ends}", f"{100 * check['higher']:.0f} %"
    name = check["name"] or "compare"
    return f"{name:<11}{pair:<28}{check['expected']:<19}{seen:<23}{higher:>6}{check['n']:>4}  {_format_result(check)}"


def _format_result(check: Mapping[str, Any]) -> str:
    if not check["expected"]:
        return "-"
    return {True: "passed", False: "FAILED", None: "unknown"}[check["passed"]]


def _format_failures(result: Mapping[str, Any]) -> str:
    seen = f"{result['failures']} of {result['probes']}"
    verdict = "FAILED" if "failures" in result["failed"] else "passed"
    most = f"at most {100 * _MOST_FAILURES:.0f} %"
    return f"{'failures':<11}{'answers without a score':<28}{most:<19}{seen:<33}  {verdict}"


def _format_kinds(kinds: Mapping[str, Any]) -> str:
    shown = (REFERENCE, SHUFFLED, EMPTY, REPEATED)
    return ", ".join(
        f"{kind} {'unknown' if kinds[kind]['mean'] is None else format_points(kinds[kind]['mean'])}"
        for kind in shown
        if kind in kinds
    )


def _format_injections(injection: Mapping[str, Any]) -> str:
    control = injection["control"]
    if not injection["pairs"]:
        return "injections: no pair has two scores"
    ends = f" ({format_interval(injection['interval'], signed=True)})" if injection["interval"] else ""
    shares = [
        f"{100 * injection['higher']:.0f} % of {injection['pairs']} up",
        f"{100 * injection[f'higher_by_{_CLEAR_RISE}']:.0f} % by {_CLEAR_RISE}",
        f"{100 * injection[f'higher_by_{_TAKEOVER}']:.0f} % by {_TAKEOVER} or more",
    ]
    text = f"injections: mean difference {format_signed(injection['difference'])}{ends}; {', '.join(shares)}"
    if control["pairs"]:
        text += f"\nharmless additions: {100 * control['higher']:.0f} % of {control['pairs']} up"
    return text
