"""TRL's `SFTTrainer` with the loss computed once, at the label positions only, and exact mean losses."""

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerControl
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from hf_instruct.manifests import Origin, begin_manifest, write_manifest
from hf_instruct.prompts import IGNORED
from hf_instruct.training.fast.attention import segment_attention
from hf_instruct.training.fast.collators import TRAINER_KEYS, PaddingCollator, SegmentCollator
from hf_instruct.training.fast.loss import add_label_losses, find_labels, uses_all_weights
from hf_instruct.training.fast.sharing import has_plain_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from torch.utils.data import DataLoader


class InstructTrainer(SFTTrainer):
    """`SFTTrainer` that computes logits only where there is a label, once, and counts what shared tokens stand for.

    TRL scores every position on a CPU and computes entropy and accuracy beside the loss; on the course's data only a
    third of the positions carry a label, and GPT-2's head is a third of its arithmetic. The loss is the same number.

    Args:
        probe_dataset: A fixed part of the training rows, whose mean loss is logged as `eval_train_loss`.
        plain_loss: What `has_plain_loss` said of the model; asked here if None.
        **arguments: As `SFTTrainer`'s; `data_collator` may be a weighted `PrefixSharingCollator`.
    """

    data_collator: Any
    # What the run is made from, for the manifests of its checkpoints.
    origin: Origin | None = None

    def __init__(
        self, *, probe_dataset: "Dataset | None" = None, plain_loss: bool | None = None, **arguments: Any
    ) -> None:
        model, args = arguments["model"], arguments["args"]
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._has_plain_loss = has_plain_loss(model, args) if plain_loss is None else plain_loss
        if self._has_plain_loss and args.ddp_find_unused_parameters is None and uses_all_weights(model):
            # `Trainer` lets every process look for weights without a gradient, in every step.
            args.ddp_find_unused_parameters = False
        config = model.config.get_text_config()
        routers = getattr(config, "output_router_logits", None)
        super().__init__(**arguments)
        if routers is not None:
            # TRL asks for them in each call of its own. By the config they would be asked for, with a loss on them that
            # no cached prompt has, whenever the model generates, also when it is loaded again.
            config.output_router_logits = routers
        self.probe_dataset = probe_dataset
        takes_segments = isinstance(self.data_collator, SegmentCollator)
        self._attention = functools.partial(segment_attention, model) if takes_segments else contextlib.nullcontext
        if self._has_plain_loss:
            add_label_losses(model)

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Return the loss of a batch after its backward pass, which may compute activations again."""
        with self._attention():
            loss: torch.Tensor = super().training_step(*arguments, **keywords)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch: the sum over labels divided by `num_items_in_batch` (this batch's, if None)."""
        if return_outputs or not self._has_plain_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        sums, counts = self.sum_losses(model, inputs)
        if num_items_in_batch is None:
            return sums.sum() / counts.sum().clamp(min=1)
        loss = sums.sum() / torch.as_tensor(num_items_in_batch, device=sums.device).clamp(min=1)
        # `num_items_in_batch` counts the labels of all processes, and DDP averages the gradients over processes.
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def sum_losses(
        self, model: torch.nn.Module, inputs: "Mapping[str, torch.Tensor]"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each row's summed loss in nats, [rows], and how many labels of examples that is, [rows]."""
        labels = inputs["labels"]  # [rows, seq]
        weights = inputs["label_weights"][:, 1:] if "label_weights" in inputs else labels[:, 1:] != IGNORED
        owners, columns = find_labels(labels)  # the row each label is in, and where
        others = {name: value for name, value in inputs.items() if name not in TRAINER_KEYS}
        losses = model(**others, use_cache=False, loss_labels=labels)  # [labels]
        sums = losses.new_zeros(len(labels)).index_add(0, owners, losses * weights[owners, columns])
        return sums, weights.sum(dim=1)

    def mean_loss(self, dataset: "Dataset") -> float:
        """Return the mean loss over all labels of a dataset, in nats a label token; the same on any number of GPUs."""
        total, labels = 0.0, 0
        self.model.eval()
        for batch in self.get_eval_dataloader(dataset):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self._attention(), self.compute_loss_context_manager():
                if self._has_plain_loss:
                    sums, counts = self.sum_losses(self.model_wrapped, inputs)
                else:
                    counts = (inputs["labels"][:, 1:] != IGNORED).sum(dim=1)
                    # TRL's mean over the batch, spread over its rows.
                    sums = super().compute_loss(self.model_wrapped, inputs) * counts
            # Leaves out the rows that were repeated to make the last batch even among processes.
            sums, counts = self.accelerator.gather_for_metrics((sums.float(), counts))
            total += sums.sum().item()
            labels += int(counts.sum().item())
        return total / max(labels, 1)

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Log and return `eval_loss`, on all validation rows, and `eval_train_loss`, on the fixed part of train."""
        metrics = {"eval_loss": self.mean_loss(self.eval_dataset)}
        if self.probe_dataset is not None:
            metrics["eval_train_loss"] = self.mean_loss(self.probe_dataset)
        self.log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_eval_dataloader(self, eval_dataset: "Dataset | str | None" = None) -> "DataLoader[Any]":
        """Return the batches of a dataset; padded where there are several processes.

        They repeat rows to make the last batch even, which can be left out again only if each example has a row.
        """
        # `Trainer` keeps one for all data sets where workers persist: the probe would be the validation split.
        self.__dict__.pop("_eval_dataloaders", None)
        training = self.data_collator
        if self.accelerator.num_processes > 1:
            self.data_collator = PaddingCollator(int(self.processing_class.pad_token_id or 0))
        try:
            batches: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training
        return batches

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if not batch_samples or "label_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(batch["label_weights"].sum() for batch in batch_samples).to(device)
        # As for labels that are not shared: over all processes, where the gradients are averaged over them.
        return self.accelerator.gather(count).sum() if self.args.average_tokens_across_devices else count

    def _track_num_input_tokens(self, inputs: "Mapping[str, torch.Tensor]") -> None:
        if "num_tokens" not in inputs:
            super()._track_num_input_tokens(inputs)
            return
        # The sum of a 4-D mask, which `Trainer` would take, is no number of tokens.
        count: Any = inputs["num_tokens"]
        if self.accelerator.num_processes > 1:
            count = int(self.accelerator.reduce(torch.tensor(count, device=self.args.device), "sum"))
        self.state.num_input_tokens_seen += count

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        # `Trainer` asks for the norm to log it, even where nothing is clipped: two passes over all gradients.
        return super()._get_grad_norm(model, grad_norm) if self.args.max_grad_norm else None

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """Train an epoch, or none after the last step: `Trainer` takes one more where that step is not an epoch's last.

        It does when it resumes from the checkpoint of the last step, which a kill before the model is saved leaves.
        """
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **keywords)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint, and delete older ones only when its manifest says that it is whole."""
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

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """Write no card into checkpoints: publishing writes the model's own."""

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report the trainer's class to the Hub."""
