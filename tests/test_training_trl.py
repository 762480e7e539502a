"""Beside plain `SFTTrainer`: our collator inside it, and our trainer's losses against its own."""

from pathlib import Path

import pytest
import tiny_models
import torch
from trl import SFTTrainer

from hf_instruct.prompts import PromptFormat
from hf_instruct.training.arguments import build_arguments
from hf_instruct.training.fast.collators import PaddingCollator, PrefixSharingCollator, SegmentCollator
from hf_instruct.training.sft import tokenize_examples
from hf_instruct.training.trainer import InstructTrainer

CONFIG = tiny_models.gpt2_config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def train_losses(kind: type[SFTTrainer], collator, tiny_gpt2: Path, folder: Path, **settings) -> list[float]:
    """Return the loss of every step, on the same batches whoever trains."""
    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    examples = tiny_models.tiny_examples(48)
    rows = tokenize_examples(examples, tokenizer, PromptFormat.from_name("alpaca"), max_length=None)
    quiet = {"eval_steps": 1000, "save_steps": 1000}
    arguments = build_arguments({**tiny_models.TINY_SETTINGS, **quiet, **settings}, folder)
    arguments.eval_on_start = False
    trainer = kind(
        model=tiny_models.build_model(CONFIG),
        args=arguments,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        processing_class=tokenizer,
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_any_sft_trainer_takes_the_collator(tiny_gpt2: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1}
    padded = train_losses(SFTTrainer, PaddingCollator(0), tiny_gpt2, tmp_path / "padded", **settings)
    shared = train_losses(SFTTrainer, PrefixSharingCollator(0), tiny_gpt2, tmp_path / "shared", **settings)
    assert len(padded) == 3
    assert padded[0] > padded[-1]
    assert shared == pytest.approx(padded, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "collator", [PrefixSharingCollator(0, weighted=True), SegmentCollator(0)], ids=["masked rows", "segments"]
)
def test_fifty_bf16_steps_follow_trls(collator, tiny_gpt2: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 50, "bf16": True, "per_device_train_batch_size": 8, "learning_rate": 2e-3}
    plain = train_losses(SFTTrainer, PaddingCollator(0), tiny_gpt2, tmp_path / "plain", **settings)
    ours = train_losses(InstructTrainer, collator, tiny_gpt2, tmp_path / "ours", **settings)
    assert len(plain) == 50
    assert plain[-1] < 0.5 * plain[0], "a curve that stays flat would prove nothing"
    differences = (torch.tensor(ours) / torch.tensor(plain) - 1).abs()
    assert float(differences.max()) < 5e-3
