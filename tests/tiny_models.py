"""Tiny models with the first merges of GPT-2's tokenizer, built rather than downloaded."""

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from benchmarks.inputs import save_tokenizer
from benchmarks.processes import BenchmarkError
from hf_instruct.config import build_experiment
from hf_instruct.models import load_model
from hf_instruct.records import Example, write_rows
from hf_instruct.run_folder import RunFolder

# Whole, the tokenizer takes a third of a second to load, more than all else that most tests do.
MERGES = 5000
# Each byte, each merge, end-of-text.
VOCABULARY = 256 + MERGES + 1
END = VOCABULARY - 1

# As many chat templates do: a beginning token of its own, and a turn's end that is not end-of-text.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(folder: Path, *, merges: int = MERGES) -> PreTrainedTokenizerBase:
    """Save the tokenizer in `folder` and return it as any program would load it: without a pad token."""
    try:
        save_tokenizer(folder, merges=merges)
    except BenchmarkError as error:
        pytest.skip(str(error))
    return AutoTokenizer.from_pretrained(folder)


def gpt2_config(**changes: object) -> GPT2Config:
    ids = {"bos_token_id": END, "eos_token_id": END}
    return GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=2, **ids, **changes)


def llama_config(**changes: object) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": END, "eos_token_id": END}
    return LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=256, **sizes, **ids, **changes)


def build_model(config: PretrainedConfig, *, seed: int = 0, scale: float = 1.0) -> PreTrainedModel:
    """Return a model with random weights; `scale` above 1 makes its answers differ from prompt to prompt."""
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(scale)
    return model


def save_tiny(folder: Path, config: PretrainedConfig, *, scale: float = 1.0) -> Path:
    """Save a tiny model and its tokenizer in `folder`, so that `load_model(str(folder))` works."""
    build_tokenizer(folder)
    build_model(config, scale=scale).save_pretrained(folder)
    return folder


# Enough for six steps in two epochs, mid-epoch checkpoints included; fp32 on the CPU, so that numbers can be compared.
TINY_SETTINGS: dict[str, object] = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "save_total_limit": 5,
}


@functools.cache
def _load_once(folder: Path, dropout: float | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_model(str(folder), dropout=dropout)


def load_copy(folder: Path, *, dropout: float | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return what `load_model` does, copied rather than read again, which takes longer."""
    model, tokenizer = _load_once(folder, dropout)
    return copy.deepcopy(model), copy.deepcopy(tokenizer)


def tiny_examples(count: int, *, start: int = 0) -> list[Example]:
    """Return examples whose lengths differ."""
    numbers = range(start, start + count)
    return [Example(f"e{n}", f"Say the word {n}.", "now " * (n % 4), f"{n} " * (n % 3 + 1) + "it is.") for n in numbers]


def write_examples(path: Path, count: int) -> Path:
    """Write such examples to a file that `data.source` can name."""
    rows = [{"instruction": e.instruction, "input": e.input, "output": e.output} for e in tiny_examples(count)]
    path.write_text(json.dumps(rows))
    return path


def write_run_to_answer(path: Path, model: Path, examples: Sequence[Example]) -> RunFolder:
    """Return a run whose tuned model is there, and which is to answer these examples in 5 tokens with it alone."""
    run = RunFolder(path)
    write_rows(run.split("test"), examples)
    run.model.symlink_to(model)
    values = {"model": {"name": str(model)}, "generate": {"max_new_tokens": 5, "base": False}}
    run.save_experiment(build_experiment(values, where="here", deep=False))
    return run
