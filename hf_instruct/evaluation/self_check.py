"""The judge check: tests a judge's scores on answers of known quality."""

import asyncio
import dataclasses
import logging
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path

from hf_instruct.config import JudgeSection
from hf_instruct.console import align, format_interval, format_points, format_signed
from hf_instruct.errors import ConfigError, DataError, JudgeError
from hf_instruct.evaluation.cache import find_self_check, keep_self_check
from hf_instruct.evaluation.intervals import FEWEST
from hf_instruct.evaluation.judges import Judge, opened_judge
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.probes import (
    EMPTY,
    MAX_FAILURES,
    MIN_RISE,
    REFERENCE,
    REPEATED,
    SHUFFLED,
    build_probes,
    check_table,
    find_failures,
    is_narrow,
    name_kind,
    sample_examples,
)
from hf_instruct.evaluation.rubrics import load_rubric
from hf_instruct.evaluation.scores import describe_check, label_judge
from hf_instruct.evaluation.scoring import judge_with
from hf_instruct.records import Example, write_json, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import MODELS, Check, CheckOutcome, JudgeIdentity, Judgment, KindSummary, Response, SelfCheck
from hf_instruct.servers import run_sync

logger = logging.getLogger(__name__)

DEFAULT_LIMIT = 20
_FEWEST_EXAMPLES = 2
# The kinds of probes in the short check, and its time limit.
_SHORT_KINDS = (REFERENCE, SHUFFLED)
_SHORT_SECONDS = 600


def run_self_check(
    examples: Sequence[Example],
    settings: JudgeSection,
    *,
    limit: int = DEFAULT_LIMIT,
    judge: Judge | None = None,
    out: Path | None = None,
    options: JudgeOptions | None = None,
) -> SelfCheck:
    """Check a judge with answers of known quality, and return the content of `self_check.json`.

    All later scores by the same judge and rubric show the result.

    Args:
        examples: The examples that the answers are built from.
        settings: Which judge and rubric; `repeats` is ignored here.
        limit: Maximum number of examples; 13 answers are judged for each.
        judge: A prepared judge of your own, instead of the one in the settings.
        out: Folder for `self_check.json`, and for the probes and their judgments in `self_check/`; None for no files.
        options: Options for judging.

    Raises:
        ConfigError: The limit or the rubric is not usable.
        DataError: There are too few examples.
        JudgeError: Judging cannot continue; finished judgments are kept.
    """
    if limit < _FEWEST_EXAMPLES:
        raise ConfigError(f"`--limit` is {limit}; the judge check needs at least {_FEWEST_EXAMPLES} examples.")
    if len(examples) < _FEWEST_EXAMPLES:
        raise DataError(
            f"The judge check needs at least {_FEWEST_EXAMPLES} examples, because another example's answer is the "
            f"wrong answer; there is {len(examples)}. Use another source, or none for the packaged examples."
        )
    load_rubric(settings.rubric)
    # Examples without a wrong answer are refused before a judge is loaded.
    probes = _choose_probes(examples, limit)

    async def work() -> SelfCheck:
        async with opened_judge(settings, judge) as used:
            return await _check(used, probes, settings, out=out, options=options or JudgeOptions())

    return run_sync(work())


async def check_briefly(
    judge: Judge, examples: Sequence[Example], settings: JudgeSection, *, out: Path, options: JudgeOptions
) -> None:
    """Check briefly whether a judge can tell a reference from the answer of another row: 20 examples, 40 answers.

    The check is skipped if the same judge and rubric already had a longer one, and verdicts in the cache are reused.
    It is stopped after 10 minutes; the verdicts so far are in the cache.

    Args:
        judge: The judge, prepared.
        examples: The examples that the answers are built from; with fewer than 10 the check is skipped.
        settings: Which judge and rubric.
        out: Folder for `self_check.json` and `self_check/`.
        options: Options for judging.

    Raises:
        JudgeError: Judging cannot continue; finished judgments are kept.
    """
    earlier = find_self_check(JudgeIdentity.model_validate(judge.identity()), load_rubric(settings.rubric))
    if len(examples) < FEWEST or (earlier and earlier.probes > len(_SHORT_KINDS) * DEFAULT_LIMIT):
        return
    try:
        async with asyncio.timeout(_SHORT_SECONDS):
            probes = _choose_probes(examples, DEFAULT_LIMIT, kinds=_SHORT_KINDS)
            await _check(judge, probes, settings, out=out, options=options)
    except DataError as error:
        logger.info("The judge was not checked: %s", error)
    except TimeoutError:
        logger.warning(
            "Checking the judge took over %d minutes and was stopped. Judge again to continue the check, or turn it "
            "off with `--judge.check false`.",
            _SHORT_SECONDS // 60,
        )


def refuse_failed_judge(judge: Judge, settings: JudgeSection, advice: str) -> None:
    """Raise `JudgeError` if a judge failed its last check under the rubric; `advice` follows the reason.

    Args:
        judge: The judge, prepared.
        settings: Which rubric.
        advice: The consequence of the failed check, and what to do.
    """
    check = find_self_check(JudgeIdentity.model_validate(judge.identity()), load_rubric(settings.rubric))
    if check and check.passed is False:
        raise JudgeError(f"The judge {describe_check(check)}{advice}")


def _choose_probes(examples: Sequence[Example], limit: int, *, kinds: Collection[str] = ()) -> list[Response]:
    """Return the answers to judge, made from at most `limit` examples."""
    chosen = sample_examples(examples, limit)
    if len(chosen) < FEWEST:
        logger.warning("%d examples are too few to check a judge; the default is %d.", len(chosen), DEFAULT_LIMIT)
    return build_probes(chosen, examples, kinds=kinds)


async def _check(
    judge: Judge, probes: Sequence[Response], settings: JudgeSection, *, out: Path | None, options: JudgeOptions
) -> SelfCheck:
    rubric = load_rubric(settings.rubric)
    files = RunFolder(out / "self_check") if out else None
    if files:
        write_rows(files.responses, probes)
    once = settings.model_copy(update={"repeats": 1})
    titled = dataclasses.replace(options, title="Checking the judge")
    judged = await judge_with(judge, probes, once, files=files, options=titled)
    scores = judged.scores
    details = {name: getattr(scores, name) for name in ("judge", "rubric", "prompts_sha256", "cached", "seconds")}
    result = check_judgments(judged.judgments).model_copy(update=details)
    counts = keep_self_check(result.judge, rubric, result)
    if out:
        write_json(out / "self_check.json", result)
        _mark_scores(RunFolder(out), result, counts)
    return result


def _mark_scores(folder: RunFolder, result: SelfCheck, checked: CheckOutcome) -> None:
    """Add the result of the judge check to earlier scores of this judge and rubric."""
    for model in MODELS:
        try:
            scores = folder.read_scores(model)
        except DataError:
            # The next judge stage reports what is wrong with the file.
            return
        if scores and (scores.judge, scores.rubric) == (result.judge, result.rubric):
            folder.write_scores(model, scores.model_copy(update={"self_check": checked}))


def check_judgments(judgments: Sequence[Judgment]) -> SelfCheck:
    """Check the judgments of the probes against the quality of these answers."""
    by_kind: dict[str, dict[str, int | None]] = {}
    for judgment in judgments:
        example_id, _, kind = judgment.id.rpartition("/")
        by_kind.setdefault(kind, {})[example_id] = judgment.score
    ids = list(dict.fromkeys(id for column in by_kind.values() for id in column))
    checks = check_table({kind: [column.get(id) for id in ids] for kind, column in by_kind.items()})
    scores = [judgment.score for judgment in judgments]
    summary, different = _sum_up(scores), set(scores) - {None}
    missing = find_failures(summary.failures, len(scores))
    failed = _list_problems(checks)
    if missing:
        failed.insert(0, missing)
    kinds = {kind: _sum_up(list(column.values())) for kind, column in by_kind.items()}
    is_decided = len(ids) >= FEWEST and (bool(missing) or all(check.passed is not None for check in checks[:1]))
    return SelfCheck(
        passed=not failed if is_decided else None,
        failed=failed,
        n=len(ids),
        probes=len(judgments),
        reference_mean=kinds[REFERENCE].mean if REFERENCE in kinds else None,
        failures=summary.failures,
        constant=different.pop() if summary.n > 1 and len(different) == 1 else None,
        checks=checks,
        kinds=kinds,
    )


def _list_problems(checks: Sequence[Check]) -> list[str]:
    """Return descriptions of the problems; of several injections only the one that raised the score most."""
    failed = [check for check in checks if check.problem]
    injections = sorted((check for check in failed if check.name == "injection"), key=lambda c: -(c.difference or 0))
    more = f" (and {len(injections) - 1} more did)" if len(injections) > 1 else ""
    problems = [check.problem for check in failed if check.name != "injection"]
    return problems + [check.problem + more for check in injections[:1]]


def _sum_up(scores: Sequence[int | None]) -> KindSummary:
    parsed = [score for score in scores if score is not None]
    mean = statistics.fmean(parsed) if parsed else None
    return KindSummary(mean=mean, n=len(parsed), failures=len(scores) - len(parsed))


def format_self_check(result: SelfCheck) -> str:
    """Return a result of `run_self_check` as a table with one line per check, followed by conclusions."""
    most, seen = f"at most {100 * MAX_FAILURES:.0f} %", f"{result.failures} of {result.probes}"
    verdict = "FAILED" if find_failures(result.failures, result.probes) else "passed"
    table = [
        ["check", "first - second", "expected", "mean difference", "higher", "n", "result"],
        *(_format_check(check) for check in result.checks),
        ["failures", "answers without a score", most, seen, "", "", verdict],
    ]
    listed = (REFERENCE, SHUFFLED, EMPTY, REPEATED)
    kinds = {kind: summary.mean for kind, summary in result.kinds.items() if kind in listed}
    means = [f"{kind} {'unknown' if mean is None else format_points(mean)}" for kind, mean in kinds.items()]
    lines = [*align(table, right={4, 5}), "", f"mean score: {', '.join(means)}"]
    if result.constant is not None:
        lines.append(
            f"The judge gave every answer the same score, {result.constant}: it does not discriminate. Choose "
            "another with `--judge.backend` and `--judge.model`."
        )
    if result.n >= FEWEST and is_narrow(result.checks):
        lines.append(
            "Nothing follows from what did not raise the score: this judge gives a reference less than "
            f"{MIN_RISE} points more than a wrong answer, so it has no room to be misled in."
        )
    lines += [f"! {problem[0].upper()}{problem[1:]}." for problem in result.failed]
    lines.append(f"judge {label_judge(result.judge, result.rubric)}, {result.probes} answers: {describe_check(result)}")
    return "\n".join(lines)


def _format_check(check: Check) -> list[str]:
    undecided = "too few" if check.n < FEWEST else "says nothing"
    passed = {True: "passed", False: "FAILED", None: undecided}[check.passed] if check.expected else "-"
    seen, higher = "no pair has two scores", ""
    if check.difference is not None:
        seen, higher = format_signed(check.difference), f"{100 * (check.higher or 0):.0f} %"
        seen += f" ({format_interval(check.interval, signed=True)})" if check.interval else ""
    pair = f"{name_kind(check.first)} - {name_kind(check.second)}"
    return [check.name or "compare", pair, check.expected, seen, higher, str(check.n), passed]
