"""Every shipped experiment is checked against the libraries it names fields of, and its trainer is built."""

import ast
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import yaml

from hf_instruct.cli import main
from hf_instruct.config import Experiment, load_experiment
from hf_instruct.errors import ConfigError
from hf_instruct.models import ALIASES, WHEEL_MODEL, load_model
from hf_instruct.recipes import find_experiment, list_recipes
from hf_instruct.records import Example
from hf_instruct.training import running
from hf_instruct.training.sft import train

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "recipes").rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
HEADER = ("model:", "method:", "hardware:", "took:", "launch:")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_experiment_is_valid_says_what_it_is_and_builds_its_trainer(
    path: Path, build_tiny_trainer: Callable[[Experiment], Any]
) -> None:
    comments = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    for word in HEADER:
        assert any(line.startswith(word) for line in comments), f"{path} does not say its {word}"
    experiment = load_experiment(path)
    # DPO and GRPO begin with a model that another recipe has fine-tuned.
    tuned = {"runs/demo/model", "runs/gpt2-medium-full/model"} if experiment.method != "SFT" else set()
    assert experiment.model.name in {*ALIASES, WHEEL_MODEL, *tuned}
    trainer = build_tiny_trainer(experiment)
    assert trainer.args.num_train_epochs == experiment.train.get("num_train_epochs", 2)
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    if experiment.lora is None:
        assert len(trainable) == len(list(trainer.model.parameters()))
    else:
        assert trainable
        assert all("lora_" in name for name in trainable)


@pytest.fixture
def build_tiny_trainer(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Experiment], Any]:
    """Return what gives the trainer of an experiment, with a tiny model in place of its own."""

    def build(experiment: Experiment) -> Any:
        model, tokenizer = load_model(str(tiny_gpt2), dropout=experiment.model.dropout)
        tokenizer.chat_template = tiny_models.CHAT_TEMPLATE.replace("<|im_end|>", "{{ eos_token }}")
        example = Example("1", "Name a color.", "", "Red.")
        data = {"train": [example] * 8, "validation": [example]}
        options = {"prompt_format": experiment.data.prompt_format, "peft_config": experiment.lora}
        return train(model, tokenizer, data, output_dir=tmp_path, args=experiment.train, **options)

    monkeypatch.setattr(running, "_run_trainer", lambda trainer, *_, **__: trainer)
    return build


def test_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = {recipe.name: recipe.path for recipe in list_recipes()}
    assert sorted(recipes.values()) == EXPERIMENTS
    demo = recipes["smollm2-135m/demo"]
    for given in ("demo", "smollm2-135m/demo", "recipes/smollm2-135m/demo.yaml", str(demo), demo):
        assert find_experiment(given) == demo
    for given, message in {
        "full-phi": "`full-phi` is neither a file nor the name of a recipe. Did you mean `full-phi3`? `hf-instruct rec",
        "gpt2-medum/lora": "Did you mean `gpt2-medium/lora`?",
        "qlora": "several recipes: `gpt2-xl/qlora`, `phi-3-mini/qlora`.",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            find_experiment(given)


def test_a_file_or_its_neighbour_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_experiment("demo") in EXPERIMENTS
    (tmp_path / "dpo").write_text("")
    assert find_experiment("dpo") == Path("dpo")
    (tmp_path / "fool.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"Did you mean `fool\.yaml`"):
        find_experiment("full.yml")


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for recipe in list_recipes():
        assert recipe.about.keys() >= {"model", "method", "hardware", "took", "launch"}
        assert find_experiment(recipe.about["launch"].removeprefix("hf-instruct run ")) == recipe.path
        assert f"{recipe.name}\n  model     {recipe.about['model']}\n" in listed
    monkeypatch.chdir(tmp_path)
    for words, written in {"demo": "smollm2-135m-demo.yaml", "gpt2-xl/lora mine.yaml": "mine.yaml"}.items():
        assert main(["recipes", "copy", *words.split()]) == 0
        assert capsys.readouterr().out == f"{written}\nRun it with: hf-instruct run {written}\n"
        assert load_experiment(written, deep=False) == load_experiment(find_experiment(words.split()[0]), deep=False)
    assert main(["recipes", "copy", "demo", "mine.yaml"]) == 1
    assert "`mine.yaml` already exists" in capsys.readouterr().err
    assert load_experiment("mine.yaml", deep=False).model.name == "gpt2-xl"


def test_course_recipe_has_the_course_settings(build_tiny_trainer: Callable[[Experiment], Any]) -> None:
    arguments = build_tiny_trainer(load_experiment(ROOT / "recipes/gpt2-medium/full.yaml")).args
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


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo", "generate", "judge"])
def test_recipe_scripts_only_open_a_door_and_cannot_be_imported(name: str):
    text = (ROOT / "recipes" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 120
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For) for node in ast.walk(ast.parse(text)))
    with pytest.raises(ImportError, match="recipes are scripts"):
        runpy.run_path(str(ROOT / "recipes" / "__init__.py"))
