"""Run folders with a tiny model or adapter, for the tests of exporting and serving."""

import shutil
from pathlib import Path
from typing import Any

import tiny_models
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hf_instruct.config import build_experiment
from hf_instruct.models import load_model
from hf_instruct.records import write_rows
from hf_instruct.run_folder import RunFolder

MERGES = 1000
# Each byte, each merge, end-of-text.
VOCABULARY = 256 + MERGES + 1
END = VOCABULARY - 1


def save_small(folder: Path, config: PretrainedConfig) -> Path:
    """Save a tiny model with an even smaller tokenizer: a GGUF's vocabulary is slow to read back.

    The model has a few rows more than there are tokens, as many have.
    """
    build_small_tokenizer(folder)
    config.vocab_size = VOCABULARY + 7
    config.bos_token_id = config.eos_token_id = END
    tiny_models.build_model(config, scale=8).save_pretrained(folder)
    return folder


def build_small_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Save the tokenizer of `save_small`."""
    return tiny_models.build_tokenizer(folder, merges=MERGES)


def write_run(folder: Path, model: Path, *, prompt_format: str = "alpaca", examples: int = 12) -> RunFolder:
    """Return a run whose tuned model is the given folder."""
    run = RunFolder(folder)
    values = {"model": {"name": str(model)}, "data": {"prompt_format": prompt_format}}
    run.save_experiment(build_experiment(values, where="here", deep=False))
    write_rows(run.split("test"), tiny_models.tiny_examples(examples))
    shutil.copytree(model, run.model)
    return run


def save_adapter(folder: Path, base: Path, **changes: Any) -> Path:
    """Save a LoRA adapter with random weights, large enough to change every answer, beside the base's tokenizer.

    `changes` are fields of `LoraConfig`; what it trains besides LoRA matrices is changed at random too.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    model, tokenizer = load_model(str(base))
    set_seed(1)
    # GPT-2 keeps its matrices transposed.
    kind = {"fan_in_fan_out": model.config.model_type == "gpt2", "task_type": "CAUSAL_LM"}
    settings = {"r": 2, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **kind, **changes}
    tuned = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data.add_(torch.randn_like(parameter) * parameter.std())
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
