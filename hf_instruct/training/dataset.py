"""From examples to the rows a trainer reads: token ids and labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_instruct.errors import DataError
from hf_instruct.prompts import PromptFormat, build_row, count_labels
from hf_instruct.records import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SHOWN = 5


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    prompt_format: PromptFormat,
    *,
    max_length: int | None,
    completion_only_loss: bool = True,
) -> list[dict[str, list[int]]]:
    """Return the training rows of examples, cut to `max_length` tokens at the end.

    Args:
        max_length: Most tokens in a row; None for no limit.
        completion_only_loss: Whether prompt tokens are left out of the loss.

    Raises:
        DataError: Cutting takes every label from some rows; their number and the first of them are named.
    """
    rows, unlabelled = [], []
    for example in examples:
        prompt_ids, completion_ids = prompt_format.encode_example(tokenizer, example)
        row = build_row(prompt_ids, completion_ids, max_length=max_length, completion_only_loss=completion_only_loss)
        if not count_labels(row):
            unlabelled.append(
                f"example `{example.id}`: {len(prompt_ids)} prompt and {len(completion_ids)} completion tokens"
            )
        rows.append(row)
    if unlabelled:
        more = [f"and {len(unlabelled) - _SHOWN} more"] if len(unlabelled) > _SHOWN else []
        raise DataError(
            f"{len(unlabelled)} of {len(examples)} examples have no label within `train.max_length` {max_length}, "
            "so there is nothing to learn from them. Raise `train.max_length`, or shorten or drop these rows:",
            unlabelled[:_SHOWN] + more,
        )
    return rows


def build_dataset(rows: Sequence[dict[str, list[int]]]) -> "Dataset":
    """Return rows as a `datasets.Dataset` with the columns `input_ids` and `labels`."""
    from datasets import Dataset

    return Dataset.from_list(list(rows))
