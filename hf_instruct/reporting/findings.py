"""What the numbers of a run say, and what they do not: pure functions over `RunFacts`."""

import dataclasses
import shlex

from hf_instruct.config import LORA_DEFAULTS
from hf_instruct.console import format_points
from hf_instruct.evaluation.score_summary import FEW_ANSWERS, find_weakness_of, format_judge_details, has_unknown_size
from hf_instruct.evaluation.scores import format_bounds
from hf_instruct.reporting.facts import RunFacts, Side
from hf_instruct.schema import JudgeIdentity, Repeats, RubricName, Scores, ScoreSummary

_OVERFIT_RISE = 1.02
_MANY_CUT_OFF = 0.1


@dataclasses.dataclass(frozen=True)
class Missing:
    """A part that the run folder lacks, and the command that makes it."""

    what: str
    command: str


def format_mean(scores: ScoreSummary) -> str:
    """Return a mean with its standard error, as in `49.6 ± 2.8`."""
    if scores.mean is None:
        return "no score"
    error = "" if scores.standard_error is None else f" ± {format_points(scores.standard_error)}"
    return f"{format_points(scores.mean)}{error}"


def format_judge(judge: JudgeIdentity, rubric: RubricName) -> str:
    """Return the judge's tag, backend, digest and rubric on one line."""
    tag = judge.model or "unnamed judge"
    tag = tag.rstrip("/").rsplit("/", 1)[-1] if tag.startswith(("/", ".", "~")) else tag
    tag += format_judge_details(judge)
    if not rubric.name:
        return tag
    return f"{tag}, rubric {rubric.name}" + (f"@{rubric.sha256[:7]}" if rubric.sha256 else "")


def format_method(facts: RunFacts) -> str:
    """Return how the run fine-tunes: `full fine-tuning`, or LoRA with rank and scale."""
    if facts.experiment.lora is None:
        return "full fine-tuning"
    lora = {**LORA_DEFAULTS, **facts.experiment.lora}
    return f"LoRA (r {lora['r']}, alpha {lora['lora_alpha']})"


def format_seconds(seconds: float) -> str:
    """Return a time in the two largest units that it fills.

    >>> format_seconds(8.24), format_seconds(314), format_seconds(11_782)
    ('8.2 s', '5 min 14 s', '3 h 16 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def list_missing(facts: RunFacts) -> list[Missing]:
    """Return the parts that the run folder lacks, in the order in which the stages make them."""
    folder = shlex.quote(str(facts.folder.path))
    tuned, base = facts.tuned, facts.base
    missing = []
    if not facts.training_rows:
        # These two stages take the experiment's file, whose name the run folder does not tell.
        what = "the training log" if facts.split_sizes else "the examples and the training log"
        missing.append(Missing(what, f"hf-instruct train EXPERIMENT.yaml --run-dir {folder} --resume"))
    if not tuned.responses:
        missing.append(Missing("the tuned model's answers", f"hf-instruct generate {folder}"))
    elif len(tuned.responses) < facts.split_sizes.get("test", 0):
        left = facts.split_sizes["test"] - len(tuned.responses)
        missing.append(Missing(f"{left} of the tuned model's answers", f"hf-instruct generate {folder}"))
    if not base.responses and facts.experiment.generate.base:
        missing.append(Missing("the base model's answers, to compare with", f"hf-instruct generate {folder}"))
    for side, owner in ((tuned, "tuned"), (base, "base")):
        if side.scores is None and side.responses and (side is tuned or facts.experiment.judge.base):
            done = sum(response.id in side.judgments for response in side.responses)
            what = f"the scores of the {owner} model's answers"
            what += f" ({done} of {len(side.responses)} are judged)" if done else ""
            missing.append(Missing(what, f"hf-instruct judge {folder}"))
    return missing


def list_notes(facts: RunFacts) -> list[str]:
    """Return what a reader should know before quoting the numbers, most important first."""
    return [
        *_note_difference(facts),
        *_note_judge(facts.tuned.scores or facts.base.scores),
        *_note_failures(facts),
        *_note_leaks(facts),
        *_note_answers(facts.tuned, facts.experiment.generate.max_new_tokens),
        *_note_overfitting(facts),
    ]


def _note_difference(facts: RunFacts) -> list[str]:
    tuned, base, difference = facts.tuned.scores, facts.base.scores, facts.difference
    if tuned is not None and base is not None and not tuned.judged_as(base):
        return [
            f"The two sides were judged differently: base by {format_judge(base.judge, base.rubric)}, "
            f"tuned by {format_judge(tuned.judge, tuned.rubric)}. Their scores cannot be compared."
        ]
    if facts.leading.reason or difference is None or (difference.is_shown and difference.mean > 0):
        return []
    if difference.is_shown:
        return [f"The tuned model scores lower than the base model: {difference} (n={difference.n})."]
    return [
        f"No difference shown in the scores: tuned - base is {difference}, over the {difference.n} examples scored "
        "on both sides. The interval includes zero."
    ]


def _note_judge(scores: Scores | None) -> list[str]:
    if scores is None:
        return []
    notes = []
    if weakness := find_weakness_of(scores):
        notes.append(
            f"{weakness[0].upper()}{weakness[1:]}, so its scores do not tell good answers from bad ones: go by the "
            "reference metrics and the answers themselves, and quote scores of a better judge only."
        )
    if scores.constant and scores.mean is not None:
        notes.append(f"The judge gave every answer the same score, {format_points(scores.mean)}: it tells nothing.")
    notes += _note_repeats(scores.repeats)
    if has_unknown_size(scores.judge):
        notes.append(
            "The judge ran locally and its name does not tell its size. A small model is a rough judge: read the "
            "answers themselves, and quote scores of a larger judge only."
        )
    if 0 < scores.n < FEW_ANSWERS:
        answers = "1 answer has" if scores.n == 1 else f"{scores.n} answers have"
        notes.append(f"Only {answers} a score: the standard error itself is uncertain.")
    return notes


def _note_repeats(repeats: Repeats | None) -> list[str]:
    if repeats is None or repeats.spread is None or repeats.changed is None:
        return []
    return [
        f"Each answer was judged {repeats.count} times: the judge's own spread is {format_points(repeats.spread)} "
        f"points an answer, and {100 * repeats.changed:.0f} % of its verdicts changed."
    ]


def _note_failures(facts: RunFacts) -> list[str]:
    counts = [
        f"{side.scores.failures} of {side.scores.total} {owner} answers"
        for owner, side in (("tuned", facts.tuned), ("base", facts.base))
        if side.scores is not None and side.scores.failures
    ]
    if not counts:
        return []
    scores = facts.tuned.scores
    bounds = ""
    if scores is not None and (ends := format_bounds(scores, " or ")):
        bounds = f" With every failure counted as 0 or as 100 the tuned mean would be {ends}."
    return [f"The judge gave no readable verdict on {' and '.join(counts)}. The means are over the others.{bounds}"]


def _note_leaks(facts: RunFacts) -> list[str]:
    seen, near = facts.preflight.count_leaks()
    total = facts.split_sizes.get("test", seen + near)
    if seen:
        more = f", and {near} more are near-duplicates of one" if near else ""
        return [f"{seen} of {total} test examples have the same instruction and input as a training example{more}."]
    are = "is a near-duplicate" if near == 1 else "are near-duplicates"
    return [f"{near} of {total} test examples {are} of a training example."] if near else []


def _note_answers(tuned: Side, max_new_tokens: int) -> list[str]:
    share = tuned.stopped_share
    if share is None or 1 - share <= _MANY_CUT_OFF:
        return []
    return [
        f"{100 * (1 - share):.0f} % of the tuned model's answers did not end by themselves and were cut off at "
        f"`generate.max_new_tokens` ({max_new_tokens})."
    ]


def _note_overfitting(facts: RunFacts) -> list[str]:
    losses = [(row.validation_loss, row.step) for row in facts.evaluations if row.validation_loss is not None]
    if len(losses) < 3:
        return []
    lowest, step = min(losses)
    last, _ = losses[-1]
    if last <= lowest * _OVERFIT_RISE:
        return []
    return [f"The validation loss was lowest at step {step} ({lowest:.3f}) and has risen to {last:.3f}: overfitting."]
