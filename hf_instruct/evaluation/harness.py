"""Benchmarks: a model that is in memory, on tasks of lm-eval, with standard errors.

What is measured is what `lm_eval.simple_evaluate` measures; here it gets the model, loses its chatter, and its results
get a place.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.evaluation.harness_tasks import LoadedTasks, load_tasks, quiet_harness, replaced
from hf_instruct.evaluation.intervals import measure_difference
from hf_instruct.progress import Advance, progress_bar
from hf_instruct.records import parse_json, write_json
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """How models are asked.

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


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """One metric of one task or group.

    Attributes:
        value: As lm-eval computes it; None where that is not a number.
        standard_error: Of the value; None where lm-eval has none.
        n: Questions asked.
        total: Questions that the task has; None for a group.
        num_fewshot: Solved examples before each; None for a group whose tasks differ.
        version: The task's, from its YAML.
        questions_sha256: Hash of questions, prompts and answers as lm-eval's `task_hashes`; None for a group.
        model: The run folder, or the model's name.
        difference: `mean`, `low`, `high` and `n`: this value less the base model's over the same questions, with its
            95 % interval; None where there is no base model or no value a question.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    standard_error: float | None
    n: int
    total: int | None
    num_fewshot: int | None
    higher_is_better: bool | None
    version: str | None
    questions_sha256: str | None
    limit: int | None
    chat_template: bool
    dtype: str
    model: str
    lm_eval_version: str
    seconds: float
    measured_at: str
    difference: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Results of one model.

    Attributes:
        results: One row a task and metric, groups and their members included.
        shown: The tasks and groups that were asked for by name; the members of a group that has no result of its own.
        values: By task, metric and filter: the value of each question, by its number in the task.
    """

    results: list[BenchmarkResult]
    shown: list[str]
    values: dict[tuple[str, str, str], dict[int, float]]


def benchmark_run(
    name: str, tasks: Sequence[str], *, options: BenchmarkOptions | None = None, base: bool = False
) -> dict[str, Benchmark]:
    """Ask a run's model, or any other, and return the results under `tuned` and, where asked for, `base`.

    Those of a run are also merged into its `benchmarks.json`, and the base model's into `base/benchmarks.json`.

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
    run = RunFolder(Path(name)) if Path(name).is_dir() and RunFolder(Path(name)).config.is_file() else None
    if run is None and base:
        raise ConfigError(f"`--base` needs a run folder, which says what it started from; `{name}` is none.")
    sources: dict[str, tuple[str, str | None, Path | None]] = {"tuned": (name, None, None)}
    if run is not None:
        section = run.load_experiment().model
        if base:
            sources["base"] = (run.find_base(section.name), section.revision, run.model)
        # Damaged files come to light before hours of work.
        for folder in (run, run.base):
            read_results(folder.benchmarks)
    loaded = load_tasks(tasks, options.include)
    found: dict[str, Benchmark] = {}
    for kind, (model_name, revision, base_of) in sources.items():
        logger.info("Asking %s", model_name)
        found[kind] = _benchmark_named(model_name, loaded, options, revision=revision, base_of=base_of)
        if run is not None:
            _keep((run.base if kind == "base" else run).benchmarks, found[kind].results)
    if run is not None and base:
        found["tuned"] = compare_benchmarks(found["tuned"], found["base"])
        _keep(run.benchmarks, found["tuned"].results)
    return found


def _benchmark_named(
    name: str, tasks: LoadedTasks, options: BenchmarkOptions, *, revision: str | None, base_of: Path | None
) -> Benchmark:
    from hf_instruct.models import load_model, move_to_best_device

    model, tokenizer = load_model(
        name,
        revision=revision,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        base_of=base_of,
    )
    move_to_best_device(model)
    return benchmark_model(model, tokenizer, tasks, name=name, options=options)


def benchmark_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: LoadedTasks | Sequence[str],
    *,
    name: str = "model",
    options: BenchmarkOptions | None = None,
) -> Benchmark:
    """Ask a model that is in memory, adapter included, and return what lm-eval measures.

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
            f"The tokenizer of `{name}` has no chat template, so `--apply-chat-template` has nothing to apply; leave "
            "it out."
        )
    from importlib.metadata import version

    loaded = tasks if isinstance(tasks, LoadedTasks) else load_tasks(tasks, options.include)
    start = time.monotonic()
    raw = _evaluate(model, tokenizer, loaded, options)
    common = {
        "limit": options.limit,
        "chat_template": options.apply_chat_template,
        "dtype": options.dtype,
        "model": name,
        "lm_eval_version": version("lm_eval"),
        "seconds": round(time.monotonic() - start, 1),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Benchmark(_collect_results(raw, common), _choose_shown(loaded.shown, raw), _collect_values(raw))


@quiet_harness()
def _evaluate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: LoadedTasks, options: BenchmarkOptions
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
    try:
        with _our_bars():
            raw: dict[str, Any] = lm_eval.simple_evaluate(
                lm,
                tasks=list(tasks.specs),
                num_fewshot=options.num_fewshot,
                batch_size=options.batch_size,
                limit=options.limit,
                apply_chat_template=options.apply_chat_template,
            )
    except (ValueError, AssertionError, KeyError, IndexError) as error:
        # A question longer than the context, more solved examples than there are, a metric that does not fit.
        raise DataError(
            f"lm-eval cannot run {', '.join(f'`{name}`' for name in tasks.shown)} with this model and these options: "
            f"{' '.join(str(error).split()) or type(error).__name__} Lower `--num-fewshot`, or take another task."
        ) from error
    return raw


def _collect_results(raw: Mapping[str, Any], common: Mapping[str, Any]) -> list[BenchmarkResult]:
    from lm_eval.utils import hash_string

    rows = []
    for task, metrics in raw["results"].items():
        samples = raw["samples"].get(task)
        counts = raw["n-samples"].get(task, {})
        # As lm-eval's own `task_hashes`, so that these can be held against published ones.
        parts = [s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples or []]
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            version = raw["versions"].get(task)
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
                    version=None if version in (None, "Yaml") else str(version),
                    questions_sha256=hash_string("".join(parts)) if samples else None,
                    **common,
                )
            )
    return rows


def _choose_shown(names: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """Return names with the members of a group in its place where its YAML does not say how to sum them up."""
    shown: list[str] = []
    for name in names:
        has_result = any("," in key for key in raw["results"].get(name, {}))
        shown += [name] if has_result else _choose_shown(raw["group_subtasks"].get(name, []), raw)
    return shown


def _collect_values(raw: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[int, float]]:
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for task, samples in raw["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if (value := _number(sample[metric])) is not None:
                    values.setdefault((task, metric, sample["filter"]), {})[int(sample["doc_id"])] = value
    return values


def _number(value: Any) -> float | None:
    """Return a finite number as a float, and None for anything else, such as lm-eval's "N/A"."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def compare_benchmarks(tuned: Benchmark, base: Benchmark) -> Benchmark:
    """Return the tuned model's benchmark with each value's difference from the base model's, question by question.

    Only where the value is the mean of the questions' values: of others, a mean of differences is no difference.
    """
    results = []
    for row in tuned.results:
        key = (row.task, row.metric, row.filter)
        own, other = tuned.values.get(key, {}), base.values.get(key, {})
        is_mean = own and row.value is not None and math.isclose(sum(own.values()) / len(own), row.value, abs_tol=1e-9)
        # lm-eval does not say which of its metrics are a yes or a no for each question.
        is_share = {*own.values(), *other.values()} <= {0.0, 1.0}
        if is_mean and own.keys() == other.keys() and (found := measure_difference(other, own, is_share=is_share)):
            row = dataclasses.replace(row, difference=dataclasses.asdict(found))
        results.append(row)
    return dataclasses.replace(tuned, results=results)


def read_results(path: Path) -> list[BenchmarkResult]:
    """Return the results in a `benchmarks.json`; none where there is no such file.

    Raises:
        DataError: The file holds something else.
    """
    if not path.exists():
        return []
    names = {field.name for field in dataclasses.fields(BenchmarkResult)}
    try:
        rows = parse_json(path.read_bytes())["results"]
        return [BenchmarkResult(**{key: value for key, value in row.items() if key in names}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"`{path}` cannot be read as benchmark results ({error}); move it away, then ask again."
        ) from error


def _keep(path: Path, results: Sequence[BenchmarkResult]) -> None:
    """Write results over those of the same tasks; those of other tasks stay."""
    tasks = {row.task for row in results}
    rows = [*(row for row in read_results(path) if row.task not in tasks), *results]
    write_json(path, {"results": [dataclasses.asdict(row) for row in rows]})


class _Bar:
    """Our progress bar in the place of the one that lm-eval makes: what of tqdm it uses."""

    def __init__(self, items: Iterable[Any] = (), *, total: int | None = None, disable: bool = False, **_: Any) -> None:
        self._items = list(items)
        self._stack = contextlib.ExitStack()
        self._advance: Advance | None = None
        if not disable:
            count = len(self._items) if total is None else total
            self._advance = self._stack.enter_context(progress_bar("Requests", count))

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        if self._advance is not None:
            self._advance(count, "")

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def _our_bars() -> Iterator[None]:
    """Let lm-eval show its progress by our bar, closed whatever happens."""
    import lm_eval.models.huggingface as module

    bars: list[_Bar] = []

    def build(*arguments: Any, **settings: Any) -> _Bar:
        # Of two at once, one would draw over the other.
        for bar in bars:
            bar.close()
        bars.append(_Bar(*arguments, **settings))
        return bars[-1]

    try:
        with replaced(module, "tqdm", build):
            yield
    finally:
        for bar in bars:
            bar.close()
