"""Count the tokens of each example, with the same prompts and truncation as in training."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_instruct.data.examples import new_fingerprint
from hf_instruct.data.loaders import quiet_datasets
from hf_instruct.errors import ModelLoadError
from hf_instruct.prompt_checks import adjust_tokenizer, resolve_format
from hf_instruct.prompt_tokens import LossOn, build_row, count_labels
from hf_instruct.prompts import PromptFormat

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# With fewer rows, a bar would disappear before it can be read.
_MIN_FOR_A_BAR = 50_000


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of examples as in training with a model and its settings."""

    model: str  # its name, as the user gave it
    tokenizer: "PreTrainedTokenizerBase"
    prompt_format: PromptFormat
    max_length: int | None  # maximum number of tokens in a training row
    completion_only_loss: bool = True
    loss_on: LossOn = "all"

    def add_counts(self, examples: "Dataset", *, num_proc: int | None = None) -> "Dataset":
        """Return examples with their counts in new columns.

        They are `num_tokens`, the length of the training row before truncation; `num_labels`, the number of tokens that
        carry loss after truncation; and `special_tokens`, those in the texts, which are encoded as plain text.
        """
        from datasets import Features, List, Value, concatenate_datasets

        types = {"num_tokens": Value("int32"), "num_labels": Value("int32"), "special_tokens": List(Value("string"))}
        counts = map_rows(examples, self._count, features=Features(types), note="Counting tokens", num_proc=num_proc)
        with quiet_datasets():
            return concatenate_datasets([examples, counts], axis=1)

    def _count(self, examples: list[dict[str, Any]]) -> dict[str, list[Any]]:
        settings: dict[str, Any] = {
            "max_length": self.max_length,
            "completion_only_loss": self.completion_only_loss,
        }
        encoded = self.prompt_format.encode_examples(self.tokenizer, examples, loss_on=self.loss_on)
        names = ("instruction", "input", "output")
        texts = [
            [*(example[name] or "" for name in names), *(turn["content"] for turn in example.get("messages") or ())]
            for example in examples
        ]
        return {
            "num_tokens": [sum(map(len, pieces)) for pieces in encoded],
            "num_labels": [count_labels(build_row(*pieces, **settings)) for pieces in encoded],
            "special_tokens": [self.prompt_format.find_special_tokens(self.tokenizer, *own) for own in texts],
        }


def map_rows(
    rows: "Dataset", function: Any, *, features: Any, note: str, num_proc: int | None = None, file: str | None = None
) -> "Dataset":
    """Apply a function to rows with `Dataset.map`, with a progress bar if there are many.

    Args:
        function: Converts a list of rows to their new columns.
        features: The types of the new columns.
        note: The text before the bar.
        file: The Arrow file that the result is written to; by default it is kept in memory.
    """

    def convert(batch: dict[str, list[Any]]) -> Any:
        return function([dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)])

    is_long = len(rows) >= _MIN_FOR_A_BAR
    if is_long:
        logger.info("%s: %s rows", note, f"{len(rows):,}")
    with contextlib.nullcontext() if is_long else quiet_datasets():
        return rows.map(
            convert,
            batched=True,
            remove_columns=rows.column_names,
            features=features,
            desc=note,
            num_proc=num_proc if num_proc and num_proc > 1 and len(rows) > num_proc else None,
            keep_in_memory=file is None,
            cache_file_name=file,
            load_from_cache_file=False,
            new_fingerprint=new_fingerprint(),
        )


def load_counter(
    model: str,
    *,
    prompt_format: PromptFormat,
    training: Mapping[str, Any],
    loss_on: LossOn = "all",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TokenCounter:
    """Return a token counter for a model; its `max_length` is at most the model's context length, as in training.

    A local folder only needs to contain the tokenizer.

    Args:
        training: The settings of training, of which those that change a row are used.

    Raises:
        ModelLoadError: The tokenizer cannot be loaded.
        ConfigError: The prompt format cannot be trained on.
    """
    from hf_instruct.models import load_context_length, load_tokenizer

    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    adjust_tokenizer(tokenizer, training)
    try:
        context = load_context_length(model, revision=revision, trust_remote_code=trust_remote_code)
    except ModelLoadError:
        # A tokenizer alone, or an adapter, whose config is its base model's.
        context = None
    limits = [limit for limit in (training.get("max_length"), context) if limit is not None]
    return TokenCounter(
        model,
        tokenizer,
        prompt_format=resolve_format(prompt_format, tokenizer),
        max_length=min(limits, default=None),
        completion_only_loss=training.get("completion_only_loss") is not False,
        loss_on=loss_on,
    )
