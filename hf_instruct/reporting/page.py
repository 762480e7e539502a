"""The report as one self-contained HTML page.

Text from models and data is never trusted: the templates escape everything, no text is passed through JavaScript, and a
content security policy only allows our two scripts, by their hashes.
"""

import base64
import hashlib
import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct import __version__
from hf_instruct.config import Experiment, plain_values
from hf_instruct.console import format_interval, format_points, format_seconds, format_signed, pluralize
from hf_instruct.evaluation.intervals import SCOPE
from hf_instruct.evaluation.scores import label_judge, short_name
from hf_instruct.plots import count_scores, draw_loss_plot, draw_score_histogram, format_inline_svg, write_figure
from hf_instruct.records import write_text
from hf_instruct.reporting.answers import pair_answers, sort_by_change
from hf_instruct.reporting.findings import list_findings, list_missing
from hf_instruct.reporting.results import RunResults, read_results
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import ScoreSummary
from hf_instruct.yaml_text import dump_yaml

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"
# Rows that the page shows initially; `report.js` has the same number.
PAGE_ROWS = 50
# The metrics that are shown first if they lead.
_LEAD_METRICS = ("exact_match", "rouge_l")
_SETTINGS = (
    *("beta", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"),
    *("max_steps", "num_train_epochs", "max_length", "seed"),
)
# Characters shown of a text: a model that never stops could fill any number of pages.
_LONGEST_TEXT = 20_000
# Control characters that HTML drops or forbids are shown as Unicode's pictures for them; tab and newline stay.
# Overrides of the writing direction, which could reverse the text after an answer, are replaced by U+FFFD.
_CONTROLS = {
    **{code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)},
    127: 0x2421,
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def report(run: RunFolder | str | Path, experiment: Experiment | None = None) -> Path:
    """Write `report.html`, and `scores.png` if there are scores; the files of any stage may be missing.

    Args:
        run: The run folder, or its path.
        experiment: The experiment of the run; by default that in its `run.yaml`.

    Returns:
        The path of the page.

    Raises:
        RunError: There is no such run.
        DataError: A file of the run cannot be read or is invalid.
    """
    run = RunFolder.of(run)
    results = read_results(run, experiment)
    if scores := _list_scores(results):
        write_figure(draw_score_histogram(scores, label=results.label, title=results.name), run.score_plot)
    write_text(run.report, render_page(results))
    logger.debug("wrote %s", run.report)
    return run.report


def render_page(results: RunResults) -> str:
    """Return the HTML page of a run; it is complete even if the files of some stages are missing."""
    from markupsafe import Markup

    head_script, script, style = (
        Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("head.js", "report.js", "report.css")
    )
    context = {
        "policy": build_policy([head_script, script]),
        "head_script": head_script,
        "script": script,
        "style": style,
        "version": __version__,
        "longest": _LONGEST_TEXT,
        "results": results,
        "before": results.before,
        "tuned": results.tuned,
        "measured": [name for name in results.others if results.sides[name].metrics.metrics],
        "leading": results.leading,
        "lead_metrics": [row for row in results.metrics if results.leading.is_metric and row.name in _LEAD_METRICS],
        "scope": SCOPE,
        "started": results.provenance.created_at.replace("T", " ").replace("+00:00", " UTC"),
        "losses": [row.measured for row in results.evaluations],
        "findings": list_findings(results),
        "missing": list_missing(results),
        "command": f"hf-instruct report {shlex.quote(str(results.folder.path))}",
        "category_scores": _list_category_scores(results),
        "samples": _list_samples(results),
        "settings": _describe_settings(results),
        "configuration": dump_yaml(plain_values(results.experiment)),
        **_describe_plots(results),
        **_describe_answers(results),
    }
    return _build_environment().get_template("report.html.jinja").render(context)


def build_policy(scripts: Sequence[str]) -> str:
    """Return a content security policy that allows these scripts, inline styles and nothing else.

    >>> build_policy(["0;"]).split("; ")[1]
    "script-src 'sha256-8atrH6Pge+As3TgWrRwcD2pUDCYuTIBfIIqQGFDl3eA='"
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def show_controls(value: Any) -> Any:
    r"""Return a string that every browser can show: controls as pictures, surrogates replaced; other values unchanged.

    >>> show_controls("bell\x07, half \ud800")
    'bell␇, half ?'
    """
    if type(value) is not str:
        return value
    return value.translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")


def _build_environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=show_controls
    )
    environment.globals["label_judge"] = label_judge
    environment.filters |= {
        "points": format_points,
        "signed": format_signed,
        "interval": format_interval,
        "seconds": format_seconds,
        "short_name": short_name,
        "title_case": lambda text: text[:1].upper() + text[1:],
        "pluralize": pluralize,
    }
    return environment


def _describe_settings(results: RunResults) -> str:
    """Return the method and the most important training settings, including defaults."""
    values = results.experiment.training
    shown = [f"{name} {values[name]}" for name in _SETTINGS if values.get(name) is not None]
    return ", ".join([results.method, *shown, *([results.training.precision] if results.training else [])])


def _list_scores(results: RunResults) -> dict[str, list[int]]:
    """Return all scores of each model that has any."""
    scores = {name: list(side.score_by_id.values()) for name, side in results.sides.items()}
    return {name: values for name, values in scores.items() if values}


def _list_category_scores(results: RunResults) -> list[tuple[str, ScoreSummary | None, ScoreSummary]]:
    """Return name and both models' scores of each category, lowest tuned mean first; by name if the judge is weak."""
    before, tuned = (side.scores.by_category if side.scores else {} for side in (results.before, results.tuned))
    rows = [(name, before.get(name), tuned[name]) for name in sorted(tuned)]
    if results.leading.reason:
        return rows
    return sorted(rows, key=lambda row: (row[2].mean is None, row[2].mean or 0))


def _list_samples(results: RunResults) -> list[tuple[dict[str, str], list[tuple[float, str]]]]:
    """Return the fixed validation prompts, each with its answers and their epochs in training order."""
    samples: dict[str, tuple[dict[str, str], list[tuple[float, str]]]] = {}
    # A resumed run may log a step again; the later row counts.
    rows = {row.step: row for row in results.training_rows if row.samples}
    for step in sorted(rows):
        for sample in rows[step].samples or ():
            samples.setdefault(sample["id"], (sample, []))[1].append((round(rows[step].epoch, 2), sample["response"]))
    return list(samples.values())


def _describe_plots(results: RunResults) -> dict[str, Any]:
    """Return the plots that have data, each with a text alternative."""
    from markupsafe import Markup

    plots = {"loss_plot": None, "loss_text": "", "histogram": None, "histogram_text": ""}
    if any(row.kind in ("train", "evaluation") for row in results.training_rows):
        plots["loss_plot"] = Markup(format_inline_svg(draw_loss_plot(results.training_rows), "loss"))
        measured = ", ".join(f"{row.measured:.3f} at step {row.step}" for row in results.evaluations)
        plots["loss_text"] = f"{results.measure.capitalize()} by step: {measured or 'none'}."
    if scores := _list_scores(results):
        plots["histogram"] = Markup(format_inline_svg(draw_score_histogram(scores, label=results.label), "scores"))
        counted = {name: enumerate(count_scores(values)) for name, values in scores.items()}
        plots["histogram_text"] = " ".join(
            f"{results.label(name)}: {', '.join(f'{n} from {10 * i}' for i, n in counts if n)}."
            for name, counts in counted.items()
        )
    return plots


def _describe_answers(results: RunResults) -> dict[str, Any]:
    """Return the rows of the table, and which columns and filters it needs."""
    rows = pair_answers(results)
    categories = Counter(row.example.category for row in rows if row.example.category)
    return {
        "rows": sort_by_change(rows),
        "kinds": {kind for row in rows for kind in row.kinds},
        "categories": sorted(categories.items()) if len(categories) > 1 else [],
        "answered": [name for name in results.others if any(name in row.answers for row in rows)],
        "has_values": any(row.value is not None for row in rows),
        "has_gains": any(row.gain is not None for row in rows),
        "page_rows": PAGE_ROWS,
    }
