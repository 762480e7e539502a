"""The report as one HTML page that needs nothing besides itself.

Text of models and of data is never trusted: the templates escape everything, no text travels through JavaScript, and a
content security policy allows only the two scripts written here, by their hashes.
"""

import base64
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct import __version__
from hf_instruct.console import format_points
from hf_instruct.plots import count_scores, draw_loss_plot, draw_score_histogram, format_inline_svg
from hf_instruct.reporting.answers import AnswerRow, pair_answers, sort_worst_first
from hf_instruct.reporting.facts import RunFacts
from hf_instruct.reporting.findings import (
    format_judge,
    format_method,
    format_seconds,
    list_missing,
    list_notes,
)
from hf_instruct.reporting.measures import list_checks, list_metrics, list_pairs, list_tasks
from hf_instruct.run_folder import plain_values
from hf_instruct.schema import ScoreSummary, TrainingSummary
from hf_instruct.yaml_text import dump_yaml

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
# Rows that the page shows at first; `report.js` has the same number.
PAGE_ROWS = 50
# Shown first where a metric leads.
_LEAD_METRICS = ("exact_match", "rouge_l")
# Characters shown of a text: a model without an end of its own may fill any number of pages.
_LONGEST_TEXT = 20_000
# Control characters that HTML drops or forbids are shown as the pictures Unicode has of them; tab and newline stay.
# Overrides of the writing direction, which could turn round the text after an answer, are shown as unreadable.
_CONTROLS = {
    **{code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)},
    127: 0x2421,
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def render_page(facts: RunFacts) -> str:
    """Return the page of a run, complete whatever the run folder lacks."""
    from markupsafe import Markup

    head_script, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("head.js", "report.js"))
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    context = {
        "policy": build_policy([head_script, script]),
        "head_script": head_script,
        "script": script,
        "style": style,
        "version": __version__,
        "longest": _LONGEST_TEXT,
        **_describe_run(facts),
        **_describe_plots(facts),
        **_describe_answers(facts),
        "metrics": list_metrics(facts),
        "checks": list_checks(facts),
        # The judge that was checked may be another than the one that gave the scores.
        "checked": format_judge(facts.self_check.judge, facts.self_check.rubric) if facts.self_check else "",
        "tasks": list_tasks(facts),
        "pairs": list_pairs(facts),
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


def clean_text(value: Any) -> Any:
    r"""Return a text that every browser can show: controls as pictures, half characters replaced; else the value.

    >>> clean_text("bell\x07, half \ud800")
    'bell␇, half ?'
    """
    if type(value) is not str:
        return value
    return value.translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")


def _build_environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=clean_text
    )
    environment.filters["points"] = format_points
    return environment


def _describe_run(facts: RunFacts) -> dict[str, Any]:
    """Return what the head, the tiles, the notes and the last section say."""
    losses = [row.validation_loss for row in facts.evaluations]
    sides = [name for name, side in (("base", facts.base), ("tuned", facts.tuned)) if side.stopped_share is not None]
    scores = facts.tuned.scores or facts.base.scores
    return {
        "facts": facts,
        "tuned": facts.tuned,
        "base": facts.base,
        "headline": _list_headline(facts),
        "leading": facts.leading,
        "lead_metrics": [row for row in list_metrics(facts) if facts.leading.is_metric and row.name in _LEAD_METRICS],
        "judge": format_judge(scores.judge, scores.rubric) if scores else "",
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if len(losses) > 1 else None,
        "stopped_sides": " → ".join(sides),
        "cost": _list_cost(facts.training),
        "notes": list_notes(facts),
        "missing": list_missing(facts),
        "again": f"hf-instruct report {shlex.quote(str(facts.folder.path))}",
        "category_scores": _list_category_scores(facts),
        "samples": _list_samples(facts),
        "provenance": _list_provenance(facts),
        "configuration": dump_yaml(plain_values(facts.experiment)),
    }


def _list_headline(facts: RunFacts) -> list[tuple[str, str]]:
    source = facts.experiment.data.source
    sizes = ", ".join(f"{count:,} {name}" for name, count in facts.split_sizes.items())
    created = facts.provenance.created_at
    return [
        ("model", _shorten_path(facts.experiment.model.name)),
        ("method", format_method(facts)),
        ("data", _shorten_path(source) + (f" ({sizes})" if sizes else "")),
        *([("started", created.replace("T", " ").replace("+00:00", " UTC"))] if created else []),
    ]


def _shorten_path(name: str) -> str:
    """Return the last part of a local path, and a Hub id or an alias as it is."""
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def _list_cost(training: TrainingSummary | None) -> list[str]:
    """Return the time of fine-tuning, then whatever else is known of its cost; empty before it has finished."""
    if training is None:
        return []
    return [
        format_seconds(training.seconds),
        f"peak memory {training.peak_memory_bytes / 1e9:.1f} GB",
        f"{training.tokens_per_second:,.0f} tokens/s",
        training.device,
        training.precision,
    ]


def _list_category_scores(facts: RunFacts) -> list[tuple[str, ScoreSummary | None, ScoreSummary]]:
    """Return name, base and tuned scores of each category, worst tuned mean first; by name where scores say little."""
    if facts.tuned.scores is None or len(facts.tuned.scores.by_category) < 2:
        return []
    base = facts.base.scores.by_category if facts.base.scores else {}
    rows = [(name, base.get(name), scores) for name, scores in facts.tuned.scores.by_category.items()]
    if facts.leading.reason:
        return sorted(rows, key=lambda row: row[0])
    return sorted(rows, key=lambda row: (row[2].mean is None, row[2].mean or 0, row[0]))


def _list_samples(facts: RunFacts) -> list[dict[str, Any]]:
    """Return the fixed validation prompts, each with its answers in the order of training."""
    samples: dict[str, dict[str, Any]] = {}
    moments = {row.step: row for row in facts.training_rows if row.kind == "samples" and row.samples}
    for _, row in sorted(moments.items()):
        moment = "before training" if row.step == 0 else f"epoch {round(row.epoch, 2):g}"
        for sample in row.samples or []:
            texts = {name: str(sample.get(name, "")) for name in ("id", "instruction", "input", "output", "response")}
            entry = samples.setdefault(texts["id"], {**texts, "reference": texts["output"], "answers": []})
            entry["answers"].append((moment, texts["response"]))
    return list(samples.values())


def _list_provenance(facts: RunFacts) -> list[tuple[str, str]]:
    training, provenance, scores = facts.training, facts.provenance, facts.tuned.scores
    rows: list[tuple[str, str | None]] = [
        ("Command", provenance.command),
        ("Commit", provenance.git_commit),
        ("Data", facts.experiment.data.source),
        ("Data SHA-256", provenance.data_sha256 or facts.preflight.data_sha256),
    ]
    if training:
        trained = f"{training.num_trainable_parameters:,} trained"
        rows += [
            ("Parameters", f"{training.num_parameters:,}, {trained}"),
            ("Training", f"{training.steps:,} steps, {training.epochs:g} epochs"),
            ("Tokens", f"{training.tokens_seen:,} example tokens"),
        ]
    rows += [
        ("Judge prompts SHA-256", scores.prompts_sha256 if scores else None),
        ("Python", provenance.python),
        ("Libraries", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())),
    ]
    return [(label, value) for label, value in rows if value]


def _describe_plots(facts: RunFacts) -> dict[str, Any]:
    """Return the plots that there are numbers for, each with the same in words for those who do not see it."""
    from markupsafe import Markup

    plots = {"loss_plot": None, "loss_text": "", "histogram": None, "histogram_text": ""}
    if any(row.kind in ("train", "evaluation") for row in facts.training_rows):
        plots["loss_plot"] = Markup(format_inline_svg(draw_loss_plot(facts.training_rows), "loss"))
        losses = [f"{row.validation_loss:.3f} at step {row.step}" for row in facts.evaluations]
        plots["loss_text"] = f"Validation loss by step: {', '.join(losses)}." if losses else "Training loss by step."
    scores = {"base": list(facts.base.score_by_id.values()), "tuned": list(facts.tuned.score_by_id.values())}
    if any(scores.values()):
        plots["histogram"] = Markup(format_inline_svg(draw_score_histogram(scores), "scores"))
        plots["histogram_text"] = " ".join(
            f"{name}: " + ", ".join(f"{n} from {10 * i}" for i, n in enumerate(count_scores(side)) if n) + "."
            for name, side in scores.items()
            if side
        )
    return plots


def _describe_answers(facts: RunFacts) -> dict[str, Any]:
    """Return the rows of the table and which of its columns and filters make sense."""
    rows = pair_answers(facts)
    kinds = {row.number: _list_kinds(row) for row in rows}
    found = {kind for names in kinds.values() for kind in names}
    categories = Counter(row.category for row in rows if row.category)
    return {
        "rows": sort_worst_first(rows),
        "kinds": {number: " ".join(names) for number, names in kinds.items()},
        "categories": sorted(categories.items()) if len(categories) > 1 else [],
        "has_base": any(row.base for row in rows),
        "has_values": any(row.value is not None for row in rows),
        "has_gains": any(row.gain is not None for row in rows),
        "has_failures": "failed" in found,
        "has_cut": "cut" in found,
        "page_rows": PAGE_ROWS,
    }


def _list_kinds(row: AnswerRow) -> list[str]:
    """Return the values of the page's `Show` filter that the row answers to."""
    sides = [side for side in (row.base, row.tuned) if side is not None]
    kinds = []
    if row.gain is not None:
        kinds.append("up" if row.gain > 0 else "down" if row.gain < 0 else "same")
    if any(side.judgment is not None and side.score is None for side in sides):
        kinds.append("failed")
    if row.tuned is not None and row.tuned.stopped is False:
        kinds.append("cut")
    return kinds
