"""Log sample answers and results to the trackers in `train.report_to`: trackio, TensorBoard and wandb.

Losses are logged by the callbacks of Transformers, which also start the trackers' runs.
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.config import Experiment
from hf_instruct.errors import ConfigError, needs_package
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import MODELS


def check_trackers(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a tracker in `report_to` of the training settings is not installed."""
    for name in _list_trackers(settings):
        if name in ("trackio", "tensorboard", "wandb") and importlib.util.find_spec(name) is None:
            raise ConfigError(needs_package(f"`report_to: {name}`", name))


def _list_trackers(settings: Mapping[str, Any]) -> Sequence[str]:
    trackers = settings["report_to"] or []
    return [trackers] if isinstance(trackers, str) else trackers


def place_tensorboard(trainer: Any, folder: Path) -> None:
    """Move the trainer's TensorBoard logs, if enabled, to the run folder, because checkpoints may be deleted."""
    from transformers.integrations.integration_utils import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = _find_tensorboard(folder)


def name_tracked_run(run: RunFolder, train: Mapping[str, Any]) -> str:
    """Return a run's name in trackers: `train.run_name`, otherwise its folder and start time."""
    return str(train.get("run_name") or f"{run.path.resolve().name} {run.read_provenance().created_at[:19]}")


def log_samples(trackers: Sequence[str], rows: Sequence[Mapping[str, str]], *, step: int, folder: Path) -> None:
    """Log sample answers as a table, to trackers whose run is active.

    Args:
        trackers: `report_to` of the trainer's arguments; trackers without tables are skipped.
        rows: Rows of the table, with values by column name.
        step: The optimizer step.
        folder: The run folder.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    for name in trackers:
        if name in ("trackio", "wandb"):
            tracker = importlib.import_module(name)
            tracker.log({"samples": tracker.Table(dataframe=table)})
        elif name == "tensorboard":
            with _open_tensorboard(folder) as writer:
                writer.add_text("samples", table.replace(r"\s+", " ", regex=True).to_markdown(index=False), step)


def log_results(run: RunFolder, experiment: Experiment) -> None:
    """Log the mean scores and reference metrics of a run to its trackers, in the tracker runs from its training."""
    settings = experiment.training
    values: dict[str, float] = {}
    for model in MODELS:
        means = {name: metric.mean for name, metric in run.read_metrics(model).metrics.items()}
        scores = run.read_scores(model)
        if scores is not None and scores.mean is not None:
            means["score"] = scores.mean
        values |= {f"results/{model}/{name}": value for name, value in means.items()}
    name = name_tracked_run(run, settings)
    for kind in _list_trackers(settings) if values else ():
        if kind in ("trackio", "wandb"):
            tracker = importlib.import_module(kind)
            options = {"project": settings.get("project", "huggingface")}
            if kind == "wandb":
                project = os.environ.get("WANDB_PROJECT", "huggingface")
                options = {"project": project, "id": run.read_provenance().wandb_run}
            tracker.init(name=name, resume="allow", **options)
            tracker.log(values)
            tracker.finish()
        elif kind == "tensorboard":
            with _open_tensorboard(run.path) as writer:
                for key, value in values.items():
                    writer.add_scalar(key, value)


def _find_tensorboard(folder: Path) -> str:
    return os.environ.get("TENSORBOARD_LOGGING_DIR") or str(folder / "tensorboard")


def _open_tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(log_dir=_find_tensorboard(folder))
