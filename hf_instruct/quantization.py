"""Quantization of linear layers to 4 or 8 bits with bitsandbytes, to train adapters on (QLoRA).

The package is optional and imported by Transformers.
"""

import importlib.util
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ModelLoadError, needs_package

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

_KINDS = ("4bit", "8bit")


def build_quantization(kind: str, dtype: "torch.dtype") -> "BitsAndBytesConfig":
    """Return the quantization config: NF4 with double quantization for 4 bits, as in QLoRA; LLM.int8() for 8 bits.

    Args:
        kind: `4bit` or `8bit`.
        dtype: Precision of the matrix products; for 8 bits, bitsandbytes chooses it.

    Raises:
        ModelLoadError: bitsandbytes is not installed, or there is no such kind.
    """
    from transformers import BitsAndBytesConfig

    if kind not in _KINDS:
        raise ModelLoadError(f"`quantization` is {kind!r}; allowed are `4bit`, `8bit` and, for an adapter, `none`.")
    check_bitsandbytes()
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_bitsandbytes() -> None:
    """Raise `ModelLoadError` if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(needs_package("A quantized model", "bitsandbytes"))


def is_quantized(model: "nn.Module") -> bool:
    """Return whether a model, or the base model of an adapter, is quantized, with any library."""
    return bool(getattr(model, "is_quantized", False))


def prepare_training(model: "PreTrainedModel") -> None:
    """Freeze a quantized model and cast its other weights to float32, as in QLoRA; in place."""
    from peft import prepare_model_for_kbit_training

    # The trainer decides whether activations are checkpointed.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def restore_float32(adapter: "nn.Module") -> None:
    """Cast the trained weights of a quantized model back to float32, in place.

    TRL casts them to bf16, in which small updates get lost.
    """
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def multiplying_in_bf16(model: "nn.Module", *, enabled: bool) -> "Iterator[None]":
    """Let 4-bit layers compute in bf16, as in QLoRA, because autocast does not affect them."""
    import torch

    layers: list[Any] = [module for module in model.modules() if hasattr(module, "compute_dtype")] if enabled else []
    before = [layer.compute_dtype for layer in layers]
    for layer in layers:
        layer.compute_dtype = torch.bfloat16
    try:
        yield
    finally:
        for layer, dtype in zip(layers, before, strict=True):
            layer.compute_dtype = dtype


def keep_as_quantized(model: "nn.Module") -> None:
    """Keep bitsandbytes from repacking 4-bit weights when a model is evaluated on a CPU with bf16.

    Repacking permanently rounds their scales to bf16, so that answers depend on the batch. Packed weights also pass on
    no gradients: an adapter trained after the first evaluation would only learn in its last layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def computes_in_float32(model: "nn.Module") -> bool:
    """Return whether a model only computes in float32, regardless of how its weights are stored."""
    import torch

    # LLM.int8() also rounds the input of a layer.
    weights = all(parameter.dtype in (torch.float32, torch.uint8) for parameter in model.parameters())
    products = [module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")]
    return weights and all(dtype == torch.float32 for dtype in products)
