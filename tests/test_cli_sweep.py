import shutil
import sys
import time
from pathlib import Path

import pytest
import tiny_models
from launching import call, kill_when
from transformers import AutoTokenizer

from hf_instruct.cli.main import main
from hf_instruct.errors import RunError
from hf_instruct.manifests import read_manifest

TRAIN = "{use_cpu: true, bf16: false, per_device_train_batch_size: 4, eval_steps: 3, save_steps: 1, logging_steps: 1}"


@pytest.fixture
def file(tmp_path: Path, tiny_gpt2: Path) -> Path:
    """An experiment on a tiny model, judged by another one."""
    source = tiny_models.write_examples(tmp_path / "mine.json", 24)
    judge = shutil.copytree(tiny_gpt2, tmp_path / "judge")
    tokenizer = AutoTokenizer.from_pretrained(judge)
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    tokenizer.save_pretrained(judge)
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"data: {{source: {source}, train_fraction: 0.6, test_fraction: 0.2}}\n"
        f"model: {{name: {tiny_gpt2}}}\ntrain: {TRAIN}\ngenerate: {{max_new_tokens: 3}}\n"
        f"judge: {{backend: local, model: {judge}}}\n"
    )
    return path


def test_a_dry_run_lists_and_writes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(file.parent.iterdir())
    path = file.parent / "sweep"
    words = ["sweep", str(file), "--sweep-dir", str(path), "--dry-run", "--set"]
    assert main([*words, "train.learning_rate=1e-2,1e-3", "--set", "lora.r=4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"2 runs in {path}:",
        f"  {'learning_rate=0.01,r=4':<60}  to run",
        f"  {'learning_rate=0.001,r=4':<60}  to run",
    ]
    assert main([*words, "train.learning_rate=1e-4..1e-2", "--set", "lora.r=4..8", "--trials", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"5 trials in {path}, seed 0, 0 of them already started:",
        "  train.learning_rate=0.0001..0.01  log scale",
        "  lora.r=4..8",
    ]
    assert sorted(file.parent.iterdir()) == before


def is_whole(checkpoint: Path) -> bool:
    try:
        manifest = read_manifest(checkpoint)
    except (OSError, RunError):
        return False
    return manifest is not None and bool(manifest.files)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_in_a_table(file: Path) -> None:
    path = file.parent / "sweep"
    command = [sys.executable, "-m", "hf_instruct", "sweep", str(file), "--sweep-dir", str(path)]
    command += ["--set", "train.learning_rate=1e-2,1e-30", "--train.num_train_epochs", "4"]
    second = path / "learning_rate=1e-30"
    # Its manifest is written last: a checkpoint that was cut off is not continued from.
    kill_when(lambda: any(map(is_whole, second.glob("checkpoints/checkpoint-*"))), command)
    assert (path / "learning_rate=0.01" / "training.json").exists()
    stamp = (path / "learning_rate=0.01" / "training.json").stat().st_mtime_ns
    # The process of the run ends with the one that was killed, and lets go of its folder.
    time.sleep(2)

    finished = call([*command, "--resume"])
    lines = finished.stdout.splitlines()
    assert lines[0] == f"{path}, by validation loss:"
    assert lines[2].split()[:2] == ["*", "0.01"]
    assert lines[3].split()[0] == "1e-30"
    assert "test score " in finished.stdout
    assert "The others were not tested: hf-instruct sweep … --resume --judge-all" in finished.stdout
    assert "95 % interval" in finished.stdout
    assert (path / "learning_rate=0.01" / "training.json").stat().st_mtime_ns == stamp
    assert (path / "learning_rate=0.01" / "report.html").exists()
    assert not (second / "responses.jsonl").exists()
    assert not any(path.glob("*/checkpoints"))
    assert "Continuing from" in finished.stderr
