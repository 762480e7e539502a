"""The model card: what the model is, how to ask it, how it was made, how well it does and where that says little."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import LORA_DEFAULTS, TRAIN_DEFAULTS, Experiment
from hf_instruct.console import format_interval, format_points
from hf_instruct.evaluation.metrics import format_metric, label_metric
from hf_instruct.hub.publication import UNKNOWN, Publication
from hf_instruct.hub.results import Measured, describe_judge, escape, list_limits, public_name
from hf_instruct.prompts import CHAT
from hf_instruct.schema import Interval, MetricValue, Scores, TrainingSummary

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from transformers import PreTrainedTokenizerBase

LOSS_PLOT, PROMPT_FILE = "loss.png", "prompt_format.jinja"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_QUESTION = "Name three animals that live in the sea."
# Settings that are words; other texts in an experiment may be names or paths of the user's own.
_WORDS = ("lr_scheduler_type", "optim", "loss_type")
# About how training was watched and kept, not about what was learned.
_HOUSEKEEPING = re.compile(r"(logging|eval|save|report|hub|push|dataloader|ddp|log)_|per_device_eval|.*_dir$|.*token$")
_LORA_SHOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")
_VERSIONS = ("hf_instruct", "torch", "transformers", "trl", "peft")

Rows = Iterator[tuple[str, ...]]


def build_card(plan: Publication, tokenizer: "PreTrainedTokenizerBase") -> "ModelCard":
    """Return the model card.

    Args:
        plan: What is published.
        tokenizer: Of the model, to write the prompt of the example.
    """
    from huggingface_hub import ModelCard

    experiment, measured, template = plan.experiment, plan.measured, plan.prompt_format.template
    prompt = quote_python(plan.prompt_format.format_prompt(_QUESTION, tokenizer=tokenizer))
    longest = max((len(run) for run in re.findall(r"`+", template + prompt)), default=0)
    card: ModelCard = ModelCard.from_template(
        _build_metadata(plan),
        template_path=str(_TEMPLATE),
        repo_id=plan.repo_id,
        name=_name(plan),
        summary=_summarize(plan),
        fence="`" * max(3, longest + 1),
        base_id=plan.base.hub_id if plan.is_adapter else None,
        revision=json.dumps(plan.base.revision) if plan.base.revision else None,
        is_chat=plan.prompt_format.name == CHAT,
        question=_QUESTION,
        prompt=prompt,
        max_new_tokens=experiment.generate.max_new_tokens,
        prompt_file=PROMPT_FILE,
        format_name=escape(public_name(plan.prompt_format.name, "a format of the publisher's own")),
        template=template.removesuffix("\n"),
        data_rows=list(_list_data(plan)),
        training_rows=[*_list_outcome(measured.training), *_list_settings(plan)],
        loss_plot=LOSS_PLOT,
        has_loss_plot=plan.run.loss_plot.is_file(),
        sampling=_show_sampling(experiment),
        score_rows=list(_list_scores(measured)),
        judged_by=_name_judge(measured),
        limits=[*list_limits(measured), *_list_general_limits(plan)],
    )
    return card


def _build_metadata(plan: Publication) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    results = build_results(plan)
    data = ModelCardData(
        base_model=plan.base.hub_id,
        datasets=[plan.data.hub_id] if plan.data.hub_id else None,
        language=plan.data.language,
        library_name="peft" if plan.is_adapter else "transformers",
        license=plan.license,
        pipeline_tag="text-generation",
        tags=["hf-instruct", "instruction-tuning", "sft", *(["lora"] if plan.adapter else [])],
        model_name=_name(plan),
        eval_results=results or None,
    )
    if not results:
        # Without results it would not become a model index, but a field of its own that the Hub does not know.
        data.model_name = None
    return data


def build_results(plan: Publication) -> "list[EvalResult]":
    """Return the judge's mean score and the reference metrics for the card's model index; empty without any.

    Each carries its 95 % interval and n; the score also who judged, under which rubric, with how many failures.
    """
    from huggingface_hub import EvalResult

    measured = plan.measured
    where: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "Instruction following",
        "dataset_type": plan.data.hub_id or plan.data.name,
        "dataset_name": f"{plan.data.name}, held-out examples",
        "dataset_split": "test",
    }
    results = []
    if measured.scores is not None and measured.scores.mean is not None:
        results.append(
            EvalResult(
                **where,
                metric_type="judge-score",
                metric_value=round(measured.scores.mean, 2),
                metric_name=f"Mean score from 0 to 100 by {describe_judge(measured.scores.judge)}",
                metric_args=_describe_score(measured.scores, measured.base_scores if measured.judges_agree else None),
            )
        )
    for name, values in measured.metrics.items():
        args = {"interval_95": _round_ends(values.interval), "n": values.n}
        results.append(
            EvalResult(
                **where,
                metric_type=name,
                metric_value=round(values.mean, 4),
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
        "judge": public_name(scores.judge.model, "own-model"),
        "judge_backend": scores.judge.backend or None,
        "judge_digest": scores.judge.digest,
        "rubric": public_name(scores.rubric.name, "own-rubric"),
        "rubric_sha256": scores.rubric.sha256 or None,
        "prompts_sha256": scores.prompts_sha256 or None,
        "repeats": scores.repeats.count if scores.repeats else None,
        "base_model_mean": None if base is None or base.mean is None else round(base.mean, 2),
    }
    return {name: value for name, value in values.items() if value is not None}


def _name(plan: Publication) -> str:
    return plan.repo_id.rpartition("/")[2]


def _summarize(plan: Publication) -> str:
    hub_id = plan.base.hub_id
    base = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else "A language model that is not published"
    count = plan.measured.preflight.examples.get("train")
    examples = f" on {count:,} examples" if count else ""
    how, kind = ("a LoRA adapter", "The adapter is merged: these are whole weights.") if plan.adapter else ("", "")
    if plan.is_adapter:
        kind = "This repository holds the adapter alone; the base model is loaded beside it."
    return f"{base}, tuned{examples} to follow instructions ({how or 'all weights'}). {kind}".rstrip()


def _list_data(plan: Publication) -> Rows:
    section, data = plan.experiment.data, plan.data
    at = f" at {escape(section.revision)}" if data.hub_id and section.revision else ""
    yield "data", f"{data.description}{at}" + (f", the first {section.limit:,}" if section.limit else "")
    yield "license of the data", _show_license(data.license)
    sizes = plan.measured.preflight.examples
    names = ("train", "validation", "test")
    if parts := [f"{sizes[name]:,} {name}" for name in names if name in sizes]:
        yield "examples", f"{', '.join(parts)} ({section.split} split)"
    if digest := plan.provenance.data_sha256:
        yield "SHA-256 of the splits", escape(digest)
    yield "license of these weights", _show_license(plan.license)
    known = plan.base.license != UNKNOWN
    yield "license of the base model", plan.base.license if known else "unknown here: see the base model"


def _list_outcome(training: TrainingSummary | None) -> Rows:
    if training is None:
        return
    if training.validation_loss is not None:
        before = "?" if training.validation_loss_before is None else f"{training.validation_loss_before:.3f}"
        yield "validation loss, nats per label token", f"{before} → {training.validation_loss:.3f}"
    yield "weights trained", f"{training.num_trainable_parameters:,} of {training.num_parameters:,}"
    epochs = f"{training.epochs:g}" + (" epoch" if training.epochs == 1 else " epochs")
    yield "length", f"{training.steps:,} steps, {epochs}, {training.tokens_seen:,} tokens"
    memory = f"{training.peak_memory_bytes / 1e9:.1f} GB on {escape(training.device)}, {escape(training.precision)}"
    yield "took", f"{training.seconds / 60:.1f} minutes and {memory}"


def _list_settings(plan: Publication) -> Rows:
    experiment = plan.experiment
    if plan.adapter:
        settings = {**LORA_DEFAULTS, **(experiment.lora or {}), **plan.adapter}
        for name in _LORA_SHOWN:
            if settings.get(name):
                yield f"LoRA `{name}`", _show(settings[name])
        if isinstance(targets := plan.adapter.get("target_modules"), list):
            yield "LoRA `target_modules`", ", ".join(escape(name) for name in sorted(map(str, targets)))
    for name, value in {**TRAIN_DEFAULTS, **experiment.train}.items():
        if not _HOUSEKEEPING.match(name) and (isinstance(value, int | float) or name in _WORDS):
            yield f"`{name}`", _show(value)
    if experiment.model.dropout is not None:
        yield "dropout", _show(experiment.model.dropout)
    versions = plan.provenance.versions
    yield "versions", ", ".join(f"{name} {escape(versions[name])}" for name in _VERSIONS if versions.get(name))


def _list_scores(measured: Measured) -> Rows:
    if measured.scores:
        base = measured.base_scores if measured.judges_agree else None
        yield "mean score, 0 to 100", _show_score(base), _show_score(measured.scores)
    for name in measured.metrics:
        values = (_show_metric(name, side.get(name)) for side in (measured.base_metrics, measured.metrics))
        yield escape(label_metric(name)), *values


def _show_sampling(experiment: Experiment) -> str:
    settings = experiment.generate.model_extra or {}
    given = [f"{escape(name)} {_show(value)}" for name, value in settings.items() if isinstance(value, int | float)]
    how = "sampled" if experiment.generate.do_sample else "greedy"
    return f"{how} ({', '.join(given)})" if given else how


def _name_judge(measured: Measured) -> str:
    if (scores := measured.scores) is None:
        return ""
    digest = f" (SHA-256 {escape(scores.rubric.sha256[:12])})" if scores.rubric.sha256 else ""
    name = escape(public_name(scores.rubric.name, "of the publisher's own"))
    said = (
        f"Judged by {escape(describe_judge(scores.judge))}, rubric {name}{digest}: {scores.n} of {scores.total} "
        f"answers have a score, {scores.failures} failed."
    )
    if measured.difference is not None:
        said += f" This model - its base model, on the same examples: {measured.difference}."
    return said


def _show_score(scores: Scores | None) -> str:
    if scores is None or scores.mean is None:
        return ""
    ends, error = scores.interval, scores.standard_error
    spread = f" ± {format_points(error)} standard error" if error is not None and ends is None else ""
    between = f" ({format_interval(ends)})" if ends else ""
    return f"{format_points(scores.mean)}{spread}{between}, n={scores.n}"


def _show_metric(name: str, value: MetricValue | None) -> str:
    if value is None:
        return ""
    ends = value.interval
    between = f" ({format_metric(name, ends.low)} to {format_metric(name, ends.high)})" if ends else ""
    return f"{format_metric(name, value.mean)}{between}, n={value.n}"


def _list_general_limits(plan: Publication) -> Iterator[str]:
    if plan.base.is_rounded:
        may = "its answers may differ a little" if plan.is_adapter else "training may do a little better"
        yield (
            "What was tuned and scored is a copy of the base model, rounded to 4 bits: on the weights that the Hub "
            f"has, {may}."
        )
    yield (
        "It states falsehoods with confidence, and nothing was done to keep it from harmful answers. "
        "Each instruction was trained on by itself: it has learned no conversation from these examples."
    )


def _show_license(license: str) -> str:
    return license if license != UNKNOWN else "unknown: the publisher named none"


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else escape(value)


def _round_ends(ends: Interval | None) -> list[float] | None:
    return [round(end, 4) for end in ends] if ends else None


def quote_python(text: str) -> str:
    """Return a text as a Python literal that is easy to read, and equal to it."""
    is_plain = all(character.isprintable() or character == "\n" for character in text)
    if "\n" in text and is_plain and '"""' not in text and "\\" not in text and not text.endswith('"'):
        return f'"""{text}"""'
    return repr(text)
