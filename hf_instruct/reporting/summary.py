"""What a run came to, as text for a terminal."""

import textwrap
from collections.abc import Sequence

from hf_instruct.evaluation.metrics import format_metric
from hf_instruct.evaluation.score_summary import Leading
from hf_instruct.reporting.answers import Answer, AnswerRow, pair_answers, pick_telling
from hf_instruct.reporting.facts import RunFacts, read_facts
from hf_instruct.reporting.findings import (
    format_judge,
    format_mean,
    format_method,
    format_seconds,
    list_missing,
    list_notes,
)
from hf_instruct.reporting.measures import MetricRow, list_metrics
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Scores

_LABEL_WIDTH = 18
_TEXT_LINES = 3
_SHOWN_METRICS = frozenset({"exact_match", "rouge_l", "chrf", "perplexity"})


def format_summary(run: RunFolder, *, width: int = 88) -> str:
    """Return the scores, losses, a few answers before and after, and where the files are.

    Args:
        run: A run folder; it may lack any stage's files.
        width: Longest line, in characters; paths may be longer.

    Raises:
        RunError: The folder holds no run.
        DataError: A file of the run cannot be read as what it should be.
    """
    facts = read_facts(run, run.load_experiment())
    metrics = list_metrics(facts)
    best, worst = pick_telling(pair_answers(facts))
    parts = [
        [_format_title(facts), *_list_numbers(facts, metrics, width)],
        *(_format_row(row, _title_row(row, facts.leading), width) for row in best),
        *([_format_row(worst, _title_worst(worst, facts.leading), width)] if worst else []),
        _list_notes(facts, width),
        _list_paths(run),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def format_summary_line(run: RunFolder) -> str:
    """Return the run's scores and losses on one line.

    Raises:
        RunError: The folder holds no run.
        DataError: A file of the run cannot be read as what it should be.
    """
    facts = read_facts(run, run.load_experiment())
    parts = []
    for row in list_metrics(facts):
        if facts.leading.reason and row.name in ("exact_match", "rouge_l"):
            means = [side.mean for side in (row.base, row.tuned) if side and side.mean is not None]
            parts.append(f"{row.label} {' -> '.join(map(row.show, means))}")
    scores = [side.scores for side in (facts.base, facts.tuned) if side.scores is not None]
    if scores:
        counts = " and ".join(dict.fromkeys(_format_counts(side) for side in scores))
        judge = format_judge(scores[-1].judge, scores[-1].rubric)
        parts.append(f"score {' -> '.join(map(format_mean, scores))} ({counts}; judge {judge})")
    losses = [row.validation_loss for row in facts.evaluations]
    if losses:
        ends = losses if len(losses) == 1 else [losses[0], losses[-1]]
        parts.append(f"validation loss {' -> '.join(f'{loss:.3f}' for loss in ends)}")
    parts += [f"missing: {part.what} (`{part.command}`)" for part in list_missing(facts)[:1]]
    return clean_line("; ".join(parts))


def _title_row(row: AnswerRow, leading: Leading) -> str:
    if row.gain is None or row.value is None:
        return "after fine-tuning"
    if leading.is_metric:
        return f"{leading.label} {leading.show(row.value - row.gain)} -> {leading.show(row.value)}"
    return f"gain {leading.show(row.gain, signed=True)}"


def _title_worst(row: AnswerRow, leading: Leading) -> str:
    return f"the lowest {leading.label}, {leading.show(row.value or 0)}" if leading.is_metric else "the worst score"


def _format_title(facts: RunFacts) -> str:
    return f"{clean_line(facts.name)}: {clean_line(facts.experiment.model.name)}, {format_method(facts)}"


def _format_counts(scores: Scores) -> str:
    failures = f", {scores.failures} failure{'' if scores.failures == 1 else 's'}" if scores.failures else ""
    return f"n={scores.n} of {scores.total}{failures}"


def _list_numbers(facts: RunFacts, metrics: Sequence[MetricRow], width: int) -> list[str]:
    """Return a line for each number that the run has, base and tuned side by side."""
    tuned, base = facts.tuned, facts.base
    losses = [f"{row.validation_loss:.3f}" for row in facts.evaluations]
    judged: list[tuple[str, str, str, str]] = []
    if tuned.scores or base.scores:
        before, after = (format_mean(side.scores) if side.scores else "-" for side in (base, tuned))
        counts = [_format_counts(side.scores) for side in (base, tuned) if side.scores]
        judged.append(("score of 100", before, after, " / ".join(dict.fromkeys(counts))))
    if (difference := facts.difference) is not None:
        judged.append(("  difference", f"{difference} (paired, n={difference.n})", "", ""))
    rows: list[tuple[str, str, str, str]] = []
    if losses:
        rows.append(("validation loss", losses[0], losses[-1] if len(losses) > 1 else "-", "first, last"))
    if tuned.stopped_share is not None or base.stopped_share is not None:
        shares = [side.stopped_share for side in (base, tuned)]
        before, after = ("-" if share is None else format_metric("stopped", share) for share in shares)
        rows.append(("ended by itself", before, after, "of the answers"))
    if not rows and not judged:
        return []
    parts = [[_format_columns(*row) for row in part] for part in (judged, rows)] + [_list_metric_lines(metrics)]
    lines = ["", f"{'':{_LABEL_WIDTH}}{'before':<14}after"]
    # A judge whose scores say little comes last.
    for part in reversed(parts) if facts.leading.reason else parts:
        lines += part
    scores = tuned.scores or base.scores
    if scores is not None:
        lines += _wrap(clean_line(format_judge(scores.judge, scores.rubric)), "judge", width)
    if facts.training:
        lines.append(f"{'fine-tuning':{_LABEL_WIDTH}}{format_seconds(facts.training.seconds)}")
    return lines


def _list_metric_lines(metrics: Sequence[MetricRow]) -> list[str]:
    """Return the few reference metrics that say most, base and tuned side by side."""
    lines = []
    for row in metrics:
        if row.name not in _SHOWN_METRICS:
            continue
        before, after = (
            row.show(side.mean) if side and side.mean is not None else "-" for side in (row.base, row.tuned)
        )
        lines.append(_format_columns(row.label, before, after, row.show_difference()))
    return lines


def _format_columns(label: str, before: str, after: str, note: str) -> str:
    if not after:
        return f"{label:{_LABEL_WIDTH}}{before}"
    return f"{label:{_LABEL_WIDTH}}{before:<14}{after:<14}{note}".rstrip()


def _format_row(row: AnswerRow, title: str, width: int) -> list[str]:
    task = clean_line(" | ".join(part for part in (row.instruction, row.input) if part))
    lines = [f"{textwrap.shorten(task, width - len(title) - 4, placeholder=' ...')}  [{title}]"]
    for label, answer in (("before", row.base), ("after", row.tuned)):
        if answer is not None:
            lines += _wrap(clean_line(answer.text) or "(empty)", _label_answer(label, answer), width)
    return lines + _wrap(clean_line(row.reference), "  reference", width)


def _label_answer(label: str, answer: Answer) -> str:
    score = "" if answer.score is None else f"{answer.score:>4}"
    return f"  {label:<9}{score}"


def _list_notes(facts: RunFacts, width: int) -> list[str]:
    lines = [
        line
        for note in list_notes(facts)
        for line in textwrap.wrap(clean_line(f"! {note}"), width, subsequent_indent="  ")
    ]
    for part in list_missing(facts):
        lines.append(f"! Missing: {part.what}. Make it with `{part.command}`.")
    return lines


def _list_paths(run: RunFolder) -> list[str]:
    found = [("report", run.report), ("answers", run.responses), ("model", run.model)]
    return [f"{label:{_LABEL_WIDTH}}{path}" for label, path in found if path.exists()]


def _wrap(text: str, label: str, width: int) -> list[str]:
    """Return a text beside a label, cut after a few lines."""
    lines: Sequence[str] = textwrap.wrap(
        text, width - _LABEL_WIDTH, max_lines=_TEXT_LINES, placeholder=" ...", break_on_hyphens=False
    )
    return [f"{label if not place else '':{_LABEL_WIDTH}}{line}" for place, line in enumerate(lines)]


def clean_line(text: str) -> str:
    r"""Return a text on one line, without what could steer a terminal.

    >>> clean_line("a\n\tb \x1b[31mred\u202e")
    'a b [31mred'
    """
    return "".join(char for char in " ".join(text.split()) if char.isprintable())
