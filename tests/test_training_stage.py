"""From `data/` to `model/`, as the stage does it."""

import json
from pathlib import Path

import pytest
import tiny_models

from hf_instruct.config import build_experiment
from hf_instruct.records import write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.training.finetune import train
from hf_instruct.training.stage import fine_tune
from hf_instruct.yaml_text import read_yaml

SPLITS = {"train": tiny_models.tiny_examples(4), "test": [], "validation": tiny_models.tiny_examples(2, start=4)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_look_at_the_frozen_weights_find_them_whole(tiny_gpt2: Path, tmp_path: Path, kind) -> None:
    settings = {**tiny_models.TINY_SETTINGS, "bf16": True, "max_steps": 1, "save_steps": 100}
    sections = {"train": settings, "lora": {"r": 4, **kind}, "model": {"name": str(tiny_gpt2)}}
    run = RunFolder(tmp_path / "stage")
    run.split("train").parent.mkdir(parents=True)
    for name in ("train", "test", "validation"):
        write_rows(run.split(name), SPLITS[name])
    experiment = build_experiment(sections, where="here", deep=False)
    run.save_experiment(experiment)
    found = fine_tune(run, experiment)
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    expected = train(model, tokenizer, SPLITS, output_dir=tmp_path / "own", args=settings, peft_config=sections["lora"])
    assert found.validation_loss == expected.validation_loss


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_secret_or_takes_a_folder_for_a_hub_id(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_gpt2.parent)
    token = "hf_" + "A" * 34
    name = f"./{tiny_gpt2.name}"
    name_of_run = f"{token} https://me:pass1234@host/x"
    settings = {**tiny_models.TINY_SETTINGS, "max_steps": 2, "run_name": name_of_run, "keep_checkpoints": True}
    sections = {"train": settings, "lora": {"r": 4}, "model": {"name": name}}
    run = RunFolder(tmp_path / "run")
    for split in ("train", "test", "validation"):
        write_rows(run.split(split), SPLITS[split])
    experiment = build_experiment(sections, where="here", deep=False)
    run.save_experiment(experiment)
    fine_tune(run, experiment)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert {"run.yaml", "trainer_state.json", "training_args.bin"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert token.encode() not in content, path
        assert b"pass1234" not in content, path
    assert not (run.model / "training_args.bin").exists()
    # The name alone would be another model's in another folder.
    assert read_yaml(run.config)["base_model_is_local"] is True
    noted = json.loads((run.model / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert noted == str(tiny_gpt2)
