"""Many runs of one experiment that differ in a few settings: the best by validation loss, and its score on the test.

Candidates are trained only. The test split is answered and judged once, for the run that validation chose; a test score
that chose its own run would be too high.
"""

import json
import logging
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment
from hf_instruct.errors import ConfigError, InstructError, RunError
from hf_instruct.pipeline import STAGES, check_experiment, default_path, is_done, run
from hf_instruct.processes import Terminated, configure_process, sigterm_interrupts
from hf_instruct.records import read_json_object
from hf_instruct.run_folder import RunFolder, differing_settings, plain_values
from hf_instruct.sweeping.files import (
    Candidate,
    Sweep,
    describe_search,
    read_sweep,
    save_sweep,
    search_values,
    training_values,
)
from hf_instruct.sweeping.search import Search, import_optuna
from hf_instruct.sweeping.space import (
    Choices,
    Point,
    build_grid,
    folder_name,
    format_point,
    parse_axes,
    probe_points,
)

logger = logging.getLogger(__name__)

_TRAINING = ("data", "train")
_TESTING = ("generate", "judge", "report")


def plan_sweep(
    file: Path,
    settings: Sequence[str],
    path: Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    trials: int | None = None,
    seed: int = 0,
) -> Sweep:
    """Return what a sweep would run, checked but not begun; nothing is written.

    Args:
        file: The experiment file.
        settings: What to vary: `SECTION.FIELD=VALUE,VALUE…`, or with `trials` also `SECTION.FIELD=LOW..HIGH`.
        path: The sweep's folder; `runs/`, the file's name and `-sweep` by default.
        overrides: Settings of all runs, by dotted name.
        trials: Search with so many runs instead of running every combination.
        seed: Of the search.

    Raises:
        ConfigError: All faults of the settings and of every experiment they make.
    """
    axes = parse_axes(settings, searched=trials is not None)
    if twice := [f"`--{axis.name}` is both fixed and swept" for axis in axes if axis.name in (overrides or {})]:
        raise ConfigError("Take one of the two out:", twice)
    if trials is not None:
        import_optuna()
    path = path or default_path(file).with_name(default_path(file).name + "-sweep")
    sweep = Sweep(path, file, overrides or {}, axes, trials, seed)
    # The file itself first: its faults are not those of the sweep.
    sweep.experiment({}, deep=True)
    # Every axis of a grid is `Choices`.
    points = probe_points(axes) if trials else build_grid([axis for axis in axes if isinstance(axis, Choices)])
    seen: dict[str, Point] = {}
    faults: dict[str, None] = {}
    for point in points:
        try:
            experiment = sweep.experiment(point, deep=True)
            check_experiment(experiment, _TRAINING)
            seen.setdefault(json.dumps(plain_values(experiment), sort_keys=True), point)
        except ConfigError as error:
            faults |= dict.fromkeys(error.problems or [str(error)])
    if faults:
        raise ConfigError.listing(list(faults), "in what to sweep")
    if not trials:
        sweep.candidates = [Candidate(folder_name(point), point) for point in seen.values()]
    return sweep


def run_sweep(sweep: Sweep, *, resume: bool = False, judge_all: bool = False) -> Sweep:
    """Train every candidate, choose the one with the lowest validation loss, and score that one on the test split.

    Each run has a process of its own, so that its memory ends with it; a script that calls this needs the usual
    `if __name__ == "__main__":`. What a run needs to go on with after its training is kept, its checkpoints are not.

    Args:
        sweep: What `plan_sweep` returned.
        resume: Go on with a sweep that was cut off or is to have more candidates; finished ones are left alone, failed
            ones tried again.
        judge_all: Answer and judge the test split with every candidate; validation still chooses.

    Returns:
        The sweep, with what came of it; also in `sweep.json` and `sweep.csv` of its folder.

    Raises:
        ConfigError: The judge cannot be used.
        RunError: The folder holds another sweep or something else, another process works on it, or no run finished.
        InstructError: The selected run could not be answered or judged; its training is kept.
    """
    _open(sweep, resume=resume)
    check_experiment(sweep.experiment({}), STAGES)
    if any(axis.name == "model.name" for axis in sweep.axes):
        logger.warning("`model.name` varies: the losses of two models compare only if they have the same tokenizer.")
    with RunFolder(sweep.path).locked():
        save_sweep(sweep)
        for candidate in _search(sweep) if sweep.trials else _walk_grid(sweep):
            _train(sweep, candidate)
            save_sweep(sweep)
        _select(sweep)
        best = next(c for c in sweep.candidates if c.name == sweep.selected)
        finished = [c for c in sweep.ranked() if c.status == "finished" and c is not best]
        for candidate in [best, *(finished if judge_all else [])]:
            if candidate.name not in sweep.tested:
                sweep.tested.append(candidate.name)
            # Before the answers: a test that was looked at stays looked at.
            save_sweep(sweep)
            logger.info("Test split: %s", format_point(candidate.settings))
            if error := _in_own_process(sweep.experiment(candidate.settings), sweep.folder(candidate), _TESTING):
                raise RunError(f"`{sweep.folder(candidate).path}` could not be scored on the test split: {error}")
        sweep.scores = read_json_object(sweep.folder(best).scores)
        save_sweep(sweep)
    return sweep


def _open(sweep: Sweep, *, resume: bool) -> None:
    """Take over what the folder holds of this sweep, or refuse."""
    path = sweep.path
    known = read_sweep(path)
    if not known:
        if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
            raise RunError(f"`{path}` exists and is no sweep, so nothing is written there. Name another `--sweep-dir`.")
        return
    if not resume:
        raise RunError(
            f"`{path}` holds a sweep already. `--resume` goes on with it, also with more values; `--sweep-dir` names "
            "another folder."
        )
    if changed := differing_settings(known["training"], training_values(sweep)):
        raise RunError(
            f"`{path}` is a sweep of another experiment: {', '.join(f'`{name}`' for name in changed)} changed. Give "
            "the same settings, or name another `--sweep-dir`."
        )
    if known["search"] != search_values(sweep):
        raise RunError(
            f"`{path}` was searched otherwise: it varied {describe_search(known['search'])}, and now it is to vary "
            f"{describe_search(search_values(sweep))}. Give the same `--set` and `--seed`, or name another "
            "`--sweep-dir`."
        )
    rows = {candidate.name: candidate for candidate in known["candidates"]}
    own = {candidate.name for candidate in sweep.candidates}
    sweep.candidates = [rows.get(c.name, c) for c in sweep.candidates] + [c for n, c in rows.items() if n not in own]
    for candidate in sweep.candidates:
        if candidate.status == "finished" and not is_done(sweep.folder(candidate), "train"):
            # Its folder was deleted meanwhile.
            candidate.status, candidate.validation_loss = "waiting", None
    sweep.tested = list(known["tested"])


def _walk_grid(sweep: Sweep) -> Iterator[Candidate]:
    for number, candidate in enumerate(sweep.candidates, start=1):
        if candidate.status != "finished":
            logger.info("Run %d of %d: %s", number, len(sweep.candidates), format_point(candidate.settings))
            yield candidate


def _search(sweep: Sweep) -> Iterator[Candidate]:
    """Yield trials until there are as many as asked for, those first that were cut off."""
    assert sweep.trials is not None, "a grid is walked"
    search = Search(sweep.path / "study.sqlite3", sweep.axes, seed=sweep.seed)
    waiting = search.unfinished()
    while waiting or search.count() < sweep.trials:
        number, point = waiting.pop(0) if waiting else search.ask()
        name = folder_name(point)
        # The same settings may come twice where there are few; they would train to the same loss.
        candidate = next((c for c in sweep.candidates if c.name == name), None)
        if candidate is None:
            candidate = Candidate(name, point, trial=number)
            sweep.candidates.append(candidate)
        if candidate.status == "waiting":
            logger.info("Trial %d of %d: %s", number + 1, max(sweep.trials, number + 1), format_point(point))
            yield candidate
        search.tell(number, candidate.validation_loss)


def _train(sweep: Sweep, candidate: Candidate) -> None:
    """Train one candidate and note what came of it."""
    folder = sweep.folder(candidate)
    if folder.path.exists():
        # Refuses where a process that was left over still works on it.
        with folder.locked():
            pass
    candidate.error = _in_own_process(sweep.experiment(candidate.settings), folder, _TRAINING)
    candidate.status = "failed"
    if candidate.error:
        logger.warning("%s failed: %s", format_point(candidate.settings), candidate.error)
        return
    summary = read_json_object(folder.training_summary)
    loss = summary["validation_loss"]
    if loss is None or not math.isfinite(loss):
        candidate.error = "its validation loss is not a number"
        return
    candidate.status = "finished"
    candidate.validation_loss, candidate.train_loss = loss, summary["train_loss"]
    candidate.seconds = summary["seconds"]


def _select(sweep: Sweep) -> None:
    best = sweep.ranked()[0]
    if best.status != "finished":
        raise RunError(
            f"None of the {len(sweep.candidates)} runs in `{sweep.path}` finished, so there is nothing to choose from. "
            f"The first one: {sweep.candidates[0].error}"
        )
    sweep.selected = best.name
    if others := [name for name in sweep.tested if name != best.name]:
        logger.warning(
            "The test split was looked at before, for %s: a choice made after seeing those scores is no longer blind.",
            ", ".join(f"`{name}`" for name in others),
        )


def _in_own_process(experiment: Experiment, folder: RunFolder, stages: Sequence[str]) -> str | None:
    """Walk stages in a process of their own, and return why they could not be finished, or None."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(experiment, folder.path, tuple(stages), sender))
    process.start()
    sender.close()
    try:
        process.join()
    except BaseException as stop:
        # The terminal's Ctrl-C has reached it as well; it is given time to finish the row it writes.
        if isinstance(stop, Terminated):
            process.terminate()
        process.join(timeout=20)
        process.kill()
        raise
    if process.exitcode == 0:
        return None
    if receiver.poll():
        return str(receiver.recv())
    if process.exitcode is not None and process.exitcode < 0:
        return f"its process was killed (signal {-process.exitcode}), by the system when memory runs out"
    return f"its process ended with status {process.exitcode}; what it printed says more"


def _work(experiment: Experiment, path: Path, stages: Sequence[str], sender: Connection) -> None:
    """Walk stages; what runs in the process of a candidate."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    configure_process()
    try:
        with sigterm_interrupts():
            folder = run(experiment, path, resume=True, stages=stages)
        if is_done(folder, "train"):
            # As large as several models, and of no more use.
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
    except InstructError as error:
        sender.send(str(error))
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, so that nothing trains on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
