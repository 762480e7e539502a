"""Adapters on a base model in 4 or 8 bits, on a CPU; GPT-2 keeps its weights transposed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from hf_instruct import load_model, run, train
from hf_instruct.config import build_experiment
from hf_instruct.errors import ConfigError, ModelLoadError
from hf_instruct.hub.merging import load_run_model
from hf_instruct.manifests import find_quantization
from hf_instruct.quantization import computes_in_float32, is_quantized
from hf_instruct.run_folder import RunFolder
from hf_instruct.training import trainer as trainer_module
from hf_instruct.training.fast.collators import PaddingCollator
from hf_instruct.training.grpo import train_grpo

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")

SPLITS = {"train": tiny_models.tiny_examples(12), "validation": tiny_models.tiny_examples(3, start=12)}
IDS = torch.arange(5, 40)[None]
CONFIGS = {
    "gpt2": tiny_models.gpt2_config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "llama": tiny_models.llama_config(),
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny(tmp_path_factory.mktemp(request.param), CONFIGS[request.param], scale=2.0)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = model.eval()(IDS).logits
    return values


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


def tune(base: Path, folder: Path, kind: str, **settings: Any) -> tuple[Any, Any]:
    model, tokenizer = load_model(base, quantization=kind)
    args = {**tiny_models.TINY_SETTINGS, "max_steps": 3, **settings}
    return model, train(model, tokenizer, SPLITS, output_dir=folder, args=args, peft_config={"r": 4, "lora_alpha": 8})


@pytest.mark.parametrize(("kind", "largest"), [("4bit", 0.5), ("8bit", 0.05)])
def test_a_quantized_model_computes_nearly_the_same(base: Path, kind: str, largest: float) -> None:
    whole, quantized = load_model(base)[0], load_model(base, quantization=kind)[0]
    assert is_quantized(quantized)
    assert not is_quantized(whole)
    assert 1e-4 < error(logits(whole), logits(quantized)) < largest
    assert computes_in_float32(quantized) == (kind == "4bit")
    assert not computes_in_float32(load_model(base, quantization="4bit", dtype="bfloat16")[0])


def test_evaluation_changes_no_weight_and_no_gradient(base: Path) -> None:
    """On a CPU with bf16 bitsandbytes would pack the weights when it evaluates, and pass nothing on afterwards."""
    model, _ = load_model(base, quantization="4bit")
    first = logits(model)
    one, other = (logits(model) for _ in range(2))
    assert torch.equal(first, one)
    assert torch.equal(one, other)
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert float(embedded.grad.norm()) > 0


def test_an_adapter_is_trained_by_the_fast_path_as_by_the_plain_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, summary = tune(base, tmp_path / "fast", "4bit")
    assert summary.validation_loss < summary.validation_loss_before
    assert summary.num_trainable_parameters < summary.num_parameters / 10
    monkeypatch.setattr(trainer_module, "build_collator", lambda *_, **__: PaddingCollator(0))
    plain, expected = tune(base, tmp_path / "plain", "4bit")
    losses = [[row["loss"] for row in rows.log_history if "loss" in row] for rows in (summary, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert error(logits(plain), logits(fast)) < 1e-4
    trained = [parameter for parameter in fast.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}


@pytest.mark.slow
def test_rewards_train_an_adapter_in_float32(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(base, quantization="4bit")
    dtypes = set()

    def count(completions: list[str], **_: Any) -> list[int]:
        dtypes.update(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
        return [len(text) for text in completions]

    args = {"use_cpu": True, "bf16": False, "max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2}
    args |= {"gradient_accumulation_steps": 1, "max_completion_length": 4}
    train_grpo(model, tokenizer, SPLITS, reward_funcs=[count], output_dir=tmp_path, args=args, peft_config={"r": 4})
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.slow
def test_an_adapter_is_put_on_the_base_that_it_was_trained_on(
    base: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = tune(base, tmp_path / "run", kind)
    run = RunFolder(tmp_path / "run")
    assert find_quantization(run.model) == kind
    assert torch.equal(logits(load_model(run.model)[0]), logits(model))
    whole = load_model(run.model, quantization="none")[0]
    assert not is_quantized(whole)
    assert 1e-4 < error(logits(model), logits(whole)) < 0.5
    values = {"model": {"name": str(base), "quantization": kind}, "lora": {"r": 4}}
    run.save_experiment(build_experiment(values, where="here", deep=False))
    caplog.set_level("INFO")
    merged = load_run_model(run).model
    assert f"in {kind} and is merged into the full-precision weights" in caplog.text
    assert error(logits(whole), logits(merged)) < 1e-4


def test_weights_that_are_quantized_are_not_trained_themselves(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(base, quantization="4bit")
    with pytest.raises(ConfigError, match="pass a `peft_config`"):
        train(model, tokenizer, SPLITS, output_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"`model.quantization` is '4bit'.*add a `lora` section"):
        build_experiment({"model": {"quantization": "4bit"}}, where="here")
    with pytest.raises(ConfigError, match=r"`model.dtype` is 'float16'"):
        build_experiment({"model": {"dtype": "float16"}}, where="here")
    build_experiment({"model": {"quantization": "4bit", "dtype": "float16"}, "lora": None}, where="here")


def test_what_cannot_be_quantized_is_one_sentence(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="`quantization` is 'int4'; allowed are `4bit`"):
        load_model(base, quantization="int4")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(ModelLoadError, match="pip install bitsandbytes"):
        load_model(base, quantization="8bit")
    values = {"data": {"source": "everyday"}, "model": {"name": str(base), "quantization": "4bit"}, "lora": None}
    with pytest.raises(ModelLoadError, match="pip install bitsandbytes"):
        run(values, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "found before the data are prepared"
