"""The model card: the model, how to use it, its training, its results and their limits."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import Experiment
from hf_instruct.console import format_interval, format_points, pluralize
from hf_instruct.evaluation.intervals import SCOPE
from hf_instruct.evaluation.scores import label_judge
from hf_instruct.hub.publication import Publication, public_name
from hf_instruct.library_fields import LORA_DEFAULTS
from hf_instruct.prompts import CHAT
from hf_instruct.reporting.findings import list_findings
from hf_instruct.reporting.results import MetricRow, RunResults
from hf_instruct.schema import Interval, JudgeIdentity, MetricValue, Scores

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry, ModelCard
    from transformers import PreTrainedTokenizerBase

LOSS_PLOT, PROMPT_FILE = "loss.png", "prompt_format.jinja"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_QUESTION = "Name three animals that live in the sea."
# Settings whose values are words; other texts in an experiment may be private names or paths.
_WORDS = ("lr_scheduler_type", "optim", "loss_type")
# Settings of logging and saving, which do not affect the weights.
_HOUSEKEEPING = re.compile(r"(logging|eval|save|report|hub|push|dataloader|ddp|log)_|per_device_eval|.*_dir$|.*token$")
_LORA_SHOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias")
_VERSIONS = ("hf_instruct", "torch", "transformers", "trl", "peft")
# lm-eval's task, metric and filter for each leaderboard on the Hub -> the benchmark's dataset, and its task there.
_LEADERBOARDS = {
    ("gsm8k", "exact_match", "strict-match"): ("openai/gsm8k", "gsm8k"),
    ("mmlu_pro", "exact_match", "custom-extract"): ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    ("gpqa_diamond_cot_zeroshot", "exact_match", "flexible-extract"): ("Idavidrein/gpqa", "diamond"),
}


def build_card(plan: Publication, tokenizer: "PreTrainedTokenizerBase") -> "ModelCard":
    """Return the model card.

    Args:
        plan: The publication.
        tokenizer: The model's tokenizer, for the prompt of the example.
    """
    from huggingface_hub import ModelCard, ModelCardData

    results, experiment, measured = plan.results, plan.results.experiment, build_results(plan)
    adapter_tags = ["lora"] if plan.adapter else []
    data = ModelCardData(
        base_model=plan.base.hub_id,
        # Set, because the Hub treats every repository with a GGUF file as a quantization of its base model.
        base_model_relation=("adapter" if plan.is_adapter else "finetune") if plan.base.hub_id else None,
        datasets=[*plan.data.hub_ids, *(plan.preferences.hub_ids if plan.preferences else ())] or None,
        language=plan.data.language,
        library_name="peft" if plan.is_adapter else "transformers",
        license=plan.license,
        pipeline_tag="text-generation",
        tags=["hf-instruct", "instruction-tuning", "trl", experiment.method.lower(), *adapter_tags],
        model_name=plan.name,
        eval_results=measured or None,
    )
    if not measured:
        # Without results it would not become a model index, but a separate field that the Hub does not support.
        data.model_name = None
    template = plan.prompt_format.template
    prompt = quote_python(plan.prompt_format.format_prompt(_QUESTION, tokenizer=tokenizer))
    longest = max((len(run) for run in re.findall(r"`+", template + prompt)), default=0)
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        plan=plan,
        base=plan.base,
        results=results,
        experiment=experiment,
        training=results.training,
        scores=results.tuned.scores,
        escape=escape,
        quote=json.dumps,
        pluralize=pluralize,
        public_name=public_name,
        label_judge=_label_judge,
        fence="`" * max(3, longest + 1),
        is_chat=plan.prompt_format.name == CHAT,
        question=_QUESTION,
        prompt=prompt,
        prompt_file=PROMPT_FILE,
        template=template.removesuffix("\n"),
        settings=list(_list_settings(plan)),
        has_loss_plot=results.folder.loss_plot.is_file(),
        loss_plot=LOSS_PLOT,
        sampling=_show_sampling(experiment),
        scope=SCOPE,
        score_rows=_list_scores(results),
        limits=[escape(finding.text) for finding in list_findings(results)],
    )
    return card


def build_results(plan: Publication) -> "list[EvalResult]":
    """Return the judge's mean score, the reference metrics and lm-eval's results for the card's model index.

    Each has its n and its 95 % interval or standard error; the score also has the judge, the rubric and the number of
    failures.
    """
    from huggingface_hub import EvalResult

    def build(type: str, value: float, name: str, args: dict[str, Any], benchmark: str = "") -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            task_name="lm-eval" if benchmark else "Instruction following",
            dataset_type=benchmark or (plan.data.hub_ids[0] if len(plan.data.hub_ids) == 1 else plan.data.name),
            dataset_name=benchmark or f"{plan.data.name}, held-out examples",
            dataset_split="test",
            metric_type=type,
            metric_value=value,
            metric_name=name,
            metric_args={key: value for key, value in args.items() if value is not None},
        )

    results, judged, scores = [], [], plan.results.tuned.scores
    if scores is not None and scores.mean is not None:
        name = f"Mean score from 0 to 100 by {_label_judge(scores.judge)}"
        judged.append(build("judge-score", round(scores.mean, 2), name, _describe_score(scores, plan.results)))
    for row in plan.results.metrics:
        if row.tuned:
            args = {"interval_95": _round_ends(row.tuned.interval), "n": row.tuned.n}
            results.append(build(row.name, round(row.tuned.mean, 4), row.label, args))
    for result in plan.results.benchmarks:
        if result.value is not None and result.shown:
            facts = {name: getattr(result, name) for name in ("standard_error", "n", "num_fewshot", "version")}
            facts |= {"filter": result.filter, "lm_eval_version": result.lm_eval_version}
            task = public_name(result.task, "own-task")
            results.append(build(result.metric, result.value, result.metric, facts, task))
    return [*results, *judged] if plan.results.leading.reason else [*judged, *results]


def list_leaderboard_entries(results: RunResults) -> "Iterator[tuple[str, EvalResultEntry]]":
    """Yield lm-eval's task and the entry for its leaderboard, with the value in percent, as on leaderboards.

    Only tasks with a known leaderboard that were evaluated on all questions are included.
    Source: https://huggingface.co/docs/hub/eval-results
    """
    from huggingface_hub import EvalResultEntry

    for result in results.benchmarks:
        benchmark = _LEADERBOARDS.get((result.task, result.metric, result.filter))
        if benchmark and result.value is not None and result.limit is None:
            error = None if result.standard_error is None else f"standard error {100 * result.standard_error:.2f}"
            chat = "chat template" if result.chat_template else None
            shots = None if result.num_fewshot is None else f"{result.num_fewshot}-shot"
            facts = (shots, f"lm-eval {result.lm_eval_version}", result.task, result.filter, chat, error)
            notes = ", ".join(filter(None, facts))
            value = round(100 * result.value, 2)
            yield result.task, EvalResultEntry(*benchmark, value, date=result.measured_at, notes=notes)


def _label_judge(judge: JudgeIdentity) -> str:
    """Return a judge's label, without the name of a local folder."""
    return label_judge(judge.model_copy(update={"model": public_name(judge.model, "a model of the publisher's own")}))


def _describe_score(scores: Scores, results: RunResults) -> dict[str, Any]:
    """Return the facts that must be quoted with a score."""
    base = results.comparable_scores
    return {
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


def _list_settings(plan: Publication) -> Iterator[tuple[str, str]]:
    experiment = plan.results.experiment
    if plan.adapter:
        settings = {**LORA_DEFAULTS, **(experiment.lora or {}), **plan.adapter}
        for name in _LORA_SHOWN:
            if settings.get(name):
                yield f"LoRA `{name}`", _show(settings[name])
        if isinstance(targets := plan.adapter.get("target_modules"), list):
            yield "LoRA `target_modules`", ", ".join(escape(name) for name in sorted(map(str, targets)))
    for name, value in experiment.training.items():
        if not _HOUSEKEEPING.match(name) and (isinstance(value, int | float) or name in _WORDS):
            yield f"`{name}`", _show(value)
    if experiment.model.dropout is not None:
        yield "dropout", _show(experiment.model.dropout)
    versions = plan.results.provenance.versions
    yield "versions", ", ".join(f"{name} {escape(versions[name])}" for name in _VERSIONS if versions.get(name))


def _list_scores(results: RunResults) -> list[tuple[str, str, str]]:
    metrics = [
        (escape(row.label), _show_metric(row, row.before), _show_metric(row, row.tuned))
        for row in results.metrics
        if row.tuned
    ]
    if results.tuned.scores is None:
        return metrics
    label, before, tuned = "mean score, 0 to 100", results.comparable_scores, results.tuned.scores
    # The scores of a weak judge come last.
    if results.leading.reason:
        return [*metrics, (f"{label} (not reliable: see Limits)", _show_score(before), _show_score(tuned))]
    return [(label, _show_score(before), _show_score(tuned)), *metrics]


def _show_sampling(experiment: Experiment) -> str:
    settings = experiment.generate.model_extra or {}
    numbers = [f"{escape(name)} {_show(value)}" for name, value in settings.items() if isinstance(value, int | float)]
    strategy = "sampled" if experiment.generate.do_sample else "greedy"
    return f"{strategy} ({', '.join(numbers)})" if numbers else strategy


def _show_score(scores: Scores | None) -> str:
    if scores is None or scores.mean is None:
        return ""
    between = f" ({format_interval(scores.interval)})" if scores.interval else ""
    return f"{format_points(scores.mean)}{between}, n={scores.n}"


def _show_metric(row: MetricRow, value: MetricValue | None) -> str:
    if value is None:
        return ""
    between = f" ({row.show_interval(value)})" if value.interval else ""
    return f"{row.show(value)}{between}, n={value.n}"


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else escape(value)


def _round_ends(ends: Interval | None) -> list[float] | None:
    return [round(end, 4) for end in ends] if ends else None


def escape(text: Any) -> str:
    """Return an untrusted text as one line of Markdown that only displays it.

    >>> escape("<b>`llama3`\\n---\\n| a_b |")
    '&lt;b&gt;\\\\`llama3\\\\` --- \\\\| a_b \\\\|'
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*\[\]~|])", r"\\\1", line)


def quote_python(text: str) -> str:
    """Return a text as a Python literal that is easy to read."""
    is_plain = all(character.isprintable() or character == "\n" for character in text)
    if "\n" in text and is_plain and '"""' not in text and "\\" not in text and not text.endswith('"'):
        return f'"""{text}"""'
    return repr(text)
