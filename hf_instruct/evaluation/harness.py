"""Benchmarks: evaluate a model in memory on tasks of lm-eval, with standard errors.

What is measured is what `lm_eval.evaluate` measures; here it gets the model and silence, and its results are kept.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.evaluation.harness_tasks import first_line, load_tasks, quiet
from hf_instruct.evaluation.intervals import compare_values
from hf_instruct.records import read_file, write_json
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED, BenchmarkResult, MeanDifference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Options of a benchmark.

    Attributes:
        limit: Only the first so many questions of each task.
        num_fewshot: Solved examples before each question; None for what the task says, else 0.
        batch_size: Requests computed at once.
        apply_chat_template: Put questions into the tokenizer's chat template; by default they stand as plain text.
        include: Folders with task YAMLs.
        dtype: Precision of the weights.
        trust_remote_code: Run code that comes with the model.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    apply_chat_template: bool = False
    include: tuple[Path, ...] = ()
    dtype: str = "float32"
    trust_remote_code: bool = False


def benchmark_run(
    name: str, tasks: Sequence[str], *, options: BenchmarkOptions | None = None, base: bool = False
) -> dict[str, list[BenchmarkResult]]:
    """Evaluate a run's model, or any other, and return the results under `tuned` and, if requested, `untuned`.

    Those of a run are also merged into its `benchmarks.json`, task by task: what is there already, asked in the same
    way, is not asked again.

    Args:
        name: A run folder; or an alias, Hub id or folder of a model, whose results are returned only.
        tasks: Names of tasks, groups or tags.
        options: How to ask.
        base: Also ask the model that the run started from, and compare over the same questions.

    Raises:
        ConfigError: A task is unknown, lm-eval is missing, or `base` is asked for without a run.
        DataError: A task's data is not there, or `benchmarks.json` cannot be read.
        RunError: The folder is not a run.
        ModelLoadError: The model cannot be loaded.
    """
    options = options or BenchmarkOptions()
    run = RunFolder(Path(name), options.trust_remote_code)
    is_run = run.config.is_file()
    if base and not is_run:
        raise ConfigError(f"`--base` needs a run folder, and `{name}` is not one.")
    names = {TUNED: name}
    if base:
        experiment = run.load_experiment()
        names[experiment.start] = run.find_base(experiment.model.name)
    # A damaged file comes to light before hours of work.
    kept = (read_file(run.benchmarks, dict[str, list[BenchmarkResult]]) or {}) if is_run else {}
    loaded = load_tasks(tasks, options.include)
    found: dict[str, list[BenchmarkResult]] = {kind: [] for kind in names}
    for kind, model_name in names.items():
        model = None
        for asked, task in loaded.items():
            request = _build_request(asked, model_name, options)
            known = kept.get(kind, [])
            rows = [row for row in known if all(getattr(row, field) == value for field, value in request.items())]
            if rows:
                logger.info("`%s` was evaluated before; delete `%s` to evaluate it again", asked, run.benchmarks)
            else:
                logger.info("Evaluating %s: %s", model_name, asked)
                model = model or _load(name, run if is_run else None, kind, options)
                rows = benchmark_model(*model, {asked: task}, name=model_name, options=options)
            found[kind] += rows
            kept[kind] = [*(row for row in known if row.task not in {row.task for row in rows}), *rows]
            if is_run:
                write_json(run.benchmarks, kept)
    if base:
        found[TUNED] = compare_benchmarks(found[TUNED], found[experiment.start])
        kept[TUNED] = compare_benchmarks(kept[TUNED], found[experiment.start])
        write_json(run.benchmarks, kept)
    return found


def _build_request(asked: str, model: str, options: BenchmarkOptions) -> dict[str, Any]:
    """Return the fields of a result that say what was asked, and how: equal ones need not be asked for again."""
    return {
        "asked": asked,
        "model": model,
        "asked_fewshot": options.num_fewshot,
        "limit": options.limit,
        "chat_template": options.apply_chat_template,
        "dtype": options.dtype,
    }


def _load(name: str, run: RunFolder | None, which: str, options: BenchmarkOptions) -> tuple[Any, Any]:
    from hf_instruct.generation.stage import load_model_of_run
    from hf_instruct.models import load_model, move_to_best_device

    if run:
        return load_model_of_run(run, run.load_experiment(), which, dtype=options.dtype)
    found = load_model(name, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    move_to_best_device(found[0])
    return found


def benchmark_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: "Mapping[str, Mapping[str, Any]] | Sequence[str]",
    *,
    name: str = "model",
    options: BenchmarkOptions | None = None,
) -> list[BenchmarkResult]:
    """Ask a model that is in memory, adapter included, and return what lm-eval measures, a row for each metric.

    Args:
        model: A causal language model, on the device it should compute on.
        tokenizer: Its tokenizer.
        tasks: Names, or what `load_tasks` returned.
        name: What results call the model.
        options: How to ask.

    Raises:
        ConfigError: As `load_tasks`; or the tokenizer has no chat template and `apply_chat_template` is on.
        DataError: As `load_tasks`; or the task asks more than the model can read.
    """
    options = options or BenchmarkOptions()
    if options.apply_chat_template and not tokenizer.chat_template:
        raise ConfigError(
            f"The tokenizer of `{name}` has no chat template, so `--apply-chat-template` cannot be used; leave it out."
        )
    loaded = tasks if isinstance(tasks, Mapping) else load_tasks(tasks, options.include)
    rows: list[BenchmarkResult] = []
    for asked, found in loaded.items():
        start = time.monotonic()
        raw = _evaluate(model, tokenizer, asked, found, options)
        common = {
            **_build_request(asked, name, options),
            "lm_eval_version": version("lm_eval"),
            "seconds": round(time.monotonic() - start, 1),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        shown = _choose_shown([asked] if asked in found["groups"] else list(found["tasks"]), raw)
        rows += _collect_results(raw, shown, common)
    return rows


def _evaluate(
    model: Any, tokenizer: Any, asked: str, tasks: Mapping[str, Any], options: BenchmarkOptions
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import set_seed

    # As `simple_evaluate` does, which also spends seconds on `git` and `pip`.
    seed = lm_eval.defaults.DEFAULT_OTHER_SEED
    set_seed(seed)
    for task in tasks["tasks"].values():
        default = task.get_config("num_fewshot")
        if default is None or (options.num_fewshot is not None and default != 0):
            task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)
    chat = {"apply_chat_template": options.apply_chat_template, "fewshot_as_multiturn": True}
    try:
        with quiet():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
            return cast("dict[str, Any]", lm_eval.evaluate(lm, dict(tasks), limit=options.limit, **chat))
    except (ValueError, AssertionError, LookupError) as error:
        # A question longer than the context, more solved examples than there are, a task that runs code.
        raise DataError(
            f"lm-eval cannot run `{asked}` with this model and these options: {first_line(error)} Lower "
            "`--num-fewshot`, or use another task."
        ) from error


def _collect_results(raw: Mapping[str, Any], shown: Sequence[str], common: Mapping[str, Any]) -> list[BenchmarkResult]:
    from lm_eval.utils import hash_string

    rows = []
    for task, metrics in raw["results"].items():
        samples = raw["samples"].get(task) or []
        counts = raw["n-samples"].get(task, {})
        # As lm-eval's own `task_hashes`, so that these can be held against published ones.
        parts = [s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples]
        task_version = raw["versions"].get(task)
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            values = [_number(s.get(metric)) for s in samples if s["filter"] == filter_name]
            rows.append(
                BenchmarkResult(
                    task=task,
                    metric=metric,
                    filter=filter_name,
                    value=_number(value),
                    standard_error=_number(metrics.get(f"{metric}_stderr,{filter_name}")),
                    n=int(counts.get("effective") or metrics.get("sample_len") or 0),
                    total=counts.get("original"),
                    num_fewshot=raw["n-shot"].get(task),
                    higher_is_better=raw["higher_is_better"].get(task, {}).get(metric),
                    # lm-eval's word for a YAML that gives none.
                    version=None if task_version in (None, "Yaml") else str(task_version),
                    questions_sha256=hash_string("".join(parts)) if samples else None,
                    shown=task in shown,
                    values=[v for v in values if v is not None] if values and None not in values else None,
                    **common,
                )
            )
    return rows


def _choose_shown(names: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """Return names, with its members instead of a group whose YAML does not say how to sum them up."""
    shown: list[str] = []
    for name in names:
        has_result = any("," in key for key in raw["results"].get(name, {}))
        shown += [name] if has_result else _choose_shown(raw["group_subtasks"].get(name, []), raw)
    return shown


def _number(value: Any) -> float | None:
    """Return a finite number as a float, and None for anything else, such as lm-eval's "N/A"."""
    try:
        return float(value) if math.isfinite(value) else None
    except TypeError:
        return None


def compare_benchmarks(tuned: Sequence[BenchmarkResult], base: Sequence[BenchmarkResult]) -> list[BenchmarkResult]:
    """Return the tuned model's results with each one's difference from the base model's, question by question.

    Only if the value is the mean of the questions' values: of others, a mean of differences is no difference.
    """
    others = {(row.task, row.metric, row.filter): row.values for row in base}
    results = []
    for row in tuned:
        own, other = row.values, others.get((row.task, row.metric, row.filter))
        is_mean = own and row.value is not None and math.isclose(sum(own) / len(own), row.value, abs_tol=1e-9)
        if own and other and is_mean and len(own) == len(other):
            # lm-eval does not say which of its metrics are a yes or a no for each question.
            found = compare_values(own, other, is_share={*own, *other} <= {0.0, 1.0})
            difference = MeanDifference(found.mean, *found.interval, found.n) if found.interval else None
            row = row.model_copy(update={"difference": difference})
        results.append(row)
    return results
