"""DPO: train a model on preference pairs with TRL's `DPOTrainer`, our prompts, and the loss only at the labels."""

import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import load_from_disk
from torch.nn import functional
from trl import DPOTrainer

from hf_instruct.errors import ConfigError, DataError, list_first
from hf_instruct.generation.decoding import without_adapter
from hf_instruct.progress import progress_bar
from hf_instruct.prompt_tokens import build_row
from hf_instruct.prompts import PromptFormat
from hf_instruct.quantization import is_quantized
from hf_instruct.records import Example
from hf_instruct.schema import TrainingSummary
from hf_instruct.training.fast.attention import segment_attention
from hf_instruct.training.fast.collators import SegmentCollator
from hf_instruct.training.fast.loss import add_label_losses, find_labels, has_plain_head
from hf_instruct.training.fast.sharing import build_segments, find_reason_to_pad
from hf_instruct.training.running import run_training
from hf_instruct.training.trainer import RunTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import DPOConfig

logger = logging.getLogger(__name__)


def train_dpo(  # noqa: PLR0913 - as `train`
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    pairs: "Mapping[str, Dataset]",
    *,
    output_dir: str | Path,
    prompt_format: PromptFormat | str | None = None,
    args: "DPOConfig | Mapping[str, Any] | None" = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
    keep_checkpoints: bool = False,
) -> TrainingSummary:
    """Train a model with DPO to prefer the chosen answers; the reference is the given model.

    Prompts are tokenized with `prompt_format`, as when the model was fine-tuned. The model is trained in place.

    Args:
        model: A full fine-tuned model; merge an adapter first.
        tokenizer: Its tokenizer.
        pairs: The splits `train` and `validation`, with rows as returned by `load_pairs`.
        output_dir: Folder for `model/`, `training.jsonl` and the other files that `train` writes.
        prompt_format: Format of the fine-tuned model; by default `chat` for conversations, otherwise `alpaca`.
        args: A `DPOConfig`, or a mapping of its fields that override the course's settings (beta 0.1, learning rate
            5e-6).
        peft_config: A `LoraConfig` or its fields, for a new adapter; None trains all weights.
        callbacks: Callbacks for the trainer.
        resume: Whether to continue from the last complete checkpoint.
        keep_checkpoints: Keep the checkpoints when training has finished.

    Returns:
        A summary; losses are DPO's, in nats per pair. `training.jsonl` has margins and accuracies of the rewards.

    Raises:
        ConfigError: The settings are refused, or the model is an adapter or quantized.
        DataError: There are no pairs, or a prompt leaves no space for an answer within `max_length`.
        RunError: `output_dir` already contains a model, or the checkpoint has a different origin.
        TrainingError: The disk is full or too small, memory runs out, or the loss is not a number.
    """
    _check_pairs(pairs)
    if empty := [name for name in ("train", "validation") if not len(pairs[name])]:
        raise DataError(f"There are no pairs in {' and '.join(empty)}. Add pairs, or use another source.")
    if hasattr(model, "peft_config") or is_quantized(model):
        raise ConfigError(
            "Preference training needs full weights, but this model is an adapter or quantized:",
            ["merge them with `hf-instruct export RUN --format merged` first, and use that folder"],
        )

    def prepare(prompt_format: PromptFormat, arguments: "DPOConfig") -> tuple[dict[str, Any], Iterator[str]]:
        rows, held_out = (
            tokenize_pairs(pairs[name], tokenizer, prompt_format, max_length=arguments.max_length)
            for name in ("train", "validation")
        )
        texts = (repr([row[column] for column in _COLUMNS]) for split in (rows, held_out) for row in split)
        return {"train_dataset": rows, "eval_dataset": held_out}, texts

    return run_training(
        InstructDPOTrainer,
        prepare,
        model,
        tokenizer,
        pairs,
        kind="DPOConfig",
        output_dir=output_dir,
        prompt_format=prompt_format,
        args=args,
        peft_config=peft_config,
        callbacks=callbacks,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
    )


def _check_pairs(pairs: Any) -> None:
    needed = {"id", "instruction", "input", "chosen", "rejected"}
    for name in ("train", "validation"):
        rows = pairs.get(name) if isinstance(pairs, Mapping) else None
        if missing := sorted(needed - set(getattr(rows, "column_names", ()))):
            raise ConfigError(
                f"`pairs` has no {name} pairs, or they lack {', '.join(f'`{column}`' for column in missing)}; give "
                '{"train": load_pairs(...), "validation": load_pairs(...)}.'
            )


_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def tokenize_pairs(
    pairs: "Dataset", tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat, *, max_length: int | None
) -> "Dataset":
    """Return rows for `DPOTrainer`, with `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Answers that do not fit into `max_length` are truncated.

    Raises:
        DataError: A prompt leaves no space for an answer; TRL silently drops such rows.
    """
    from datasets import Dataset

    sides = [
        prompt_format.encode_examples(tokenizer, [_choose_answer(pair, side) for pair in pairs], loss_on="last")
        for side in ("chosen", "rejected")
    ]
    longest = max_length or sys.maxsize
    rows: dict[str, list[list[int]]] = {name: [] for name in _COLUMNS}
    full = []
    for pair, (prompt, chosen), (_, rejected) in zip(pairs, *sides, strict=True):
        room = max(longest - len(prompt), 0)
        if not room:
            full.append(f"`{pair['id']}`")
        for name, ids in zip(_COLUMNS, (prompt, chosen[:room], rejected[:room]), strict=True):
            rows[name].append(ids)
    if full:
        raise DataError(
            f"The prompts of {len(full)} of {len(pairs)} pairs leave no space for an answer within `dpo.max_length` "
            f"{max_length} ({', '.join(list_first(full))}). Raise it, or delete these pairs."
        )
    return Dataset.from_dict(rows)


def _choose_answer(pair: Mapping[str, Any], side: str) -> Example:
    """Return a pair's example with its chosen or rejected answer as the output."""
    turns = pair.get("messages") and [*pair["messages"][:-1], {"role": "assistant", "content": pair[side]}]
    return Example.of({**pair, "output": pair[side], "messages": turns})


class PreferenceCollator:
    """Puts both answers of each pair into one row, with their shared prompt only once."""

    def __init__(self, pad_id: int) -> None:
        self._segments = SegmentCollator(pad_id, weighted=False)

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch of `SegmentCollator`, with the chosen answers before the rejected ones, and `ref_*_logps`."""
        rows = [
            build_row(pair["prompt_ids"], pair[side], max_length=None)
            for side in ("chosen_ids", "rejected_ids")
            for pair in pairs
        ]
        batch = self._segments(rows)
        # Renamed so that `Trainer` does not divide the loss by their number, because DPO's is a mean over pairs.
        batch["loss_labels"] = batch.pop("labels")
        batch["num_rows"] = len(rows)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in pairs[0]:
                batch[name] = torch.tensor([pair[name] for pair in pairs])
        return batch


class InstructDPOTrainer(RunTrainer, DPOTrainer):
    """`DPOTrainer` for tokenized pairs; on a CPU several times faster, with the same loss.

    On a CPU, the answers of a pair share their prompt, a batch shares its preamble, and log-probabilities are only
    computed at the answers. TRL's computation is used on GPUs, for losses other than DPO's own, and for models for
    which this is not exact.
    """

    def __init__(self, model: Any, args: "DPOConfig", *, processing_class: Any, **keywords: Any) -> None:
        base = without_adapter(model)
        pad_id = int(processing_class.pad_token_id or 0)
        plain_loss = _is_plain(args) and has_plain_head(base)
        reason = find_reason_to_pad(base, args, plain_loss=plain_loss, lora=keywords.get("peft_config"))
        self._is_fast = not reason and args.world_size == 1 and build_segments(base, args, pad_id=pad_id) is not None
        if self._is_fast:
            # Before TRL computes the log-probabilities of the reference model.
            add_label_losses(base)
            self._attention = functools.partial(segment_attention, base)
            keywords["data_collator"] = PreferenceCollator(pad_id)
        elif args.device.type == "cpu":
            reason = reason or "shared rows need a single process, SDPA, and a model that can keep examples apart"
            logger.info("Training %s on padded pairs, several times slower: %s.", type(base).__name__, reason)
        super().__init__(model=model, args=args, processing_class=processing_class, **keywords)

    def _prepare_dataset(self, dataset: "Dataset", *_: Any, **__: Any) -> "Dataset":
        """Return the rows unchanged; they are already tokenized by `tokenize_pairs`."""
        return dataset

    def _precompute_ref_logps(self, dataset: "Dataset", name: str, batch_size: int) -> "Dataset":
        """Return the rows with the reference's `ref_chosen_logps` and `ref_rejected_logps`, in nats."""
        if not self._is_fast:
            if self.accelerator.num_processes == 1:
                return super()._precompute_ref_logps(dataset, name, batch_size)
            # TRL shares the values in a file next to that of the rows, so all processes must see its folder.
            folder = Path(self.args.output_dir) / f"pairs-{name}"
            if self.is_world_process_zero():
                dataset.save_to_disk(folder)
            self.accelerator.wait_for_everyone()
            computed = super()._precompute_ref_logps(load_from_disk(folder), name, batch_size)
            for column in ("ref_chosen_logps", "ref_rejected_logps"):
                dataset = dataset.add_column(column, computed[column][:])
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                shutil.rmtree(folder)
            return dataset
        # The reference is the model without the new adapter.
        adapter = self.model.disable_adapter() if hasattr(self.model, "peft_config") else contextlib.nullcontext()
        logps: list[list[float]] = [[], []]
        with progress_bar(f"Computing the reference, {name}", len(dataset)) as advance, torch.no_grad(), adapter:
            for start in range(0, len(dataset), batch_size):
                pairs = dataset.select(range(start, min(start + batch_size, len(dataset))))
                inputs = self._prepare_inputs(self.data_collator(pairs))
                with self.accelerator.autocast():
                    sums = self._sum_log_probs(self.model, inputs).chunk(2)
                for values, part in zip(logps, sums, strict=True):
                    values += part.tolist()
                advance(len(pairs), "")
        dataset = dataset.add_column("ref_chosen_logps", logps[0])
        return dataset.add_column("ref_rejected_logps", logps[1])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return DPO's loss for a batch, in nats per pair: -log sigmoid of the difference of the two rewards."""
        if not self._is_fast:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        margins = self._compute_margins(model, inputs)
        if self.model.training:
            for name, values in _measure(margins.detach()).items():
                self._metrics["train"][name].append(values.mean().item())
        return -functional.logsigmoid(margins).mean()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the means of the loss and of the rewards' margin and accuracy over all pairs; see `Trainer`."""
        if not self._is_fast:
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return metrics
        self.model.eval()
        margins = []
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                margins.append(self.accelerator.gather_for_metrics(self._compute_margins(self.model_wrapped, inputs)))
        all_margins = torch.cat(margins).float()
        results = {"loss": -functional.logsigmoid(all_margins), **_measure(all_margins)}
        metrics = {f"{metric_key_prefix}_{name}": values.mean().item() for name, values in results.items()}
        return self._report(metrics)

    def _compute_margins(self, model: Any, inputs: "Mapping[str, Any]") -> torch.Tensor:
        """Return the reward of each chosen answer minus that of the rejected one, [pairs].

        A reward is beta times (log-probability of the answer - the reference model's).
        Source: https://arxiv.org/abs/2305.18290, equation 7
        """
        chosen, rejected = self._sum_log_probs(model, inputs).chunk(2)
        reference = inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"]
        return self.beta * (chosen - rejected - reference)  # type: ignore[no-any-return]

    def _sum_log_probs(self, model: Any, inputs: "Mapping[str, Any]") -> torch.Tensor:
        """Return the log-probability of each answer, [2 x pairs], in nats."""
        labels = inputs["loss_labels"]
        rows, columns = find_labels(labels)
        names = ("input_ids", "position_ids", "attention_mask", "segments")
        with self._attention():
            losses = model(**{name: inputs[name] for name in names}, use_cache=False, loss_labels=labels)
        owners = inputs["owners"][rows, columns + 1]
        return -losses.new_zeros(inputs["num_rows"]).index_add(0, owners, losses)  # type: ignore[no-any-return]


def _measure(margins: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"rewards/margins": margins, "rewards/accuracies": (margins > 0).float()}


def _is_plain(args: "DPOConfig") -> bool:
    """Return whether the settings select the loss of the DPO paper, with the reference computed in advance."""
    changed = args.ld_alpha is not None or args.use_weighting or args.f_divergence_type != "reverse_kl"
    return args.loss_type == ["sigmoid"] and not changed and args.precompute_ref_log_probs and not args.loss_weights
