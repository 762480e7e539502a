"""The loss of the reference answers under a model."""

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hf_instruct.generation.decoding import generating, without_adapter
from hf_instruct.models import context_length
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Nats: what float32 is good for in a sum of some hundreds.
_DECIMALS = 4


class ReferenceLoss(NamedTuple):
    """The loss of one reference; `nll / tokens` is the loss that training reports for this example alone."""

    nll: float  # sum over its tokens, in nats
    tokens: int  # the one that ends it included


def measure_references(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    prompt_format: PromptFormat,
) -> list[ReferenceLoss | None]:
    """Return the loss of each example's output as the completion of its prompt, in the order of the examples.

    Each is computed on its own, so that it never depends on the other examples. Nothing is truncated: where
    prompt and completion do not fit the model's context, or the loss is not a finite number, the example has None.
    """
    with generating(model):
        return [_measure(model, *prompt_format.encode_example(tokenizer, example)) for example in examples]


def _measure(model: "PreTrainedModel", prompt: list[int], completion: list[int]) -> ReferenceLoss | None:
    import torch
    from torch.nn.functional import cross_entropy

    ids = torch.tensor([prompt + completion], device=model.device)  # [1, tokens]
    # The token before a completion predicts its first; without a prompt, nothing predicts that.
    labels = ids[0, max(len(prompt), 1) :]
    if ids.shape[1] > (context_length(model) or math.inf) or not len(labels):
        return None
    can_keep = "logits_to_keep" in inspect.signature(without_adapter(model).forward).parameters
    keep = {"logits_to_keep": len(labels) + 1} if can_keep else {}
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **keep).logits
        nll = float(cross_entropy(logits[0, -len(labels) - 1 : -1].float(), labels, reduction="sum"))
    return ReferenceLoss(round(nll, _DECIMALS), len(labels)) if math.isfinite(nll) else None
