"""TRL's `SFTTrainer` with the loss computed only at label positions, and exact mean losses."""

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerControl
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from hf_instruct.generation.decoding import without_adapter
from hf_instruct.manifests import Origin, begin_manifest, write_manifest
from hf_instruct.prompt_tokens import IGNORED
from hf_instruct.training.callbacks import KeepMemory
from hf_instruct.training.fast.attention import segment_attention
from hf_instruct.training.fast.collators import (
    TRAINER_KEYS,
    PaddingCollator,
    PrefixSharingCollator,
    SegmentCollator,
)
from hf_instruct.training.fast.loss import add_label_losses, find_labels, uses_all_weights
from hf_instruct.training.fast.sharing import build_collator, has_plain_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from datasets import Dataset
    from torch.utils.data import DataLoader
    from trl import SFTConfig


class RunTrainer(Trainer):
    """Mixin that overrides TRL's trainers for runs: complete checkpoints, tokens counted per example, no telemetry.

    In a class definition it comes before the trainer's class.
    """

    # The origin of the run, for the manifests of its checkpoints; only set by `run_training`.
    origin: Origin | None = None
    args: Any
    model: Any
    # Context in which the model supports batches of segments.
    _attention: "Callable[[], AbstractContextManager[Any]]" = contextlib.nullcontext

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.add_callback(KeepMemory())

    def can_save(self) -> bool:
        """Return whether the run could be resumed from a checkpoint at this step."""
        return True

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Return the loss of a batch after its backward pass, which may recompute activations."""
        with self._attention():
            loss: torch.Tensor = super().training_step(*arguments, **keywords)
        return loss

    def _track_num_input_tokens(self, inputs: "Mapping[str, torch.Tensor]") -> None:
        if "num_tokens" not in inputs:
            super()._track_num_input_tokens(inputs)  # type: ignore[no-untyped-call]
            return
        # `Trainer` would sum the mask, which is not the number of tokens if the mask is 4-D.
        count: Any = inputs["num_tokens"]
        if self.accelerator.num_processes > 1:
            count = int(self.accelerator.reduce(torch.tensor(count, device=self.args.device), "sum"))
        self.state.num_input_tokens_seen += count

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # `Trainer` computes the norm for its log even without clipping, which takes two passes over all gradients.
        if not self.args.max_grad_norm:
            return None
        return super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """Train an epoch, except after the last step.

        If a run is killed between its last checkpoint and saving the model, and the last step is in the middle of an
        epoch, `Trainer` would train one step too many when resuming.
        """
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint; in a run, delete older ones only after its manifest is written."""
        if self.origin is None:
            super()._save_checkpoint(model, trial)
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            begin_manifest(folder)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            write_manifest(folder, self.origin)
            best = self.state.best_model_checkpoint
            rotate_checkpoints(self.args.output_dir, limit, best_model_checkpoint=best, use_mtime=True)

    def _report(self, metrics: dict[str, float]) -> dict[str, float]:
        """Log the metrics of an evaluation, as `Trainer.evaluate` does, and return them."""
        self.log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """Skip the model card in a run's checkpoints; publishing writes the card of the model."""
        if self.origin is None:
            super().create_model_card(*arguments, **keywords)

    def _send_telemetry(self) -> None:
        """Disable TRL's telemetry."""


class InstructTrainer(RunTrainer, SFTTrainer):
    """A drop-in replacement for `SFTTrainer`: several times faster on a CPU, with the same loss.

    Logits are only computed for labels, and a batch has no padding and each shared prompt prefix only once. On a CPU,
    TRL computes logits at every position, and also entropy and accuracy; on the course's data only a third of the
    positions have a label. If this is not exact for a model or a setting, TRL's computation is used, which is logged.
    With `compute_metrics`, which needs all logits, TRL evaluates.

    Args:
        model: As for `SFTTrainer`, like all arguments that are not listed.
        args: An `SFTConfig`.
        data_collator: Your own collator; by default the fastest one that is exact for the model.
        probe_dataset: A fixed part of the training rows; its mean loss is logged as `eval_train_loss`.
    """

    data_collator: Any

    def __init__(
        self,
        model: Any,
        args: "SFTConfig | None" = None,
        data_collator: Any = None,
        *arguments: Any,
        probe_dataset: "Dataset | None" = None,
        **keywords: Any,
    ) -> None:
        config = model.config.get_text_config() if hasattr(model, "config") else None
        routers = getattr(config, "output_router_logits", None)
        super().__init__(model, args, data_collator, *arguments, **keywords)
        if config is not None and routers is not None:
            # TRL requests router logits in its own calls. If set in the config, they would also be requested in
            # generation, where their loss fails with a cached prompt, and by every user of the saved model.
            config.output_router_logits = routers
        self.probe_dataset = probe_dataset
        adapter = getattr(self.model, "active_peft_config", None)
        base = without_adapter(self.model)
        self._has_plain_loss = not self._is_vision_dataset and has_plain_loss(base, self.args)
        if self._has_plain_loss and self.args.ddp_find_unused_parameters is None and uses_all_weights(base):
            # By default, `Trainer` makes every process look for weights without a gradient in every step.
            self.accelerator.ddp_handler.find_unused_parameters = False
        if data_collator is None and not self._is_vision_dataset:
            pad_id = int(self._tokenizer.pad_token_id or 0)
            self.data_collator = build_collator(
                base, self.args, pad_id=pad_id, plain_loss=self._has_plain_loss, lora=adapter
            )
        if isinstance(self.data_collator, SegmentCollator):
            self._attention = functools.partial(segment_attention, base)
        if self._has_plain_loss:
            add_label_losses(base)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch: the sum over labels divided by `num_items_in_batch` (default: its labels)."""
        if not self._has_plain_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        sums, counts = self.sum_losses(model, inputs)
        num_labels = counts.sum() if num_items_in_batch is None else num_items_in_batch
        loss = sums.sum() / torch.as_tensor(num_labels, device=sums.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # `num_items_in_batch` counts the labels of all processes, and DDP averages the gradients over processes.
            loss = loss * self.accelerator.num_processes
        if not return_outputs:
            return loss
        plain = {name: value for name, value in inputs.items() if name not in TRAINER_KEYS}
        return loss, model(**plain, use_cache=False)

    def sum_losses(
        self, model: torch.nn.Module, inputs: "Mapping[str, torch.Tensor]"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each row's summed loss in nats, [rows], and its number of labels, [rows].

        A label that several examples share counts once for each of them.
        """
        labels = inputs["labels"]  # [rows, seq]
        weights = inputs["label_weights"][:, 1:] if "label_weights" in inputs else labels[:, 1:] != IGNORED
        rows, columns = find_labels(labels)  # [labels] each
        plain = {name: value for name, value in inputs.items() if name not in TRAINER_KEYS}
        losses = model(**plain, use_cache=False, loss_labels=labels)  # [labels]
        sums = losses.new_zeros(len(labels)).index_add(0, rows, losses * weights[rows, columns])
        return sums, weights.sum(dim=1)

    def mean_loss(self, dataset: "Dataset | str") -> float:
        """Return the mean loss over all labels of a dataset, in nats per label token, on any number of GPUs.

        Args:
            dataset: Rows with `input_ids` and `labels`, or the name of one of several evaluation datasets.
        """
        total, labels = 0.0, 0
        self.model.eval()
        for batch in self.get_eval_dataloader(dataset):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self._attention(), self.compute_loss_context_manager():
                if self._has_plain_loss:
                    sums, counts = self.sum_losses(self.model_wrapped, inputs)
                else:
                    counts = (inputs["labels"][:, 1:] != IGNORED).sum(dim=1)
                    # TRL's mean over the batch, distributed over its rows.
                    loss: Any = super().compute_loss(self.model_wrapped, inputs)
                    sums = loss * counts
            # Drops the rows that were repeated to give all processes equal batches.
            sums, counts = self.accelerator.gather_for_metrics((sums.float(), counts))
            total += sums.sum().item()
            labels += int(counts.sum().item())
        return total / max(labels, 1)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return `eval_loss`, the exact mean over all labels, and `eval_train_loss` on the `probe_dataset`.

        With `compute_metrics` or a dict of datasets, `SFTTrainer` evaluates.
        """
        if self.compute_metrics is not None or isinstance(eval_dataset or self.eval_dataset, dict):
            return dict(super().evaluate(eval_dataset, ignore_keys, metric_key_prefix))
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(eval_dataset, str | None) and not self._skip_prepare_dataset:
            packing = self.args.packing if self.args.eval_packing is None else self.args.eval_packing
            dataset = self._prepare_dataset(
                dataset, self.processing_class, self.args, packing, self._formatting_func, "eval"
            )
        metrics = {f"{metric_key_prefix}_loss": self.mean_loss(dataset)}
        if self.probe_dataset is not None and eval_dataset is None:
            metrics["eval_train_loss"] = self.mean_loss(self.probe_dataset)
        return self._report(metrics)

    def prediction_step(self, *arguments: Any, **keywords: Any) -> Any:
        """Return loss, logits and labels of a batch; see `Trainer`."""
        with self._attention():
            return super().prediction_step(*arguments, **keywords)

    def get_eval_dataloader(self, eval_dataset: "Dataset | str | None" = None) -> "DataLoader[Any]":
        """Return the batches of a dataset; padded with several processes and for `compute_metrics`.

        Rows are repeated to give all processes equal batches, and can only be dropped again if each example has its own
        row.
        """
        # With persistent workers, `Trainer` keeps one loader for all datasets: the probe would be the validation split.
        self.__dict__.pop("_eval_dataloaders", None)
        training = self.data_collator
        shares_rows = isinstance(training, SegmentCollator | PrefixSharingCollator)
        if shares_rows and (self.accelerator.num_processes > 1 or self.compute_metrics is not None):
            self.data_collator = PaddingCollator(training.pad_id)
        try:
            batches: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training
        return batches

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if not batch_samples or "label_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(batch["label_weights"].sum() for batch in batch_samples).to(device)
        # Summed over all processes if the gradients are averaged over them, as in `Trainer`.
        return self.accelerator.gather(count).sum() if self.args.average_tokens_across_devices else count
