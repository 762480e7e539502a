"""Run folders with a tiny model or adapter, as training leaves them, for the tests of what leaves a run."""

import logging
import os
import shutil
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import reporting_run
import tiny_models
import torch
from fake_hub import TOKEN, FakeHub
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from hf_instruct.config import build_experiment
from hf_instruct.errors import PublishError
from hf_instruct.hub.push import Published, push
from hf_instruct.models import configure_stop, load_model
from hf_instruct.plots import draw_loss_plot, write_figure
from hf_instruct.records import read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TrainingRow

BASE_ID = "openai-community/gpt2"
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


def write_full_run(path: Path, tiny: Path, **overrides: Any) -> RunFolder:
    """Write a run of which `model/` is the tiny model, with all weights tuned."""
    run = reporting_run.write_run(path, **overrides)
    model, tokenizer = load_model(str(tiny))
    configure_stop(model, tokenizer)
    model.config.use_cache = False
    model.save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    _add_what_training_leaves(run)
    return run


def write_adapter_run(path: Path, tiny: Path, **overrides: Any) -> RunFolder:
    """Write a run of which `model/` is a LoRA adapter of the tiny model, which it names by its local folder."""
    run = reporting_run.write_run(path, lora={"r": 4}, **{"model": {"name": str(tiny)}, **overrides})
    save_adapter(run.model, tiny, r=4, lora_alpha=16, target_modules=["c_attn"])
    _add_what_training_leaves(run)
    return run


def _add_what_training_leaves(run: RunFolder) -> None:
    (run.model / "training_args.bin").write_bytes(b"/home/somebody/secret")
    write_figure(draw_loss_plot(read_rows(run.training_log, TrainingRow)), run.loss_plot)


def read_base(tiny: Path) -> dict[str, bytes]:
    """Return the files of the base model, for a repository of it."""
    return {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()}


def save_chat_tokenizer(run: RunFolder, template: str) -> None:
    """Give the run's tokenizer a chat template of its own."""
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = template
    tokenizer.save_pretrained(run.model)


@contextmanager
def open_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a Hub that knows the base model and a user, who is logged in, and no pauses between tries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    fake = FakeHub()
    fake.add_repo(BASE_ID, {"config.json": b"{}"})
    fake.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The fake speaks LFS; the other protocol needs servers of its own kind.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Between its tries the client waits for up to 8 seconds.
    monkeypatch.setattr(_http, "time", types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield fake
    finally:
        _http.close_session()
        fake.stop()


def build_environment(hub: FakeHub, home: Path, **changes: str) -> dict[str, str]:
    """Return the environment of a user on another machine, which knows of this Hub only."""
    known = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return {**known, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **changes}


def push_to(run: RunFolder, hub: FakeHub, repo_id: str = "me/assistant", **options: Any) -> Published:
    """Push, with the fields of `PushOptions`."""
    from huggingface_hub import HfApi

    return push(run, repo_id, api=HfApi(endpoint=hub.url), **options)


def list_commits(hub: FakeHub) -> dict[str, list[str]]:
    """Return the commits of each repository that holds more than an empty one does."""
    return {name: list(repo.commits) for name, repo in hub.repos.items() if list(repo.files) != [".gitattributes"]}


def refuse(run: RunFolder, hub: FakeHub, repo_id: str = "me/assistant", **options: Any) -> str:
    """Push, and return the text of the refusal; nothing was committed on the Hub or is left in the run's folder."""
    before = list_commits(hub)
    files = sorted(run.path.iterdir()) if run.path.exists() else []
    with pytest.raises(PublishError) as caught:
        push_to(run, hub, repo_id, **options)
    assert list_commits(hub) == before
    assert (sorted(run.path.iterdir()) if run.path.exists() else []) == files
    text = str(caught.value)
    assert TOKEN not in text
    assert "signature" not in text
    assert "\n" not in text
    return text
