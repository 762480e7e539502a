"""Decode a batch of prompts into responses, for the answer stage and the samples during training."""

import dataclasses
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_instruct.models import list_ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Completion:
    """The completion of one prompt.

    Attributes:
        text: The response, without prompt, special tokens and surrounding white space.
        stopped: Whether the model ended it, instead of reaching `max_new_tokens`.
        num_tokens: Number of generated tokens, including the end token.
        token_ids: These tokens.
    """

    text: str
    stopped: bool
    num_tokens: int
    token_ids: tuple[int, ...] = dataclasses.field(default=(), compare=False, repr=False)


def generate_completions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_new_tokens: int,
    seeds: Sequence[int] | None = None,
    **generation: Any,
) -> list[Completion]:
    """Return the completions of each prompt, generated as one batch: one each, or `num_return_sequences`, in order.

    Greedy search, and sampling with only a temperature, use the loop of `decoding_loop` if it supports the model;
    everything else uses `generate()`.
    Positions are counted from each prompt's first token, so in float32 a greedy answer is the same for every batch
    size (GPT-2's positions are absolute: counted from the padding, a shorter prompt would get other embeddings).
    Settings that may read the padding, such as `no_repeat_ngram_size`, use batches without padding.

    Args:
        prompts: Token ids of each prompt, not empty.
        end_id: The token that ends a response, in addition to the tokenizer's end-of-text, the model's end tokens and
            `eos_token_id`.
        max_new_tokens: Maximum length of a response, in tokens.
        seeds: Seeds for sampling, one per prompt: the samples for a prompt then only depend on its seed, not on the
            rest of the batch. Without them, PyTorch's global generator is used.
        **generation: Any field of `GenerationConfig`.
    """
    import torch

    from hf_instruct.generation.decoding_loop import decode, decodes_greedily, find_temperature

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_id
    eos = generation.pop("eos_token_id", None)
    ends = find_ends(model, tokenizer, end_id) | ({eos} if isinstance(eos, int) else set(eos or ()))
    generation = {"do_sample": False, "num_beams": 1, **generation}
    with generating(model), torch.inference_mode():
        if decodes_greedily(model, generation):
            rows = decode(model, prompts, ends=ends, max_new_tokens=max_new_tokens, pad_id=pad_id)
        elif temperature := find_temperature(model, generation):
            numbers = range(generation.get("num_return_sequences") or 1)
            rows = decode(
                model,
                [prompt for prompt in prompts for _ in numbers],
                ends=ends,
                max_new_tokens=max_new_tokens,
                pad_id=pad_id,
                temperature=temperature,
                seeds=seeds and [_mix(seed, number) for seed in seeds for number in numbers],
            )
        else:
            settings = {"pad_token_id": pad_id, "eos_token_id": sorted(ends), "max_new_tokens": max_new_tokens}
            settings |= generation
            rows = _generate_apart(model, prompts, settings, seeds)
    return [_read_completion(tokenizer, row, ends) for row in rows]


def find_ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", end_id: int | None = None) -> set[int]:
    """Return the ids that end a response: `end_id`, the tokenizer's end-of-text and the model's end tokens."""
    return set(list_ends(model.generation_config, tokenizer, end_id))


def _generate_apart(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], settings: dict[str, Any], seeds: Sequence[int] | None
) -> list[list[int]]:
    """Return the new tokens of each prompt, generated so that they do not depend on the other prompts.

    Generates one batch, or if a setting may read the padding, one without padding for each length of prompts.
    """
    from hf_instruct.generation.decoding_loop import reads_padding

    by_length = reads_padding(model, settings)
    batches: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        batches.setdefault(len(prompt) if by_length else 0, []).append(index)
    rows: dict[int, list[list[int]]] = {}
    for indices in batches.values():
        with _seeded_draws(seeds and [seeds[index] for index in indices]):
            new = _generate(model, [prompts[index] for index in indices], settings)
        each = len(new) // len(indices)
        rows |= {index: new[each * position :][:each] for position, index in enumerate(indices)}
    return [row for index in range(len(prompts)) for row in rows[index]]


def _generate(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> list[list[int]]:
    """Return the new tokens of each prompt from the model's `generate()`, as one left-padded batch."""
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


@contextmanager
def _seeded_draws(seeds: Sequence[int] | None) -> "Iterator[None]":
    """Sample each prompt's tokens with a separate generator; `generate()` uses one for the whole batch."""
    if seeds is None:
        yield
        return
    import torch
    from torch.overrides import TorchFunctionMode

    generators: dict[int, torch.Generator] = {}

    class Draws(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not torch.multinomial:
                return func(*args, **(kwargs or {}))
            return draw(*args, **(kwargs or {}))

    def draw(probabilities: torch.Tensor, num_samples: int, **options: Any) -> torch.Tensor:
        rows = []  # [batch, vocabulary], or more rows if each prompt gets several responses
        for index, row in enumerate(probabilities):
            if index not in generators:
                prompt, number = divmod(index, max(1, len(probabilities) // len(seeds)))
                generators[index] = torch.Generator(row.device).manual_seed(_mix(seeds[prompt], number))
            rows.append(torch.multinomial(row, num_samples, **{**options, "generator": generators[index]}))
        return torch.stack(rows)

    with Draws():
        yield


def _mix(seed: int, number: int) -> int:
    """Return the seed of a prompt's response with this number, from 0; the first one has the seed of the prompt."""
    return (seed + number * 0x9E3779B97F4A7C15) % 2**63


def _read_completion(tokenizer: "PreTrainedTokenizerBase", ids: list[int], ends: set[int]) -> Completion:
    # Rows that finish early are filled with the pad token, which may also be an end token, so the first end counts.
    kept = until_end(ids, ends)
    stopped = kept[-1] in ends
    text = decode_tokens(tokenizer, kept[:-1] if stopped else kept).strip()
    return Completion(text, stopped=stopped, num_tokens=len(kept), token_ids=tuple(kept))


def until_end(row: list[int], ends: set[int]) -> list[int]:
    """Return tokens up to and including the first end token."""
    return row[: next((index for index, token in enumerate(row) if token in ends), len(row)) + 1]


def decode_tokens(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of tokens, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def generating(model: "nn.Module") -> "Iterator[None]":
    """Put the model into evaluation mode, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def without_adapter(model: "PreTrainedModel") -> "PreTrainedModel":
    """Return the model, without its adapter if it has one."""
    find = getattr(model, "get_base_model", None)
    inner: PreTrainedModel = model if find is None else find()
    return inner
