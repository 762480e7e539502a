"""Findings: facts to know before quoting a run's numbers, for the page, the terminal and the card.

A finding contains no name of a file, folder or model of the user, so that it can be published.
"""

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from hf_instruct.console import format_interval, format_points, pluralize
from hf_instruct.evaluation.scores import FEW_ANSWERS, format_bounds
from hf_instruct.reporting.results import RunResults
from hf_instruct.schema import MODELS, TUNED, Scores

_OVERFIT_RISE = 1.02
_MANY_CUT_OFF = 0.1
_MUCH_LONGER = 0.1


class Finding(NamedTuple):
    """A finding about the numbers of a run: its name, such as `overfitting`, and its text of a few sentences."""

    name: str
    text: str


class Missing(NamedTuple):
    """A missing part of the run folder, and the command that creates it."""

    what: str
    command: str


def list_findings(results: RunResults) -> list[Finding]:
    """Return the findings on a run, most important first."""
    scores = results.tuned.scores or results.before.scores
    return [
        *_find_difference(results),
        *_find_disagreement(results),
        *(_find_judge(scores, results.leading.reason) if scores else ()),
        *(finding for model in reversed(MODELS) for finding in _find_failures(results, model)),
        *_find_length(results),
        *_find_leaks(results),
        *_find_cut_off(results),
        *_find_overfitting(results),
    ]


def _find_difference(results: RunResults) -> Iterator[Finding]:
    difference = results.difference
    if differing := results.judging_differences:
        yield Finding(
            "judged_differently",
            f"The models were judged differently ({', '.join(differing)}): their scores cannot be compared.",
        )
    if difference is None or results.leading.reason or difference.verdict == "higher":
        return
    if difference.is_shown:
        text = f"The tuned model scores lower than the {results.label()} model: {difference} (n={difference.n})."
        yield Finding("scores_lower", text)
    else:
        why = "The interval includes zero"
        if difference.bounds and not (difference.interval and difference.interval.spans(0.0)):
            ends = format_interval(difference.bounds, signed=True)
            why = f"With each failed judgment at its worst or best it is {ends}, which includes zero"
        text = (
            f"The scores show no difference: tuned - {results.label()} is {difference}, over the {difference.n} "
            f"examples scored on both sides. {why}."
        )
        yield Finding("no_difference", text)


def _find_disagreement(results: RunResults) -> Iterator[Finding]:
    """Find out whether the reference metrics changed and the judge's scores did not, or the other way round."""
    metric = next((row for row in results.metrics if row.name == "rouge_l" and row.difference), None)
    difference = results.difference
    if metric is None or metric.difference is None or difference is None:
        return
    verdicts = [each.verdict if each.is_shown else "not shown to differ" for each in (metric.difference, difference)]
    # A difference by a judge that does not lead is not described.
    if verdicts[0] == verdicts[1] or results.leading.reason:
        return
    text = (
        f"By {metric.label} the tuned model is {verdicts[0]} ({metric.show_difference()}), by the judge's scores "
        f"{verdicts[1]}: read the answers before quoting either."
    )
    yield Finding("measures_disagree", text)


def _find_judge(scores: Scores, weakness: str) -> Iterator[Finding]:
    if weakness:
        yield Finding(
            "weak_judge",
            f"{weakness[0].upper()}{weakness[1:]}, so nothing shows that its scores distinguish good answers from bad "
            "ones: rely on the reference metrics and the answers, and only quote scores of a better judge.",
        )
    if scores.constant and scores.mean is not None:
        text = f"The judge gave every answer the same score, {format_points(scores.mean)}, so its scores say nothing."
        yield Finding("constant_scores", text)
    repeats = scores.repeats
    if repeats and repeats.spread is not None and repeats.changed is not None:
        yield Finding(
            "judge_spread",
            f"Each answer was judged {repeats.count} times: the judge's scores vary by "
            f"{format_points(repeats.spread)} points per answer, and {100 * repeats.changed:.0f} % of its verdicts "
            "changed.",
        )
    if 0 < scores.n < FEW_ANSWERS:
        answers = pluralize(scores.n, "answer has", "answers have")
        yield Finding("few_scores", f"Only {answers} a score: the standard error is uncertain.")


def _find_failures(results: RunResults, model: str) -> Iterator[Finding]:
    scores = results.sides[model].scores
    if scores is None or not scores.failures:
        return
    ends = format_bounds(scores, " or ")
    bounds = f"; counted as 0 or as 100, they would make the mean {ends}" if ends else ""
    answers = f"{scores.failures} of {scores.total} answers of the {results.label(model)} model"
    yield Finding("failures", f"The judge gave no usable reply for {answers}{bounds}.")


def _find_length(results: RunResults) -> Iterator[Finding]:
    """Find out whether DPO or GRPO made the answers longer, a common way to get better rewards and scores."""
    row = next((row for row in results.metrics if row.name == "length_ratio"), None)
    method = results.experiment.method
    if method == "SFT" or row is None or row.before is None or row.tuned is None or not row.before.mean:
        return
    growth = row.tuned.mean / row.before.mean - 1
    if growth > _MUCH_LONGER:
        text = (
            f"{method} made the answers {100 * growth:.0f} % longer ({row.show(row.before)} -> "
            f"{row.show(row.tuned)} of the references' length). Judges and people prefer longer answers, so a gain "
            "may be due to length alone."
        )
        yield Finding("longer_answers", text)


def _find_leaks(results: RunResults) -> Iterator[Finding]:
    preflight = results.preflight
    seen = len(preflight.seen_in_train.get("test", []))
    near = len(preflight.near_duplicates.test)
    of = f"of {total:,} " if (total := preflight.examples.get("test")) else ""
    if seen:
        text = (
            f"{seen} {of}test examples {'has' if seen == 1 else 'have'} the same instruction and input as a training "
            "example: the scores are too high."
        )
        yield Finding("leaks", text)
    if near:
        are = "is a near-duplicate" if near == 1 else "are near-duplicates"
        yield Finding("near_duplicates", f"{near} {of}test examples {are} of a training example.")


def _find_cut_off(results: RunResults) -> Iterator[Finding]:
    rate = results.tuned.stop_rate
    if rate is not None and 1 - rate > _MANY_CUT_OFF:
        limit, cut_off = results.experiment.generate.max_new_tokens, f"{100 * (1 - rate):.0f} %"
        text = f"{cut_off} of the tuned model's answers did not finish: they were cut off at {limit} tokens."
        yield Finding("cut_off", text)


def _find_overfitting(results: RunResults) -> Iterator[Finding]:
    losses = [(row.validation_loss, row.step) for row in results.evaluations if row.validation_loss is not None]
    if len(losses) < 3:
        return
    (lowest, step), (last, _) = min(losses), losses[-1]
    if last > lowest * _OVERFIT_RISE:
        text = f"The validation loss was lowest at step {step} ({lowest:.3f}) and has risen to {last:.3f}: overfitting."
        yield Finding("overfitting", text)


def list_missing(results: RunResults) -> list[Missing]:
    """Return the parts that are missing in the run folder, in the order in which the stages create them."""
    folder = shlex.quote(str(results.folder.path))
    tuned, experiment = results.tuned, results.experiment
    sizes = results.preflight.examples
    train, generate, judge = (
        # The run folder does not record the name of the experiment's file.
        f"hf-instruct train EXPERIMENT.yaml --run-dir {folder} --resume",
        f"hf-instruct generate {folder}",
        f"hf-instruct judge {folder}",
    )
    missing = []
    if not results.training_rows:
        missing.append(Missing("the training log" if sizes else "the examples and the training log", train))
    left = sizes.get("test", 0) - len(tuned.responses)
    if not tuned.responses:
        missing.append(Missing("the tuned model's answers", generate))
    elif left > 0:
        missing.append(Missing(f"{left} of the tuned model's answers", generate))
    if not results.before.responses and experiment.generate.base:
        missing.append(Missing(f"the {results.label()} model's answers, to compare with", generate))
    for owner, side in reversed([*results.sides.items()]):
        if (owner == TUNED or experiment.judge.base) and side.responses and side.scores is None:
            done = sum(response.id in side.judgments for response in side.responses)
            what = f"the scores of the {results.label(owner)} model's answers"
            missing.append(Missing(what + (f" ({done} of {len(side.responses)} are judged)" if done else ""), judge))
    return missing
