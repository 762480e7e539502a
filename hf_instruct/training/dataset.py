"""Convert examples to the rows that a trainer reads: token ids and labels."""

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.data.sources import build_dataset
from hf_instruct.data.tokens import map_rows
from hf_instruct.errors import DataError
from hf_instruct.prompt_tokens import LossOn, build_row, count_labels
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_SHOWN = 5
# The tokens of more rows are kept in a file and not in memory.
_MAX_IN_MEMORY = 50_000


def tokenize_examples(
    examples: "Dataset | Iterable[Example]",
    tokenizer: "PreTrainedTokenizerBase",
    prompt_format: PromptFormat,
    *,
    max_length: int | None,
    completion_only_loss: bool = True,
    loss_on: LossOn = "all",
    num_proc: int | None = None,
) -> "Dataset":
    """Return the training rows of examples, `input_ids` and `labels`, truncated to `max_length` tokens.

    Args:
        max_length: Maximum number of tokens in a row; None for no limit.
        completion_only_loss: Whether prompt tokens are left out of the loss.
        loss_on: Whether `all` answers of a conversation carry loss, or the `last` one alone.
        num_proc: Processes to work in.

    Raises:
        DataError: Some rows have no label left after truncation; the message has their number and the first ones.
    """
    from datasets import Dataset, Features, List, Value

    if not isinstance(examples, Dataset):
        examples = build_dataset(list(examples), Example)

    def tokenize(batch: list[dict[str, Any]]) -> dict[str, list[Any]]:
        encoded = prompt_format.encode_examples(tokenizer, batch, loss_on=loss_on)
        rows = [build_row(*one, max_length=max_length, completion_only_loss=completion_only_loss) for one in encoded]
        return {
            "input_ids": [row["input_ids"] for row in rows],
            "labels": [row["labels"] for row in rows],
            # Where there is a label, nothing.
            "unlabelled": [
                [] if count_labels(row) else list(map(len, one[:2])) for row, one in zip(rows, encoded, strict=True)
            ],
        }

    types = {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "unlabelled": List(Value("int32"))}
    file = str(_temporary_folder() / "rows.arrow") if len(examples) > _MAX_IN_MEMORY else None
    rows = map_rows(examples, tokenize, features=Features(types), note="Tokenizing", num_proc=num_proc, file=file)
    sizes = rows["unlabelled"][:]
    if unlabelled := [index for index, pair in enumerate(sizes) if pair]:
        shown = [
            "example `{}`: {} prompt and {} completion tokens".format(examples[index]["id"], *sizes[index])
            for index in unlabelled[:_SHOWN]
        ]
        more = [f"and {len(unlabelled) - _SHOWN} more"] if len(unlabelled) > _SHOWN else []
        raise DataError(
            f"{len(unlabelled)} of {len(examples)} examples have no label within `train.max_length` {max_length}, "
            "so nothing can be learned from them. Raise `train.max_length`, or shorten or drop these rows:",
            shown + more,
        )
    return rows.remove_columns("unlabelled")


def find_highest_id(rows: "Dataset") -> int:
    """Return the highest token id of training rows."""
    import pyarrow.compute

    column = rows.with_format("arrow").select_columns("input_ids")
    batches = (batch["input_ids"] for batch in column.iter(10_000))
    return max((pyarrow.compute.max(pyarrow.compute.list_flatten(batch)).as_py() for batch in batches), default=0)


def _temporary_folder() -> Path:
    """Return a folder beside the cache of `datasets` that is deleted when the program ends."""
    from datasets import config

    config.HF_DATASETS_CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hf-instruct-", dir=config.HF_DATASETS_CACHE))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
