"""Contrastive search, which Transformers 5 no longer has: as a method that `generate()` takes by `custom_generate`.

Source: Su et al., "A Contrastive Framework for Neural Text Generation", https://arxiv.org/abs/2202.06417, equation 5

Imports torch and Transformers; imported where it is used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize
from transformers import DynamicCache

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

# What `generate()` hands over: of the sequences so far and their logits, the logits to choose by; and whether to stop.
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Criteria = Callable[[torch.Tensor, Any], torch.Tensor]


def search_contrastively(
    model: "PreTrainedModel",
    input_ids: torch.Tensor,
    logits_processor: Processor,
    stopping_criteria: Criteria,
    generation_config: "GenerationConfig",
    **inputs: Any,
) -> torch.Tensor:
    """Return one prompt with its continuation, `[1, tokens]`.

    Of the `top_k` likeliest tokens, that one is taken whose probability, less its likeness to what stands there (the
    largest cosine of its hidden state with those before), is largest; `penalty_alpha` weighs the two. The candidates of
    a step are one batch.

    Args:
        input_ids: The prompt, `[1, tokens]`, without padding.
        **inputs: What else `generate()` would give the model; not needed for a prompt alone.

    Raises:
        ValueError: There are several prompts, or the model keeps no keys and values of each token.
    """
    if len(input_ids) != 1 or model.config.is_encoder_decoder or model._is_stateful:
        raise ValueError("Contrastive search (`penalty_alpha`) takes one prompt, and a decoder that caches each token.")
    alpha, top_k = float(generation_config.penalty_alpha), int(generation_config.top_k or 1)
    ids, cache = input_ids, DynamicCache(config=model.config)
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, output_hidden_states=True)
    context = normalize(output.hidden_states[-1][0].float(), dim=-1)  # [tokens, width]
    logits = output.logits[:, -1].float()  # [1, vocabulary]
    while True:
        probabilities, candidates = logits_processor(ids, logits).softmax(-1)[0].topk(min(top_k, logits.shape[-1]))
        cache.batch_repeat_interleave(len(candidates))
        output = model(input_ids=candidates[:, None], past_key_values=cache, use_cache=True, output_hidden_states=True)
        states = normalize(output.hidden_states[-1][:, -1].float(), dim=-1)  # [candidates, width]
        likeness = (states @ context.T).max(-1).values
        best = ((1 - alpha) * probabilities - alpha * likeness).argmax()
        cache.batch_select_indices(best[None])
        context, logits = torch.cat([context, states[best][None]]), output.logits[best, -1:].float()
        ids = torch.cat([ids, candidates[best][None, None]], dim=-1)
        if bool(stopping_criteria(ids, None).all()):
            return ids
