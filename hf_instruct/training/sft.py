"""SFT: fine-tune a model on examples with TRL's `SFTTrainer`, for the command line, the recipes and the Python API."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.data.sources import build_dataset, iterate_examples
from hf_instruct.data.tokens import map_rows
from hf_instruct.errors import ConfigError, DataError, list_first
from hf_instruct.prompt_tokens import LossOn, build_row, count_labels
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, format_row
from hf_instruct.schema import TrainingSummary
from hf_instruct.training.running import load_training_splits, run_training

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from peft import PeftConfig
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig

# Rows of the training split whose loss is evaluated next to the validation loss: the course's five batches of eight.
_PROBE_ROWS = 40
# The tokens of larger datasets are kept in a file and not in memory.
_MAX_IN_MEMORY = 50_000


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

    Writes `model/` (loadable by `from_pretrained`), `prompt.jinja`, `training.jsonl`, `training.json` and `loss.png` to
    `output_dir`; until training has finished, also the last checkpoint.

    Args:
        model: A causal language model in float32; it is trained in place.
        tokenizer: Its tokenizer; for `chat` its chat template is set to the one used in training.
        data: A `DatasetDict`, or a mapping of rows: `train` for training, `validation` for the validation loss; `test`
            is not used. Any other input of `load_examples` is split by `split_examples`.
        output_dir: A run folder.
        prompt_format: A format or its name; by default `chat` for conversations, otherwise `alpaca`.
        loss_on: Whether the loss is on `all` answers of a conversation, or only on the `last` one. For rows with a
            prompt and a completion it is on the completion, as in TRL.
        args: Fields of TRL's `SFTConfig`, which override the course's defaults and the precision that is faster on this
            machine; or an `SFTConfig`, which is used unchanged, except for its `output_dir`.
        peft_config: Fields of PEFT's `LoraConfig`, which override the course's defaults; or a `LoraConfig`, which is
            used unchanged. None trains all weights.
        callbacks: As for `Trainer`.
        compute_metrics: As for `Trainer`. It receives the logits of the whole validation split, so they have to fit
            into memory, and evaluation is as slow as TRL's.
        resume: Continue from the last complete checkpoint in `output_dir`, if there is one.
        keep_checkpoints: Keep the checkpoints when training has finished.

    Returns:
        The summary of the training; its `log_history` is the trainer's.

    Raises:
        ConfigError: An argument has another type, TRL or PEFT refuse the settings, the model is an adapter, or its
            prompts cannot be trained on.
        RunError: `output_dir` already contains a finished model, or checkpoints and `resume` is off; or the checkpoint
            was made with another number of processes, other examples or another base model.
        DataError: A split is empty, some rows have no label left within `max_length`, or the model lacks a token.
        TrainingError: The disk is full or too small, memory runs out, or the loss is not a number.
    """
    from hf_instruct.training.trainer import InstructTrainer

    splits = load_training_splits(data)

    def prepare(prompt_format: PromptFormat, arguments: "SFTConfig") -> tuple[dict[str, Any], Iterator[str]]:
        rows, held_out = (
            tokenize_examples(
                splits[name],
                tokenizer,
                prompt_format,
                max_length=arguments.max_length,
                completion_only_loss=arguments.completion_only_loss is not False,
                loss_on=loss_on,
                num_proc=arguments.dataset_num_proc,
            )
            for name in ("train", "validation")
        )
        _check_ids([rows, held_out], model)
        # Evenly spaced, so that the probe represents the whole split, however the file is sorted.
        spacing = max(len(rows) // _PROBE_ROWS, 1)
        keywords = {
            "train_dataset": _pack(rows, arguments),
            "eval_dataset": held_out,
            "probe_dataset": rows.select(range(0, len(rows), spacing)[:_PROBE_ROWS]),
            "compute_metrics": compute_metrics,
        }
        return keywords, (format_row(row) for name in ("train", "validation") for row in iterate_examples(splits[name]))

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
        loss_on: Whether the loss is on `all` answers of a conversation, or only on the `last` one.
        num_proc: Number of processes.

    Raises:
        DataError: Some rows have no label left after truncation; the message lists the first ones and their number.
    """
    from datasets import Dataset, Features, List, Value

    if not isinstance(examples, Dataset):
        examples = build_dataset(list(examples), Example)

    def tokenize(batch: list[dict[str, Any]]) -> dict[str, list[Any]]:
        encoded = prompt_format.encode_examples(tokenizer, batch, loss_on=loss_on)
        rows = [build_row(*ids, max_length=max_length, completion_only_loss=completion_only_loss) for ids in encoded]
        return {
            "input_ids": [row["input_ids"] for row in rows],
            "labels": [row["labels"] for row in rows],
            # Numbers of prompt and completion tokens, or empty if there is a label.
            "unlabelled": [
                [] if count_labels(row) else list(map(len, ids[:2])) for row, ids in zip(rows, encoded, strict=True)
            ],
        }

    types = {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "unlabelled": List(Value("int32"))}
    file = str(_temporary_folder() / "rows.arrow") if len(examples) > _MAX_IN_MEMORY else None
    rows = map_rows(examples, tokenize, features=Features(types), note="Tokenizing", num_proc=num_proc, file=file)
    sizes = rows["unlabelled"][:]
    if unlabelled := [index for index, pair in enumerate(sizes) if pair]:
        details = [
            "example `{}`: {} prompt and {} completion tokens".format(examples[index]["id"], *sizes[index])
            for index in unlabelled
        ]
        raise DataError(
            f"{len(unlabelled)} of {len(examples)} examples have no label within `train.max_length` {max_length}, "
            "so nothing can be learned from them. Raise `train.max_length`, or shorten or drop these rows:",
            list_first(details),
        )
    return rows.remove_columns("unlabelled")


def _check_ids(splits: "Sequence[Dataset]", model: "PreTrainedModel") -> None:
    """Refuse rows with token ids that the model has no embeddings for."""
    import pyarrow.compute

    columns = [rows.with_format("arrow").select_columns("input_ids") for rows in splits]
    batches = (batch["input_ids"] for column in columns for batch in column.iter(10_000))
    highest = max(pyarrow.compute.max(pyarrow.compute.list_flatten(batch)).as_py() for batch in batches)
    weight: Any = model.get_input_embeddings().weight
    size = weight.shape[0]
    if highest >= size:
        raise DataError(
            f"The tokenizer produces token id {highest}, but the model only has ids 0 to {size - 1}. Load both from "
            "the same folder; if you added tokens, save the model after "
            "`model.resize_token_embeddings(len(tokenizer))`."
        )


def _pack(rows: "Dataset", arguments: "SFTConfig") -> "Dataset":
    """Return the rows packed and shuffled as set in the arguments; our collators unpack packed rows again."""
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


def _temporary_folder() -> Path:
    """Return a new folder in the cache of `datasets` that is deleted when the program ends."""
    from datasets import config

    config.HF_DATASETS_CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hf-instruct-", dir=config.HF_DATASETS_CACHE))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
