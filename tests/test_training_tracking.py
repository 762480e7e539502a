"""Trackers are stood in for by modules that note what they are told; the real ones were tried by hand."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hf_instruct.config import build_experiment
from hf_instruct.errors import ConfigError
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Metrics, MetricValue, Scores
from hf_instruct.training.tracking import check_trackers, log_results, log_samples, name_tracked_run, place_tensorboard

SAMPLES = [{"instruction": "Name a color.", "response": "Red.\n\nOr blue."}]
TRACKERS = ["trackio", "tensorboard", "wandb", "mlflow"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what the trackers are told, in order."""
    calls: list[tuple[Any, ...]] = []
    for name in ("trackio", "wandb"):
        tracker = ModuleType(name)
        for verb in ("init", "log", "finish"):
            note = lambda *values, _call=(name, verb), **named: calls.append((*_call, *values, named))  # noqa: E731
            setattr(tracker, verb, note)
        tracker.Table = lambda dataframe: dataframe.to_dict("records")
        monkeypatch.setitem(sys.modules, name, tracker)

    class Writer:
        def __init__(self, log_dir: str) -> None:
            self.folder = log_dir

        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def add_text(self, *values: object) -> None:
            calls.append(("tensorboard", self.folder, *values))

        add_scalar = add_text

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


def test_a_tracker_that_is_not_installed_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    for named in ("none", None, "all", "trackio", ["mlflow", "tensorboard"]):
        check_trackers({"report_to": named})
    for named in ("wandb", ["tensorboard", "wandb"]):
        with pytest.raises(ConfigError, match=r"`report_to: wandb` needs the package wandb, .*: pip install wandb"):
            check_trackers({"report_to": named})


def test_samples_are_a_table(told: list[tuple[Any, ...]], tmp_path: Path) -> None:
    log_samples(TRACKERS, SAMPLES, step=3, folder=tmp_path)
    (trackio, tensorboard, wandb) = told
    assert trackio == ("trackio", "log", {"samples": SAMPLES}, {})
    assert wandb == ("wandb", "log", {"samples": SAMPLES}, {})
    assert tensorboard[:3] == ("tensorboard", str(tmp_path / "tensorboard"), "samples")
    assert "| Name a color. | Red. Or blue. |" in tensorboard[3]
    assert tensorboard[4] == 3


def test_results_go_to_the_runs_that_training_began(told: list[tuple[Any, ...]], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    experiment = build_experiment({"train": {"report_to": TRACKERS, "project": "course"}}, where="here", deep=False)
    run.save_experiment(experiment)
    log_results(run, experiment)
    assert told == [], "there is nothing to log yet"
    run.add_provenance(wandb_run="abc")
    run.write_scores("tuned", Scores(mean=61.5, n=4, total=4))
    run.write_metrics("untuned", Metrics(metrics={"chrf": MetricValue(mean=12.5, interval=None, n=1)}))
    log_results(run, experiment)
    values = {"results/untuned/chrf": 12.5, "results/tuned/score": 61.5}
    name = name_tracked_run(run, experiment.train)
    assert name.startswith("mine 20")
    assert told == [
        ("trackio", "init", {"name": name, "resume": "allow", "project": "course"}),
        ("trackio", "log", values, {}),
        ("trackio", "finish", {}),
        *(("tensorboard", str(run.tensorboard), key, value) for key, value in values.items()),
        ("wandb", "init", {"name": name, "resume": "allow", "project": "huggingface", "id": "abc"}),
        ("wandb", "log", values, {}),
        ("wandb", "finish", {}),
    ]
    run.save_experiment(experiment)
    assert name_tracked_run(run, experiment.train) == name, "settings of a later stage do not make it another run"
    assert name_tracked_run(run, {"run_name": "first"}) == "first"


@pytest.mark.parametrize("named", [None, "none", [], "mlflow"])
def test_a_run_without_trackers_tells_nobody(told: list[tuple[Any, ...]], tmp_path: Path, named: Any) -> None:
    run = RunFolder(tmp_path)
    run.write_scores("tuned", Scores(mean=61.5, n=4, total=4))
    log_results(run, build_experiment({"train": {"report_to": named}}, where="here", deep=False))
    assert told == []


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import TensorBoardCallback

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    callback = TensorBoardCallback.__new__(TensorBoardCallback)
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[object(), callback]))
    place_tensorboard(trainer, tmp_path)
    assert callback.logging_dir == str(RunFolder(tmp_path).tensorboard)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/elsewhere")
    place_tensorboard(trainer, tmp_path)
    assert callback.logging_dir == "/elsewhere"
