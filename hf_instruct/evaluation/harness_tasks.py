"""Tasks of lm-eval: found by name, their local data found beside their YAML, and what can be wrong with them."""

import contextlib
import dataclasses
import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.offline import cache_alone_if_unreachable, transport_error

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

logger = logging.getLogger(__name__)

PACKAGED_TASKS = Path(__file__).parent / "tasks"
_MOST_NAMES = 5


@dataclasses.dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their data, as often evaluated as there are models.

    Attributes:
        specs: What `lm_eval.simple_evaluate` takes: `Task` and `Group` objects.
        shown: Names to show: those asked for, a tag's members in its place. The members of a group are not among them.
    """

    specs: list[Any]
    shown: list[str]


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep lm-eval and the libraries it calls from writing bars, hints and warnings; errors still raise."""
    import warnings

    # Imported later, they would set their levels anew.
    import datasets  # noqa: F401
    import huggingface_hub  # noqa: F401
    import transformers  # noqa: F401

    before = os.environ.get("TOKENIZERS_PARALLELISM")
    # lm-eval starts processes after the tokenizer has started threads, of which the tokenizer would warn each time.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers", "huggingface_hub")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            _no_bars(),
            open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123  (a device, not a path of ours)
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Silence bars of `datasets` and lm-eval, and keep lm-eval from asking `git` and `pip` about this machine.

    Those take seconds, write to the terminal themselves, and what they say is not kept.
    """
    try:
        import lm_eval.api.model
        import lm_eval.api.task
        import lm_eval.evaluator
    except ImportError:
        # `load_tasks` says so.
        yield
        return
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    were_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with (
            replaced(lm_eval.api.model, "tqdm", _hide(lm_eval.api.model.tqdm)),
            replaced(lm_eval.api.task, "tqdm", _hide(lm_eval.api.task.tqdm)),
            replaced(lm_eval.evaluator, "get_git_commit_hash", lambda: None),
            replaced(lm_eval.evaluator, "add_env_info", lambda results: None),
        ):
            yield
    finally:
        if were_shown:
            enable_progress_bars()


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Put something else in the place of a module's name for a while; for what lm-eval has no setting for."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _hide(bar: Any) -> Any:
    return lambda *arguments, **settings: bar(*arguments, **{**settings, "disable": True})


@quiet_harness()
def load_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> LoadedTasks:
    """Return the tasks, groups and tags of these names, with their data.

    Args:
        names: Names known to lm-eval, packaged here, or in `include`.
        include: Folders with task YAMLs; these beat lm-eval's own of the same name.

    Raises:
        ConfigError: lm-eval is not installed, a name is unknown or given twice, or a task cannot be run here.
        DataError: A task's data is not there and cannot be reached.
    """
    if not (names := [name for name in dict.fromkeys(names) if name]):
        raise ConfigError("`--tasks` names no task; name some, as in `--tasks everyday_choice` or `--tasks mmlu`.")
    for folder in include:
        if not folder.is_dir():
            raise ConfigError(f"`--include-path` `{folder}` is not a folder; name one that holds task YAMLs.")
    _import_harness()
    manager = _index_tasks(names, include)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ConfigError(
            f"{len(unknown)} of the `--tasks` {'is' if len(unknown) == 1 else 'are'} unknown to lm-eval:",
            [*(_describe_unknown(name, manager.all_tasks) for name in unknown), *_unreadable_tasks(include)],
        )
    specs: list[Any] = []
    shown: list[str] = []
    owners: dict[str, str] = {}
    for name in names:
        with _translated_errors(name, manager.task_index), _hub_for(name, manager.task_index):
            loaded = manager.load([name])
        groups, leaves = loaded.get("groups", {}), loaded["tasks"]
        for leaf, task in leaves.items():
            if leaf in owners:
                raise ConfigError(
                    f"The task `{leaf}` is asked for twice: by `{owners[leaf]}` and by `{name}`. Take one of them out "
                    "of `--tasks`."
                )
            owners[leaf] = name
            if getattr(task, "UNSAFE_CODE", False):
                raise ConfigError(
                    f"The task `{leaf}` runs code that the model writes, which `benchmark` does not do; take it out of "
                    "`--tasks`."
                )
        specs += [groups[name]] if name in groups else leaves.values()
        shown += [name] if name in groups else leaves
    return LoadedTasks(specs, shown)


def _import_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "`benchmark` needs the package lm-eval, which is not installed: pip install 'hf-instruct[benchmark]'"
        ) from error


def _index_tasks(names: Sequence[str], include: Sequence[Path]) -> "TaskManager":
    """Return lm-eval's index of tasks; without its own 14,000, which take seconds, where none of them is asked for."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    own = [PACKAGED_TASKS, *include]
    manager = TaskManager(include_path=own, include_defaults=False)
    index = manager.task_index
    if not all(name in index and index[name].kind in (Kind.TASK, Kind.PY_TASK) for name in names):
        logger.info("Looking through the tasks of lm-eval")
        manager = TaskManager(include_path=own)
    for entry in manager.task_index.values():
        if entry.yaml_path and any(folder.resolve() in entry.yaml_path.resolve().parents for folder in own):
            _place_data(entry)
    return manager


def _place_data(entry: Any) -> None:
    """Make paths of data files beside a task's YAML absolute; lm-eval takes them from the working directory."""
    settings = (entry.cfg or {}).get("dataset_kwargs")
    if not isinstance(settings, dict):
        return
    folder = entry.yaml_path.parent
    placed = {key: _place(settings[key], folder) for key in ("data_files", "data_dir") if key in settings}
    if placed == {key: settings[key] for key in placed}:
        return
    from lm_eval.tasks._yaml_loader import load_yaml

    with _translated_errors(entry.name, {entry.name: entry}):
        # Once more, now with the functions that it names.
        values = load_yaml(entry.yaml_path)
    entry.cfg = {**values, "dataset_kwargs": {**values["dataset_kwargs"], **placed}}
    # With a path, lm-eval would read the file again.
    entry.yaml_path = None


def _place(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _place(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_place(part, folder) for part in value]
    return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=_MOST_NAMES, cutoff=0.6)
    near = near or [other for other in known if name.lower() in other.lower()][:_MOST_NAMES]
    names = ", ".join(f"`{other}`" for other in near)
    return f"`{name}`" + (f"; nearest are {names}" if near else "; `lm-eval ls tasks` lists all")


def _unreadable_tasks(include: Sequence[Path]) -> list[str]:
    """Return the faults of YAMLs that lm-eval passes over without a word."""
    from lm_eval.tasks._yaml_loader import load_yaml
    from yaml import YAMLError

    faults = []
    for path in sorted(path for folder in include for path in folder.glob("**/*.yaml")):
        try:
            if not {"task", "group"} & load_yaml(path, resolve_func=False).keys():
                faults.append(f"`{path}` has neither `task:` nor `group:`, so it names no task")
        except (YAMLError, ValueError, OSError) as error:
            faults.append(f"`{path}` cannot be read: {' '.join(str(error).split())}")
    return faults


@contextlib.contextmanager
def _translated_errors(name: str, index: Mapping[str, Any]) -> Iterator[None]:
    """Turn what loading a task raises for missing data or a faulty YAML into one message."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    path, subset = _first_dataset(name, index)
    source = getattr(index.get(name), "yaml_path", None)
    # A YAML or the Python beside it may be wrong in many ways.
    faulty = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError)
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"The task `{name}` needs a package that is not installed: {_first_line(error)}") from error
    except (OSError, transport_error(), DatasetsError, *faulty, TemplateError, YAMLError) as error:
        reason = _first_line(error)
        if path and not _is_local(path) and _means_unreachable(error):
            what = f"`{path}`" + (f" ({subset})" if subset else "")
            raise DataError(
                f"The task `{name}` needs the data set {what}, which is neither in the cache of Hugging Face nor "
                f"within reach: {reason} Run the same command with `--limit 1` where there is a network, which "
                "downloads it, and copy that machine's cache here (`HF_HOME` says where it is); or take a task whose "
                "data is local: `--tasks everyday_choice`, or one of your own with `--include-path`."
            ) from error
        where = f" (`{source}`)" if source else ""
        raise DataError(
            f"The task `{name}`{where} cannot be loaded: {reason} Check its YAML and the files that it names."
        ) from error


def _hub_for(name: str, index: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Keep a task whose data is on the Hub from waiting for one out of reach."""
    path, _ = _first_dataset(name, index)
    return cache_alone_if_unreachable(path) if path and not _is_local(path) else contextlib.nullcontext()


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else line + "."


def _means_unreachable(error: BaseException) -> bool:
    from datasets.exceptions import DatasetNotFoundError

    # Offline, `datasets` raises a ConnectionError, or a ValueError when another subset is in the cache.
    is_missing = isinstance(error, (ConnectionError, transport_error(), DatasetNotFoundError))
    return is_missing or "find cache" in str(error) or "offline" in str(error).lower()


def _is_local(path: str) -> bool:
    return path in ("json", "csv", "parquet", "text", "arrow") or Path(path).exists()


def _first_dataset(name: str, index: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the data set, and the subset, of a task or of the first member of a group or tag."""
    seen: set[str] = set()
    waiting: list[Any] = [name]
    while waiting:
        member = waiting.pop(0)
        own = member if isinstance(member, dict) else {}
        key = str(own.get("task") or own.get("group") or member)
        entry = index.get(key)
        values = {**((entry.cfg if entry else None) or {}), **own}
        if path := values.get("dataset_path"):
            return str(path), values.get("dataset_name")
        if key not in seen and entry:
            seen.add(key)
            members = (entry.cfg or {}).get("task")
            waiting = [*(members if isinstance(members, list) else sorted(entry.tags)), *waiting]
    return None, None
