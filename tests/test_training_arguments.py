from pathlib import Path

import pytest
import tiny_models

from hf_instruct.errors import ConfigError
from hf_instruct.run_folder import RunFolder
from hf_instruct.training.arguments import build_arguments, build_lora_config, find_linear_layers, resolve_precision


@pytest.fixture(scope="module")
def gpt2():
    return tiny_models.build_model(tiny_models.gpt2_config())


@pytest.fixture(scope="module")
def llama():
    return tiny_models.build_model(tiny_models.llama_config())


def test_the_courses_settings_are_the_defaults(tmp_path: Path) -> None:
    arguments = build_arguments({}, tmp_path)
    assert (arguments.learning_rate, arguments.weight_decay, arguments.num_train_epochs) == (5e-5, 0.1, 2)
    assert (arguments.per_device_train_batch_size, arguments.max_length) == (8, 1024)
    assert arguments.optim.value.startswith("adamw")
    assert arguments.report_to in ([], "none")
    assert arguments.output_dir == str(tmp_path)


def test_settings_beat_defaults_and_the_machine(tmp_path: Path) -> None:
    arguments = build_arguments({"learning_rate": 1e-3, "bf16": False, "save_steps": 2, "use_cpu": True}, tmp_path)
    assert (arguments.learning_rate, arguments.bf16, arguments.save_steps) == (1e-3, False, 2)
    assert arguments.device.type == "cpu"


def test_a_cpu_chosen_where_there_is_a_gpu_is_asked_what_it_can(
    gpt2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_instruct.training.arguments.best_device", lambda: "cuda")
    monkeypatch.setattr("hf_instruct.training.arguments.prefers_bf16", lambda model, device: device == "cuda")
    settings = resolve_precision({"use_cpu": True}, gpt2, RunFolder(tmp_path))
    assert settings["bf16"] is False
    assert not build_arguments(settings, tmp_path).dataloader_pin_memory


def test_a_run_keeps_the_precision_it_began_with(gpt2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False])
    monkeypatch.setattr("hf_instruct.training.arguments.prefers_bf16", lambda model, device: next(answers))
    run = RunFolder(tmp_path / "begun")
    assert resolve_precision({}, gpt2, run)["bf16"] is True
    assert resolve_precision({}, gpt2, run)["bf16"] is True, "as when it is resumed on another machine"
    assert resolve_precision({}, gpt2, RunFolder(tmp_path / "new"))["bf16"] is False


@pytest.mark.parametrize("told", [{"bf16": True}, {"bf16": False}, {"fp16": True}])
def test_a_precision_that_is_told_is_not_measured(gpt2, tmp_path: Path, monkeypatch, told: dict) -> None:
    monkeypatch.setattr("hf_instruct.training.arguments.prefers_bf16", None)
    assert resolve_precision(told, gpt2, RunFolder(tmp_path))["bf16"] is told.get("bf16", False)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_recomputation_is_off_until_asked_for_by_either_name(tmp_path: Path, name: str) -> None:
    assert build_arguments({}, tmp_path).activation_checkpointing is False
    assert build_arguments({name: True}, tmp_path).activation_checkpointing is True


def test_values_that_trl_refuses_are_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The `train` section is refused by TRL:\n  - .*sgdd"):
        build_arguments({"optim": "sgdd"}, tmp_path)


def test_lora_on_gpt2_adapts_its_conv1d_layers(gpt2) -> None:
    lora = build_lora_config({}, gpt2)
    assert lora.target_modules == {"c_attn", "c_fc", "c_proj"}
    assert lora.fan_in_fan_out is True
    # The course's scale: alpha 256 over r 16 is its alpha 16 undivided.
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.task_type) == (16, 256, 0.0, "CAUSAL_LM")


def test_lora_on_llama_adapts_its_linear_layers_but_not_the_head(llama) -> None:
    lora = build_lora_config({"r": 4}, llama)
    assert lora.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert lora.fan_in_fan_out is False
    assert lora.r == 4
    assert set(find_linear_layers(llama).values()) == {"Linear"}


@pytest.mark.parametrize("targets", [["c_attn"], "all-linear", ["h.0.attn.c_attn"]])
def test_target_modules_of_the_user(gpt2, targets: object) -> None:
    lora = build_lora_config({"target_modules": targets}, gpt2)
    assert lora.target_modules == (set(targets) if isinstance(targets, list) else targets)
    assert lora.fan_in_fan_out is True


def test_a_target_that_the_model_lacks(gpt2) -> None:
    with pytest.raises(ConfigError) as caught:
        build_lora_config({"target_modules": ["q_proj", "c_attn"]}, gpt2)
    assert str(caught.value) == (
        "`lora.target_modules` contains layers that GPT2LMHeadModel does not have:\n"
        "  - `q_proj`; its linear layers are `c_attn`, `c_fc`, `c_proj`"
    )


def test_values_that_peft_refuses_are_an_error_of_ours(gpt2) -> None:
    with pytest.raises(ConfigError, match="The `lora` section is refused by PEFT:\n  - "):
        build_lora_config({"init_lora_weights": "loftq", "layers_pattern": "h", "target_modules": "x.*"}, gpt2)


def test_no_secret_reaches_trl(tmp_path: Path) -> None:
    arguments = build_arguments({"run_name": "try hf_" + "A" * 34, "use_cpu": True}, tmp_path)
    assert arguments.run_name == "try [token removed]"


def test_tied_adapters_that_peft_would_load_as_others(gpt2, llama) -> None:
    values = {"target_modules": ["lm_head"], "ensure_weight_tying": True}
    with pytest.raises(
        ConfigError, match=r"PEFT does not recognize `transformer.wte` of GPT2LMHeadModel as an embedding"
    ):
        build_lora_config(values, gpt2)
    assert build_lora_config(values, llama).ensure_weight_tying
