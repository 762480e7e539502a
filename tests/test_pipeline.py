import errno
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import tiny_models

from hf_instruct import pipeline
from hf_instruct.config import Experiment, build_experiment
from hf_instruct.errors import ConfigError, InstructError, ModelLoadError, RunError
from hf_instruct.pipeline import answer_run, clear_from, default_path, is_done, open_folder, run
from hf_instruct.run_folder import RunFolder
from hf_instruct.yaml_text import read_yaml


def experiment(**sections: object) -> Experiment:
    return build_experiment(sections, where="here", deep=False)


# What each stage writes.
FILES = {
    "data": {"data/train.jsonl", "data/test.jsonl", "data/validation.jsonl", "data/preflight.json", "prompt.jinja"},
    "train": {
        *("model/model.safetensors", "checkpoints/checkpoint-2/trainer_state.json"),
        *("training.jsonl", "training.json", "loss.png"),
    },
    "generate": {"responses.jsonl", "instruction-data-with-response.json"},
    # The report would show who had preferred answers that are no longer there.
    "judge": {"judgments.jsonl", "scores.json", "pairwise/other.json"},
    "report": {"report.html"},
}


def write_files(folder: RunFolder, names: Iterable[str]) -> None:
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        # What other stages read has to be readable.
        (folder.path / name).write_text("{}" if name == "data/preflight.json" else "")


def files_in(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file() and entry.name != ".lock"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with every file, as empty as may be."""
    folder = RunFolder(tmp_path / "run")
    open_folder(folder, experiment())
    write_files(folder, [name for names in FILES.values() for name in names])
    return folder


def test_a_new_folder_says_what_the_run_is(tmp_path: Path) -> None:
    assert default_path(Path("recipes/gpt2-medium/full.yaml")) == Path("runs/gpt2-medium-full")
    assert default_path(Path("gpt2-medium/full")) == Path("runs/gpt2-medium-full")
    assert default_path(Path("demo")) == Path("runs/demo")
    assert default_path(Path("recipes/mine.yaml")) == Path("runs/mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hidden").write_text("")
    for path, resume in ((tmp_path / "deep" / "run", False), (tmp_path / "run", True)):
        folder = RunFolder(path)
        open_folder(folder, experiment(data={"limit": 9}), resume=resume)
        assert folder.load_experiment().data.limit == 9
        assert files_in(path) - {".hidden"} == {"run.yaml"}
        # Nothing is lost by a second try that stopped before its data.
        open_folder(folder, experiment(data={"source": "misspelt.json"}))
        assert folder.load_experiment().data.source == "misspelt.json"


def test_an_existing_run_is_deleted_by_force_alone(folder: RunFolder) -> None:
    write_files(folder, ["notes.txt", "self_check.json", "self_check/responses.jsonl", "model.partial/x", "base/x"])
    before = files_in(folder.path)
    with pytest.raises(RunError, match="already contains a run"):
        open_folder(folder, experiment())
    assert files_in(folder.path) == before
    open_folder(folder, experiment(data={"limit": 5}), force=True)
    assert files_in(folder.path) == {"run.yaml", "notes.txt"}
    assert folder.load_experiment().data.limit == 5


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(RunError, match=r"is not a run folder.* Use another `--run-dir`"):
            open_folder(RunFolder(path), experiment(), force=force)
    assert files_in(tmp_path) == {"thesis.tex"}


def test_resuming_accepts_changes_of_stages_not_started_only(folder: RunFolder) -> None:
    other = experiment(train={"learning_rate": 1e-5}, lora={}, data={"limit": 3}, model={"name": "gpt2-small"})
    before = folder.config.read_bytes()
    with pytest.raises(RunError, match=r"`data.limit`, `lora`, `model.name`, `train.learning_rate` changed"):
        open_folder(folder, other, resume=True)
    assert folder.config.read_bytes() == before
    for cleared, sections in (
        ("judge", {"judge": {"backend": "local", "rubric": "critique"}}),
        ("generate", {"generate": {"max_new_tokens": 9, "top_p": 0.5}, "judge": {"retries": 0}}),
        ("train", {"lora": {"r": 2}, "train": {"learning_rate": 1e-5}}),
    ):
        clear_from(folder, cleared)
        open_folder(folder, experiment(**sections), resume=True)
        assert folder.load_experiment() == experiment(**sections)
    with pytest.raises(RunError, match=r"another experiment: `data.seed` changed"):
        open_folder(folder, experiment(data={"seed": 1}), resume=True)


def test_base_model_is_local_is_reset_with_the_model(folder: RunFolder) -> None:
    # Training began and saved no checkpoint.
    clear_from(folder, "train")
    open_folder(folder, experiment(model={"name": "models/mine"}), resume=True)
    folder.add_provenance(base_model_is_local=True)
    open_folder(folder, experiment(model={"name": "models/mine"}, judge={"model": "m"}), resume=True)
    assert folder.read_provenance().base_model_is_local is True
    open_folder(folder, experiment(model={"name": "me/theirs"}), resume=True)
    assert folder.read_provenance().base_model_is_local is None
    assert folder.find_base("me/theirs") == "me/theirs"


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"force": True}])
def test_a_run_in_progress_is_not_touched(folder: RunFolder, how: dict) -> None:
    before = folder.config.read_bytes()
    for stage in ("report", "data"):
        clear_from(folder, stage)
        with folder.locked(), pytest.raises(RunError, match=r"Another process|contains a run"):
            open_folder(folder, experiment(generate={"max_new_tokens": 9}), **how)
        assert folder.config.read_bytes() == before


def test_clearing_a_stage_clears_those_after_it(folder: RunFolder) -> None:
    left = files_in(folder.path)
    for stage in reversed(pipeline.STAGES):
        clear_from(folder, stage)
        left -= FILES[stage]
        assert files_in(folder.path) == left, stage
    assert left == {"run.yaml"}


def test_a_stage_run_again_takes_settings_of_its_own(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(
        pipeline, "run_stages", lambda folder, settings, stages: calls.append((settings.generate.batch_size, stages))
    )
    with pytest.raises(RunError, match=r"another experiment: `generate.batch_size` changed"):
        answer_run(folder, {"generate.batch_size": 3})
    # The files of this run hold nothing that could be checked.
    monkeypatch.setattr("hf_instruct.generation.stage.check_answering", lambda folder, experiment: None)
    answer_run(folder, {"generate.batch_size": 3}, force=True)
    assert calls[-1] == (3, ["generate"])
    assert not folder.responses.exists()
    assert folder.model.exists()
    with pytest.raises(ConfigError, match="`generate` for a run only accepts settings of the `generate` section:"):
        answer_run(folder, {"train.seed": 3})


def test_what_cannot_run_is_found_before_anything_is_written(tmp_path: Path) -> None:
    adapter = tmp_path / "lora" / "model"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    for values, stages, message in (
        ({"data": {"prompt_format": "nope"}}, pipeline.STAGES, "Unknown prompt format `nope`"),
        ({"model": {"name": str(adapter)}}, pipeline.STAGES, "an adapter, but training needs a full model"),
        ({"model": {"name": str(adapter.parent)}}, pipeline.STAGES, "an adapter, but training needs a full"),
        ({}, ("data", "trian"), "`trian`"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(experiment(**values), tmp_path / "run", stages=stages)
    with pytest.raises(ConfigError, match="needs the path of a run folder"):
        run(experiment())
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("gpt9-medium", str(tmp_path / "nowhere"), str(tmp_path / "empty")):
        with pytest.raises(ModelLoadError, match=re.escape(f"`{name}`")):
            run({"model": {"name": name}}, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    # A trained run needs the model no longer; here another stage is the first to fail.
    folder = RunFolder(tmp_path / "run")
    open_folder(folder, experiment(model={"name": "gpt9-medium"}))
    write_files(folder, ["training.json"])
    monkeypatch.setattr(pipeline, "run_stages", lambda *_: None)
    for stages, force in ((["data", "train"], False), (["data"], True)):
        assert run(experiment(model={"name": "gpt9-medium"}), folder.path, resume=True, stages=stages, force=force)
    with pytest.raises(ModelLoadError):
        run(experiment(model={"name": "gpt9-medium"}), folder.path, stages=["data", "train"], force=True)


def test_a_full_disk_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, remedy in (
        (errno.ENOSPC, "Free some disk space, or choose"),
        (errno.EACCES, "Check its permissions, or choose"),
    ):

        def full(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(pipeline, "run_stages", full)
        monkeypatch.setattr("hf_instruct.models.find_model", lambda name, **_: name)
        with pytest.raises(RunError, match=f"`{tmp_path / 'run'}` cannot be written: .*{remedy} another `--run-dir`"):
            run(experiment(), tmp_path / "run")


def test_from_data_to_answers(tiny_gpt2: Path, tmp_path: Path) -> None:
    """A run with its real stages: data, train and generate, then the same again with `resume`."""
    source = tiny_models.write_examples(tmp_path / "mine.json", 20)
    values = {
        "data": {"source": str(source), "train_fraction": 0.6, "test_fraction": 0.2},
        "model": {"name": str(tiny_gpt2)},
        "train": {**tiny_models.TINY_SETTINGS, "max_steps": 2},
        "generate": {"max_new_tokens": 5},
    }
    stages = ("data", "train", "generate")
    # What cannot be answered with is found before training.
    for field, value in [("max_new_tokens", 999), ("num_beams", "two"), ("temperature", -1)]:
        odd = {**values, "generate": {"max_new_tokens": 5, "do_sample": True, field: value}}
        with pytest.raises(InstructError, match="generate"):
            run(odd, tmp_path / "run", stages=stages, resume=True)
    assert not (tmp_path / "run" / "checkpoints").exists()
    folder = run(build_experiment(values, where="here"), tmp_path / "run", stages=stages, resume=True)
    assert [is_done(folder, stage) for stage in pipeline.STAGES] == [True, True, True, False, False]
    tuned, base = folder.read_responses(), folder.read_responses("untuned")
    assert [row.instruction for row in tuned] == [f"Say the word {n}." for n in range(12, 16)]
    assert [row.response for row in tuned] != [row.response for row in base]
    assert len(read_yaml(folder.config)["data_sha256"]) == 64
    assert read_yaml(folder.config)["local_sources"] == [str(source)]

    before = {name: (folder.path / name).read_bytes() for name in files_in(folder.path)}
    run(values, tmp_path / "run", stages=stages, resume=True)
    assert {name: (folder.path / name).read_bytes() for name in files_in(folder.path)} == before

    # What is lost under a stage that is done is named, and nothing is trained or split again.
    for lost, message in [
        ("model/model.safetensors", "The model in `.*` is damaged: `model.safetensors` is missing"),
        ("model/tokenizer.json", "The model in `.*` is damaged: `tokenizer.json` is missing"),
        ("model", "model` is missing, although training has finished. Restore it, or delete"),
        ("data/test.jsonl", "not those that this run was prepared with: `test.jsonl` is missing. Restore the files"),
    ]:
        (folder.path / lost).rename(tmp_path / "aside")
        for part in (stages, ("data", "train")):
            with pytest.raises(InstructError, match=message):
                run(values, tmp_path / "run", stages=part, resume=True)
        (tmp_path / "aside").rename(folder.path / lost)
    (folder.path / "model").rename(tmp_path / "aside")
    folder.responses.rename(tmp_path / "answers")
    with pytest.raises(RunError, match="model` is missing, although training has finished"):
        answer_run(folder)
    (tmp_path / "answers").rename(folder.responses)
    (tmp_path / "aside").rename(folder.path / "model")
    # As the messages say; the source is the same.
    (folder.model / "model.safetensors").unlink()
    folder.training_summary.unlink()
    run(values, tmp_path / "run", stages=("data", "train"), resume=True)
    assert (folder.model / "model.safetensors").read_bytes() == before["model/model.safetensors"]
    before = {name: (folder.path / name).read_bytes() for name in files_in(folder.path)}
    folder.preflight.unlink()
    folder.split("train").unlink()
    run(values, tmp_path / "run", stages=("data", "train"), resume=True)
    assert {name: (folder.path / name).read_bytes() for name in files_in(folder.path)} == before
    source.write_text(json.dumps(json.loads(source.read_text())[::-1]))
    folder.preflight.unlink()
    for _ in range(2):
        with pytest.raises(InstructError, match=r"their checksum is not the one in `run.yaml`"):
            run(values, tmp_path / "run", stages=stages, resume=True)
    folder.preflight.unlink()
    with pytest.raises(RunError, match=r"another experiment: `data.seed` changed"):
        run({**values, "data": {**values["data"], "seed": 9}}, tmp_path / "run", stages=stages, resume=True)
    with pytest.raises(RunError, match="already contains a run"):
        run(values, tmp_path / "run", stages=stages)


def test_interrupted_clearing_leaves_no_stage_that_looks_finished(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(path: Path) -> None:
        if path == folder.model:
            raise KeyboardInterrupt

    monkeypatch.setattr("hf_instruct.pipeline.shutil.rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        open_folder(folder, experiment(), force=True)
    assert is_done(folder, "data")
    assert not any(is_done(folder, stage) for stage in ("train", "generate", "judge", "report"))
    # The data still stands, so the run cannot be mistaken for a first try with other data.
    with pytest.raises(RunError, match=r"another experiment: `data.seed` changed"):
        open_folder(folder, experiment(data={"seed": 1}), resume=True)


def test_the_prompt_format_that_was_chosen_may_be_named(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]}
        for n in "abcdefghijklmnopqrst"
    ]
    (tmp_path / "talk.json").write_text(json.dumps(rows), encoding="utf-8")

    def prepare(**data: str) -> RunFolder:
        values = {"data": {"source": str(tmp_path / "talk.json"), **data}}
        return run(values, tmp_path / "run", stages=["data"], resume=True)

    assert prepare().load_prompt_format(None).name == "chat"
    prepare(prompt_format="chat")
    with pytest.raises(RunError, match=r"another experiment: `data.prompt_format` changed"):
        prepare(prompt_format="alpaca")
