"""Load tasks of lm-eval by name, with local data next to their YAML."""

import contextlib
import difflib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError, DataError, needs_package
from hf_instruct.offline import fall_back_to_cache, transport_error

PACKAGED_TASKS = Path(__file__).parent / "tasks"
# What a task, or the Python beside its YAML, may raise.
_TASK_ERRORS = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError, OSError, ImportError)
_MAX_NAMES = 5


def load_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> dict[str, dict[str, Any]]:
    """Return the tasks, groups and tags of these names, with their data, as `lm_eval.evaluate` takes each of them.

    Args:
        names: Names known to lm-eval, packaged here, or in `include`.
        include: Folders with task YAMLs; these beat lm-eval's own of the same name.

    Raises:
        ConfigError: lm-eval is not installed, or a name is unknown.
        DataError: A task's data is not there and cannot be reached, or its YAML is wrong.
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
    with tempfile.TemporaryDirectory() as temporary, quiet():
        own = TaskManager(include_path=folders, include_defaults=False)
        _write_absolute(own, Path(temporary))
        # lm-eval's own 14,000 take seconds to look through.
        is_own = all(name in own.all_subtasks for name in names)
        manager = TaskManager(include_path=[*folders, temporary], include_defaults=not is_own)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            raise ConfigError(
                f"{len(unknown)} of the `--tasks` {'is' if len(unknown) == 1 else 'are'} unknown to lm-eval:",
                [*(_describe_unknown(name, manager.all_tasks) for name in unknown), *_unindexed_files(own, include)],
            )
        with fall_back_to_cache("the data") if _needs_hub(own, names) else contextlib.nullcontext():
            return {name: _load_task(manager, name) for name in names}


def _write_absolute(own: Any, folder: Path) -> None:
    """Write a YAML for each task of ours that includes it, with absolute paths of the data files beside it.

    lm-eval takes relative ones from the working directory.
    """
    for number, name in enumerate(own.all_subtasks):
        entry = own.task_index[name]
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


def _needs_hub(own: Any, names: Sequence[str]) -> bool:
    """Return whether the data of any task may be on the Hub; a group or tag of ours may stand for any task of ours."""
    if not all(name in own.all_tasks for name in names):
        return True
    tasks = names if all(name in own.all_subtasks for name in names) else own.all_subtasks
    return not all("data_files" in (own.task_index[name].cfg.get("dataset_kwargs") or {}) for name in tasks)


def _load_task(manager: Any, name: str) -> dict[str, Any]:
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        loaded: dict[str, Any] = manager.load([name])
    except (*_TASK_ERRORS, transport_error(), DatasetsError, TemplateError, YAMLError) as error:
        raise DataError(
            f"The task `{name}` cannot be loaded: {first_line(error)} Check its YAML and its files. If its data is "
            "on the Hub and there is no network, run the same command with `--limit 1` on a machine with a network "
            "and copy its cache (`HF_HOME`) to this one, or use `--tasks everyday_choice`."
        ) from error
    return loaded


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=_MAX_NAMES, cutoff=0.6)
    near = near or [other for other in known if name.lower() in other.lower()][:_MAX_NAMES]
    names = ", ".join(f"`{other}`" for other in near)
    return f"`{name}`" + (f"; the closest are {names}" if near else "; `lm-eval ls tasks` lists all")


def _unindexed_files(own: Any, include: Sequence[Path]) -> list[str]:
    """Return the YAMLs that lm-eval passes over silently."""
    known = {entry.yaml_path.resolve() for entry in own.task_index.values() if entry.yaml_path}
    files = sorted(path for folder in include for path in folder.glob("**/*.yaml") if path.resolve() not in known)
    return [f"`{path}` has no task: it is not YAML, or has neither `task:` nor `group:`" for path in files]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith((".", "!", "?")) else line + "."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval and the libraries it calls from writing hints, warnings and, but for a terminal, progress bars."""
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
