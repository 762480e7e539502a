"""How likely a model finds the reference answers: their loss as completions, which answers cannot be read off."""

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hf_instruct.generation.decoding import generating
from hf_instruct.models import context_length
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Logits of one batch, in bytes: a vocabulary of 50,000 takes as much for 1,300 tokens in fp32.
_LOGITS_BYTES = 256 * 2**20
_MOST_ROWS = 64
# Nats: what float32 is good for in a sum of some hundreds.
_DECIMALS = 4


class ReferenceLoss(NamedTuple):
    """The loss of one reference.

    Attributes:
        nll: Sum over its tokens, the one that ends it included, in nats; `nll / tokens` is the loss that training
            reports for this example alone.
        tokens: How many.
    """

    nll: float
    tokens: int


def measure_references(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    prompt_format: PromptFormat,
    batch_size: int | None = None,
) -> list[ReferenceLoss | None]:
    """Return the loss of each example's output as the completion of its prompt, in the order of the examples.

    Nothing is cut: where prompt and completion do not fit the model's context, or the loss is not a finite number, the
    example has None.

    Args:
        model: A causal language model, in the precision to compute in; logits become float32.
        batch_size: Most rows at once. By default one on a CPU, where a batch gains nothing and a row that is alone has
            the same loss to the last digit whatever else is answered; elsewhere, as many as are about equal in length
            and small enough.
    """
    limit = context_length(model) or math.inf
    rows = [prompt_format.encode_example(tokenizer, example) for example in examples]
    most = batch_size or (1 if model.device.type == "cpu" else _MOST_ROWS)
    losses: list[ReferenceLoss | None] = [None] * len(rows)
    fitting = [index for index, (prompt, completion) in enumerate(rows) if len(prompt) + len(completion) <= limit]
    # Longest first, as prompts are answered: what does not fit the memory shows at once.
    fitting.sort(key=lambda index: sum(map(len, rows[index])), reverse=True)
    while fitting:
        indices = fitting[: _count_rows(model, [rows[index] for index in fitting[:most]])]
        fitting = fitting[len(indices) :]
        for index, loss in zip(indices, _measure_batch(model, [rows[index] for index in indices]), strict=True):
            losses[index] = loss
    return losses


def _count_rows(model: "PreTrainedModel", rows: Sequence[tuple[list[int], list[int]]]) -> int:
    """Return how many of these rows, the longest first, have logits that stay small; at least one."""
    width = sum(map(len, rows[0]))
    size = model.config.get_text_config().vocab_size * model.dtype.itemsize
    shortest = math.inf
    for count, (prompt, _) in enumerate(rows, start=1):
        shortest = min(shortest, len(prompt))
        if count * (width - shortest + 1) * size > _LOGITS_BYTES:
            return max(1, count - 1)
    return len(rows)


def _measure_batch(model: "PreTrainedModel", rows: Sequence[tuple[list[int], list[int]]]) -> list[ReferenceLoss | None]:
    """Return the losses of rows computed at once, padded on the right: so positions, counted from 0, are right."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    # The token before a completion predicts its first; without a prompt, nothing predicts that.
    starts = [max(len(prompt), 1) for prompt, _ in rows]
    kept = width - min(starts) + 1
    padded = [prompt + completion + [0] * (width - len(prompt) - len(completion)) for prompt, completion in rows]
    masks = [[1] * (len(p) + len(c)) + [0] * (width - len(p) - len(c)) for p, c in rows]
    ids = torch.tensor(padded, device=model.device)  # [rows, width]
    losses = []
    with generating(model), torch.inference_mode():
        logits = _last_logits(model, ids, torch.tensor(masks, device=model.device), kept)
        for row, (start, (prompt, completion)) in enumerate(zip(starts, rows, strict=True)):
            end = len(prompt) + len(completion)
            scores = logits[row, start - 1 - (width - kept) : end - 1 - (width - kept)].float()
            nll = float(cross_entropy(scores, ids[row, start:end], reduction="sum"))
            is_known = math.isfinite(nll) and end > start
            losses.append(ReferenceLoss(round(nll, _DECIMALS), end - start) if is_known else None)
    return losses


def _last_logits(model: "PreTrainedModel", ids: "Tensor", mask: "Tensor", kept: int) -> "Tensor":
    """Return the logits at the last `kept` positions, [rows, kept, vocabulary]."""
    find = getattr(model, "get_base_model", None)
    inner = model if find is None else find()
    can_keep = "logits_to_keep" in inspect.signature(inner.forward).parameters
    keep = {"logits_to_keep": kept} if can_keep else {}
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
    return logits[:, -kept:]
