"""Every shipped experiment is checked against the libraries it names fields of, and its trainer is built."""

import ast
import runpy
from pathlib import Path

import pytest
import tiny_models
import yaml

from hf_instruct.config import Experiment, load_experiment
from hf_instruct.data.splits import load_splits
from hf_instruct.models import ALIASES, WHEEL_MODEL, load_model
from hf_instruct.prompt_checks import choose_format
from hf_instruct.records import Example
from hf_instruct.run_folder import RunFolder
from hf_instruct.training.finetune import _build_trainer

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "recipes").rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
HEADER = ("model:", "method:", "hardware:", "took:", "launch:")


def test_all_experiments_are_here():
    names = {str(path.relative_to(ROOT / "recipes")) for path in EXPERIMENTS}
    expected = {f"gpt2-{size}/{kind}.yaml" for size in ("small", "medium", "large", "xl") for kind in ("full", "lora")}
    expected |= {f"gpt2-medium/full-{variant}.yaml" for variant in ("phi3", "prompt-loss", "alpaca")}
    expected |= {f"smollm2-135m/{kind}.yaml" for kind in ("demo", "dpo", "full", "lora")} | {"qwen3-0.6b/lora.yaml"}
    expected |= {"gpt2-xl/qlora.yaml", "phi-3-mini/lora.yaml", "phi-3-mini/qlora.yaml"}
    assert names == expected
    names = {"cpu", "cpu_2proc", "mps", "single_gpu", "multi_gpu", "fsdp2", "zero2", "zero3", "multi_node"}
    assert {path.stem for path in LAUNCHES} == names


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_experiment_is_valid_says_what_it_is_and_builds_its_trainer(path: Path, tiny_gpt2: Path, tmp_path: Path):
    comments = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    for word in HEADER:
        assert any(line.startswith(word) for line in comments), f"{path} does not say its {word}"
    experiment = load_experiment(path)
    # Preference training begins with a model that another recipe has fine-tuned.
    tuned = {"runs/demo/model"} if experiment.dpo is not None else set()
    assert experiment.model.name in {*ALIASES, WHEEL_MODEL, *tuned}
    choose_format(experiment.data.prompt_format, has_conversations=False)
    trainer = build_tiny_trainer(experiment, tiny_gpt2, tmp_path)
    assert trainer.args.num_train_epochs == experiment.train.get("num_train_epochs", 2)
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    if experiment.lora is None:
        assert len(trainable) == len(list(trainer.model.parameters()))
    else:
        assert trainable
        assert all("lora_" in name for name in trainable)


def build_tiny_trainer(experiment: Experiment, tiny_model: Path, folder: Path):
    model, tokenizer = load_model(str(tiny_model), dropout=experiment.model.dropout)
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    example = Example("1", "Name a color.", "", "Red.")
    trainer, _ = _build_trainer(
        model,
        tokenizer,
        load_splits({"train": [example] * 8, "test": [example], "validation": [example]}),
        run=RunFolder(folder),
        prompt_format=choose_format(experiment.data.prompt_format, has_conversations=False),
        args=experiment.train,
        peft_config=experiment.lora,
    )
    return trainer


def test_course_recipe_has_the_course_settings(tiny_gpt2: Path, tmp_path: Path):
    experiment = load_experiment(ROOT / "recipes/gpt2-medium/full.yaml")
    arguments = build_tiny_trainer(experiment, tiny_gpt2, tmp_path).args
    settings = {
        "learning_rate": 5e-5,
        "weight_decay": 0.1,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "max_length": 256,  # the tiny model's context; 1,024 on GPT-2
        "activation_checkpointing": False,
        "report_to": [],
    }
    assert {name: getattr(arguments, name) for name in settings} == settings
    assert arguments.optim == "adamw_torch_fused"
    assert arguments.lr_scheduler_type == "constant"


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_configs_are_known_to_accelerate(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert config.num_processes == values["num_processes"]
    assert "mixed_precision" not in values, "precision belongs to the experiment"


@pytest.mark.parametrize("name", ["sft", "generate", "judge"])
def test_recipe_scripts_only_open_a_door_and_cannot_be_imported(name: str):
    text = (ROOT / "recipes" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For) for node in ast.walk(ast.parse(text)))
    with pytest.raises(ImportError, match="recipes are scripts"):
        runpy.run_path(str(ROOT / "recipes" / "__init__.py"))
