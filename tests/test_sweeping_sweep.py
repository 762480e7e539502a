"""Sweeps, with training faked in this process; `test_cli_sweep.py` trains."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hf_instruct.config import Experiment
from hf_instruct.errors import ConfigError, RunError
from hf_instruct.records import write_json
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Scores, TrainingSummary
from hf_instruct.sweeping import sweep as module
from hf_instruct.sweeping.sweep import plan_sweep, read_sweep, run_sweep


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {source: everyday}\nmodel: {name: ./tiny}\ntrain: {weight_decay: 0.1}\n")
    return path


def build_summary(loss: float) -> TrainingSummary:
    names = ("steps", "tokens_seen", "peak_memory_bytes", "num_processes", "num_parameters", "num_trainable_parameters")
    return TrainingSummary(
        **dict.fromkeys(names, 1),
        seconds=2.0,
        epochs=1.0,
        tokens_per_second=1.0,
        device="cpu",
        precision="fp32",
        train_loss=0.5,
        validation_loss=None if math.isnan(loss) else loss,
    )


class Workers:
    """Stands for the processes of candidates: notes what they were to do, and writes what they would have."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.losses: dict[str, float | str | BaseException] = {}

    def __call__(self, experiment: Experiment, folder: RunFolder, stages: tuple[str, ...]) -> str | None:
        name = folder.path.name
        self.calls.append((name, tuple(stages)))
        if "judge" in stages:
            folder.write_scores("tuned", Scores(mean=50.0, n=1, total=1))
            return None
        outcome = self.losses.get(name, experiment.train["learning_rate"])
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, str):
            return outcome
        write_json(folder.training_summary, build_summary(outcome))
        return None

    def trained(self) -> list[str]:
        return [name for name, stages in self.calls if stages == ("data", "train")]

    def tested(self) -> list[str]:
        return [name for name, stages in self.calls if stages == ("generate", "judge", "report")]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    fake = Workers()
    monkeypatch.setattr(module, "_in_own_process", fake)
    monkeypatch.setattr(module, "check_experiment", lambda experiment, stages: None)
    return fake


def plan(file: Path, *settings: str, **options: Any) -> module.Sweep:
    return plan_sweep(file, settings, file.parent / "sweep", **options)


def test_validation_chooses_and_the_test_is_looked_at_once(file: Path, workers: Workers) -> None:
    workers.losses = {"learning_rate=0.2,r=8": 0.3, "learning_rate=0.1,r=16": 0.4}
    sweep = run_sweep(plan(file, "train.learning_rate=0.1,0.2", "lora.r=8,16"))
    names = ["learning_rate=0.1,r=8", "learning_rate=0.1,r=16", "learning_rate=0.2,r=8", "learning_rate=0.2,r=16"]
    workers.losses = {}
    assert workers.trained() == names
    # 0.1 and 0.2 are their own losses where none is given.
    assert [c.name for c in sweep.ranked()] == [names[0], names[3], names[2], names[1]]
    assert sweep.selected == names[0]
    assert workers.tested() == [names[0]]
    assert sweep.test_scores.mean == 50.0


def test_a_sweep_that_was_cut_off_goes_on(file: Path, workers: Workers) -> None:
    workers.losses = {"learning_rate=0.2": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(file, "train.learning_rate=0.1,0.2,0.3"))
    with pytest.raises(RunError, match="already contains a sweep"):
        run_sweep(plan(file, "train.learning_rate=0.1,0.2,0.3"))
    workers.losses, workers.calls = {}, []
    sweep = run_sweep(plan(file, "train.learning_rate=0.1,0.2,0.3"), resume=True)
    assert workers.trained() == ["learning_rate=0.2", "learning_rate=0.3"]
    assert sweep.selected == "learning_rate=0.1"
    # A run whose folder is gone is run again.
    (sweep.path / "learning_rate=0.1" / "training.json").unlink()
    workers.calls = []
    run_sweep(plan(file, "train.learning_rate=0.1,0.2,0.3"), resume=True)
    assert workers.trained() == ["learning_rate=0.1"]


def test_more_values_can_be_added(file: Path, workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    run_sweep(plan(file, "train.learning_rate=0.2,0.3"))
    sweep = run_sweep(plan(file, "train.learning_rate=0.3,0.1"), resume=True)
    assert workers.trained() == ["learning_rate=0.2", "learning_rate=0.3", "learning_rate=0.1"]
    assert len(sweep.candidates) == 3
    assert sweep.tested == ["learning_rate=0.2", "learning_rate=0.1"]
    assert "Test scores were already computed for `learning_rate=0.2`, " in caplog.text


def test_all_can_be_tested(file: Path, workers: Workers) -> None:
    workers.losses = {"learning_rate=0.3": "Failed."}
    sweep = run_sweep(plan(file, "train.learning_rate=0.2,0.1,0.3"), judge_all=True)
    assert workers.tested() == ["learning_rate=0.1", "learning_rate=0.2"]
    assert sweep.selected == "learning_rate=0.1"
    stored = json.loads((sweep.path / "sweep.json").read_text())
    assert (stored["selected"], stored["tested"]) == ("learning_rate=0.1", ["learning_rate=0.1", "learning_rate=0.2"])
    assert stored["training"]["train"] == {"weight_decay": 0.1}
    assert [c["status"] for c in stored["candidates"]] == ["finished", "finished", "failed"]
    rows = list(csv.DictReader((sweep.path / "sweep.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["learning_rate=0.1", "learning_rate=0.2", "learning_rate=0.3"]
    assert (rows[0]["selected"], rows[0]["validation_loss"], rows[2]["error"]) == ("yes", "0.1", "Failed.")


def test_other_settings_are_refused(file: Path, workers: Workers) -> None:
    run_sweep(plan(file, "train.learning_rate=0.1,0.2"))
    with pytest.raises(RunError, match=r"`lora`, `train.seed` changed.*another `--sweep-dir`"):
        run_sweep(plan(file, "train.learning_rate=0.1", overrides={"train.seed": 1, "lora.r": 4}), resume=True)
    # What comes after training may change.
    run_sweep(plan(file, "train.learning_rate=0.1", overrides={"judge.rubric": "critique"}), resume=True)


def test_a_sweep_needs_a_validation_loss(file: Path) -> None:
    with pytest.raises(ConfigError, match="chooses by validation loss; leave out `eval_strategy: no`"):
        plan(file, "train.eval_strategy=steps,no")


def test_none_finished(file: Path, workers: Workers) -> None:
    workers.losses = {"learning_rate=0.1": "No such model."}
    with pytest.raises(RunError, match=r"None of the 1 runs in .* finished.* The first one: No such model."):
        run_sweep(plan(file, "train.learning_rate=0.1"))
    stored = read_sweep(file.parent / "sweep")
    assert stored is not None
    assert stored.candidates[0].error == "No such model."


def test_problems_of_all_points_are_listed_and_nothing_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "tiny").mkdir()
    (file.parent / "tiny" / "config.json").write_text("{}")
    before = sorted(file.parent.iterdir())
    with pytest.raises(ConfigError) as caught:
        plan(file, "train.learning_rat=1,2", "lora.r=8,many", "data.prompt_format=alpaca,nope")
    assert caught.value.summary == "2 problems in what to sweep:"
    assert caught.value.problems == [
        "`train.learning_rat` is unknown. Did you mean `learning_rate`?",
        "`lora.r` is 'many'; it must be a valid integer",
    ]
    with pytest.raises(ConfigError, match="Unknown prompt format `nope`"):
        plan(file, "data.prompt_format=alpaca,nope")
    with pytest.raises(
        ConfigError, match=r"1 problem in what to sweep:\n  - The model folder `\./huge` does not exist"
    ):
        plan(file, "model.name=./tiny,./huge")
    with pytest.raises(ConfigError, match=r"`--train.seed` is both fixed and varied"):
        plan(file, "train.seed=1,2", overrides={"train.seed": 3})
    assert sorted(file.parent.iterdir()) == before
    # Pydantic reads the text as the number: one experiment runs once.
    assert [c.settings for c in plan(file, "model.dropout=0.1,'0.1'").candidates] == [{"model.dropout": 0.1}]


def test_a_run_under_way_and_other_folders_are_not_touched(file: Path, workers: Workers) -> None:
    sweep = plan(file, "train.learning_rate=0.1")
    with sweep.folder(sweep.candidates[0]).locked():
        # An entry of its own would make the folder something else than a sweep.
        sweep.save()
        with pytest.raises(RunError, match="Another process is using"):
            run_sweep(sweep, resume=True)
    (file.parent / "other").mkdir()
    (file.parent / "other" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="exists and is not a sweep"):
        run_sweep(plan_sweep(file, ["train.learning_rate=0.1"], file.parent / "other"), resume=True)
    assert workers.calls == []


def test_a_search_goes_on_where_it_was(file: Path, workers: Workers) -> None:
    settings = [
        "train.learning_rate=1e-5..1e-3",
        "lora.r=4..64",
        "train.bf16=true,null",
        "lora.target_modules=all-linear,[c_attn]",
    ]
    whole = run_sweep(plan_sweep(file, settings, file.parent / "whole", trials=4, seed=7))
    points = [c.settings for c in whole.candidates]
    assert all(1e-5 <= p["train.learning_rate"] <= 1e-3 and 4 <= p["lora.r"] <= 64 for p in points)
    assert all(type(p["lora.r"]) is int and p["train.bf16"] in (True, None) for p in points)
    assert whole.ranked()[0].validation_loss == min(p["train.learning_rate"] for p in points)

    workers.losses = {whole.candidates[1].name: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan_sweep(file, settings, file.parent / "part", trials=3, seed=7))
    workers.losses, workers.calls = {}, []
    part = run_sweep(plan_sweep(file, settings, file.parent / "part", trials=4, seed=7), resume=True)
    assert [c.settings for c in part.candidates] == points
    assert workers.trained() == [c.name for c in whole.candidates[1:]]
    with pytest.raises(RunError, match=r"`search.seed` changed"):
        run_sweep(plan_sweep(file, settings, file.parent / "part", trials=4, seed=8), resume=True)


def test_a_search_over_few_values_trains_each_once(file: Path, workers: Workers) -> None:
    workers.losses = {"learning_rate=0.2": "Diverged."}
    sweep = run_sweep(plan(file, "train.learning_rate=0.1,0.2", trials=6))
    assert sorted(workers.trained()) == ["learning_rate=0.1", "learning_rate=0.2"]
    assert [c.status for c in sweep.ranked()] == ["finished", "failed"]
    assert sum(c.times for c in sweep.candidates) == 6
