"""Fine-tune a model on examples, for the command line, the recipes and the Python API."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.data.sources import iterate_examples
from hf_instruct.data.splits import CheckedSplits
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.prompt_tokens import LossOn
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import format_row
from hf_instruct.schema import TrainingSummary
from hf_instruct.training.running import load_training_splits, run_training

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from peft import PeftConfig
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig

# Rows of the training split whose loss is followed beside the validation loss: the course's five batches of eight.
PROBE_ROWS = 40


def train(  # noqa: PLR0913 - TRL's own names for TRL's own objects
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: "DatasetDict | Mapping[str, Any] | Dataset | str | Path",
    *,
    output_dir: str | Path,
    prompt_format: PromptFormat | str | None = None,
    loss_on: LossOn = "all",
    args: "SFTConfig | Mapping[str, Any] | None" = None,
    peft_config: "PeftConfig | Mapping[str, Any] | None" = None,
    callbacks: "Sequence[TrainerCallback | type[TrainerCallback]]" = (),
    compute_metrics: "Callable[[EvalPrediction], dict[str, float]] | None" = None,
    resume: bool = False,
    keep_checkpoints: bool = False,
) -> TrainingSummary:
    """Fine-tune a model on examples: all weights, or a LoRA adapter.

    `output_dir` then holds `model/` (loadable by `from_pretrained`), `prompt.jinja`, `training.jsonl`,
    `training.json` and `loss.png`; until training has finished, also the last checkpoint.

    Args:
        model: A causal language model in float32; it is trained in place.
        tokenizer: Its tokenizer; for `chat` its chat template becomes the one that is trained on.
        data: A `DatasetDict`, or a mapping of rows: `train` for training, `validation` for the validation loss; `test`
            is not used. Anything else that `load_examples` takes is split as `split_examples` does.
        output_dir: A run folder.
        prompt_format: A format or its name; by default `chat` for conversations, else `alpaca`.
        loss_on: Whether `all` answers of a conversation carry loss, or the `last` one alone. Of rows with a prompt and
            a completion it is the completion's, as in TRL.
        args: Fields of TRL's `SFTConfig`, which override the course's defaults and the precision that is faster on this
            machine; or an `SFTConfig`, which is used as it is, except for its `output_dir`.
        peft_config: Fields of PEFT's `LoraConfig`, which override the course's defaults; or a `LoraConfig`, used as it
            is. None trains all weights.
        callbacks: As those of `Trainer`.
        compute_metrics: As that of `Trainer`. It receives the logits of the whole validation split, so they have to fit
            into memory, and evaluation is as slow as TRL's.
        resume: Continue from the last complete checkpoint in `output_dir`, if there is one.
        keep_checkpoints: Keep the checkpoints when training has finished.

    Returns:
        The summary of the training; its `log_history` is the trainer's.

    Raises:
        ConfigError: An argument is of another type, TRL or PEFT refuse the settings, the model is an adapter, or its
            prompts cannot be trained on.
        RunError: `output_dir` already contains a finished model, or checkpoints and `resume` is off; or the checkpoint
            was made by another number of processes, on other examples or from another base model.
        DataError: A split is empty, some rows have no label left within `max_length`, or the model lacks a token.
        TrainingError: The disk is full or too small, memory runs out, or the loss is not a number.
    """
    from hf_instruct.training.trainer import InstructTrainer

    splits = load_training_splits(data)

    def prepare(prompt_format: PromptFormat, arguments: "SFTConfig") -> tuple[dict[str, Any], Iterator[str]]:
        rows, validation_rows = _tokenize(
            model, tokenizer, splits, prompt_format=prompt_format, loss_on=loss_on, arguments=arguments
        )
        # Evenly spaced, so that the probe is like the whole whatever the order of the file.
        spacing = max(len(rows) // PROBE_ROWS, 1)
        given = {
            "train_dataset": _pack(rows, arguments),
            "eval_dataset": validation_rows,
            "probe_dataset": rows.select(range(0, len(rows), spacing)[:PROBE_ROWS]),
            "compute_metrics": compute_metrics,
        }
        return given, (format_row(one) for name in ("train", "validation") for one in iterate_examples(splits[name]))

    return run_training(
        InstructTrainer,
        prepare,
        model,
        tokenizer,
        splits,
        kind="SFTConfig",
        output_dir=output_dir,
        prompt_format=prompt_format,
        args=args,
        peft_config=peft_config,
        callbacks=callbacks,
        samples=splits["validation"],
        resume=resume,
        keep_checkpoints=keep_checkpoints,
    )


def _pack(rows: "Dataset", arguments: "SFTConfig") -> "Dataset":
    """Return the training rows as `packing` and `shuffle_dataset` ask: our collators take packed rows apart again."""
    if arguments.shuffle_dataset:
        rows = rows.shuffle(seed=arguments.seed)
    if not arguments.packing:
        return rows
    from trl import pack_dataset

    from hf_instruct.training.arguments import translated_refusals

    arguments.packing = False
    if arguments.max_length is None:
        raise ConfigError("`train.packing` needs `train.max_length`; set it.")
    with translated_refusals("The `train` section is refused by TRL:"):
        return pack_dataset(rows, arguments.max_length, arguments.packing_strategy)


def _tokenize(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    splits: CheckedSplits,
    *,
    prompt_format: PromptFormat,
    loss_on: LossOn,
    arguments: "SFTConfig",
) -> "list[Dataset]":
    """Return the rows of the training and of the validation split, of ids that the model has embeddings for."""
    from hf_instruct.training.dataset import find_highest_id, tokenize_examples

    rows = [
        tokenize_examples(
            examples,
            tokenizer,
            prompt_format,
            max_length=arguments.max_length,
            completion_only_loss=arguments.completion_only_loss is not False,
            loss_on=loss_on,
            num_proc=arguments.dataset_num_proc,
        )
        for examples in (splits["train"], splits["validation"])
    ]
    weight: Any = model.get_input_embeddings().weight
    size = weight.shape[0]
    highest = max(map(find_highest_id, rows))
    if highest >= size:
        raise DataError(
            f"The tokenizer produces token id {highest}, but the model only has ids 0 to {size - 1}. Load both from "
            "the same folder; if you added tokens, save the model after "
            "`model.resize_token_embeddings(len(tokenizer))`."
        )
    return rows
