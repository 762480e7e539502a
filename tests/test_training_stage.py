"""From `data/` to `model/`, as the stage does it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from datasets import Dataset

from hf_instruct import run
from hf_instruct.config import Experiment, build_experiment
from hf_instruct.records import read_file, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Preflight, TrainingSummary
from hf_instruct.training.sft import train
from hf_instruct.training.stage import load_base, log_summary, run_sft
from hf_instruct.yaml_text import read_yaml

SPLITS = {"train": tiny_models.tiny_examples(4), "test": [], "validation": tiny_models.tiny_examples(2, start=4)}


def write_run(path: Path, sections: dict[str, Any]) -> tuple[RunFolder, Experiment]:
    """Return a run whose data are split and whose training is next, and what it is of."""
    folder = RunFolder(path)
    for name, examples in SPLITS.items():
        write_rows(folder.split(name), examples)
    experiment = build_experiment(sections, where="here", deep=False)
    folder.save_experiment(experiment)
    return folder, experiment


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_look_at_the_frozen_weights_find_them_whole(tiny_gpt2: Path, tmp_path: Path, kind) -> None:
    settings = {**tiny_models.TINY_SETTINGS, "bf16": True, "max_steps": 1, "save_steps": 100}
    sections = {"train": settings, "lora": {"r": 4, **kind}, "model": {"name": str(tiny_gpt2)}}
    found = run_sft(*write_run(tmp_path / "stage", sections))
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
    folder, experiment = write_run(tmp_path / "run", sections)
    run_sft(folder, experiment)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert {"run.yaml", "trainer_state.json", "training_args.bin"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert token.encode() not in content, path
        assert b"pass1234" not in content, path
    assert not (folder.model / "training_args.bin").exists()
    # The name alone would be another model's in another folder.
    assert read_yaml(folder.config)["base_model_is_local"] is True
    noted = json.loads((folder.model / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert noted == str(tiny_gpt2)


@pytest.mark.parametrize(
    ("values", "measured"),
    [
        ({}, ""),
        ({"validation_loss_before": 1.5}, ""),
        ({"validation_loss": 1.0}, " validation loss 1.000;"),
        ({"validation_loss_before": 1.5, "validation_loss": 1.0}, " validation loss 1.500 -> 1.000;"),
        ({"reward_before": 0.5, "reward": 0.75}, " mean reward on held-out prompts 0.500 -> 0.750;"),
    ],
)
def test_the_log_says_only_what_was_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict[str, float], measured: str
) -> None:
    caplog.set_level("INFO")
    given = {"steps": 2, "seconds": 3.0, "precision": "float32", "device": "cpu", "peak_memory_bytes": 2 * 10**9}
    log_summary(RunFolder(tmp_path), TrainingSummary.model_construct(**{**given, **values}))
    assert caplog.messages == [f"Trained 2 steps in 3 s (float32 on cpu);{measured} peak memory 2.0 GB"]


def test_a_run_notes_what_trained_the_model_that_it_begins_with(tiny_gpt2: Path, tmp_path: Path) -> None:
    before = RunFolder(tmp_path / "before")
    before.save_experiment(build_experiment({"dpo": {}}, where="here", deep=False))
    before.model.symlink_to(tiny_gpt2)
    folder, experiment = write_run(tmp_path / "run", {"model": {"name": str(before.model)}, "grpo": {}})
    load_base(folder, experiment)
    assert folder.read_provenance().label(experiment.start) == "DPO"


def turns(asked: str, answer: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: name, content: text} for name, text in zip(names, (asked, answer), strict=True)]


# As TRL, Dolly, ShareGPT, LLaMA-Factory and axolotl document their rows.
FORMATS = {
    "instructions.csv": lambda q, a: {"instruction": q, "input": "", "output": a},
    "dolly.jsonl": lambda q, a: {"instruction": q, "context": "It is so.", "response": a, "category": "qa"},
    "questions.parquet": lambda q, a: {"question": q, "answer": a},
    "texts.jsonl": lambda q, a: {"prompt": q, "completion": a},
    "prompts.jsonl": lambda q, a: {"prompt": turns(q, a)[:1], "completion": turns(q, a)[1:]},
    "messages.arrow": lambda q, a: {"messages": [{"role": "system", "content": "Be brief."}, *turns(q, a)]},
    "sharegpt.json": lambda q, a: {"conversations": turns(q, a, "from", "value"), "system": "", "tools": "[]"},
    "history.json": lambda q, a: {
        **{"instruction": q, "input": "", "output": a},
        **{"system": "Be brief.", "history": [["Hi.", "Hello."]]},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("file", FORMATS)
def test_a_file_of_each_format_trains(tiny_gpt2: Path, tmp_path: Path, file: str) -> None:
    tokenizer = copy.deepcopy(tiny_models.load_copy(tiny_gpt2)[1])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "base")
    model = tiny_models.build_model(tiny_models.gpt2_config())
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "base")
    path = tmp_path / file
    rows = Dataset.from_list([FORMATS[file](f"Add {n} and 1.", f"It is {n + 1}.") for n in range(20)])
    if path.suffix == ".arrow":
        # What `datasets` writes is a stream.
        rows.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(path)
    elif path.suffix == ".csv":
        rows.to_csv(path)
    elif path.suffix == ".parquet":
        rows.to_parquet(path)
    else:
        rows.to_json(path, lines=path.suffix == ".jsonl")
    settings = {**tiny_models.TINY_SETTINGS, "max_steps": 2, "learning_rate": 1e-3}
    sections = {"data": {"source": str(path)}, "model": {"name": str(tmp_path / "base")}, "train": settings}
    done = run(sections, tmp_path / "run", stages=["data", "train"])
    summary = read_file(done.training_summary, TrainingSummary)
    assert summary is not None
    assert (summary.steps, summary.tokens_seen > 0) == (2, True)
    preflight = read_file(done.preflight, Preflight)
    assert preflight is not None
    talks = file.partition(".")[0] in ("prompts", "messages", "sharegpt", "history")
    assert preflight.prompt_format == ("chat" if talks else "alpaca")
    assert summary.validation_loss < summary.validation_loss_before
