"""Linear layers that cast their weights to bf16 on use, so that no second copy of the model is stored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_instruct.memory import drop_pages

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _CastLinear(torch.autograd.Function):
    """A linear layer under autocast that casts the weight again in the backward pass instead of keeping the copy."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `inputs @ weight + bias` in bf16, [tokens, out], for inputs [tokens, in] and weight [in, out]."""
        half = inputs.to(torch.bfloat16)
        ctx.save_for_backward(half, weight)
        ctx.input_dtype = inputs.dtype
        product = weight.to(torch.bfloat16)
        return torch.mm(half, product) if bias is None else torch.addmm(bias.to(torch.bfloat16), half, product)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the gradients of inputs, weight and bias."""
        half, weight = ctx.saved_tensors
        gradient = gradients[0]  # [tokens, out]
        for_inputs = torch.mm(gradient, weight.to(torch.bfloat16).t()).to(ctx.input_dtype)
        for_bias = gradient.sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return for_inputs, torch.mm(half.t(), gradient).to(weight.dtype), for_bias


@contextmanager
def casting_linear_layers(model: "PreTrainedModel", *, enabled: bool) -> Iterator[None]:
    """Make a model's fp32 linear layers, except the output head, cast their weights at each use under autocast.

    Autocast keeps a bf16 copy of every weight from the forward to the backward pass: 0.6 GB for GPT-2 medium. The
    results are the same, and the second cast takes as long as reading the copy from memory.
    """
    head = model.get_output_embeddings()
    # Without subclasses, which may compute something else.
    layers = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D) and module is not head]
    for layer in layers if enabled else ():
        layer.forward = _build_forward(layer)
    try:
        yield
    finally:
        for layer in layers if enabled else ():
            layer.__dict__.pop("forward", None)


def _build_forward(layer: nn.Module) -> Any:
    original = layer.forward
    is_transposed = isinstance(layer, nn.Linear)

    def forward(inputs: Tensor) -> Tensor:
        # In generation, autocast's own copies are reused from token to token.
        if not torch.is_autocast_enabled(inputs.device.type) or torch.is_inference_mode_enabled():
            return original(inputs)  # type: ignore[no-any-return]
        weight: Any = layer.weight
        bias: Any = layer.bias
        apply: Any = _CastLinear.apply
        product: Tensor = apply(inputs.flatten(0, -2), weight.t() if is_transposed else weight, bias)
        return product.view(*inputs.shape[:-1], product.shape[-1])

    return forward


def halve_linear_weights(model: "PreTrainedModel") -> None:
    """Convert the weights of all linear layers except the output head to bf16, in place, which halves their memory.

    For models with frozen weights (not biases) under bf16 autocast, which casts these weights to bf16 anyway and would
    keep both. The results do not change. Afterwards the model only works under autocast, and the contents of the
    original tensors are lost, also for other references to them.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        is_linear = isinstance(module, nn.Linear | Conv1D) and module is not head
        for name, parameter in module.named_parameters(recurse=False):
            is_halved = is_linear and name == "weight"
            original = parameter.data
            if original.dtype != torch.float32:
                # Quantized, or halved already because two layers share it.
                continue
            # All other tensors are copied, because the weights file stays mapped as long as any tensor uses it.
            parameter.data = original.to(torch.bfloat16) if is_halved else original.clone()
            if is_halved:
                drop_pages(original)
