"""The loss of a causal language model, computed only at label positions, in one pass over the vocabulary."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_instruct.generation.decoding import generating
from hf_instruct.models import matching_precision
from hf_instruct.prompt_tokens import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Label positions are padded to a multiple of this, because a CPU builds a kernel for each new number of them, which
# takes a quarter of a second for a head of 50,000 rows.
_POSITIONS_MULTIPLE = 32
# Rows of logits that are converted to fp32 together on a CPU, so that they fit into its cache.
_CPU_CHUNK = 16
# On other devices large chunks are faster: maximum number of fp32 values in a chunk, 256 MB.
_CHUNK_ELEMENTS = 2**26


class _LabelLosses(torch.autograd.Function):
    """Cross entropy of `hidden @ weight.T`, without storing all logits in fp32.

    Once their loss is computed, the logits are overwritten with their gradient, in the training precision. Neither the
    logits nor their log-softmax are stored or computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the losses in nats, [positions], for hidden [positions, width], weight [vocabulary, width]."""
        logits = torch.mm(hidden, weight.t())  # [positions, vocabulary]
        losses = torch.empty(len(hidden), device=hidden.device)
        is_training = any(ctx.needs_input_grad)
        size = _CPU_CHUNK if hidden.device.type == "cpu" else max(_CHUNK_ELEMENTS // len(weight), 1)
        for start in range(0, len(hidden), size):
            chunk, target = logits[start : start + size], targets[start : start + size, None]
            # In fp32, as in every trainer, because bf16 would round the sum over the vocabulary.
            scores = torch.log_softmax(chunk.float(), dim=-1)  # [chunk, vocabulary]
            losses[start : start + size] = -scores.gather(1, target)[:, 0]
            if is_training:
                chunk.copy_(scores.exp_().scatter_add_(1, target, scores.new_full(target.shape, -1.0)))
        if is_training:
            ctx.save_for_backward(hidden, weight, logits)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of hidden and weight, if needed."""
        hidden, weight, logits_gradient = ctx.saved_tensors
        scale = gradients[0][:, None]  # [positions, 1]
        for_hidden = for_weight = None
        if ctx.needs_input_grad[0]:
            for_hidden = torch.mm(logits_gradient, weight) * scale.to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            for_weight = torch.mm(logits_gradient.t(), hidden * scale.to(hidden.dtype))
        return for_hidden, for_weight, None


def find_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row, and the column minus one, of each label in [rows, seq], in order, [labels] each.

    On a GPU this synchronizes, so it should be called before the forward pass.
    """
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows, columns


def label_losses(hidden: Tensor, labels: Tensor, head: nn.Module, *, where: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss at each label, in nats, [labels], in the order of the labels.

    Args:
        hidden: The model's last hidden states, [rows, seq, width].
        labels: Token ids, `IGNORED` if there is no loss, [rows, seq]; each is predicted by the position before it.
        head: The output layer, from width to vocabulary.
        where: The result of `find_labels` for the labels.
    """
    rows, columns = where
    count = len(rows)
    if not count:
        return hidden.sum(dim=(1, 2))[:0].float()
    padding = (0, -count % _POSITIONS_MULTIPLE)
    positions = functional.pad(rows * labels.shape[1] + columns, padding)  # [positions]
    states = hidden.flatten(0, 1).index_select(0, positions)  # [positions, width]
    targets = functional.pad(labels[rows, columns + 1], padding)
    device = hidden.device.type
    # The precision of matrix products.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if type(head) is nn.Linear and head.bias is None and dtype != torch.float16:
        losses: Tensor = _LabelLosses.apply(states.to(dtype), head.weight.to(dtype), targets)
    else:
        # In fp16, small gradients would be lost before the scaler can scale them.
        losses = functional.cross_entropy(head(states).float(), targets, reduction="none")
    return losses[:count]


def has_plain_head(model: "PreTrainedModel") -> bool:
    """Return whether a model's logits are only its output layer applied to its last hidden state.

    This is tested by running the model, because each model family has different names for soft caps, scales and layers
    in between. Models with routers are excluded, because their loss is added to that of the logits.
    """
    head = model.get_output_embeddings()
    if head is None or model.base_model is model or hasattr(model.config.get_text_config(), "output_router_logits"):
        return False
    ids = {"input_ids": torch.arange(8, device=model.device)[None], "use_cache": False}
    with generating(model), torch.no_grad(), matching_precision(model):
        hidden = model.base_model(**ids).last_hidden_state
        return torch.equal(head(hidden).float(), model(**ids).logits.float())


def uses_all_weights(model: "PreTrainedModel") -> bool:
    """Return whether every weight contributes to every loss; with experts or an image encoder, some may not."""
    return not model.config.sub_configs and not any("expert" in name for name, _ in model.named_modules())


def add_label_losses(model: "PreTrainedModel") -> None:
    """Add the keyword `loss_labels` to a causal language model's forward method, which then returns the loss at each.

    As a keyword of `forward` instead of a separate function, it works with the wrappers of DDP, FSDP and PEFT. Without
    the keyword the forward pass is unchanged.
    """
    original = model.forward

    # `generate` checks its arguments against the signature of the class, which must stay visible.
    @functools.wraps(type(model).forward)
    def forward(*arguments: Any, loss_labels: Tensor | None = None, **keywords: Any) -> Any:
        if loss_labels is None:
            return original(*arguments, **keywords)
        where = find_labels(loss_labels)
        hidden = model.base_model(*arguments, **keywords).last_hidden_state  # [rows, seq, width]
        return label_losses(hidden, loss_labels, model.get_output_embeddings(), where=where)

    model.forward = forward
