"""The decoding loop, greedy or sampling: the same answers as `generate()`, several times faster.

The prompts' shared prefix is computed once, finished rows are removed from the batch, and the cache grows in blocks
instead of being copied at every step. On a CPU, attention for one new token is a plain matrix product; on a CUDA GPU, a
step is captured once and replayed, because launching its kernels one by one takes several times as long as running
them. Models and settings that this loop does not support use `generate()`: see `decodes_greedily`.

Imports torch and Transformers, so it is only imported where it is used.
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_instruct.generation.decoding import until_end, without_adapter
from hf_instruct.models import attending_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Tokens by which the cache grows. It is copied once per block, and attention reads half a block of zeros on average.
_BLOCK = 32
# Share of finished rows at which the batch is compacted. Each new batch size needs a copy of the cache, and on a CPU a
# new kernel for every shape of matrix product: together about as much time as two steps.
_ENDED_SHARE = 0.25
# The same if steps are replayed. Each new batch size is captured again, which takes about as long as four steps.
_ENDED_SHARE_OF_REPLAYED = 0.5
# Maximum difference between the logits of a captured and a plain step, relative to the largest logit; 1e-5 in float32.
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2}
_CPU_ATTENTION = "hf_instruct_decoding"
# Fields of `GenerationConfig` that never change the result of greedy search.
_WITHOUT_EFFECT = {
    *("max_length", "max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id"),
    # For sampling and for beam search.
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("length_penalty", "early_stopping"),
    *("transformers_version", "_from_model_config"),
}
# Further fields that padding before a prompt does not affect: they only read logits, count from the first new token, or
# skip padding (`repetition_penalty`, since Transformers 5). All others may read the ids, padding included.
_BLIND_TO_PADDING = {
    *("do_sample", "num_beams", "num_return_sequences", "low_memory", "use_cache", "cache_implementation"),
    *("repetition_penalty", "min_new_tokens", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    *("remove_invalid_values", "renormalize_logits"),
}
# Fields that change the probabilities of sampling, and the values that, like None, turn them off.
_WARPERS = {
    **dict.fromkeys(("top_k", "min_p", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("top_p", "typical_p"), 1),
    "top_h": None,
}
# This loop replaces these methods; a model that overrides one may prepare its inputs differently.
_STANDARD_METHODS = ("generate", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
_NEEDED_ARGUMENTS = {"input_ids", "attention_mask", "position_ids", "logits_to_keep"}
# Names of the argument for the cache: since Transformers 5.24, and in earlier versions.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


def decodes_greedily(model: "PreTrainedModel", generation: Mapping[str, Any]) -> bool:
    """Return whether `decode` gives the same result as `model.generate` with these settings, by greedy search.

    Args:
        generation: Fields of `GenerationConfig`; the model's own `generation_config` has to be greedy search as well.
    """
    return not _active_fields(model, generation) and can_decode(model)


def find_temperature(model: "PreTrainedModel", generation: Mapping[str, Any]) -> float | None:
    """Return the temperature at which `decode` samples the same tokens as `model.generate` with these settings.

    Returns:
        None if the settings change the probabilities in another way, or if the loop does not support the model.
    """
    active = _active_fields(model, generation)
    settings = _resolve(model, generation)
    is_plain = all(settings.get(name) in (None, off) for name, off in _WARPERS.items())
    samples = "do_sample" in active and active <= {"do_sample", "num_return_sequences"}
    if not (samples and is_plain and can_decode(model)):
        return None
    temperature = settings["temperature"]
    # `generate()` raises an error for others.
    return temperature if isinstance(temperature, float) and temperature > 0 else None


def can_decode(model: "PreTrainedModel") -> bool:
    """Return whether `decode` supports the model.

    It must attend to all earlier tokens (no sliding window, no recurrent state: its cache layers are plain
    `DynamicLayer`) with `sdpa` or `eager` attention, use the given positions, and accept the usual inputs. An adapter
    must be LoRA, because others add tokens or read the whole prompt.
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
    """Return whether `generate()` with these settings may treat padding as part of the prompt."""
    return not _active_fields(model, generation) <= _BLIND_TO_PADDING


def _active_fields(model: "PreTrainedModel", generation: Mapping[str, Any]) -> set[str]:
    """Return the fields of the settings, or of the model's own, with which generation is not greedy search."""
    defaults = GenerationConfig._get_default_generation_params()
    return {
        name
        for name, value in _resolve(model, generation).items()
        if not (value is None or value is False or (name in defaults and value == defaults[name]))
        and name not in _WITHOUT_EFFECT
    }


def _resolve(model: "PreTrainedModel", generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings used by `generate()`: the defaults, overridden by the model's own, then by `generation`."""
    model_config = model.generation_config.to_dict() if model.generation_config is not None else {}
    defaults = GenerationConfig._get_default_generation_params()
    return {**defaults, **{name: value for name, value in model_config.items() if value is not None}, **generation}


def _reads_prompt(adapter: Any) -> bool:
    # Activated LoRA starts at a marker that it searches for in the prompt.
    return getattr(adapter, "alora_invocation_tokens", None) is not None


def _find_cache_argument(model: "PreTrainedModel") -> str | None:
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)


def _attends_to_all(model: "PreTrainedModel") -> bool:
    config = model.config
    # These rotary frequencies depend on the longest row of the batch.
    varying = (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope")
    return (
        # Attention uses an attention function of Transformers, and works with caches that have unused space.
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
    """Return the new tokens of each prompt: up to and including an end token, at most `max_new_tokens`.

    The rows of a batch are [common prefix | padding | rest of the prompt | new tokens]. Padding is masked, and
    positions are those of the prompt alone.

    Args:
        model: The model, in evaluation mode; `can_decode` must be true for it.
        prompts: Token ids of each prompt, not empty.
        ends: Ids that end a row.
        temperature: 0 selects the most likely token; otherwise tokens are sampled, the same as by `generate()` with the
            same state of PyTorch's generator.
        seeds: Seeds for sampling, one per prompt, so that its tokens do not depend on the other prompts.
    """
    with _fast_attention(without_adapter(model)), torch.inference_mode():
        batch = _Batch(model, prompts, max_new_tokens=max_new_tokens, pad_id=pad_id)
        end_ids = torch.tensor(sorted(ends), device=model.device)
        chosen = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=model.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)  # [rows still in the batch]
        generators = None if seeds is None else [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
        for step in range(max_new_tokens):
            # On a CPU, `argmax` in bf16 is five times slower than `max`; both return the first of equal values.
            if temperature:
                latest = _draw(batch, len(prompts), temperature, generators)  # [rows]
            else:
                latest = batch.logits.max(-1).indices
            # Rows that have ended but are still in the batch continue; tokens after an end are dropped later.
            chosen[batch.rows, step] = latest
            ended |= torch.isin(latest, end_ids)
            num_ended = int(ended.sum())
            if num_ended == len(ended) or step == max_new_tokens - 1:
                break
            if num_ended >= len(ended) * (_ENDED_SHARE_OF_REPLAYED if batch.replays else _ENDED_SHARE):
                kept = (~ended).nonzero().flatten()
                batch.keep(kept)
                latest, ended = latest[kept], ended[kept]
            batch.advance(latest)
    return [until_end(row, ends) for row in chosen.tolist()]


def _draw(
    batch: "_Batch", num_prompts: int, temperature: float, generators: Sequence[torch.Generator] | None
) -> torch.Tensor:
    """Return a token for each row of a batch, sampled as `torch.multinomial` would from the whole batch."""
    probabilities = (batch.logits.float() / temperature).softmax(-1)  # [rows, vocabulary]
    if generators is not None:
        noise = torch.empty_like(probabilities)
        for row, prompt in zip(noise, batch.rows.tolist(), strict=True):
            row.exponential_(generator=generators[prompt])
        return (probabilities / noise).argmax(-1)
    # Also for rows that have left the batch, so that the other rows do not depend on them.
    noise = probabilities.new_empty(num_prompts, probabilities.shape[1]).exponential_()
    return (probabilities / noise[batch.rows]).argmax(-1)


class _Batch:
    """The rows that are being decoded.

    Attributes:
        rows: Index of each row's prompt, `[rows]`.
        logits: Logits of each row's next token, `[rows, vocabulary]`; the next step may overwrite them.
        replays: Whether steps are captured and replayed.
    """

    def __init__(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, max_new_tokens: int, pad_id: int
    ) -> None:
        device = model.device
        self.replays = _can_capture(model)
        inner = without_adapter(model)
        self._cache = DynamicCache(config=inner.config)
        keywords = {str(_find_cache_argument(inner)): self._cache, "use_cache": True, "logits_to_keep": 1}
        # Without `self`, because a reference cycle would keep a captured step's memory until garbage collection.
        self._forward = functools.partial(_next_logits, model, keywords)
        # A captured step reads and writes the same memory each time, so the cache has its full size from the start.
        total = _in_blocks(max(len(prompt) for prompt in prompts) + max_new_tokens, _BLOCK)
        self._layers = [_BlockLayer(total if self.replays else _BLOCK) for _ in self._cache.layers]
        self._cache.layers = list(self._layers)
        self._replay: Callable[[], None] | None = None
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
        if self._replay:
            self._latest.copy_(latest[:, None])
            self._replay()
        elif self.replays:
            self._capture(latest)
        else:
            positions = self._positions[:, self._length : self._length + 1]
            self.logits = self._forward(latest[:, None], self._mask[:, : self._length + 1], positions)
        self._length += 1

    def keep(self, kept: torch.Tensor) -> None:
        """Drop all rows except those at these indices; `logits` still contains all rows until `advance`."""
        self._replay = None
        self._cache.batch_select_indices(kept)
        self.rows, self._mask, self._positions = self.rows[kept], self._mask[kept], self._positions[kept]

    def _capture(self, latest: torch.Tensor) -> None:
        """Run one step, capture it, and replay it once; if the results differ, steps are not replayed."""
        index, rows, forward = self._length, len(latest), self._forward
        # The tensors that change in every step, which updates them in place.
        self._latest = tokens = latest[:, None].clone()
        self.logits = logits = self.logits.new_empty(rows, self.logits.shape[1])
        position = self._positions[:, index : index + 1] - 1
        slot = torch.full((1,), index - 1, device=latest.device)
        room = self._layers[0].get_mask_sizes(1)[0]
        seen = torch.zeros(rows, 1, 1, room, dtype=torch.bool, device=latest.device)
        seen[..., :index] = self._mask[:, None, None, :index]
        for layer in self._layers:
            layer.slot = slot

        def step() -> None:
            slot.add_(1)
            position.add_(1)
            seen.index_fill_(-1, slot, True)
            logits.copy_(forward(tokens, seen, position))

        step()
        expected = logits.clone()
        try:
            replay = _captured(step)
            slot.sub_(1)
            position.sub_(1)
            replay()
            differs = (logits - expected).abs().max() > _TOLERANCE.get(logits.dtype, 1e-5) * expected.abs().max()
            problem = "it computes other logits" if differs else ""
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
        if not problem:
            # The graph reads the tensors of `step` by their addresses, and does not keep them alive.
            self._replay, self._step = replay, step
            return
        logger.info("Steps of this model are not replayed as a CUDA graph (%s): %d rows at a time.", problem, rows)
        self.replays, self.logits = False, expected
        for layer in self._layers:
            layer.slot, layer.length = None, index + 1


def _next_logits(
    model: "PreTrainedModel",
    keywords: Mapping[str, Any],
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Return the logits after the last of a batch's tokens, `[rows, vocabulary]`."""
    output = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, **keywords)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _can_capture(model: "PreTrainedModel") -> bool:
    """Return whether a step can be captured: the whole model is on one GPU, and its attention supports our mask."""
    inner = without_adapter(model)
    return (
        model.device.type == "cuda"
        and inner.config._attn_implementation == "sdpa"
        and all(type(weight.data) is torch.Tensor and weight.device == model.device for weight in model.parameters())
    )


def _captured(step: "Callable[[], None]") -> "Callable[[], None]":
    """Return a function that repeats a step with the same tensors in a single launch.

    Raises:
        RuntimeError: The step cannot be captured, for example because it waits for a result.
    """
    graph = torch.cuda.CUDAGraph()
    # Thread-local, because other threads, such as those of a page, may use the GPU during the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


class _BlockLayer(DynamicLayer):
    """Keys and values of one layer, `[rows, heads, capacity, head size]`; the capacity is a multiple of the block.

    Attention gets the full tensors, because a slice would be copied by each matrix product; the mask, which has the
    same width, excludes the unused part, which is filled with zeros; any finite value would work.

    Attributes:
        length: Number of tokens written; with captured steps, the number before the first of them.
        slot: Index at which captured steps write their token, `[1]`; None otherwise.
    """

    # Transformers keeps the mask of a single token if this is set, as for all caches with unused space.
    is_compileable = True

    def __init__(self, block: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.slot: torch.Tensor | None = None
        self._block = block

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new keys and values, and return the full tensors."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            keys, values = key_states[:, :, :0], value_states[:, :, :0]
            self.is_initialized = True
        if self.slot is not None:
            return keys.index_copy_(2, self.slot, key_states), values.index_copy_(2, self.slot, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        if missing := _in_blocks(self.length, self._block) - keys.shape[2]:
            keys, values = (torch.nn.functional.pad(states, (0, 0, 0, missing)) for states in (keys, values))
        keys[:, :, start : self.length] = key_states
        values[:, :, start : self.length] = value_states
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of tokens written."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the capacity after `query_length` new tokens, and the offset, 0."""
        return _in_blocks(self.length + query_length, self._block), 0


def _in_blocks(length: int, block: int) -> int:
    return -(-length // block) * block


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix, without the last token of any prompt; 0 for a single prompt."""
    if len(prompts) == 1:
        return 0
    # In lexicographic order, the first and the last prompt share the fewest tokens.
    low, high = min(prompts, key=list), max(prompts, key=list)
    longest = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(longest) if low[i] != high[i]), longest)


def _fast_attention(model: "PreTrainedModel") -> contextlib.AbstractContextManager[None]:
    """Avoid implementations of `scaled_dot_product_attention` that are slow for single tokens or new shapes.

    On a CPU, single tokens do not use it. On a GPU, cuDNN's implementation, which PyTorch prefers in half precision on
    Hopper, is avoided, because it builds a plan for each new shape of batch and cache: in bf16, the first 110 answers
    of a process took a second longer than the next (PyTorch 2.11, H100).
    """
    if model.config._attn_implementation != "sdpa":
        return contextlib.nullcontext()
    if model.device.type == "cuda":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    if model.device.type == "cpu":
        return attending_by(model, _CPU_ATTENTION, _attend_on_cpu)
    return contextlib.nullcontext()


def _attend_on_cpu(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention like Transformers' `sdpa`, but with two matrix products for one new token.

    In bf16 this is four times faster.

    Args:
        query: `[rows, heads, new tokens, head size]`.
        key: `[rows, key heads, tokens, head size]`; each is used by `heads / key heads` heads.
        value: Same shape as `key`.
        attention_mask: `[rows, 1, new tokens, tokens]`, true for tokens to attend to; None for all.
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
