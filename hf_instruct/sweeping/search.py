"""The search of a sweep: which settings to try next, by Optuna, from what the runs so far gave."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError, RunError
from hf_instruct.sweeping.space import Axis, Choices, Point

_STUDY = "sweep"


class Search:
    """A study on disk: trials asked for and what came of them, safe from one call of the program to the next.

    The same trials with the same outcomes are followed by the same trial, whether or not the search was cut off.

    Args:
        path: SQLite file of the study; made when it is not there.
        axes: What is varied.
        seed: Of the sampler.

    Raises:
        ConfigError: Optuna is not installed.
        RunError: The file holds no study that can be read.
    """

    def __init__(self, path: Path, axes: Sequence[Axis], *, seed: int) -> None:
        import_optuna()
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._seed = seed
        self._axes = list(axes)
        self._distributions = {axis.name: _build_distribution(axis) for axis in axes}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{path.absolute()}", study_name=_STUDY, direction="minimize", load_if_exists=True
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise RunError(
                f"`{path}` is no study that Optuna can read ({str(error).splitlines()[0]}). Name another `--sweep-dir`."
            ) from error

    def unfinished(self) -> list[tuple[int, Point]]:
        """Return the trials that were asked for and have no outcome: number and settings."""
        from optuna.trial import TrialState

        found = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [(trial.number, self._decode(trial.params)) for trial in found]

    def count(self) -> int:
        """Return how many trials were asked for, ever."""
        return len(self._study.get_trials(deepcopy=False))

    def ask(self) -> tuple[int, Point]:
        """Return the number and the settings of a new trial."""
        import optuna

        # A sampler of its own for each trial: one that lives on would draw otherwise after an interruption.
        self._study.sampler = optuna.samplers.TPESampler(seed=self._seed + self.count())
        trial = self._study.ask(self._distributions)
        return trial.number, self._decode(trial.params)

    def tell(self, number: int, loss: float | None) -> None:
        """Store what came of a trial; None for one that failed."""
        from optuna.trial import TrialState

        if loss is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, loss)

    def _decode(self, values: dict[str, Any]) -> Point:
        categories = {axis.name for axis in self._axes if isinstance(axis, Choices)}
        return {
            axis.name: json.loads(values[axis.name]) if axis.name in categories else values[axis.name]
            for axis in self._axes
        }


def import_optuna() -> None:
    """Make sure that Optuna is there.

    Raises:
        ConfigError: It is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "`--trials` needs the package Optuna, which is not installed: pip install 'hf-instruct[search]'. Without "
            "it, a grid of values can be swept."
        ) from error


def _build_distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, Choices):
        # As text, since a category may be a list, and 1 and true are to differ.
        return CategoricalDistribution([json.dumps(value) for value in axis.values])
    if axis.is_whole:
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.is_log)
