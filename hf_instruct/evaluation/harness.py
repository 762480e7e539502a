"""Benchmarks: load tasks of lm-eval, and evaluate a model in memory on them, with standard errors.

`lm_eval.evaluate` does the measuring; this module passes it the model, silences it, and stores its results.
"""

import contextlib
import dataclasses
import difflib
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_instruct.errors import ConfigError, DataError, needs_package
from hf_instruct.evaluation.intervals import compare_values
from hf_instruct.offline import fall_back_to_cache, transport_error
from hf_instruct.records import read_file, write_json
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TUNED, BenchmarkResult, MeanDifference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
PACKAGED_TASKS = Path(__file__).parent / "tasks"
# Errors that a task, or the Python code next to its YAML, may raise.
_TASK_ERRORS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, OSError, ImportError)
_MAX_NAMES = 5


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Options of a benchmark.

    Attributes:
        limit: Use only the first questions of each task, at most this many.
        num_fewshot: Solved examples before each question; None for the task's own number, or 0 if it has none.
        batch_size: Requests per batch.
        apply_chat_template: Format questions with the tokenizer's chat template; by default they are plain text.
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
    """Evaluate a run's model, or any other, and return the results under `tuned` and, with `base`, `untuned` or `SFT`.

    A run's results are also merged into its `benchmarks.json`, task by task. Tasks that it already contains with the
    same options are not evaluated again.

    Args:
        name: A run folder; or an alias, Hub id or folder of a model, whose results are only returned.
        tasks: Names of tasks, groups or tags.
        options: How to evaluate.
        base: Also evaluate the model that the run started from, and compare the two on the same questions.

    Raises:
        ConfigError: A task is unknown, lm-eval is missing, or `base` is set without a run.
        DataError: A task cannot be loaded or run, or `benchmarks.json` cannot be read.
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
    # Read first, so that a damaged file is found before hours of work.
    kept = (read_file(run.benchmarks, dict[str, list[BenchmarkResult]]) or {}) if is_run else {}
    loaded = load_tasks(tasks, options.include)
    results: dict[str, list[BenchmarkResult]] = {kind: [] for kind in names}
    for kind, model_name in names.items():
        model = None
        for asked, task in loaded.items():
            # The model's name is not compared: the file only contains this run's results, and paths to it differ.
            request = _build_request(asked, options)
            earlier = kept.get(kind, [])
            rows = [row for row in earlier if all(getattr(row, field) == value for field, value in request.items())]
            if rows:
                logger.info("`%s` was evaluated before; delete `%s` to evaluate it again", asked, run.benchmarks)
            else:
                logger.info("Evaluating %s: %s", model_name, asked)
                model = model or _load(name, run if is_run else None, kind, options)
                rows = benchmark_model(*model, {asked: task}, name=model_name, options=options)
            results[kind] += rows
            kept[kind] = [*(row for row in earlier if row.task not in {row.task for row in rows}), *rows]
            if is_run:
                write_json(run.benchmarks, kept)
    if base:
        results[TUNED] = compare_benchmarks(results[TUNED], results[experiment.start])
        kept[TUNED] = compare_benchmarks(kept[TUNED], results[experiment.start])
        write_json(run.benchmarks, kept)
    return results


def _build_request(asked: str, options: BenchmarkOptions) -> dict[str, Any]:
    """Return the fields of a result that identify its request; results with equal fields are reused."""
    return {
        "asked": asked,
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
    model, tokenizer = load_model(name, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
    move_to_best_device(model)
    return model, tokenizer


def benchmark_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: "Mapping[str, Mapping[str, Any]] | Sequence[str]",
    *,
    name: str = "model",
    options: BenchmarkOptions | None = None,
) -> list[BenchmarkResult]:
    """Evaluate a model in memory, adapter included, and return lm-eval's results, one row per metric.

    Args:
        model: A causal language model, on the device it should compute on.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, or the result of `load_tasks`.
        name: Name of the model in the results.
        options: How to evaluate.

    Raises:
        ConfigError: See `load_tasks`; or the tokenizer has no chat template and `apply_chat_template` is on.
        DataError: See `load_tasks`; or a task does not fit the model, such as questions longer than its context.
    """
    options = options or BenchmarkOptions()
    if options.apply_chat_template and not tokenizer.chat_template:
        raise ConfigError(
            f"The tokenizer of `{name}` has no chat template, so `--apply-chat-template` cannot be used; leave it out."
        )
    loaded = tasks if isinstance(tasks, Mapping) else load_tasks(tasks, options.include)
    rows: list[BenchmarkResult] = []
    for asked, task in loaded.items():
        start = time.monotonic()
        raw = _evaluate(model, tokenizer, asked, task, options)
        common = {
            **_build_request(asked, options),
            "model": name,
            "lm_eval_version": version("lm_eval"),
            "seconds": round(time.monotonic() - start, 1),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        shown = _choose_shown([asked] if asked in task["groups"] else list(task["tasks"]), raw)
        rows += _collect_results(raw, shown, common)
    return rows


def _evaluate(
    model: Any, tokenizer: Any, asked: str, tasks: Mapping[str, Any], options: BenchmarkOptions
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import set_seed

    # Same as in `simple_evaluate`, which also spends seconds on `git` and `pip`.
    seed = lm_eval.defaults.DEFAULT_OTHER_SEED
    set_seed(seed)
    for task in tasks["tasks"].values():
        default = task.get_config("num_fewshot")
        if default is None or (options.num_fewshot is not None and default != 0):
            task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)
    chat = {"apply_chat_template": options.apply_chat_template, "fewshot_as_multiturn": True}
    try:
        with _quiet():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
            return cast("dict[str, Any]", lm_eval.evaluate(lm, dict(tasks), limit=options.limit, **chat))
    except (ValueError, AssertionError, LookupError) as error:
        # A question longer than the context, more solved examples than there are, a task that runs code.
        raise DataError(
            f"lm-eval cannot run `{asked}` with this model and these options: {_first_line(error)} Lower "
            "`--num-fewshot`, or use another task."
        ) from error


def _collect_results(raw: Mapping[str, Any], shown: Sequence[str], common: Mapping[str, Any]) -> list[BenchmarkResult]:
    from lm_eval.utils import hash_string

    rows = []
    for task, metrics in raw["results"].items():
        samples = raw["samples"].get(task) or []
        counts = raw["n-samples"].get(task, {})
        # Same as lm-eval's `task_hashes`, so that they can be compared with published ones.
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
                    # lm-eval returns "Yaml" if the YAML has no version.
                    version=None if task_version in (None, "Yaml") else str(task_version),
                    questions_sha256=hash_string("".join(parts)) if samples else None,
                    shown=task in shown,
                    values=[v for v in values if v is not None] if values and None not in values else None,
                    **common,
                )
            )
    return rows


def _choose_shown(names: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """Return the names, with each group that has no aggregate result replaced by its members."""
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
    """Return the tuned model's results, each with its paired difference from the base model's.

    Only metrics that are the mean of the questions' values get a difference: for others, such as a quotient of sums,
    the mean of the questions' differences is another number.
    """
    base_values = {(row.task, row.metric, row.filter): row.values for row in base}
    results = []
    for row in tuned:
        values, before = row.values, base_values.get((row.task, row.metric, row.filter))
        is_mean = values and row.value is not None and math.isclose(sum(values) / len(values), row.value, abs_tol=1e-9)
        if values and before and is_mean and len(values) == len(before):
            # lm-eval does not say which of its metrics are yes or no for each question.
            paired = compare_values(values, before, is_share={*values, *before} <= {0.0, 1.0})
            difference = MeanDifference(paired.mean, *paired.interval, paired.n) if paired.interval else None
            row = row.model_copy(update={"difference": difference})
        results.append(row)
    return results


def load_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> dict[str, dict[str, Any]]:
    """Load tasks, groups and tags with their data, and return each by name, in the format of `lm_eval.evaluate`.

    Args:
        names: Names of tasks of lm-eval, of this package, or in `include`.
        include: Folders with task YAMLs; these take precedence over lm-eval's tasks of the same name.

    Raises:
        ConfigError: lm-eval is not installed, or a name is unknown.
        DataError: A task's data is missing and cannot be downloaded, or its YAML is invalid.
    """
    if not (names := [name for name in dict.fromkeys(names) if name]):
        raise ConfigError(
            "`--tasks` is empty; name at least one task, as in `--tasks everyday_choice` or `--tasks mmlu`."
        )
    for folder in include:
        if not folder.is_dir():
            raise ConfigError(f"`--include-path` `{folder}` is not a folder; use one that contains task YAMLs.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(needs_package("`benchmark`", "lm-eval")) from error
    folders: list[str | Path] = [PACKAGED_TASKS, *include]
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        ours = TaskManager(include_path=folders, include_defaults=False)
        _write_absolute(ours, Path(temporary))
        # Indexing lm-eval's own 14,000 tasks takes seconds.
        is_ours = all(name in ours.all_subtasks for name in names)
        manager = TaskManager(include_path=[*folders, temporary], include_defaults=not is_ours)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            raise ConfigError(
                f"{len(unknown)} of the `--tasks` {'is' if len(unknown) == 1 else 'are'} unknown to lm-eval:",
                [*(_describe_unknown(name, manager.all_tasks) for name in unknown), *_unindexed_files(ours, include)],
            )
        with fall_back_to_cache("the data") if _needs_hub(ours, names) else contextlib.nullcontext():
            return {name: _load_task(manager, name) for name in names}


def _write_absolute(ours: Any, folder: Path) -> None:
    """Write a YAML for each of our tasks that includes it and makes the paths of its data files absolute.

    lm-eval resolves relative paths against the working directory.
    """
    for number, name in enumerate(ours.all_subtasks):
        entry = ours.task_index[name]
        values: dict[str, Any] = {"include": str(entry.yaml_path.resolve())}
        settings = (entry.cfg or {}).get("dataset_kwargs")
        if isinstance(settings, dict):
            values["dataset_kwargs"] = _make_absolute(settings, entry.yaml_path.parent.resolve())
        (folder / f"{number}.yaml").write_text(json.dumps(values), encoding="utf-8")


def _make_absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _make_absolute(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_make_absolute(part, folder) for part in value]
    return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value


def _needs_hub(ours: Any, names: Sequence[str]) -> bool:
    """Return whether the data of any task may be on the Hub; a group or tag of ours may include any of our tasks."""
    if not all(name in ours.all_tasks for name in names):
        return True
    tasks = names if all(name in ours.all_subtasks for name in names) else ours.all_subtasks
    return not all("data_files" in (ours.task_index[name].cfg.get("dataset_kwargs") or {}) for name in tasks)


def _load_task(manager: Any, name: str) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        loaded: dict[str, Any] = manager.load([name])
    except (*_TASK_ERRORS, transport_error(), DatasetsError, TemplateError, YAMLError) as error:
        raise DataError(
            f"The task `{name}` cannot be loaded: {_first_line(error)} Check its YAML and its files. If its data is "
            "on the Hub and there is no network, run the same command with `--limit 1` on a machine with a network "
            "and copy its cache (`HF_HOME`) to this one, or use `--tasks everyday_choice`."
        ) from error
    return loaded


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=_MAX_NAMES, cutoff=0.6)
    near = near or [task for task in known if name.lower() in task.lower()][:_MAX_NAMES]
    names = ", ".join(f"`{task}`" for task in near)
    return f"`{name}`" + (f"; the closest are {names}" if near else "; `lm-eval ls tasks` lists all")


def _unindexed_files(ours: Any, include: Sequence[Path]) -> list[str]:
    """Return a sentence for each YAML that lm-eval ignores silently."""
    indexed = {entry.yaml_path.resolve() for entry in ours.task_index.values() if entry.yaml_path}
    files = sorted(path for folder in include for path in folder.glob("**/*.yaml") if path.resolve() not in indexed)
    return [f"`{path}` has no task: it is not YAML, or has neither `task:` nor `group:`" for path in files]


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else line + "."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide hints, warnings and, unless stderr is a terminal, progress bars of lm-eval and the libraries it calls."""
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(sys.stderr if sys.stderr.isatty() else nowhere),
        ):
            yield
    finally:
        logging.disable(before)
