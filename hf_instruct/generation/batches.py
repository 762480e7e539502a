"""The batch size: as many prompts as fit into memory."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.memory import free_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# For what `generate()` answers in its own way, and where the config does not say how large a row is.
_DEFAULT_SIZE = 32
# Up to so many rows per prompt, for beams or further answers.
_FEW_ROWS = 5
# A CPU's matrix products gain little beyond, and rows that have ended wait for fewer others.
_MOST_ON_CPU = 128
_MOST = 512
# Shares of the free memory to plan with: the estimate is rough, and a CPU's memory serves other programs too.
_SHARE_ON_CPU = 0.4
_SHARE = 0.8


def choose_batch_size(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, max_new_tokens: int, generation: Mapping[str, Any]
) -> int:
    """Return the default batch size, in prompts.

    For greedy search and plain sampling it follows the free memory; otherwise it is fixed. It is smaller if a prompt
    takes several rows.

    Args:
        generation: Fields of `GenerationConfig`, and `seed`.
    """
    from hf_instruct.generation.decoding_loop import find_temperature

    rows = generation.get("num_return_sequences") or 1
    samples = bool(generation.get("do_sample"))
    settings = {name: value for name, value in generation.items() if name != "seed"}
    if generation.get("num_beams", 1) != 1 or (samples and find_temperature(model, settings) is None):
        rows = max(generation.get("num_beams") or 1, rows)
        return max(1, _DEFAULT_SIZE // max(1, rows // _FEW_ROWS))
    longest = max((len(prompt) for prompt in prompts), default=0)
    return max(1, _fitting_rows(model, longest, max_new_tokens, samples=samples) // rows)


def _fitting_rows(model: "PreTrainedModel", prompt: int, max_new_tokens: int, *, samples: bool) -> int:
    """Return how many rows of `prompt` tokens fit, at least 1 and at most what still pays.

    Counted are a row's keys and values, what computing its prompt takes, and its logits; of sampling, its
    probabilities too.
    """
    config = model.config.get_text_config()
    layers, heads, width = (
        getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if not (layers and heads and width):
        return _DEFAULT_SIZE
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or width // heads
    length = prompt + max_new_tokens
    itemsize = model.dtype.itemsize
    # One layer's more, because a layer's cache is copied when it grows.
    cache = (layers + 1) * 2 * key_heads * head_size * itemsize * length
    # A layer's inner width is about four times the outer, with a few results in memory together; the mask is 32-bit.
    activations = prompt * (16 * width * itemsize + 4 * length)
    logits = config.vocab_size * (itemsize + (16 if samples else 4))
    on_cpu = model.device.type == "cpu"
    free = free_bytes(model.device.type) * (_SHARE_ON_CPU if on_cpu else _SHARE)
    return max(1, min(_MOST_ON_CPU if on_cpu else _MOST, int(free / (cache + activations + logits))))
