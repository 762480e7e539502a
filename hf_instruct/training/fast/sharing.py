"""Choose the batches of a run: rows with a shared prefix if the model computes them exactly, otherwise padded ones."""

import contextlib
import logging
from typing import TYPE_CHECKING

import torch

from hf_instruct.generation.decoding import generating
from hf_instruct.memory import is_out_of_memory
from hf_instruct.models import matching_precision
from hf_instruct.processes import on_main_process
from hf_instruct.prompt_tokens import IGNORED
from hf_instruct.quantization import computes_in_float32
from hf_instruct.training.fast.attention import segment_attention
from hf_instruct.training.fast.collators import TRAINER_KEYS, PaddingCollator, PrefixSharingCollator, SegmentCollator
from hf_instruct.training.fast.loss import has_plain_head

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel
    from trl import DPOConfig, SFTConfig

logger = logging.getLogger(__name__)

# Maximum number of tokens in a row with a mask. Longer rows repeat the prefix less often, but attention is quadratic in
# their length. Measured on a CPU (docs/performance.md); on other devices attention is cheap up to about 1,000 tokens.
_ROW_LENGTHS = {"cpu": 256}
_ROW_LENGTH = 1024


def has_plain_loss(model: "PreTrainedModel", arguments: "SFTConfig") -> bool:
    """Return whether the loss of a run is the cross entropy of a model's plain head, as in `add_label_losses`."""
    # The main process decides for all, because the others may not have their weights yet.
    is_plain = arguments.loss_type == "nll" and not arguments.label_smoothing_factor
    return is_plain and on_main_process(lambda: has_plain_head(model))


def build_collator(
    model: "PreTrainedModel",
    arguments: "SFTConfig",
    *,
    pad_id: int,
    plain_loss: bool,
    lora: "PeftConfig | None" = None,
) -> PaddingCollator | PrefixSharingCollator | SegmentCollator:
    """Return the collator for training a model: one that shares prefixes if the model computes them exactly.

    On a CPU a batch is one row of segments; on other devices, and under eager attention, it is a few rows with a mask.
    Models that need TRL's own loss, ignore a 4-D mask, or have a window shorter than the rows get padded batches, and
    the reason is logged.

    Args:
        plain_loss: The result of `has_plain_loss`.
        lora: The model's adapter.
    """
    reason = find_reason_to_pad(model, arguments, plain_loss=plain_loss, lora=lora)
    if not reason and (segments := build_segments(model, arguments, pad_id=pad_id)):
        return segments
    sharing = PrefixSharingCollator(
        pad_id,
        row_length=_ROW_LENGTHS.get(arguments.device.type, _ROW_LENGTH),
        additive_mask=model.config._attn_implementation == "eager",
        weighted=True,
    )
    if not reason and not on_main_process(lambda: supports_prefix_sharing(model, sharing)):
        reason = "it does not support a 4-D mask that separates the examples of a row"
    if reason:
        logger.info("Training %s on padded batches, several times slower: %s.", type(model).__name__, reason)
        return PaddingCollator(pad_id, arguments.pad_to_multiple_of)
    return sharing


def find_reason_to_pad(
    model: "PreTrainedModel", arguments: "SFTConfig | DPOConfig", *, plain_loss: bool, lora: "PeftConfig | None" = None
) -> str:
    """Return why the examples of this model cannot share a row, as the end of a sentence; empty if they can."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if not plain_loss:
        return "its loss is more than the cross entropy of one matrix product"
    if window and (arguments.max_length is None or arguments.max_length > window):
        return f"its attention window of {window} tokens is shorter than `max_length` {arguments.max_length}"
    if arguments.neftune_noise_alpha:
        return "`neftune_noise_alpha` adds noise by the length of a row"
    if getattr(lora, "alora_invocation_tokens", None):
        return "`alora_invocation_tokens` are searched once per row"
    return ""


def build_segments(
    model: "PreTrainedModel", arguments: "SFTConfig | DPOConfig", *, pad_id: int
) -> SegmentCollator | None:
    """Return the collator for batches of one row of segments, or None if not supported (only on a CPU under SDPA)."""
    is_cpu = arguments.device.type == "cpu" and model.config._attn_implementation == "sdpa"
    # A compiled step would be recompiled for each number of blocks.
    if not is_cpu or arguments.torch_compile:
        return None
    segments = SegmentCollator(pad_id)
    return segments if on_main_process(lambda: supports_prefix_sharing(model, segments)) else None


def supports_prefix_sharing(model: "PreTrainedModel", collator: PrefixSharingCollator | SegmentCollator) -> bool:
    """Return whether a model gives the same result for two examples in a shared row as in padded rows.

    State-space layers, ALiBi and some attention kernels ignore a 4-D mask, so examples in a row would attend to each
    other.
    """
    size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (40,), generator=generator).tolist()
    # A common prefix of 8 tokens, followed by 12 and 20 others, in the order of the collator.
    examples = sorted([ids[:8] + ids[8:20], ids[:8] + ids[20:40]])
    rows = [{"input_ids": example, "labels": [IGNORED] * 12 + example[12:]} for example in examples]
    attention = segment_attention(model) if isinstance(collator, SegmentCollator) else contextlib.nullcontext()
    try:
        with attention, generating(model), torch.no_grad(), matching_precision(model):
            shared, padded = (
                model.base_model(
                    **{
                        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                        for name, value in collate(rows).items()
                        if name not in TRAINER_KEYS
                    },
                    use_cache=False,
                ).last_hidden_state.float()
                for collate in (collator, PaddingCollator(0))
            )
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        # The model does not support masks of this shape, or positions that restart.
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        logger.info("%s does not support shared rows: %s", type(model).__name__, error)
        return False
    first, second = len(examples[0]), len(examples[1])
    expected = torch.cat([padded[0, :first], padded[1, 8:second]])  # [tokens, width]
    difference = (shared[0, : len(expected)] - expected).norm() / expected.norm()
    logger.debug("Shared rows differ by %.1e", difference)
    # Rounding errors are far below these limits, and errors from attention to another example are far above.
    return bool(difference < (1e-3 if computes_in_float32(model) else 5e-2))
