"""The summary of a run, as text for a terminal."""

import textwrap

from hf_instruct.console import (
    align,
    clean_text,
    format_interval,
    format_seconds,
    format_signed,
    text_width,
)
from hf_instruct.evaluation.intervals import SCOPE
from hf_instruct.evaluation.scores import Leading, format_counts, format_mean
from hf_instruct.reporting.answers import AnswerRow, pair_answers, pick_highlights
from hf_instruct.reporting.findings import list_findings, list_missing
from hf_instruct.reporting.results import RunResults, read_results
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED

_LABEL_WIDTH = 18
_TEXT_LINES = 3
_SHOWN_METRICS = ("exact_match", "rouge_l", "chrf", "perplexity")


def format_summary(run: RunFolder, *, width: int | None = None) -> str:
    """Return the scores, the losses, a few answers before and after training, and the paths of the files.

    Args:
        run: A run folder; the files of any stage may be missing.
        width: Longest line, in characters; paths may be longer. By default the terminal's width, at most 88.

    Raises:
        RunError: The folder does not contain a run.
        DataError: A file of the run cannot be read or is invalid.
    """
    width = width or text_width(88)
    results = read_results(run)
    leading, (best, worst) = results.leading, pick_highlights(pair_answers(results))
    paths = (("report", run.report), ("answers", run.responses), ("model", run.model))
    title = f"{results.name}: {results.experiment.model.name}, {results.method}"
    parts = [
        [_one_line(title)],
        _list_numbers(results, width),
        *(_format_answers(results, row, _title(row, leading), width) for row in best),
        _format_answers(results, worst, f"lowest {leading.label}, {leading.show(worst.value or 0)}", width)
        if worst
        else [],
        [
            *(textwrap.fill(f"! {_one_line(f.text)}", width, subsequent_indent="  ") for f in list_findings(results)),
            *(f"! Missing: {part.what}. Run `{part.command}`." for part in list_missing(results)),
        ],
        [f"{name:{_LABEL_WIDTH}}{path}" for name, path in paths if path.exists()],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _list_numbers(results: RunResults, width: int) -> list[str]:
    """Return a table of the models' numbers, then the judge and the training time."""
    # The start model has a column next to the tuned one even if it has no answers.
    compared = results.others if results.start in results.others else [*results.others, results.start]
    sides = [results.sides[name] for name in (*compared, TUNED)]
    scores, others = [], []
    if results.scores:
        differences = [
            f"{format_signed(difference.mean)} ({format_interval(difference.interval, signed=True)})"
            if difference and difference.interval
            else ""
            for difference in map(results.differences.get, reversed(compared))
        ]
        scores.append(["score, 0-100", *(format_mean(side.scores) for side in sides), *differences])
    # A gain by DPO or GRPO has to be read together with the length.
    shown = _SHOWN_METRICS if results.experiment.method == "SFT" else (*_SHOWN_METRICS, "length_ratio")
    metrics = [
        [
            row.label,
            *(row.show(row.values.get(name)) for name in (*compared, TUNED)),
            *map(row.show_difference, reversed(compared)),
        ]
        for row in results.metrics
        if row.name in shown
    ]
    blank = [""] * len(compared)
    if measured := [f"{row.measured:.3f}" for row in results.evaluations]:
        others.append([results.measure, *blank[1:], measured[0], measured[-1] if measured[1:] else "", *blank])
    rates = [side.stop_rate for side in sides]
    if any(rate is not None for rate in rates):
        others.append(["finished", *("" if rate is None else f"{100 * rate:.0f} %" for rate in rates), *blank])
    # A judge whose scores say little comes last.
    rows = [*metrics, *others, *scores] if results.leading.reason else [*scores, *others, *metrics]
    if not rows:
        return []
    first = len(compared) + 2
    has_intervals = any("".join(row[first:]) for row in rows)
    heads = [
        f"tuned - {results.label(name)}{' (95 % interval)' if name == results.start else ''}"
        for name in reversed(compared)
    ]
    rows = [["", *map(results.label, compared), TUNED, *(heads if has_intervals else blank)], *rows]
    lines = align(
        [[f"{row[0]:{_LABEL_WIDTH - 2}}", *(cell or "-" for cell in row[1:first]), *row[first:]] for row in rows]
    )
    if results.scores:
        counts = " / ".join(dict.fromkeys(map(format_counts, results.scores)))
        lines += _label("judge", "; ".join([*results.judges, counts, *results.references]), width)
        lines += _label("judge and people", "; ".join(results.people), width)
    if results.training:
        lines += _label("fine-tuning", format_seconds(results.training.seconds), width)
    return [
        *lines,
        *(
            ["", *textwrap.wrap(f"{results.alike} {SCOPE}".strip(), width, break_on_hyphens=False)]
            if has_intervals
            else []
        ),
    ]


def _title(row: AnswerRow, leading: Leading) -> str:
    if row.gain is None or row.value is None:
        return "after fine-tuning"
    if leading.is_metric:
        return f"{leading.label} {leading.show(row.value - row.gain)} -> {leading.show(row.value)}"
    return f"gain {leading.show(row.gain, signed=True)}"


def _format_answers(results: RunResults, row: AnswerRow, title: str, width: int) -> list[str]:
    task = _one_line(" | ".join(part for part in (row.example.instruction, row.example.input) if part))
    lines = [f"{textwrap.shorten(task, width - len(title) - 4, placeholder=' ...')}  [{title}]"]
    for model, answer in row.answers.items():
        score = "" if results.leading.reason else results.sides[model].score_by_id.get(answer.id, "")
        lines += _label(f"  {results.label(model):<9}{score:>4}", answer.response or "(empty)", width)
    return lines + _label("  reference", row.example.output, width)


def _label(label: str, text: str, width: int) -> list[str]:
    """Return a text next to a label, truncated after a few lines."""
    lines = textwrap.wrap(
        _one_line(text), width - _LABEL_WIDTH, max_lines=_TEXT_LINES, placeholder=" ...", break_on_hyphens=False
    )
    return [f"{'' if number else label:{_LABEL_WIDTH}}{line}" for number, line in enumerate(lines)]


def _one_line(text: str) -> str:
    return " ".join(clean_text(text).split())
