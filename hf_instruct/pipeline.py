"""Run the stages of an experiment in a run folder."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_instruct.config import Experiment, build_experiment, differing_settings, load_experiment, plain_values
from hf_instruct.errors import DISK_ERRORS, ConfigError, DataError, RunError, disk_remedy, quote_names
from hf_instruct.library_fields import OWN_TRAINING, SECTIONS
from hf_instruct.manifests import verify_model
from hf_instruct.processes import is_main_process, is_true_on_all, on_main_process
from hf_instruct.recipes import find_experiment
from hf_instruct.records import read_file
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Preflight


def _prepare(folder: RunFolder, experiment: Experiment) -> None:
    """Split the data unless already done; the splits that a model was trained on must not change."""
    if not is_done(folder, "data"):
        from hf_instruct.data.stage import prepare

        prepare(folder, experiment)
        named = (*experiment.data.paths, experiment.preferences.source)
        folder.add_provenance(local_sources=[name for name in named if Path(name).expanduser().exists()])
    preflight = read_file(folder.preflight, Preflight)
    if preflight and not _has_trained(folder):
        folder.add_provenance(data_sha256=preflight.data_sha256)
    folder.check_data()


def _train(folder: RunFolder, experiment: Experiment) -> None:
    """Fine-tune the model unless already done; a finished model must be complete."""
    if is_done(folder, "train"):
        folder.check_trained()
        verify_model(folder.model)
    elif experiment.method == "DPO":
        from hf_instruct.preferences.stage import run_dpo

        run_dpo(folder, experiment, resume=True)
    elif experiment.method == "GRPO":
        from hf_instruct.preferences.stage import run_grpo

        run_grpo(folder, experiment, resume=True)
    else:
        from hf_instruct.training.stage import run_sft

        run_sft(folder, experiment, resume=True)


def _answer(folder: RunFolder, experiment: Experiment) -> None:
    from hf_instruct.generation.stage import answer

    answer(folder, experiment)


def _judge(folder: RunFolder, experiment: Experiment) -> None:
    from hf_instruct.evaluation.stage import judge

    judge(folder, experiment.judge)


def _report(folder: RunFolder, experiment: Experiment) -> None:
    from hf_instruct.reporting.page import report
    from hf_instruct.training.tracking import log_results

    report(folder, experiment)
    log_results(folder, experiment)


class _Stage(NamedTuple):
    """The function of a stage and what it writes, as attributes of `RunFolder`; the first marks it as done."""

    run: Callable[[RunFolder, Experiment], None]
    writes: tuple[str, ...]
    # Whether all processes launched together run it; otherwise only the first one does.
    is_shared: bool = False

    def list_files(self, folder: RunFolder) -> list[Path]:
        return [getattr(folder, name) for name in self.writes]


# In the order in which they run.
_STAGES = {
    "data": _Stage(_prepare, ("preflight", "data", "prompt")),
    "train": _Stage(
        _train,
        (
            *("training_summary", "model", "checkpoints", "training_log", "tensorboard", "loss_plot", "benchmarks"),
            *("preferences", "preferences_part", "pairs"),
        ),
        is_shared=True,
    ),
    "generate": _Stage(_answer, ("responses", "course_file"), is_shared=True),
    "judge": _Stage(_judge, ("scores", "judgments", "metrics", "pairwise")),
    "report": _Stage(_report, ("report", "score_plot")),
}
STAGES = tuple(_STAGES)


def run(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    path: str | Path | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    stages: Sequence[str] = STAGES,
    reward_funcs: Sequence[Callable[..., Any]] = (),
) -> RunFolder:
    """Run the stages of an experiment, and return its run folder.

    Args:
        experiment: An `Experiment`, a mapping by section, the path of a YAML file, or the name of a recipe, such as
            `demo`.
        path: The run folder; by default `runs/` and the name of the file or recipe.
        resume: Continue an interrupted run; finished stages are skipped.
        force: Delete the contents of the run folder first.
        stages: Which stages to run, in the order of `STAGES`.
        reward_funcs: Reward functions for a `grpo` section, as in `train_grpo`, each with weight 1, in addition
            to those of the `rewards` section.

    Raises:
        ConfigError: The experiment has problems, or there is no such stage.
        RunError: The folder already contains a run, another experiment's run, or something else.
        InstructError: A stage failed; finished work is kept, and `resume` continues from there.
    """
    if isinstance(experiment, str | Path):
        path = path or default_path(Path(experiment))
        experiment = load_experiment(find_experiment(experiment))
    elif isinstance(experiment, Mapping):
        experiment = build_experiment(experiment, where="the experiment")
    elif not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise ConfigError(f"The experiment is a `{kind}`; pass an `Experiment`, a mapping, or the path of a YAML file.")
    if path is None:
        raise ConfigError("`run` needs the path of a run folder, unless the experiment is a YAML file.")
    if unknown := set(stages) - set(STAGES):
        raise ConfigError(f"`stages` contains {quote_names(sorted(unknown))}; the stages are {quote_names(STAGES)}.")
    if reward_funcs and experiment.grpo is None:
        raise ConfigError("A reward function needs an experiment with a `grpo` section, and this one has none.")
    trusted = experiment.model.trust_remote_code
    folder = RunFolder(Path(path), trust_remote_code=trusted, reward_funcs=tuple(reward_funcs))
    # When training is done, the base model is no longer needed; when the pairs are made, neither is their file.
    remaining = [stage for stage in stages if force or stage != "train" or not is_done(folder, stage)]
    experiment = check_experiment(experiment, remaining)
    if "train" in remaining and experiment.dpo is not None and (force or not folder.preferences.exists()):
        from hf_instruct.preferences.pairs import find_pairs

        find_pairs(experiment.preferences.source)

    @_translated_disk_errors(folder)
    def begin() -> None:
        open_folder(folder, experiment, resume=resume, force=force)
        with folder.locked():
            run_stages(folder, experiment, [stage for stage in stages if stage == "data"])

    with _translated_disk_errors(folder):
        # With several processes, one opens the folder and prepares the data while the others wait.
        on_main_process(begin, use_cpu=experiment.training.get("use_cpu"))
        if not is_true_on_all(folder.config.is_file()):
            raise RunError(
                f"`{folder.path}` is not the same folder on all machines: the first has written the run into it, and "
                "another does not see that. Name one on a disk that they share with `--run-dir`."
            )
        with folder.locked() if is_main_process() else contextlib.nullcontext():
            own = [stage for stage in stages if _STAGES[stage].is_shared or is_main_process()]
            run_stages(folder, experiment, own)
    return folder


def answer_run(folder: RunFolder, overrides: Mapping[str, Any] | None = None, *, force: bool = False) -> None:
    """Answer the test split of a run with other settings, or continue after an interruption.

    Args:
        overrides: Settings of the `generate` section by dotted name, which override those of `run.yaml`.
        force: First delete the answers and everything based on them.

    Raises:
        RunError: The folder is not a run, or the settings differ from those of its existing answers.
        ConfigError: An override has a problem, or belongs to another stage.
    """
    stored = folder.load_experiment()
    if foreign := [name for name in overrides or {} if not name.startswith("generate.")]:
        raise ConfigError(
            "`generate` for a run only accepts settings of the `generate` section:",
            [f"`--{name}` needs a new run: hf-instruct run EXPERIMENT.yaml --{name} …" for name in foreign],
        )
    values = plain_values(stored)
    for name, value in (overrides or {}).items():
        values["generate"][name.removeprefix("generate.")] = value
    experiment = build_experiment(values, where="the flags", deep=bool(overrides))

    @_translated_disk_errors(folder)
    def clear() -> None:
        from hf_instruct.generation.stage import check_answering

        with folder.locked():
            # Refuse settings that cannot work before the existing answers are deleted.
            check_answering(folder, experiment)
            clear_from(folder, "generate")

    if force:
        on_main_process(clear, use_cpu=experiment.training.get("use_cpu"))
    try:
        run(experiment, folder.path, resume=True, stages=["generate"])
    except (ConfigError, DataError):
        if is_main_process() and not _has_started_answering(folder):
            # Refused before the first answer, so the run keeps its previous settings.
            folder.save_experiment(stored)
        raise


def default_path(experiment: Path) -> Path:
    """Return the run folder of an experiment file, or of a recipe by name.

    `gpt2-medium/full` and `recipes/gpt2-medium/full.yaml` run in `runs/gpt2-medium-full`, `demo` in `runs/demo` and
    `mine.yaml` in `runs/mine`.
    """
    folder = experiment.parent.name
    names = [experiment.stem] if folder in ("", "recipes") else [folder, experiment.stem]
    return Path("runs") / "-".join(names)


def check_experiment(experiment: Experiment, stages: Sequence[str] = STAGES) -> Experiment:
    """Check an experiment before training: model, prompt format, rubric and judge.

    Raises:
        ConfigError: The prompt format, rubric or a tracker cannot be used, or the model to train is an adapter.
        ModelLoadError: The model does not exist or cannot be reached, or bitsandbytes is needed but not installed.
        JudgeUnavailable: The judge is not available.
    """
    from hf_instruct.models import find_model
    from hf_instruct.prompts import PromptFormat
    from hf_instruct.quantization import check_bitsandbytes
    from hf_instruct.training.tracking import check_trackers

    if experiment.data.prompt_format and {"data", "train"} & set(stages):
        # Later stages use the template in the run folder.
        PromptFormat.from_name(experiment.data.prompt_format)
    name = experiment.model.name
    if "train" in stages and any((Path(name) / part / "adapter_config.json").is_file() for part in ("", "model")):
        raise ConfigError(
            f"`model.name` is `{name}`, an adapter, but training needs a full model. Merge it with `hf-instruct "
            "export RUN --format merged --out FOLDER` and use that folder, or use the adapter's base model."
        )
    if "train" in stages:
        check_trackers(experiment.training)
        if experiment.model.quantization:
            check_bitsandbytes()
        found = {"name": find_model(name, revision=experiment.model.revision)}
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update=found)})
    if ("judge" in stages or ("train" in stages and experiment.rewards.judge)) and is_main_process():
        from hf_instruct.evaluation.judges import check_judge

        check_judge(experiment.judge)
    return experiment


def open_folder(folder: RunFolder, experiment: Experiment, *, resume: bool = False, force: bool = False) -> None:
    """Open a run folder for an experiment: new, resumed, or emptied first.

    Raises:
        RunError: The folder already contains a run, another experiment's run, or something that is not a run.
    """
    path = folder.path
    if folder.config.is_file():
        if force:
            with folder.locked():
                _empty(folder)
        elif not (is_done(folder, "data") or _has_trained(folder) or _has_started_answering(folder)):
            # An earlier attempt failed in its first stage: there is nothing to lose.
            pass
        elif resume:
            # Another process may be using the settings in the folder.
            with folder.locked():
                _accept_changes(folder, experiment)
            return
        else:
            raise RunError(
                f"`{path}` already contains a run. Use `--resume` to continue it, `--force` to delete it and start "
                "again, or `--run-dir` to use another folder."
            )
    elif is_occupied(path):
        raise RunError(
            f"`{path}` exists and is not a run folder, so nothing is written there. Use another `--run-dir`."
        )
    with folder.locked():
        folder.save_experiment(experiment)


def is_occupied(path: Path) -> bool:
    """Return whether a path is a file, or a folder with more than hidden files."""
    return path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir()))


def run_stages(folder: RunFolder, experiment: Experiment, stages: Sequence[str]) -> None:
    """Run stages in a run folder, in the order of `STAGES`; finished data and training stages are skipped."""
    for name in STAGES:
        if name not in stages:
            continue
        if name == "train" and "generate" in stages and not is_done(folder, "train"):
            from hf_instruct.generation.stage import check_answering

            check_answering(folder, experiment)
        _STAGES[name].run(folder, experiment)


def is_done(folder: RunFolder, stage: str) -> bool:
    """Return whether a stage has finished, that is, whether the file that marks it as done exists."""
    return _STAGES[stage].list_files(folder)[0].exists()


def clear_from(folder: RunFolder, stage: str) -> None:
    """Delete the files of a stage and of all stages after it.

    Stages are cleared in reverse order, each starting with the file that marks it as done, so that after an
    interruption no partial stage looks finished.
    """
    for name in reversed(STAGES[STAGES.index(stage) :]):
        # Files of single processes would be merged into the next answers; older versions wrote `base`.
        parts = [*folder.response_parts(), folder.path / "base"] if name == "generate" else []
        for path in [*parts, *_STAGES[name].list_files(folder)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _empty(folder: RunFolder) -> None:
    clear_from(folder, "data")
    for path in (folder.path / "model.partial", folder.self_check.with_suffix("")):
        shutil.rmtree(path, ignore_errors=True)
    # The new run may have another judge.
    folder.self_check.unlink(missing_ok=True)
    folder.config.unlink()


def _accept_changes(folder: RunFolder, experiment: Experiment) -> None:
    """Accept changed settings of stages that have not started; refuse those of stages that have.

    Raises:
        RunError: The folder belongs to another experiment.
    """
    old, new = plain_values(folder.load_experiment()), plain_values(experiment)
    if is_done(folder, "data"):
        # To name the format that was chosen automatically is not a change.
        chosen = folder.load_prompt_format(None).name
        for values in (old, new):
            values["data"]["prompt_format"] = values["data"]["prompt_format"] or chosen
    changed = differing_settings(old, new)
    has_trained = _has_trained(folder)
    begun = {
        "data": is_done(folder, "data") or has_trained,
        **dict.fromkeys(("train", "lora", "dpo", "grpo", "rewards"), has_trained),
        # The model itself generates the pairs before the first step.
        **dict.fromkeys(("model", "preferences"), has_trained or _has_pairs(folder)),
        "generate": _has_started_answering(folder),
        # The judgments of each judge are kept apart, but rewards must not come from two judges.
        "judge": bool(experiment.rewards.judge) and has_trained and not is_done(folder, "train"),
    }
    # These only affect what is kept, the number of answers and the speed.
    kept = [f"{section}.{name}" for section in SECTIONS.values() for name in OWN_TRAINING]
    service = ("base", "check", "base_url", "pull", "concurrency", "timeout_seconds", "retries")
    free = (*kept, "generate.limit", "generate.concurrency", *(f"judge.{name}" for name in service))
    refused = [key for key in changed if begun[key.partition(".")[0]] and key not in free]
    if refused:
        raise RunError(
            f"`{folder.path}` is a run of another experiment: {quote_names(refused)} changed, and that stage has "
            f"already started (`{folder.config}`). Use the same settings or another `--run-dir`, or delete the old "
            "results with `--force`."
        )
    if changed:
        folder.save_experiment(experiment)
    if "model.name" in changed:
        # It describes the previous model.
        folder.add_provenance(base_model_is_local=None)


def _has_trained(folder: RunFolder) -> bool:
    return is_done(folder, "train") or any(folder.checkpoints.glob("checkpoint-*"))


def _has_pairs(folder: RunFolder) -> bool:
    return folder.preferences.exists() or folder.preferences_part.exists()


def _has_started_answering(folder: RunFolder) -> bool:
    return folder.responses.exists() or bool(folder.response_parts())


@contextlib.contextmanager
def _translated_disk_errors(folder: RunFolder) -> Iterator[None]:
    """Turn a full, read-only or failing disk into a `RunError`; other system errors keep their traceback."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunError(
            f"`{error.filename or folder.path}` cannot be written: {error.strerror}. {disk_remedy(error)}, or choose "
            "another `--run-dir`; finished work is kept, and `--resume` continues from there."
        ) from error
