"""The decoding loop, greedy or sampling: the same answers as `generate()`, several times faster.

The prompts' shared prefix is computed once, finished rows leave the batch, the cache grows in blocks instead of being
copied at every step, and on a CPU attention for one new token is a plain matrix product. Models and settings that this
loop does not support use `generate()`: see `decodes_greedily`.

Imports torch and Transformers; imported where it is used.
"""

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_instruct.generation.decoding import until_end, without_adapter
from hf_instruct.models import attending_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens by which the cache grows: it is copied once a block, and attention reads half a block of zeros on average.
_BLOCK = 32
# The batch is compacted once at least this share of its rows has ended. Each new batch size costs the cache's copy, and
# on a CPU a new kernel for every shape of matrix product: together about what two steps cost.
_ENDED_SHARE = 0.25
_CPU_ATTENTION = "hf_instruct_decoding"
# Fields of `GenerationConfig` that do not change what greedy search chooses, whatever their value.
_WITHOUT_EFFECT = {
    *("max_length", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id"),
    # Of sampling and of beam search.
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("length_penalty", "early_stopping"),
    *("transformers_version", "_from_model_config"),
}
# Further fields to which padding before a prompt is nothing: they read logits alone, count from the first new token, or
# leave padding out (`repetition_penalty`, since Transformers 5). All others may read the ids, padding included.
_BLIND_TO_PADDING = {
    *("do_sample", "num_beams", "num_return_sequences", "low_memory", "use_cache", "cache_implementation"),
    *("repetition_penalty", "min_new_tokens", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("remove_invalid_values", "renormalize_logits"),
}
# Of those, what changes the probabilities that sampling draws from, and the value at which, as at None, it does not.
_WARPERS = {
    **dict.fromkeys(("top_k", "min_p", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("top_p", "typical_p"), 1),
    "top_h": None,
}
# This loop replaces these; a model that overrides one may prepare its inputs in another way.
_STANDARD_METHODS = ("generate", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
_NEEDED_ARGUMENTS = {"input_ids", "attention_mask", "position_ids", "logits_to_keep"}
# What a model calls the argument that takes the cache: since Transformers 5.24, and before.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


def decodes_greedily(model: "PreTrainedModel", generation: Mapping[str, Any]) -> bool:
    """Return whether `decode` computes what `model.generate` would with these settings: those of greedy search.

    Args:
        generation: Fields of `GenerationConfig`; the model's own `generation_config` has to be greedy search as well.
    """
    return not _active_fields(model, generation) and can_decode(model)


def find_temperature(model: "PreTrainedModel", generation: Mapping[str, Any]) -> float | None:
    """Return the temperature at which `decode` draws what `model.generate` would with these settings.

    Returns:
        None where they ask for anything but tokens drawn by their probabilities, or the loop does not know the model.
    """
    active = _active_fields(model, generation)
    settings = _resolve(model, generation)
    is_plain = all(settings.get(name) in (None, off) for name, off in _WARPERS.items())
    samples = "do_sample" in active and active <= {"do_sample", "num_return_sequences"}
    if not (samples and is_plain and can_decode(model)):
        return None
    temperature = settings["temperature"]
    # `generate()` says what is wrong with others.
    return temperature if isinstance(temperature, float) and temperature > 0 else None


def can_decode(model: "PreTrainedModel") -> bool:
    """Return whether `decode` knows the model.

    It must attend to all earlier tokens (no sliding window, no recurrent state: its cache layers are plain
    `DynamicLayer`) by `sdpa` or `eager` attention, at the positions it is given, and take the usual inputs. An adapter
    must be LoRA: others add their own tokens, or read the whole prompt.
    """
    inner = without_adapter(model)
    adapters = getattr(model, "peft_config", {}).values()
    return (
        all(str(adapter.peft_type.value) == "LORA" and not _reads_prompt(adapter) for adapter in adapters)
        and isinstance(inner, GenerationMixin)
        and all(getattr(type(inner), name) is getattr(GenerationMixin, name) for name in _STANDARD_METHODS)
        and inspect.signature(inner.forward).parameters.keys() >= _NEEDED_ARGUMENTS
        and _find_cache_argument(inner) is not None
        and _attends_to_all(inner)
    )


def reads_padding(model: "PreTrainedModel", generation: Mapping[str, Any]) -> bool:
    """Return whether `generate()` with these settings may take padding for a part of the prompt."""
    return not _active_fields(model, generation) <= _BLIND_TO_PADDING


def _active_fields(model: "PreTrainedModel", generation: Mapping[str, Any]) -> set[str]:
    """Return the fields, of the settings or of the model's own, that make generation anything but greedy search."""
    defaults = GenerationConfig._get_default_generation_params()
    return {
        name
        for name, value in _resolve(model, generation).items()
        if not (value is None or value is False or (name in defaults and value == defaults[name]))
        and name not in _WITHOUT_EFFECT
    }


def _resolve(model: "PreTrainedModel", generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `generate()` goes by: settings over the model's own, and those over the defaults."""
    own = model.generation_config.to_dict() if model.generation_config is not None else {}
    defaults = GenerationConfig._get_default_generation_params()
    return {**defaults, **{name: value for name, value in own.items() if value is not None}, **generation}


def _reads_prompt(adapter: Any) -> bool:
    # Activated LoRA begins at a marker that it looks for in the prompt.
    return getattr(adapter, "alora_invocation_tokens", None) is not None


def _find_cache_argument(model: "PreTrainedModel") -> str | None:
    known = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in known), None)


def _attends_to_all(model: "PreTrainedModel") -> bool:
    config = model.config
    # Rotary frequencies of these kinds depend on the longest row of the batch.
    varying = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")
    return (
        # Attention is a function of Transformers' kind, and works with caches that have room to spare.
        (model._supports_attention_backend and model._can_compile_fullgraph)
        and config._attn_implementation in ("sdpa", "eager")
        and not (config.is_encoder_decoder or getattr(config, "add_cross_attention", False) or model._is_stateful)
        and not (config.sub_configs or varying)
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    )


def decode(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    ends: set[int],
    max_new_tokens: int,
    pad_id: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return one token after another for each prompt: up to and with the end, or `max_new_tokens`.

    The rows of a batch are [common prefix | padding | rest of the prompt | new tokens]. Padding is masked, and
    positions are those of the prompt alone.

    Args:
        model: In evaluation mode, and one that `can_decode`.
        prompts: Token ids of each prompt, not empty.
        ends: Ids that end a row; what follows the first of them is not to be read.
        temperature: 0 takes the most likely token; else tokens are drawn, those that `generate()` would draw from the
            same state of PyTorch's generator.
        seeds: Of drawing, one a prompt, so that what is drawn for it depends on nothing else.
    """
    with _fast_attention(without_adapter(model)), torch.inference_mode():
        batch = _Batch(model, prompts, max_new_tokens=max_new_tokens, pad_id=pad_id)
        end_ids = torch.tensor(sorted(ends), device=model.device)
        chosen = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=model.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)  # [rows still in the batch]
        generators = None if seeds is None else [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
        for step in range(max_new_tokens):
            # On a CPU `argmax` of bf16 is five times slower than `max`; both take the first of equals.
            if temperature:
                latest = _draw(batch, len(prompts), temperature, generators)  # [rows]
            else:
                latest = batch.logits.max(-1).indices
            # Rows that have ended but are still here write on: what follows an end is not read.
            chosen[batch.rows, step] = latest
            ended |= torch.isin(latest, end_ids)
            num_ended = int(ended.sum())
            if num_ended == len(ended) or step == max_new_tokens - 1:
                break
            if num_ended >= _ENDED_SHARE * len(ended):
                kept = (~ended).nonzero().flatten()
                batch.keep(kept)
                latest, ended = latest[kept], ended[kept]
            batch.advance(latest)
    return [until_end(row, ends) for row in chosen.tolist()]


def _draw(
    batch: "_Batch", num_prompts: int, temperature: float, generators: Sequence[torch.Generator] | None
) -> torch.Tensor:
    """Return a token for each row of a batch, drawn as `torch.multinomial` draws from all prompts' probabilities."""
    probabilities = (batch.logits.float() / temperature).softmax(-1)  # [rows, vocabulary]
    if generators is not None:
        noise = torch.empty_like(probabilities)
        for row, prompt in zip(noise, batch.rows.tolist(), strict=True):
            row.exponential_(generator=generators[prompt])
        return (probabilities / noise).argmax(-1)
    # Of rows that have left the batch too, so that what the others draw does not depend on them.
    noise = probabilities.new_empty(num_prompts, probabilities.shape[1]).exponential_()
    return (probabilities / noise[batch.rows]).argmax(-1)


class _Batch:
    """The rows that are being decoded.

    Attributes:
        rows: Which prompt each row is of, `[rows]`.
        logits: Of each row's next token, `[rows, vocabulary]`.
    """

    def __init__(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, max_new_tokens: int, pad_id: int
    ) -> None:
        self._model, device = model, model.device
        inner = without_adapter(model)
        self._cache = DynamicCache(config=inner.config)
        self._keywords = {str(_find_cache_argument(inner)): self._cache, "use_cache": True, "logits_to_keep": 1}
        self._cache.layers = [_BlockLayer() for _ in self._cache.layers]
        prefix = _common_prefix(prompts)
        if prefix:
            ids = torch.tensor([list(prompts[0][:prefix])], device=device)
            self._forward(ids, torch.ones_like(ids), torch.arange(prefix, device=device)[None])
            self._cache.batch_repeat_interleave(len(prompts))
        width = max(len(prompt) for prompt in prompts) - prefix
        pads = [prefix + width - len(prompt) for prompt in prompts]
        rests = [[pad_id] * pad + list(prompt[prefix:]) for pad, prompt in zip(pads, prompts, strict=True)]
        seen = [[1] * prefix + [0] * pad + [1] * (width - pad + max_new_tokens) for pad in pads]
        self.rows = torch.arange(len(prompts), device=device)
        self._mask = torch.tensor(seen, device=device)  # [rows, prefix + width + new]
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)  # as `_mask`
        self._length = prefix + width
        self.logits = self._forward(
            torch.tensor(rests, device=device),
            self._mask[:, : self._length],
            self._positions[:, prefix : self._length],
        )

    def advance(self, latest: torch.Tensor) -> None:
        """Append one token to each row, `[rows]`, and compute `logits` after it."""
        self._length += 1
        positions = self._positions[:, self._length - 1 : self._length]
        self.logits = self._forward(latest[:, None], self._mask[:, : self._length], positions)

    def keep(self, kept: torch.Tensor) -> None:
        """Drop all rows but those at these indices; `logits` is of all until `advance`."""
        self._cache.batch_select_indices(kept)
        self.rows, self._mask, self._positions = self.rows[kept], self._mask[kept], self._positions[kept]

    def _forward(self, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._model(input_ids=input_ids, attention_mask=mask, position_ids=positions, **self._keywords)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class _BlockLayer(DynamicLayer):
    """Keys and values of one layer, `[rows, heads, room, size of a head]`, with room for a whole number of blocks.

    Attention gets all of the room, because a slice of it would be copied by each matrix product; the mask, made for
    the same width, leaves the unused part out. It is filled with zeros; since it is masked, any finite value would do.
    """

    # Of caches with room to spare, what Transformers asks before it leaves out the mask of a single token.
    is_compileable = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind those there are, and return all of the room."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            keys, values = key_states[:, :, :0], value_states[:, :, :0]
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[2]
        if missing := _in_blocks(self.length) - keys.shape[2]:
            keys, values = (torch.nn.functional.pad(states, (0, 0, 0, missing)) for states in (keys, values))
        keys[:, :, start : self.length] = key_states
        values[:, :, start : self.length] = value_states
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        """Return the tokens written."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the room there will be after so many new tokens, and that it begins at the first."""
        return _in_blocks(self.length + query_length), 0


def _in_blocks(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all prompts share, when at least one must stay for each; 0 for one prompt."""
    if len(prompts) == 1:
        return 0
    # The first and the last in alphabetical order differ first.
    low, high = min(prompts, key=list), max(prompts, key=list)
    longest = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(longest) if low[i] != high[i]), longest)


def _fast_attention(model: "PreTrainedModel") -> contextlib.AbstractContextManager[None]:
    """On a CPU, take attention for single tokens out of `scaled_dot_product_attention`, which is slow at it."""
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return contextlib.nullcontext()
    return attending_by(model, _CPU_ATTENTION, _attend_on_cpu)


def _attend_on_cpu(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as Transformers' `sdpa`, for one new token by two matrix products: in bf16 four times faster.

    Args:
        query: `[rows, heads, new tokens, size of a head]`.
        key: `[rows, key heads, tokens, size of a head]`; each serves `heads / key heads` heads.
        value: As `key`.
        attention_mask: `[rows, 1, new tokens, tokens]`, true where a token is seen; None if all are.
    """
    if query.shape[2] > 1 or any(settings.get(name) is not None for name in ("position_bias", "softcap")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    rows, heads, _, size = query.shape
    key_heads, length = key.shape[1:3]
    queries = query.reshape(rows * key_heads, heads // key_heads, size)
    scores = torch.bmm(queries, key.reshape(rows * key_heads, length, size).transpose(1, 2)).float()
    scale = settings.get("scaling")
    scores = scores.view(rows, key_heads, heads // key_heads, length) * (size**-0.5 if scale is None else scale)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype).view(rows * key_heads, heads // key_heads, length)
    output = torch.bmm(weights, value.reshape(rows * key_heads, length, value.shape[3]))
    return output.view(rows, 1, heads, value.shape[3]), None
