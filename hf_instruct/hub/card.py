"""The model card: what the model is, how to ask it, how it was made, how well it does and where that says little."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.config import LORA_DEFAULTS, TRAIN_DEFAULTS, Experiment
from hf_instruct.console import format_interval, format_points
from hf_instruct.evaluation.intervals import Interval, MeanDifference, parse_interval
from hf_instruct.evaluation.metrics import format_metric, label_metric
from hf_instruct.evaluation.score_summary import Scores
from hf_instruct.hub.provenance import UNKNOWN, BaseModel, Data
from hf_instruct.hub.results import (
    Measured,
    as_mapping,
    describe_judge,
    list_limits,
    public_name,
)
from hf_instruct.hub.usage import PROMPT_FILE, build_snippet, escape, fence
from hf_instruct.prompts import CHAT
from hf_instruct.records import as_number

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

LOSS_PLOT = "loss.png"
# Settings that are words; other texts in an experiment may be names or paths of the user's own.
_WORDS = ("lr_scheduler_type", "optim", "loss_type")
# About how training was watched and kept, not about what was learned.
_HOUSEKEEPING = re.compile(r"(logging|eval|save|report|hub|push|dataloader|ddp|log)_|per_device_eval|.*_dir$|.*token$")
_LORA_SHOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")
_VERSIONS = ("hf_instruct", "torch", "transformers", "trl", "peft")


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """All that the card says.

    Attributes:
        repo_id: Where it is published.
        experiment: What the run is of.
        provenance: `run.yaml` without the experiment.
        measured: What the run's files tell of the model's answers.
        base: The model that was tuned.
        data: What it learned from.
        license: The licence of the published weights, or `unknown`.
        template: Jinja source of the prompt format.
        prompt: The prompt of `question`, as the model was trained on it.
        question: An instruction.
        adapter: Settings of the adapter in `adapter_config.json`; empty for full fine-tuning.
        is_adapter: Whether the weights published are an adapter, which needs its base model.
        has_loss_plot: Whether the plot of the losses is published beside the card.
    """

    repo_id: str
    experiment: Experiment
    provenance: Mapping[str, Any]
    measured: Measured
    base: BaseModel
    data: Data
    license: str
    template: str
    prompt: str
    question: str
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_adapter: bool = False
    has_loss_plot: bool = False

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo_id.rpartition("/")[2]


def build_card(facts: CardFacts) -> "ModelCard":
    """Return the model card."""
    from huggingface_hub import ModelCard, ModelCardData

    results = build_results(facts)
    data = ModelCardData(
        base_model=facts.base.hub_id,
        datasets=[facts.data.hub_id] if facts.data.hub_id else None,
        language=facts.data.language,
        library_name="peft" if facts.is_adapter else "transformers",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=["hf-instruct", "instruction-tuning", "sft", *(["lora"] if facts.adapter else [])],
        model_name=facts.name,
        eval_results=results or None,
    )
    if not results:
        # Without results it would not become a model index, but a field of its own that the Hub does not know.
        data.model_name = None
    sections = [
        f"# {facts.name}\n\n{_summarize(facts)}",
        "## How to use it\n\n"
        + build_snippet(
            facts.repo_id,
            base_id=facts.base.hub_id if facts.is_adapter else None,
            base_revision=facts.base.revision,
            question=facts.question,
            prompt=None if facts.experiment.data.prompt_format == CHAT else facts.prompt,
            max_new_tokens=facts.experiment.generate.max_new_tokens,
        ),
        _describe_prompt(facts),
        _describe_data(facts),
        _describe_training(facts),
        _describe_scores(facts),
        _describe_limits(facts),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


def build_results(facts: CardFacts) -> "list[EvalResult]":
    """Return the judge's mean score and the reference metrics for the card's model index; empty without any.

    Each carries its 95 % interval and n; the score also who judged, under which rubric, with how many failures.
    """
    from huggingface_hub import EvalResult

    measured = facts.measured
    where: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "Instruction following",
        "dataset_type": facts.data.hub_id or facts.data.name,
        "dataset_name": f"{facts.data.name}, held-out examples",
        "dataset_split": "test",
    }
    results = []
    if measured.scores is not None and measured.scores.mean is not None:
        results.append(
            EvalResult(
                **where,
                metric_type="judge-score",
                metric_value=round(measured.scores.mean, 2),
                metric_name=f"Mean score from 0 to 100 by {describe_judge(measured.scores)}",
                metric_args=_describe_score(measured.scores, measured.base_scores if measured.judges_agree else None),
            )
        )
    for name, values in measured.metrics.items():
        row = as_mapping(values)
        if (mean := as_number(row.get("mean"))) is None:
            continue
        args = {"interval_95": _round_ends(parse_interval(row.get("interval"))), "n": row.get("n")}
        results.append(
            EvalResult(
                **where,
                metric_type=name,
                metric_value=round(mean, 4),
                metric_name=label_metric(name),
                metric_args={key: value for key, value in args.items() if value is not None},
            )
        )
    return results


def _describe_score(scores: Scores, base: Scores | None) -> dict[str, Any]:
    """Return what a score should not be quoted without."""
    values = {
        "interval_95": _round_ends(scores.interval),
        "standard_error": None if scores.standard_error is None else round(scores.standard_error, 2),
        "n": scores.n,
        "failures": scores.failures,
        "total": scores.total,
        "judge": public_name(scores.judge.get("model"), "own-model"),
        "judge_backend": scores.judge.get("backend"),
        "judge_digest": scores.judge.get("digest"),
        "rubric": public_name(scores.rubric, "own-rubric"),
        "rubric_sha256": scores.rubric_sha256 or None,
        "prompts_sha256": scores.prompts_sha256 or None,
        "repeats": scores.repeats.get("count"),
        "base_model_mean": None if base is None or base.mean is None else round(base.mean, 2),
    }
    return {name: value for name, value in values.items() if value is not None}


def _summarize(facts: CardFacts) -> str:
    base = f"[{facts.base.hub_id}](https://huggingface.co/{facts.base.hub_id})" if facts.base.hub_id else None
    sizes = as_mapping(facts.measured.preflight.get("examples"))
    count = as_number(sizes.get("train"))
    examples = f" on {count:,.0f} examples" if count else ""
    how = "a LoRA adapter" if facts.adapter else "all weights"
    kind = ""
    if facts.adapter:
        kind = (
            " This repository holds the adapter alone; the base model is loaded beside it."
            if facts.is_adapter
            else " The adapter is merged: these are whole weights."
        )
    return f"{base or 'A language model that is not published'}, tuned{examples} to follow instructions ({how}).{kind}"


def _describe_prompt(facts: CardFacts) -> str:
    if facts.experiment.data.prompt_format == CHAT:
        return (
            "## Prompt\n\nThe model was trained on its base model's chat template as the tokenizer here carries it. "
            "With other words around the instruction it answers worse."
        )
    name = escape(public_name(facts.experiment.data.prompt_format, "a format of the publisher's own"))
    return (
        f"## Prompt\n\nThe model was trained on this prompt (`{PROMPT_FILE}`, {name}), which ends where the response "
        f"begins; with other words around the instruction it answers worse.\n\n{fence(facts.template, 'jinja')}"
    )


def _describe_data(facts: CardFacts) -> str:
    data, sizes = facts.data, as_mapping(facts.measured.preflight.get("examples"))
    rows = [("data", data.description + (f", the first {data.limit:,}" if data.limit else ""))]
    rows.append(("licence of the data", _show_license(data.license)))
    parts = [
        f"{count:,} {name}" for name in ("train", "validation", "test") if isinstance(count := sizes.get(name), int)
    ]
    if parts:
        rows.append(("examples", f"{', '.join(parts)} ({facts.experiment.data.split} split)"))
    if digest := facts.provenance.get("data_sha256"):
        rows.append(("SHA-256 of the splits", escape(digest)))
    base = facts.base.license
    rows.append(("licence of these weights", _show_license(facts.license)))
    rows.append(("licence of the base model", base if base != UNKNOWN else "unknown here: see the base model"))
    return f"## Data and licences\n\n{_table(('', ''), rows)}"


def _describe_training(facts: CardFacts) -> str:
    plot = f"\n\n![Training and validation loss]({LOSS_PLOT})" if facts.has_loss_plot else ""
    rows = [*_list_outcome(facts.measured.training), *_list_settings(facts)]
    return f"## Training\n\n{_table(('', ''), rows)}{plot}"


def _list_outcome(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    number = {name: as_number(value) for name, value in training.items()}

    def show(name: str, pattern: str, scale: float = 1.0) -> str:
        value = number.get(name)
        return "?" if value is None else pattern.format(value / scale)

    rows = []
    if number.get("validation_loss") is not None:
        losses = f"{show('validation_loss_before', '{:.3f}')} → {show('validation_loss', '{:.3f}')}"
        rows.append(("validation loss, nats a label token", losses))
    if number.get("num_parameters") is not None:
        trained = show("num_trainable_parameters", "{:,.0f}")
        rows.append(("weights trained", f"{trained} of {show('num_parameters', '{:,.0f}')}"))
    if number.get("steps") is not None:
        epochs = show("epochs", "{:g}") + (" epoch" if number.get("epochs") == 1 else " epochs")
        rows.append(("length", f"{show('steps', '{:,.0f}')} steps, {epochs}, {show('tokens_seen', '{:,.0f}')} tokens"))
    if number.get("seconds") is not None:
        device, precision = (escape(training.get(name) or "?") for name in ("device", "precision"))
        memory = show("peak_memory_bytes", "{:.1f} GB", 1e9)
        took = f"{show('seconds', '{:.1f}', 60)} minutes and {memory} on {device}, {precision}"
        rows.append(("took", took))
    return rows


def _list_settings(facts: CardFacts) -> list[tuple[str, str]]:
    rows = []
    if facts.adapter:
        settings = {**LORA_DEFAULTS, **(facts.experiment.lora or {}), **facts.adapter}
        rows += [(f"LoRA `{name}`", _show(settings[name])) for name in _LORA_SHOWN if settings.get(name)]
        if isinstance(targets := facts.adapter.get("target_modules"), list):
            rows.append(("LoRA `target_modules`", ", ".join(escape(name) for name in sorted(map(str, targets)))))
    for name, value in {**TRAIN_DEFAULTS, **facts.experiment.train}.items():
        if not _HOUSEKEEPING.match(name) and (isinstance(value, int | float) or name in _WORDS):
            rows.append((f"`{name}`", _show(value)))
    if facts.experiment.model.dropout is not None:
        rows.append(("dropout", _show(facts.experiment.model.dropout)))
    versions = as_mapping(facts.provenance.get("versions"))
    rows.append(("versions", ", ".join(f"{name} {escape(versions[name])}" for name in _VERSIONS if versions.get(name))))
    return rows


def _describe_scores(facts: CardFacts) -> str:
    measured, limit = facts.measured, facts.experiment.generate.max_new_tokens
    if not measured.scores and not measured.metrics:
        return ""
    rows = []
    if measured.scores:
        base = measured.base_scores if measured.judges_agree else None
        rows.append(("mean score, 0 to 100", *(_show_score(scores) for scores in (base, measured.scores))))
    for name in measured.metrics:
        sides = (measured.base_metrics, measured.metrics)
        rows.append((escape(label_metric(name)), *(_show_metric(name, as_mapping(side.get(name))) for side in sides)))
    how = _show_sampling(facts.experiment)
    intro = f"On the held-out test examples, answers {how} and at most {limit} tokens long; 95 % intervals in brackets."
    parts = [intro, _table(("", "base model", "this model"), rows)]
    if measured.scores:
        parts.append(_name_judge(measured.scores, measured.difference))
    return "## Scores\n\n" + "\n\n".join(parts)


def _show_sampling(experiment: Experiment) -> str:
    settings = experiment.generate.model_extra or {}
    given = [f"{escape(name)} {_show(value)}" for name, value in settings.items() if isinstance(value, int | float)]
    how = "sampled" if experiment.generate.do_sample else "greedy"
    return f"{how} ({', '.join(given)})" if given else how


def _name_judge(scores: Scores, difference: MeanDifference | None) -> str:
    digest = f" (SHA-256 {escape(scores.rubric_sha256[:12])})" if scores.rubric_sha256 else ""
    name = escape(public_name(scores.rubric, "of the publisher's own"))
    said = (
        f"Judged by {escape(describe_judge(scores))}, rubric {name}{digest}: {scores.n} of {scores.total} answers have "
        f"a score, {scores.failures} failed."
    )
    if difference is not None:
        said += f" This model less its base model, on the same examples: {difference}."
    return said


def _show_score(scores: Scores | None) -> str:
    if scores is None or scores.mean is None:
        return ""
    ends, error = scores.interval, scores.standard_error
    spread = f" ± {format_points(error)} standard error" if error is not None and ends is None else ""
    between = f" ({format_interval(ends)})" if ends else ""
    return f"{format_points(scores.mean)}{spread}{between}, n={scores.n}"


def _show_metric(name: str, values: Mapping[str, Any]) -> str:
    if (mean := as_number(values.get("mean"))) is None:
        return ""
    ends = parse_interval(values.get("interval"))
    between = f" ({format_metric(name, ends[0])} to {format_metric(name, ends[1])})" if ends else ""
    return f"{format_metric(name, mean)}{between}, n={values.get('n')}"


def _describe_limits(facts: CardFacts) -> str:
    limits = list_limits(facts.measured)
    if facts.base.is_rounded:
        about = "on the weights that the Hub has, its answers may differ a little" if facts.is_adapter else ""
        about = about or "the weights that the Hub has may do a little better"
        limits.append(f"What was tuned and scored is a copy of the base model, rounded to 4 bits: {about}.")
    limits.append(
        "It states falsehoods with confidence, and nothing was done to keep it from harmful answers. "
        "Each instruction was trained on by itself: it has learned no conversation from these examples."
    )
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show_license(license: str) -> str:
    return license if license != UNKNOWN else "unknown: the publisher named none"


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else escape(value)


def _round_ends(ends: Interval | None) -> list[float] | None:
    return [round(end, 4) for end in ends] if ends else None
