"""Many runs of one experiment with different settings: the best by validation loss, and its test score.

Candidates are only trained. The test split is answered and judged once, for the run with the lowest validation loss;
choosing the run by its test score would make that score too high.
"""

import contextlib
import json
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from hf_instruct.config import Experiment, differing_settings, load_experiment, plain_values
from hf_instruct.errors import (
    ConfigError,
    DataError,
    InstructError,
    ModelLoadError,
    RunError,
    needs_package,
    quote_names,
)
from hf_instruct.pipeline import STAGES, check_experiment, default_path, is_done, is_occupied, run
from hf_instruct.processes import Terminated, configure_process, sigterm_interrupts
from hf_instruct.recipes import find_experiment
from hf_instruct.records import read_file, write_json, write_text
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Scores, TrainingSummary
from hf_instruct.sweeping.space import (
    Axis,
    Point,
    build_grid,
    folder_name,
    format_point,
    parse_axes,
    probe_points,
    suggest,
)

logger = logging.getLogger(__name__)

_TRAINING = ("data", "train")
_TESTING = ("generate", "judge", "report")


class Candidate(BaseModel):
    """One run of a sweep."""

    name: str  # name of its run folder, which is in the sweep's folder
    settings: Point  # the settings that vary
    status: Literal["waiting", "finished", "failed"] = "waiting"
    validation_loss: float | None = None  # the last one, in nats per label token
    train_loss: float | None = None
    seconds: float | None = None  # of its training loop
    error: str | None = None  # why it failed
    times: int = 1  # how often a search suggested it; it is trained once


class Sweep(BaseModel):
    """A sweep, planned or done: the content of `sweep.json`, and the settings that the command has to set each time."""

    path: Path  # the folder that contains each candidate's run folder
    file: Path  # the experiment
    overrides: dict[str, Any] = Field({}, exclude=True)  # settings of all runs that replace those of the file
    # The training settings that all runs share; for a search also the settings that vary.
    training: dict[str, Any]
    axes: list[Axis] = Field([], exclude=True)
    trials: int | None = Field(None, exclude=True)  # None for a grid
    seed: int = Field(0, exclude=True)
    chosen_by: Literal["validation_loss"] = "validation_loss"
    candidates: list[Candidate] = []  # in the order in which they run
    selected: str | None = None  # name of the candidate with the lowest validation loss
    tested: list[str] = []  # names of the candidates whose test score was computed, in that order
    test_scores: Scores | None = None  # of the selected run

    def folder(self, candidate: Candidate) -> RunFolder:
        """Return a candidate's run folder."""
        return RunFolder(self.path / candidate.name)

    def experiment(self, point: Mapping[str, Any], *, deep: bool = False) -> Experiment:
        """Return the experiment at a point."""
        return load_experiment(self.file, {**self.overrides, **point}, deep=deep)

    def ranked(self) -> list[Candidate]:
        """Return the candidates, lowest validation loss first, those without one last."""
        return sorted(self.candidates, key=lambda c: math.inf if c.validation_loss is None else c.validation_loss)

    def next_candidate(self) -> Candidate | None:
        """Return the candidate to train next: a waiting one, or in a search a new one until all trials are done."""
        while True:
            if waiting := next((c for c in self.candidates if c.status == "waiting"), None):
                return waiting
            tried = [(c.settings, c.validation_loss) for c in self.candidates for _ in range(c.times)]
            if len(tried) >= (self.trials or 0):
                return None
            point = suggest(self.axes, tried, seed=self.seed)
            # In a small space a search may suggest the same settings twice; training would give the same loss.
            if repeated := next((c for c in self.candidates if c.name == folder_name(point)), None):
                repeated.times += 1
            else:
                self.candidates.append(Candidate(name=folder_name(point), settings=point))

    def save(self) -> None:
        """Write `sweep.json`, and `sweep.csv` for other programs."""
        from pandas import DataFrame

        write_json(self.path / "sweep.json", self.model_dump(mode="json"))
        rows = []
        for candidate in self.ranked():
            results = candidate.model_dump(exclude={"name", "settings", "times"})
            selected = "yes" if candidate.name == self.selected else ""
            rows.append({"run": candidate.name, **candidate.settings, **results, "selected": selected})
        write_text(self.path / "sweep.csv", DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n"))


def read_sweep(path: Path) -> Sweep | None:
    """Return the sweep in a folder, or None.

    Raises:
        DataError: Its file cannot be read.
    """
    file = path / "sweep.json"
    if not file.exists():
        return None
    try:
        return Sweep.model_validate({**(read_file(file, dict[str, Any]) or {}), "path": path})
    except ValidationError as error:
        names = quote_names(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise DataError(f"`{file}` cannot be read as a sweep: see {names}. Use another `--sweep-dir`.") from error


def plan_sweep(
    file: Path,
    settings: Sequence[str],
    path: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seed: int = 0,
) -> Sweep:
    """Check a sweep and return it without running it; nothing is written.

    Args:
        file: The experiment file, or the name of a recipe.
        settings: Settings to vary: `SECTION.FIELD=VALUE,VALUE…`, or with `trials` also `SECTION.FIELD=LOW..HIGH`.
        path: The sweep's folder; `runs/`, the file's name and `-sweep` by default.
        overrides: Settings of all runs, by dotted name.
        trials: Search with this many runs instead of running every combination.
        seed: Seed of the search.

    Raises:
        ConfigError: The settings or the experiments they make have problems (all are listed), or Optuna is missing.
    """
    axes = parse_axes(settings, searched=trials is not None)
    overrides = dict(overrides or {})
    if twice := [f"`--{axis.name}` is both fixed and varied" for axis in axes if axis.name in overrides]:
        raise ConfigError("Remove one of the two:", twice)
    if trials is not None and find_spec("optuna") is None:
        raise ConfigError(needs_package("`--trials`", "optuna"))
    path = path or default_path(file).with_name(default_path(file).name + "-sweep")
    file = find_experiment(file)
    # The file alone first, because its problems are not those of the sweep.
    common = plain_values(load_experiment(file, overrides))
    training = {name: common.get(name) for name in ("data", "model", "train", "lora")}
    training |= {name: common[name] for name in ("dpo", "preferences") if name in common}
    if "grpo" in common:
        raise ConfigError(
            "A sweep chooses by validation loss, and training on rewards (`grpo`) has none. Use `run` and `compare` "
            "instead."
        )
    if trials:
        training["search"] = {"settings": [str(axis) for axis in axes], "seed": seed}
    sweep = Sweep(path=path, file=file, overrides=overrides, training=training, axes=axes, trials=trials, seed=seed)
    points: dict[str, Point] = {}
    problems: dict[str, None] = {}
    for point in probe_points(axes) if trials else build_grid(axes):
        try:
            experiment = sweep.experiment(point, deep=True)
            if experiment.training["eval_strategy"] == "no":
                raise ConfigError("A sweep chooses by validation loss; leave out `eval_strategy: no`.")
            check_experiment(experiment, _TRAINING)
            points.setdefault(json.dumps(plain_values(experiment), sort_keys=True), point)
        except (ConfigError, ModelLoadError) as error:
            problems |= dict.fromkeys(getattr(error, "problems", None) or [str(error)])
    if problems:
        raise ConfigError.listing(list(problems), "in what to sweep")
    if not trials:
        sweep.candidates = [Candidate(name=folder_name(point), settings=point) for point in points.values()]
    return sweep


def run_sweep(sweep: Sweep, *, resume: bool = False, judge_all: bool = False) -> Sweep:
    """Train every candidate, choose the one with the lowest validation loss, and score that one on the test split.

    Each run has its own process, so that its memory is freed afterwards; a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        sweep: The result of `plan_sweep`.
        resume: Continue an interrupted sweep, or add candidates to a finished one; finished candidates are kept, and
            failed ones of a grid are tried again.
        judge_all: Answer and judge the test split with every finished candidate; validation still chooses.

    Returns:
        The sweep with its results, which are also in `sweep.json` and `sweep.csv` in its folder.

    Raises:
        ConfigError: The judge cannot be used.
        RunError: The folder contains another sweep or something else, another process uses it, or no run finished.
        InstructError: The selected run could not be answered or judged; its training is kept.
    """
    _open(sweep, resume=resume)
    check_experiment(sweep.experiment({}), STAGES)
    if any(axis.name == "model.name" for axis in sweep.axes):
        logger.warning("`model.name` varies: losses of models can only be compared if they have the same tokenizer.")
    with RunFolder(sweep.path).locked():
        while candidate := sweep.next_candidate():
            # Saved before training, so that an interrupted search continues with this candidate.
            sweep.save()
            _train(sweep, candidate)
        best, *others = _rank_finished(sweep)
        for candidate in [best, *(others if judge_all else [])]:
            if candidate.name not in sweep.tested:
                sweep.tested.append(candidate.name)
            # Saved before the answers, because a score that may have been seen counts as seen.
            sweep.save()
            logger.info("Test split: %s", format_point(candidate.settings))
            if error := _in_own_process(sweep.experiment(candidate.settings), sweep.folder(candidate), _TESTING):
                raise RunError(f"`{sweep.folder(candidate).path}` could not be scored on the test split: {error}")
        sweep.test_scores = sweep.folder(best).read_scores()
        sweep.save()
    return sweep


def _open(sweep: Sweep, *, resume: bool) -> None:
    """Load the progress of this sweep from its folder, or refuse."""
    path, saved = sweep.path, read_sweep(sweep.path)
    if saved is None:
        if is_occupied(path):
            raise RunError(f"`{path}` exists and is not a sweep folder. Use another `--sweep-dir`.")
        return
    if not resume:
        raise RunError(
            f"`{path}` already contains a sweep. Use `--resume` to continue it, also with more values, or "
            "`--sweep-dir` to use another folder."
        )
    if changed := differing_settings(saved.training, sweep.training):
        raise RunError(
            f"`{path}` is a sweep of another experiment: {quote_names(changed)} changed. Use the same settings (for "
            "a search also the same `--set` and `--seed`), or use another `--sweep-dir`."
        )
    sweep.candidates = list(({c.name: c for c in sweep.candidates} | {c.name: c for c in saved.candidates}).values())
    for candidate in sweep.candidates:
        was_deleted = candidate.status == "finished" and not is_done(sweep.folder(candidate), "train")
        if was_deleted or (candidate.status == "failed" and not sweep.trials):
            candidate.status, candidate.validation_loss = "waiting", None
    sweep.tested = list(saved.tested)


def _train(sweep: Sweep, candidate: Candidate) -> None:
    """Train a candidate and record its losses, or why it failed."""
    settings, count = format_point(candidate.settings), sweep.trials or len(sweep.candidates)
    logger.info("Run %d of %d: %s", sweep.candidates.index(candidate) + 1, count, settings)
    folder = sweep.folder(candidate)
    if folder.path.exists():
        # Raises if a process from an earlier attempt is still using it.
        with folder.locked():
            pass
    candidate.status = "failed"
    candidate.error = _in_own_process(sweep.experiment(candidate.settings), folder, _TRAINING)
    if candidate.error is None:
        summary = read_file(folder.training_summary, TrainingSummary)
        if summary and summary.validation_loss is not None:
            candidate.status, candidate.validation_loss = "finished", summary.validation_loss
            candidate.train_loss, candidate.seconds = summary.train_loss, summary.seconds
            return
        candidate.error = "its validation loss is not a number"
    logger.warning("%s failed: %s", settings, candidate.error)


def _rank_finished(sweep: Sweep) -> list[Candidate]:
    """Return the finished candidates, lowest validation loss first, and record the first one as selected."""
    finished = [candidate for candidate in sweep.ranked() if candidate.status == "finished"]
    sweep.selected = finished[0].name if finished else None
    sweep.save()
    if not finished:
        raise RunError(
            f"None of the {len(sweep.candidates)} runs in `{sweep.path}` finished, so there is nothing to choose from. "
            f"The first one: {sweep.candidates[0].error}"
        )
    if seen := [name for name in sweep.tested if name != sweep.selected]:
        logger.warning(
            "Test scores were already computed for %s, so the choice is no longer blind.",
            quote_names(seen),
        )
    return finished


def _in_own_process(experiment: Experiment, folder: RunFolder, stages: Sequence[str]) -> str | None:
    """Run stages in a separate process, and return the reason why they did not finish, or None."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(experiment, folder.path, tuple(stages), sender))
    process.start()
    sender.close()
    message = None
    try:
        # Received before joining: a long message fills the pipe, and the process waits until it is read.
        with contextlib.suppress(EOFError):
            message = receiver.recv()
        process.join()
    except KeyboardInterrupt as stop:
        # The terminal's Ctrl-C has also reached the process; give it time to finish the row that it is writing.
        if isinstance(stop, Terminated):
            process.terminate()
        process.join(timeout=20)
        process.kill()
        raise
    if process.exitcode == 0:
        return None
    if message is None and process.exitcode == -signal.SIGKILL:
        return "its process was killed, as when memory runs out"
    return message or f"its process ended with status {process.exitcode}; its last lines say why"


def _work(experiment: Experiment, path: Path, stages: Sequence[str], sender: Connection) -> None:
    """Run stages, in the process of a candidate."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    configure_process()
    try:
        with sigterm_interrupts():
            run(experiment, path, resume=True, stages=stages)
    except InstructError as error:
        sender.send(str(error))
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _end_with_parent() -> None:
    """Exit when the process that started this one is gone, so that no training continues unnoticed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
