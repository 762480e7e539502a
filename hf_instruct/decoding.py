"""Turn a batch of prompts into responses: shared by the answer stage and by the samples shown while training."""

import dataclasses
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model generated for one prompt.

    Attributes:
        text: The response: no prompt, no special tokens, no white space around it.
        stopped: Whether the model ended it itself, rather than running into `max_new_tokens`.
        num_tokens: Generated tokens, the one that ends the response included.
    """

    text: str
    stopped: bool
    num_tokens: int


def generate_completions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_new_tokens: int,
    **generation: Any,
) -> list[Completion]:
    """Return one completion for each prompt, generated as one batch.

    Greedy search goes through the loop of `decoding_loop` where that knows the model, all else through `generate()`.
    Positions are counted from each prompt's first token, so in float32 a greedy answer is the same at every batch
    size (GPT-2's positions are absolute: counted from the padding, a shorter prompt would read other embeddings).

    Args:
        prompts: Token ids of each prompt, not empty.
        end_id: The token that ends a response; the tokenizer's end-of-text, the model's own ends and those given as
            `eos_token_id` end it too.
        max_new_tokens: Longest response, in tokens.
        **generation: Any field of `GenerationConfig`.
    """
    import torch

    from hf_instruct.decoding_loop import decode_greedily, decodes_greedily

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_id
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    asked = generation.pop("eos_token_id", None)
    ends = {end_id, tokenizer.eos_token_id, *_as_list(own), *_as_list(asked)} - {None}
    generation = {"do_sample": False, "num_beams": 1, **generation}
    with _generating(model), torch.inference_mode():
        if decodes_greedily(model, generation):
            rows = decode_greedily(model, prompts, ends=ends, max_new_tokens=max_new_tokens, pad_id=pad_id)
        else:
            settings = {"pad_token_id": pad_id, "eos_token_id": sorted(ends), "max_new_tokens": max_new_tokens}
            rows = _generate(model, prompts, {**settings, **generation})
    return [_read_completion(tokenizer, row, ends) for row in rows]


def _generate(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> list[list[int]]:
    """Return the new tokens of each prompt by the model's own `generate()`, as one left-padded batch."""
    import torch

    width, pad_id = max(len(prompt) for prompt in prompts), settings["pad_token_id"]
    rows = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    attention_mask = torch.tensor(masks, device=model.device)  # [batch, width]
    sequences = model.generate(  # type: ignore[operator]  # seen as a buffer
        # [batch, width + new]
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        **settings,
    )
    new: list[list[int]] = sequences[:, width:].tolist()
    return new


def _as_list(ids: int | list[int] | None) -> list[int | None]:
    return list(ids) if isinstance(ids, list) else [ids]


def _read_completion(tokenizer: "PreTrainedTokenizerBase", ids: list[int], ends: set[int]) -> Completion:
    # Rows that finish early are filled with the pad token, which may be an end token too: the first one counts.
    stop = next((index for index, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[:stop]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(str(text).strip(), stopped=stop is not None, num_tokens=len(ids) if stop is None else stop + 1)


@contextmanager
def _generating(model: "nn.Module") -> "Iterator[None]":
    """Put the model into evaluation mode, and back into what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
