"""Which models get rows that share their prefix, and which are told that they do not."""

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from transformers import BloomConfig, Gemma2Config, MambaConfig, MistralConfig

from hf_instruct.training.fast.collators import PaddingCollator, PrefixSharingCollator, SegmentCollator
from hf_instruct.training.fast.sharing import build_collator, has_plain_loss, supports_prefix_sharing

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def arguments(**changes: object) -> SimpleNamespace:
    settings = {"loss_type": "nll", "label_smoothing_factor": 0.0, "max_length": 64, "device": torch.device("cpu")}
    settings |= {"neftune_noise_alpha": None, "torch_compile": False, "pad_to_multiple_of": None}
    return SimpleNamespace(**settings | changes)


def choose(model, pad_id: int = 0, **changes: object) -> PaddingCollator | PrefixSharingCollator | SegmentCollator:
    settings = arguments(**changes)
    return build_collator(model, settings, pad_id=pad_id, plain_loss=has_plain_loss(model, settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [tiny_models.gpt2_config(), tiny_models.llama_config()], ids=["gpt2", "llama"])
def test_on_a_cpu_the_examples_of_a_batch_are_segments(config, dtype: torch.dtype) -> None:
    model = tiny_models.build_model(config).to(dtype)
    model.train()
    collator = choose(model, 7)
    assert isinstance(collator, SegmentCollator)
    assert collator.pad_id == 7
    assert model.training
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", [tiny_models.gpt2_config(), tiny_models.llama_config()], ids=["gpt2", "llama"])
def test_elsewhere_models_that_obey_a_mask_share(config, attention: str, dtype: torch.dtype) -> None:
    """Where PyTorch compiles attention with the rest, or the model brings its own."""
    model = tiny_models.build_model(config).to(dtype)
    model.set_attn_implementation(attention)
    model.train()
    collator = choose(model, 7, torch_compile=True)
    assert isinstance(collator, PrefixSharingCollator)
    assert (collator.pad_id, collator.weighted, collator.row_length) == (7, True, 256)
    assert collator.additive_mask == (attention == "eager")
    assert model.training


@pytest.mark.parametrize(
    ("config", "changes", "reason"),
    [
        (
            MambaConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, state_size=4),
            {},
            "it does not support a 4-D mask that separates the examples of a row",
        ),
        (
            # Its positions are biases that it derives from a 2-D mask.
            BloomConfig(vocab_size=500, hidden_size=32, n_layer=2, n_head=2),
            {},
            "it does not support a 4-D mask that separates the examples of a row",
        ),
        (
            MistralConfig(vocab_size=500, num_key_value_heads=2, intermediate_size=64, sliding_window=32, **SIZES),
            {},
            "its attention window of 32 tokens is shorter than `max_length` 64",
        ),
        (
            Gemma2Config(
                vocab_size=500, num_key_value_heads=2, intermediate_size=64, head_dim=16, sliding_window=512, **SIZES
            ),
            {},
            "its loss is more than the cross entropy of one matrix product",
        ),
        (
            tiny_models.gpt2_config(),
            {"label_smoothing_factor": 0.1},
            "its loss is more than the cross entropy of one matrix product",
        ),
        (
            tiny_models.gpt2_config(),
            {"neftune_noise_alpha": 5.0},
            "`neftune_noise_alpha` adds noise by the length of a row",
        ),
    ],
    ids=["state space", "alibi", "window", "soft cap", "smoothing", "noise"],
)
def test_others_are_padded_and_told_so(config, changes, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_models.build_model(config)
    with caplog.at_level(logging.INFO, logger="hf_instruct"):
        assert isinstance(choose(model, **changes), PaddingCollator)
    name = type(model).__name__
    messages = [record.message for record in caplog.records if record.name.startswith("hf_instruct")]
    assert messages[-1] == f"Training {name} on padded batches, several times slower: {reason}."


def test_a_mask_that_eager_attention_would_add_as_ones_is_noticed() -> None:
    """Booleans added to scores hide nothing: what the probe is for."""
    model = tiny_models.build_model(tiny_models.gpt2_config(), scale=4)
    model.set_attn_implementation("eager")
    assert not supports_prefix_sharing(model, PrefixSharingCollator(0))
    assert supports_prefix_sharing(model, PrefixSharingCollator(0, additive_mask=True))


def test_an_adapter_that_looks_for_a_token_gets_a_row_for_each_example() -> None:
    from hf_instruct.training.arguments import build_lora_config

    model = tiny_models.build_model(tiny_models.gpt2_config())
    lora = build_lora_config({"alora_invocation_tokens": [5, 6]}, model)
    assert isinstance(build_collator(model, arguments(), pad_id=0, plain_loss=True, lora=lora), PaddingCollator)


def test_a_window_as_long_as_the_rows_does_no_harm() -> None:
    config = MistralConfig(vocab_size=500, num_key_value_heads=2, intermediate_size=64, sliding_window=64, **SIZES)
    assert isinstance(choose(tiny_models.build_model(config)), SegmentCollator)


def test_attention_that_hears_of_no_segments_gets_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model whose layers hand no keywords on: all would see all."""
    from hf_instruct.training.fast import attention

    plain = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *given, segments=None, **settings: plain(*given, **settings))
    assert isinstance(choose(tiny_models.build_model(tiny_models.gpt2_config(), scale=4)), PrefixSharingCollator)


@pytest.mark.slow
def test_training_shares_by_default(tiny_gpt2: Path, tmp_path: Path) -> None:
    """The same losses and weights as on padded batches, and example tokens counted as if each had its own row."""
    from hf_instruct.records import read_rows
    from hf_instruct.schema import TrainingRow
    from hf_instruct.training.sft import train

    examples = tiny_models.tiny_examples(16)
    splits = {"train": examples[:12], "validation": examples[12:]}

    def run(name: str, *, padded: bool) -> tuple[list[TrainingRow], dict[str, torch.Tensor], int]:
        model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
        if padded:
            # Any loss but the plain one is TRL's, on padded batches; this much smoothing is none.
            settings = {"label_smoothing_factor": 1e-12}
        folder = tmp_path / name
        settings = {**tiny_models.TINY_SETTINGS, "optim": "sgd", **(settings if padded else {})}
        with pytest.warns(FutureWarning) if padded else nullcontext():
            summary = train(model, tokenizer, splits, output_dir=folder, args=settings)
        return read_rows(folder / "training.jsonl", TrainingRow), model.state_dict(), summary.tokens_seen

    shared, shared_weights, shared_tokens = run("shared", padded=False)
    padded, padded_weights, padded_tokens = run("padded", padded=True)
    assert shared_tokens == padded_tokens
    assert [row.kind for row in shared] == [row.kind for row in padded]
    for one, other in zip(shared, padded, strict=True):
        for name in ("loss", "train_loss", "validation_loss"):
            assert (getattr(one, name) or 0.0) == pytest.approx(getattr(other, name) or 0.0, rel=1e-5)
    for name, weight in padded_weights.items():
        torch.testing.assert_close(shared_weights[name], weight, rtol=1e-4, atol=1e-6)
