"""Answer examples with a model, in batches as large as memory allows, and compute the loss of their references."""

import dataclasses
import hashlib
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.data.sources import build_dataset, read_examples
from hf_instruct.errors import ConfigError, DataError, is_bug, list_first
from hf_instruct.generation.decoding import generate_completions, generating, without_adapter
from hf_instruct.library_fields import find_refused_generation
from hf_instruct.memory import free_bytes, is_out_of_memory
from hf_instruct.models import context_length
from hf_instruct.progress import progress_bar
from hf_instruct.prompt_checks import choose_format, resolve_format
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, append_rows, recover_rows
from hf_instruct.schema import TUNED, Response

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Batch size for `generate()`, and if the memory of a row cannot be computed from the config.
_DEFAULT_SIZE = 32
# Rows per prompt, for beams or further answers, up to which the batch size is not reduced.
_FEW_ROWS = 5
# On a CPU larger batches are hardly faster, and in smaller ones finished rows wait for fewer others.
_MOST_ON_CPU = 128
_MOST = 512
# Shares of the free memory to use, because the estimate is rough, and other programs need main memory too.
_SHARE_ON_CPU = 0.4
_SHARE = 0.8
# Decimals of a loss in nats: the precision of float32 for sums in the hundreds.
_DECIMALS = 4


def generate_responses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: "Dataset | str | Path | Iterable[Mapping[str, Any]]",
    *,
    prompt_format: PromptFormat | str | None = None,
    batch_size: int | None = None,
    max_new_tokens: int = 256,
    reference_loss: bool = False,
    **generation: Any,
) -> "Dataset":
    """Return a model's response to each example: the examples' columns, `response` and its details.

    Prompts are batched by length, and a prefix shared by a batch is computed once. Decoding is greedy by default; with
    a float32 model a greedy response does not depend on `batch_size`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        data: The examples to answer, as for `load_examples`; the model does not see `output`.
        prompt_format: The format the model was trained with, or its name; by default `chat` for conversations,
            otherwise `alpaca`.
        batch_size: Prompts per batch; by default as many as fit into memory.
        max_new_tokens: Maximum length of a response, in tokens.
        reference_loss: Whether to compute the loss of each example's `output`, for its perplexity.
        **generation: Any field of `GenerationConfig`, and `seed`: if set, the samples for an example depend on the seed
            and the example's id, not on the batch. With `num_return_sequences`, the first is the response and the
            others are its `further_responses`.

    Returns:
        A row for each example, in the same order. `stopped` is whether the model ended the response, and `num_tokens`
        its length including the end token; `reference_nll`, in nats over `reference_tokens`, is null unless requested.

    Raises:
        DataError: The data has problems, or a prompt and `max_new_tokens` do not fit the model's context.
        ConfigError: Transformers refuses the generation settings, an answer would depend on the batch, or memory runs
            out.
    """
    rows = answer_examples(
        model,
        tokenizer,
        read_examples(data),
        prompt_format=prompt_format,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        reference_loss=reference_loss,
        **generation,
    )
    return build_dataset(rows, Response)


def answer_examples(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    prompt_format: PromptFormat | str | None = None,
    batch_size: int | None = None,
    max_new_tokens: int = 256,
    reference_loss: bool = False,
    on_batch: Callable[[list[Response]], None] | None = None,
    **generation: Any,
) -> list[Response]:
    """Return the rows of `generate_responses`; `on_batch` is called with each finished batch."""
    if refused := find_refused_generation(generation):
        raise ConfigError("These settings do not work in batches:", refused)
    has_conversations = any(example.messages for example in examples)
    prompt_format = choose_format(prompt_format, has_conversations=has_conversations)
    prompt_format = resolve_format(prompt_format, tokenizer, for_training=False)
    prompts = prompt_format.encode_prompts(tokenizer, examples)
    check_lengths([example.id for example in examples], prompts, max_new_tokens, context_length(model))
    size = batch_size or choose_batch_size(model, prompts, max_new_tokens=max_new_tokens, generation=generation)
    generation |= {"end_id": prompt_format.end_token_id(tokenizer), "max_new_tokens": max_new_tokens}
    # Longest first, so that there is little padding, and a batch that does not fit into memory fails at the start.
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    responses: dict[int, Response] = {}
    while waiting:
        # Batches of about equal size, instead of full ones and a short last one.
        indices = waiting[: batch_size or math.ceil(len(waiting) / math.ceil(len(waiting) / size))]
        batch = [examples[index] for index in indices]
        try:
            answered = _answer_batch(model, tokenizer, batch, [prompts[index] for index in indices], generation)
            if reference_loss:
                losses = measure_references(model, tokenizer, batch, prompt_format=prompt_format)
                answered = [
                    row.model_copy(update={"reference_nll": loss.nll, "reference_tokens": loss.tokens} if loss else {})
                    for row, loss in zip(answered, losses, strict=True)
                ]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size or len(batch) == 1:
                size_setting = f"`generate.batch_size` ({batch_size}) or leave it out"
                setting = size_setting if batch_size else "`generate.max_new_tokens`"
                raise ConfigError(
                    f"The machine ran out of memory with a batch of {len(batch)}. Lower {setting}, or set "
                    "`generate.dtype: bfloat16`."
                ) from error
            size = len(batch) // 2
            logger.info("Out of memory with a batch of %d; continuing with %d.", len(batch), size)
            continue
        waiting = waiting[len(batch) :]
        responses |= zip(indices, answered, strict=True)
        if on_batch is not None:
            on_batch(answered)
    return [responses[index] for index in range(len(examples))]


def answer_to_file(
    path: Path,
    examples: Sequence[Example],
    answer: Callable[[list[Example], Callable[[list[Response]], None]], object],
    *,
    title: str,
    model: str = TUNED,
) -> list[Response]:
    """Return a model's response to each example, in the same order, and save each batch of responses in a file.

    Args:
        path: The file. Examples with a response of the model in it are not answered again.
        examples: The examples to answer.
        answer: Called with the examples without a response, and a function to call with each batch of responses.
        title: Title of the progress bar.
        model: The model's name in the file.
    """
    rows = {row.id: row for row in recover_rows(path, Response) if row.model == model}
    if waiting := [example for example in examples if example.id not in rows]:
        with progress_bar(title, len(examples), done=len(examples) - len(waiting)) as advance:

            def keep(batch: list[Response]) -> None:
                batch = [row.model_copy(update={"model": model}) for row in batch]
                append_rows(path, batch)
                rows.update((row.id, row) for row in batch)
                advance(len(batch), "")

            answer(waiting, keep)
    return [rows[example.id] for example in examples]


def _answer_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: list[Example],
    prompts: list[list[int]],
    settings: dict[str, Any],
) -> list[Response]:
    """Return the responses of one batch.

    Raises:
        ConfigError: Transformers refuses the settings.
    """
    settings = dict(settings)
    if (seed := settings.pop("seed", None)) is not None:
        settings["seeds"] = [build_seed(seed, example) for example in examples]
    try:
        completions = generate_completions(model, tokenizer, prompts, **settings)
    except ValueError as error:
        if is_bug(error):
            raise
        raise ConfigError("The `generate` section is refused by Transformers:", [str(error)]) from error
    each = len(completions) // len(examples)
    return [
        build_response(
            example,
            response=completions[first].text,
            stopped=completions[first].stopped,
            num_tokens=completions[first].num_tokens,
            further_responses=[further.text for further in completions[first + 1 : first + each]] or None,
        )
        for example, first in zip(examples, range(0, len(completions), each), strict=True)
    ]


def build_response(example: Example, **fields: Any) -> Response:
    """Return the row of an example's response, with the given fields."""
    return Response(**{**dataclasses.asdict(example), "instruction": example.format_task()}, **fields)


def build_seed(seed: int | str, example: Example) -> int:
    """Return a 63-bit number that depends on the seed and the example's id."""
    digest = hashlib.sha256(f"{seed}\0{example.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_lengths(
    ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    limit: int | None,
    *,
    setting: str = "generate.max_new_tokens",
) -> None:
    """Check that all prompts leave space for their response.

    Args:
        ids: Ids of the examples.
        prompts: Token ids of each example's prompt.
        max_new_tokens: Maximum length of a response, in tokens.
        limit: Maximum number of tokens that the model supports; None if unknown.
        setting: Name of the setting for `max_new_tokens`, for the message.

    Raises:
        DataError: A prompt and `max_new_tokens` together are longer than `limit`.
    """
    if limit is None:
        return
    long = [
        f"example `{id}`: {len(prompt)} prompt tokens"
        for id, prompt in zip(ids, prompts, strict=True)
        if len(prompt) + max_new_tokens > limit
    ]
    if long:
        raise DataError(
            f"{len(long)} of {len(ids)} prompts with `{setting}` {max_new_tokens} do not fit into the model's {limit} "
            f"positions. Lower `{setting}`, or shorten or drop these rows:",
            list_first(long),
        )


def choose_batch_size(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, max_new_tokens: int, generation: Mapping[str, Any]
) -> int:
    """Return the default batch size, in prompts.

    For greedy search and plain sampling it depends on the free memory; otherwise it is fixed. It is smaller if a prompt
    needs several rows.

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
    """Return how many rows of `prompt` tokens fit into memory, at least 1 and at most as many as are still faster.

    A row needs memory for its keys and values, for the activations of its prompt, and for its logits; when sampling,
    also for its probabilities.
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
    # One additional layer, because a layer's cache is copied when it grows.
    cache = (layers + 1) * 2 * key_heads * head_size * itemsize * length
    # The inner width of a layer is about four times the outer, and several results exist at a time; the mask is 32-bit.
    activations = prompt * (16 * width * itemsize + 4 * length)
    logits = config.vocab_size * (itemsize + (16 if samples else 4))
    on_cpu = model.device.type == "cpu"
    free = free_bytes(model.device.type) * (_SHARE_ON_CPU if on_cpu else _SHARE)
    return max(1, min(_MOST_ON_CPU if on_cpu else _MOST, int(free / (cache + activations + logits))))


class ReferenceLoss(NamedTuple):
    """The loss of one reference; `nll / tokens` is the loss that training would report for this example alone."""

    nll: float  # sum over its tokens, in nats
    tokens: int  # including the end token


def measure_references(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    prompt_format: PromptFormat,
) -> list[ReferenceLoss | None]:
    """Return the loss of each example's output as the completion of its prompt, in the order of the examples.

    Each is computed separately, so that it never depends on the other examples. Nothing is truncated: the loss is None
    if prompt and completion do not fit the model's context, or if it is not finite.
    """
    with generating(model):
        return [_measure_reference(model, *prompt_format.encode_example(tokenizer, example)) for example in examples]


def _measure_reference(model: "PreTrainedModel", prompt: list[int], completion: list[int]) -> ReferenceLoss | None:
    import torch
    from torch.nn.functional import cross_entropy

    ids = torch.tensor([prompt + completion], device=model.device)  # [1, tokens]
    # The last prompt token predicts the first token of the completion; without a prompt, no token does.
    labels = ids[0, max(len(prompt), 1) :]
    if ids.shape[1] > (context_length(model) or math.inf) or not len(labels):
        return None
    can_keep = "logits_to_keep" in inspect.signature(without_adapter(model).forward).parameters
    keep = {"logits_to_keep": len(labels) + 1} if can_keep else {}
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **keep).logits
        nll = float(cross_entropy(logits[0, -len(labels) - 1 : -1].float(), labels, reduction="sum"))
    return ReferenceLoss(round(nll, _DECIMALS), len(labels)) if math.isfinite(nll) else None
