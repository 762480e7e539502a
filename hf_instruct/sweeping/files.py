"""What a sweep is, and its files: `sweep.json`, and `sweep.csv` for other programs."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment, load_experiment
from hf_instruct.errors import DataError
from hf_instruct.records import read_json_object, write_json, write_text
from hf_instruct.run_folder import RunFolder, plain_values
from hf_instruct.sweeping.space import Axis, Point

_TRAINING_SECTIONS = ("data", "model", "train", "lora")


@dataclasses.dataclass
class Candidate:
    """One run of a sweep.

    Attributes:
        name: Of its run folder, in the sweep's folder.
        settings: What it differs in, by dotted name.
        status: `waiting`, `finished` or `failed`.
        validation_loss: Last loss on the validation examples, in nats a label token.
        seconds: Time of its training loop.
        error: Why it failed.
        trial: Its number in the search; None in a grid.
    """

    name: str
    settings: Point
    status: str = "waiting"
    validation_loss: float | None = None
    train_loss: float | None = None
    seconds: float | None = None
    error: str | None = None
    trial: int | None = None


@dataclasses.dataclass
class Sweep:
    """A sweep, planned or done.

    Attributes:
        path: Its folder; each candidate's run folder is in it.
        file: The experiment file.
        overrides: Settings of all runs, by dotted name, over those of the file.
        axes: What is varied.
        trials: How many runs to search with; None for a grid.
        seed: Of the search.
        candidates: In the order in which they run.
        selected: Name of the candidate with the lowest validation loss.
        tested: Names of the candidates whose test score was looked at, in that order.
        scores: The selected run's `scores.json`.
    """

    path: Path
    file: Path
    overrides: Mapping[str, Any]
    axes: list[Axis]
    trials: int | None = None
    seed: int = 0
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    selected: str | None = None
    tested: list[str] = dataclasses.field(default_factory=list)
    scores: dict[str, Any] | None = None

    def folder(self, candidate: Candidate) -> RunFolder:
        """Return a candidate's run folder."""
        return RunFolder(self.path / candidate.name)

    def experiment(self, point: Mapping[str, Any], *, deep: bool = False) -> Experiment:
        """Return the experiment at a point."""
        return load_experiment(self.file, {**self.overrides, **point}, deep=deep)

    def ranked(self) -> list[Candidate]:
        """Return the candidates, lowest validation loss first, those without one last."""
        return sorted(self.candidates, key=lambda c: math.inf if c.validation_loss is None else c.validation_loss)


def read_sweep(path: Path) -> dict[str, Any]:
    """Return what the `sweep.json` in a folder holds; nothing where there is none.

    Raises:
        DataError: It cannot be read.
    """
    file = path / "sweep.json"
    if not file.exists():
        return {}
    try:
        values = read_json_object(file)
        values["candidates"] = [Candidate(**row) for row in values["candidates"]]
        if missing := {"training", "search", "tested"} - values.keys():
            raise ValueError(f"no {' and no '.join(sorted(missing))}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"`{file}` cannot be read as a sweep ({error}); name another `--sweep-dir`.") from error
    return values


def training_values(sweep: Sweep) -> dict[str, Any]:
    """Return what all runs of a sweep have in common, as far as it bears on training."""
    values = plain_values(sweep.experiment({}))
    return {name: values.get(name) for name in _TRAINING_SECTIONS}


def search_values(sweep: Sweep) -> dict[str, Any] | None:
    """Return what a search cannot go on without; None for a grid."""
    if not sweep.trials:
        return None
    axes = [json.loads(json.dumps(dataclasses.asdict(axis))) for axis in sweep.axes]
    return {"seed": sweep.seed, "axes": axes}


def describe_search(search: Mapping[str, Any] | None) -> str:
    """Return `search_values` as a text."""
    if search is None:
        return "a grid"
    parts = [
        f"{axis['name']}={axis['low']:g}..{axis['high']:g}"
        if "low" in axis
        else f"{axis['name']}={','.join(map(str, axis['values']))}"
        for axis in search["axes"]
    ]
    return f"{' '.join(parts)} with seed {search['seed']}"


def save_sweep(sweep: Sweep) -> None:
    """Write `sweep.json` and `sweep.csv` into the folder of a sweep."""
    values = {
        "experiment": str(sweep.file),
        "training": training_values(sweep),
        "search": search_values(sweep),
        "chosen_by": "validation_loss",
        "candidates": [dataclasses.asdict(candidate) for candidate in sweep.candidates],
        "selected": sweep.selected,
        "tested": sweep.tested,
        "test_scores": sweep.scores,
    }
    write_json(sweep.path / "sweep.json", values)
    names = list(dict.fromkeys(name for candidate in sweep.candidates for name in candidate.settings))
    columns = ["status", "validation_loss", "train_loss", "seconds", "error"]
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["run", *names, *columns, "selected"])
    for candidate in sweep.ranked():
        row = dataclasses.asdict(candidate)
        cells = [candidate.settings.get(name) for name in names] + [row[column] for column in columns]
        table.writerow([candidate.name, *cells, "yes" if candidate.name == sweep.selected else ""])
    write_text(sweep.path / "sweep.csv", stream.getvalue())
