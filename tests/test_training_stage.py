"""From `data/` to `model/`, as the stage does it."""

from pathlib import Path

import pytest
import tiny_models

from hf_instruct.config import build_experiment
from hf_instruct.records import Splits, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.training.finetune import train
from hf_instruct.training.stage import fine_tune

SPLITS = Splits(tiny_models.tiny_examples(4), [], tiny_models.tiny_examples(2, start=4))


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_look_at_the_frozen_weights_find_them_whole(tiny_gpt2: Path, tmp_path: Path, kind) -> None:
    settings = {**tiny_models.TINY_SETTINGS, "bf16": True, "max_steps": 1, "save_steps": 100}
    sections = {"train": settings, "lora": {"r": 4, **kind}, "model": {"name": str(tiny_gpt2)}}
    run = RunFolder(tmp_path / "stage")
    run.split("train").parent.mkdir(parents=True)
    for name in ("train", "test", "validation"):
        write_rows(run.split(name), getattr(SPLITS, name))
    found = fine_tune(run, build_experiment(sections, where="here", deep=False))
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    expected = train(model, tokenizer, SPLITS, output_dir=tmp_path / "own", settings=settings, lora=sections["lora"])
    assert found.validation_loss == expected.validation_loss
