import copy
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import tiny_models
import torch
from rows import read_log

from hf_instruct.errors import ConfigError, DataError, RunError, TrainingError
from hf_instruct.models import load_model
from hf_instruct.records import read_rows
from hf_instruct.schema import TrainingRow, TrainingSummary
from hf_instruct.training import running
from hf_instruct.training.sft import train

SPLITS = {"train": tiny_models.tiny_examples(12), "validation": tiny_models.tiny_examples(3, start=12)}


def train_tiny(folder: Path, output_dir: Path, *, dropout: float = 0.0, **options) -> TrainingSummary:
    settings = {**tiny_models.TINY_SETTINGS, **options.pop("args", {})}
    splits = options.pop("splits", SPLITS)
    model, tokenizer = tiny_models.load_copy(folder, dropout=dropout)
    return train(model, tokenizer, splits, output_dir=output_dir, args=settings, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


@pytest.fixture(scope="module")
def unbroken(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of six steps, its summary and the model; with dropout, so that resuming must restore the random numbers."""
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.1)
    settings = tiny_models.TINY_SETTINGS
    return path, train(model, tokenizer, SPLITS, output_dir=path, args=settings, keep_checkpoints=True), model


@pytest.fixture(scope="module")
def adapter(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory):
    """A LoRA run, the model object it trained and that object's weights before."""
    path = tmp_path_factory.mktemp("runs") / "lora"
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {**tiny_models.TINY_SETTINGS, "max_steps": 3}
    summary = train(model, tokenizer, SPLITS, output_dir=path, args=settings, peft_config={"r": 4, "lora_alpha": 8})
    return path, model, before, summary


def test_loss_falls_and_everything_is_written(unbroken) -> None:
    path, summary, _ = unbroken
    assert summary.validation_loss < summary.validation_loss_before - 1
    assert (summary.steps, summary.epochs, summary.device, summary.precision) == (6, 2.0, "cpu", "fp32")
    assert summary.num_parameters == summary.num_trainable_parameters
    assert json.loads((path / "training.json").read_text()) == summary.to_dict()
    assert (path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(entry.name for entry in path.iterdir()) == [
        "checkpoints",
        "loss.png",
        "model",
        "prompt.jinja",
        "training.json",
        "training.jsonl",
    ]


def test_the_log_holds_every_step_and_the_samples_of_every_epoch(unbroken) -> None:
    path, summary, _ = unbroken
    rows = read_rows(path / "training.jsonl", TrainingRow)
    steps = {kind: [row.step for row in rows if row.kind == kind] for kind in ("train", "evaluation", "samples")}
    assert steps == {"train": [1, 2, 3, 4, 5, 6], "evaluation": [0, 2, 4, 6], "samples": [0, 3, 6]}
    assert [sample["id"] for sample in rows[0].samples or []] == ["e12", "e13", "e14"]
    assert all(row.train_loss and row.validation_loss for row in rows if row.kind == "evaluation")
    assert [row.epoch for row in rows if row.kind == "train"] == pytest.approx(
        [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3
    )
    assert rows[-1].tokens_seen == summary.tokens_seen


def test_tokens_seen_are_those_of_the_examples_without_padding(tiny_gpt2: Path, unbroken) -> None:
    from hf_instruct.prompts import PromptFormat

    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    lengths = [sum(map(len, PromptFormat.from_name("alpaca").encode_example(tokenizer, e))) for e in SPLITS["train"]]
    assert unbroken[1].tokens_seen == 2 * sum(lengths)


def test_the_saved_model_stops_in_any_program(unbroken) -> None:
    settings = json.loads((unbroken[0] / "model" / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (tiny_models.END, tiny_models.END)
    assert (unbroken[0] / "model" / "tokenizer.json").is_file()


def test_the_saved_model_reloads_with_equal_logits(tiny_gpt2: Path, unbroken) -> None:
    path, _, model = unbroken
    reloaded, _ = load_model(str(path / "model"))
    assert torch.equal(logits(model.eval()), logits(reloaded))
    assert not torch.equal(logits(reloaded), logits(tiny_models.load_copy(tiny_gpt2)[0]))


def cut_off(run: Path, path: Path) -> Path:
    """Copy a run as if it had been killed after its last checkpoint, and return that."""
    shutil.copytree(run, path)
    shutil.rmtree(path / "model")
    (path / "training.json").unlink()
    return path / "checkpoints" / "checkpoint-6"


@pytest.mark.parametrize(
    ("checkpoint", "lost"), [pytest.param(2, "trainer_state.json", marks=pytest.mark.slow), (4, "scheduler.pt")]
)
def test_a_resumed_run_ends_as_an_unbroken_one(
    tiny_gpt2: Path, unbroken, tmp_path: Path, checkpoint: int, lost: str
) -> None:
    """Contract 5: with a checkpoint at step 6 that lacks a file."""
    path = tmp_path / "run"
    (cut_off(unbroken[0], path) / lost).unlink()
    if checkpoint == 2:
        shutil.rmtree(path / "checkpoints" / "checkpoint-4")
    with (path / "training.jsonl").open("a") as log:
        log.write('{"step": 7, "ep')

    summary = train_tiny(tiny_gpt2, path, dropout=0.1, resume=True)

    def rows(folder: Path) -> list[TrainingRow]:
        found = read_rows(folder / "training.jsonl", TrainingRow)
        return [row.model_copy(update={"seconds": None, "tokens_per_second": None}) for row in found]

    assert rows(path) == rows(unbroken[0])
    expected = weights(unbroken[0] / "model")
    assert weights(path / "model").keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(path / "model").items())
    own = {"seconds", "tokens_per_second", "peak_memory_bytes"}
    assert all(value == getattr(unbroken[1], name) for name, value in summary.to_dict().items() if name not in own)


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_takes_no_other(tiny_gpt2: Path, tmp_path: Path) -> None:
    # The last step is in the middle of an epoch.
    settings = {"max_steps": 2}
    train_tiny(tiny_gpt2, tmp_path, args=settings)
    expected = (tmp_path / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "training.json").unlink()
    assert train_tiny(tiny_gpt2, tmp_path, args=settings, resume=True).steps == 2
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == expected


def test_only_the_same_run_resumes(tiny_gpt2: Path, unbroken, tmp_path: Path) -> None:
    path = tmp_path / "run"
    manifest = cut_off(unbroken[0], path) / "manifest.json"
    fewer = {**SPLITS, "train": SPLITS["train"][:-1]}
    with pytest.raises(RunError, match="was trained on different examples"):
        train_tiny(tiny_gpt2, path, resume=True, splits=fewer)
    manifest.write_text(manifest.read_text().replace('"num_processes": 1', '"num_processes": 2'))
    with pytest.raises(RunError, match="was trained by 2 processes, and this is 1 process"):
        train_tiny(tiny_gpt2, path, resume=True)
    assert not (path / "model").exists()


def test_resuming_without_a_checkpoint_starts_anew(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "training.jsonl").write_text(
        '{"step": 1, "epoch": 0.1, "tokens_seen": 9, "kind": "train", "loss": 9.0}\n'
    )
    train_tiny(tiny_gpt2, tmp_path, resume=True, args={"max_steps": 1})
    rows = read_rows(tmp_path / "training.jsonl", TrainingRow)
    assert [(row.step, row.kind) for row in rows] == [
        (0, "samples"),
        (0, "evaluation"),
        (1, "samples"),
        (1, "train"),
        (1, "evaluation"),
    ]


def test_only_the_adapter_is_trained(adapter) -> None:
    path, model, before, summary = adapter
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.abs().max() > 0 for name, value in after.items() if "lora_B" in name)
    assert summary.num_trainable_parameters == sum(value.numel() for name, value in after.items() if "lora_" in name)
    assert summary.validation_loss < summary.validation_loss_before
    settings = json.loads((path / "model" / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == ["c_attn", "c_fc", "c_proj"]
    assert settings["fan_in_fan_out"] is True
    assert all("lora_" in name for name in weights(path / "model"))


def test_the_saved_adapter_reloads_with_equal_logits(adapter, tiny_gpt2: Path) -> None:
    path, model, _, _ = adapter
    reloaded, tokenizer = load_model(str(path / "model"))
    torch.testing.assert_close(logits(reloaded), logits(model.eval()), rtol=0, atol=0)
    assert not torch.equal(logits(reloaded), logits(tiny_models.load_copy(tiny_gpt2)[0]))
    assert reloaded.generation_config.pad_token_id == tokenizer.pad_token_id == tiny_models.END


def test_an_adapter_does_not_load_on_other_base_weights(adapter, tiny_gpt2: Path, tmp_path: Path) -> None:
    base, model = tmp_path / "base", tmp_path / "model"
    shutil.copytree(tiny_gpt2, base)
    shutil.copytree(adapter[0] / "model", model)
    config = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    load_model(str(model))
    tuned, _ = load_model(str(base))
    next(tuned.parameters()).data.add_(1)
    tuned.save_pretrained(base)
    with pytest.raises(RunError, match=r"is not the one that `.*` was trained from: the content of `model.safetensors"):
        load_model(str(model))
    with pytest.raises(RunError, match="was trained from: the content of"):
        load_model(str(base), base_of=model)


def test_an_adapter_is_not_trained_on(adapter, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(adapter[0] / "model"))
    for lora in (None, {"r": 4}):
        with pytest.raises(ConfigError, match="is an adapter"):
            train(model, tokenizer, SPLITS, output_dir=tmp_path, args=tiny_models.TINY_SETTINGS, peft_config=lora)


def test_samples_come_from_the_adapted_model(adapter) -> None:
    from hf_instruct.prompts import PromptFormat
    from hf_instruct.training.callbacks import build_sampler

    path, *_ = adapter
    reloaded, tokenizer = load_model(str(path / "model"))
    last = read_log(path, "samples")[-1]
    assert last.samples == build_sampler(reloaded, tokenizer, SPLITS["validation"], PromptFormat.from_name("alpaca"))()


def test_the_whole_text_can_carry_loss(tiny_gpt2: Path, unbroken, tmp_path: Path) -> None:
    settings = {"max_steps": 1, "save_steps": 100, "completion_only_loss": False}
    whole = train_tiny(tiny_gpt2, tmp_path, args=settings)
    assert whole.validation_loss_before != unbroken[1].validation_loss_before


def test_max_length_above_the_context_is_lowered(
    tiny_gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = tiny_models.Example("long", "Repeat.", "", "word " * 400)
    splits = {**SPLITS, "train": [*SPLITS["train"], long]}
    with caplog.at_level("INFO", logger="hf_instruct"):
        summary = train_tiny(tiny_gpt2, tmp_path, splits=splits, args={"max_steps": 1, "save_steps": 100})
    assert summary.steps == 1
    assert "`train.max_length` 1024 is more than the model's 256 positions; using 256." in caplog.messages


def test_refusals_leave_no_model(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"12 of 12 examples have no label within `train.max_length` 16"):
        train_tiny(tiny_gpt2, tmp_path, args={"max_length": 16})
    with pytest.raises(ConfigError, match="layers that GPT2LMHeadModel does not have"):
        train_tiny(tiny_gpt2, tmp_path, peft_config={"target_modules": ["q_proj"]})
    with pytest.raises(ConfigError, match="The `train` section is refused by TRL"):
        train_tiny(tiny_gpt2, tmp_path, args={"optim": "sgdd"})
    with pytest.raises(ConfigError, match="Invalid `loss_type` foo"):
        train_tiny(tiny_gpt2, tmp_path, args={"loss_type": "foo"})
    for args, lora in (({"parallelism_config": "x"}, None), ({}, {"runtime_config": "x"}), ({}, {"rank_pattern": 5})):
        with pytest.raises(ConfigError, match=r"is refused by TRL or PEFT:\n  - .* object has no attribute"):
            train_tiny(tiny_gpt2, tmp_path, args=args, peft_config=lora)
    # PEFT's, of tied weights and of a layer that is no `Conv1D`.
    warned = pytest.warns(UserWarning, match="tied layer|fan_in_fan_out")
    with warned, pytest.raises(ConfigError, match="PEFT adapter to `lm_head` is not supported"):
        train_tiny(tiny_gpt2, tmp_path, peft_config={"target_modules": ["c_attn", "lm_head"]})
    with pytest.raises(ConfigError, match=r"Target modules nothing.\* not found"):
        train_tiny(tiny_gpt2, tmp_path, peft_config={"target_modules": "nothing.*"})
    with pytest.raises(ConfigError, match="is `pissa_niter_4`, which changes the base model randomly"):
        train_tiny(tiny_gpt2, tmp_path, peft_config={"init_lora_weights": "pissa_niter_4"})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10**6))
    with pytest.raises(TrainingError, match=r"has 0\.0 GB free, but this run may need"):
        train_tiny(tiny_gpt2, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]


def test_a_token_that_the_model_lacks_is_a_message(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<new>"])
    splits = {**SPLITS, "train": [tiny_models.Example("a", "Say <new>.", "", "<new>")]}
    with pytest.raises(DataError) as caught:
        train(model, tokenizer, splits, output_dir=tmp_path, args=tiny_models.TINY_SETTINGS)
    assert f"produces token id {tiny_models.END + 1}, but the model only has ids 0 to {tiny_models.END}." in str(
        caught.value
    )


def test_empty_splits_are_refused(tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train_tiny(tiny_gpt2, tmp_path, splits={})
    assert "the split(s) train and validation contain no examples" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_message(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hf_instruct.training.callbacks.append_rows", full)
        with pytest.raises(TrainingError) as caught:
            train_tiny(tiny_gpt2, tmp_path, args={"max_steps": 1})
    assert f"Writing to `{tmp_path}` failed: [Errno 28] No space left on device. Free some disk space, then" in str(
        caught.value
    )
    assert not (tmp_path / "model").exists()


def test_exhausted_memory_is_not_taken_for_a_full_disk(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")

    # As early as where the model moves to its device.
    monkeypatch.setattr("trl.SFTTrainer.__init__", exhausted)
    with pytest.raises(TrainingError, match="The machine ran out of memory"):
        train_tiny(tiny_gpt2, tmp_path)


def test_a_diverged_loss_stops_training_with_advice(tiny_gpt2: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e30, "max_grad_norm": 0}
    with pytest.raises(TrainingError, match=r"training has diverged. Lower `train.learning_rate` \(1e\+30\)"):
        train_tiny(tiny_gpt2, tmp_path / "run", args=settings)
    assert all(row.loss < 1e9 for row in read_log(tmp_path / "run", "train"))
    assert not (tmp_path / "run" / "model").exists()


def test_a_folder_with_a_model_is_not_trained_over(unbroken, tiny_gpt2: Path) -> None:
    path, _, _ = unbroken
    before = weights(path / "model")
    with pytest.raises(RunError, match="already contains a model or checkpoints"):
        train_tiny(tiny_gpt2, path)
    assert all(torch.equal(before[name], value) for name, value in weights(path / "model").items())


def test_a_finished_run_keeps_its_model_alone(unbroken, tiny_gpt2: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "run"
    cut_off(unbroken[0], path)
    # What is not of the run stays.
    (path / "checkpoints" / "logs").mkdir()
    train_tiny(tiny_gpt2, path, dropout=0.1, resume=True)
    assert [entry.name for entry in (path / "checkpoints").iterdir()] == ["logs"]
    assert re.search(r"The model is saved; deleted .* MB of checkpoints", caplog.text)
    assert all(
        torch.equal(value, weights(path / "model")[name]) for name, value in weights(unbroken[0] / "model").items()
    )
    with pytest.raises(RunError, match=r"contains a finished model. Load it"):
        train_tiny(tiny_gpt2, path, resume=True)
    (path / "checkpoints" / "logs").rmdir()
    shutil.rmtree(path / "model")
    train_tiny(tiny_gpt2, path, args={"max_steps": 1}, resume=True)
    assert not (path / "checkpoints").exists()


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.slow
def test_progress_is_the_trainers_own_where_nothing_is_logged(
    tiny_gpt2: Path, tmp_path: Path, caplog, capsys, disabled: bool
) -> None:
    args = {"max_steps": 1, "disable_tqdm": disabled}
    train_tiny(tiny_gpt2, tmp_path / "silent", args=args)
    assert ("1/1 [" in capsys.readouterr().err) is not disabled
    caplog.set_level("INFO", logger="hf_instruct")
    train_tiny(tiny_gpt2, tmp_path / "logged", args=args)
    assert "1/1 [" not in capsys.readouterr().err
    assert ("Training: 1/1" in caplog.text) is not disabled


def test_a_slow_machine_saves_by_the_clock(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_instruct.training.callbacks.SAVE_SECONDS", 0.0)
    args = {"max_steps": 2, "save_steps": 100, "save_total_limit": 5}
    train_tiny(tiny_gpt2, tmp_path, args=args, keep_checkpoints=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("c*")) == ["checkpoint-1", "checkpoint-2"]


def test_saving_the_model_is_not_training(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = running._save_model
    monkeypatch.setattr(running, "_save_model", lambda *given: (time.sleep(1), save(*given)))
    summary = train_tiny(tiny_gpt2, tmp_path, args={"max_steps": 1, "save_strategy": "no"})
    logged = read_rows(tmp_path / "training.jsonl", TrainingRow)[-1].seconds
    assert logged <= summary.seconds + 0.1 < logged + 1


@pytest.mark.slow
def test_checkpoints_at_the_defaults_are_a_minute_apart(tiny_gpt2: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in tiny_models.TINY_SETTINGS.items() if name != "save_steps"}
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    # A checkpoint falls due at step 50 and at the last one, in the first second.
    settings |= {"max_steps": 51, "eval_steps": 100, "logging_steps": 50}
    train(model, tokenizer, SPLITS, output_dir=tmp_path, args=settings, keep_checkpoints=True)
    assert not any((tmp_path / "checkpoints").glob("checkpoint-*"))


def test_the_models_forward_is_its_own_again_afterwards(unbroken, adapter) -> None:
    for model in (unbroken[2], adapter[1]):
        assert "forward" not in vars(model)
        assert "_original_forward" not in vars(model)
        assert logits(model).dtype == torch.float32
