"""Runs with a tiny model each, as training leaves them, with scores; the tests of pushing publish them."""

import logging
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub
from publishing_runs import save_adapter
from reporting_run import write_run
from tiny_models import build_model
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from hf_instruct.errors import PublishError
from hf_instruct.hub.push import Published, push
from hf_instruct.models import configure_stop, load_model
from hf_instruct.plots import draw_loss_plot, write_figure
from hf_instruct.records import read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TrainingRow

BASE_ID = "openai-community/gpt2"
END = 256


def save_byte_model(folder: Path) -> Path:
    """Save a two-layer GPT-2 that reads single bytes: its tokenizer is loaded in no time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE({**alphabet, "<|endoftext|>": END}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **ends).save_pretrained(folder)
    ids = {"bos_token_id": END, "eos_token_id": END}
    config = GPT2Config(vocab_size=END + 1, n_positions=512, n_embd=32, n_layer=2, n_head=2, **ids)
    build_model(config, scale=8).save_pretrained(folder)
    return folder


def write_full_run(path: Path, tiny: Path, **overrides: Any) -> RunFolder:
    """Write a run of which `model/` is the tiny model, with all weights tuned."""
    run = write_run(path, **overrides)
    model, tokenizer = load_model(str(tiny))
    configure_stop(model, tokenizer)
    model.config.use_cache = False
    model.save_pretrained(run.model)
    tokenizer.save_pretrained(run.model)
    _add_what_training_leaves(run)
    return run


def write_adapter_run(path: Path, tiny: Path, **overrides: Any) -> RunFolder:
    """Write a run of which `model/` is a LoRA adapter of the tiny model, which it names by its local folder."""
    run = write_run(path, lora={"r": 4}, **{"model": {"name": str(tiny)}, **overrides})
    save_adapter(run.model, tiny, r=4, lora_alpha=64, target_modules=["c_attn"])
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
