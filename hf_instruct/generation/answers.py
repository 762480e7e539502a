"""Answer examples with a model, in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.decoding import generate_completions
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.models import context_length, is_out_of_memory
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, Response

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_responses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    prompt_format: PromptFormat | str = "alpaca",
    batch_size: int = 32,
    max_new_tokens: int = 256,
    on_batch: Callable[[list[Response]], None] | None = None,
    **generation: Any,
) -> list[Response]:
    """Return a model's response to each example, in the order of the examples.

    Prompts are batched by length, longest first, so that little is padded and a batch too large for the memory fails
    at once rather than at the end. Greedy unless told otherwise; with a float32 model a greedy response does not
    depend on `batch_size`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        examples: What to answer; their `output` is not shown to the model.
        prompt_format: The format the model was trained on, or its name.
        batch_size: Prompts generated from at once.
        max_new_tokens: Longest response, in tokens.
        on_batch: Called with each batch of responses as it is done.
        **generation: Any field of `GenerationConfig`.

    Raises:
        DataError: A prompt and `max_new_tokens` do not fit the model's context.
        ConfigError: Transformers refuses the generation settings, or memory runs out.
    """
    prompt_format = PromptFormat.named(prompt_format) if isinstance(prompt_format, str) else prompt_format
    end_id = prompt_format.end_token_id(tokenizer)
    prompts = [prompt_format.encode_prompt(tokenizer, example.instruction, example.input) for example in examples]
    _check_lengths(examples, prompts, max_new_tokens, context_length(model))
    responses: dict[int, Response] = {}
    for indices in _batches_by_length(prompts, batch_size):
        batch = [prompts[index] for index in indices]
        try:
            completions = generate_completions(
                model, tokenizer, batch, end_id=end_id, max_new_tokens=max_new_tokens, **generation
            )
        except ValueError as error:
            raise ConfigError("The `generate` section is refused by Transformers:", [str(error)]) from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"The machine ran out of memory with {len(batch)} prompts at once. Lower `generate.batch_size` "
                f"({batch_size}), or set `generate.dtype: bfloat16`."
            ) from error
        done = {
            index: _build_response(examples[index], completion.text, completion.stopped, completion.num_tokens)
            for index, completion in zip(indices, completions, strict=True)
        }
        responses |= done
        if on_batch is not None:
            on_batch(list(done.values()))
    return [responses[index] for index in range(len(examples))]


def _build_response(example: Example, text: str, stopped: bool, num_tokens: int) -> Response:
    return Response(
        id=example.id,
        instruction=example.instruction,
        input=example.input,
        output=example.output,
        category=example.category,
        response=text,
        stopped=stopped,
        num_tokens=num_tokens,
    )


def _batches_by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _check_lengths(
    examples: Sequence[Example], prompts: Sequence[Sequence[int]], max_new_tokens: int, limit: int | None
) -> None:
    if limit is None:
        return
    long = [
        f"example `{example.id}`: {len(prompt)} prompt tokens"
        for example, prompt in zip(examples, prompts, strict=True)
        if len(prompt) + max_new_tokens > limit
    ]
    if long:
        more = [f"and {len(long) - 5} more"] if len(long) > 5 else []
        raise DataError(
            f"{len(long)} of {len(examples)} prompts with `generate.max_new_tokens` {max_new_tokens} do not fit the "
            f"model's {limit} positions. Lower `generate.max_new_tokens`, or shorten or drop these rows:",
            long[:5] + more,
        )
