"""TRL's `SFTTrainer` with the loss computed once, at the label positions only, and exact mean losses."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import TrainerControl
from trl import SFTTrainer

from hf_instruct.training.dataset import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import PreTrainedModel

# Models whose head does more than one matrix product: their logits stay TRL's business.
_HEAD_FIELDS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class InstructTrainer(SFTTrainer):
    """`SFTTrainer` that computes logits only where there is a label.

    TRL scores every position on a CPU and computes entropy and accuracy beside the loss; on the course's data only a
    third of the positions carry a label, and GPT-2's head is a third of its arithmetic. The loss is the same number.

    Args:
        probe_dataset: A fixed part of the training rows, whose mean loss is logged as `eval_train_loss`.
        **arguments: As `SFTTrainer`'s.
    """

    def __init__(self, *, probe_dataset: "Dataset | None" = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.probe_dataset = probe_dataset
        inner = self.accelerator.unwrap_model(self.model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        self._plain_head = has_plain_head(inner) and self.args.loss_type == "nll" and not self.label_smoother
        if self._plain_head:
            add_label_logits(inner)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch: the sum over labels divided by `num_items_in_batch` (this batch's, if None)."""
        if return_outputs or not self._plain_head:
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
        """Return each row's summed loss in nats, [batch], and its number of labels, [batch]."""
        labels = inputs["labels"][:, 1:]  # [batch, seq - 1]
        mask = labels != IGNORED
        others = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**others, use_cache=False, label_mask=mask)  # [labels, vocabulary]
        # In fp32, as every trainer computes it: bf16 would round the sum over 50,000 exponentials.
        losses = functional.cross_entropy(logits.float(), labels[mask], reduction="none")  # [labels]
        owners = mask.nonzero()[:, 0]  # the row each label is in
        sums = losses.new_zeros(len(labels)).index_add(0, owners, losses)
        return sums, mask.sum(dim=1)

    def mean_loss(self, dataset: "Dataset") -> float:
        """Return the mean loss over all labels of a dataset, in nats a label token; the same on any number of GPUs."""
        total, labels = 0.0, 0
        self.model.eval()
        for batch in self.get_eval_dataloader(dataset):
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                if self._plain_head:
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

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """Write no card into checkpoints: publishing writes the model's own."""

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report the trainer's class to the Hub."""


def has_plain_head(model: "PreTrainedModel") -> bool:
    """Return whether a model's logits are its output layer applied to its last hidden state, and nothing else."""
    config = model.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _HEAD_FIELDS)
    routed = hasattr(config, "output_router_logits")
    return not scaled and not routed and model.base_model is not model and model.get_output_embeddings() is not None


def add_label_logits(model: "PreTrainedModel") -> None:
    """Let a causal language model's forward take `label_mask` and return logits at those positions only.

    It is a keyword of `forward`, rather than a function beside it, so that DDP, FSDP and PEFT, which wrap the call,
    still see it. Without the keyword the forward is the original one.
    """
    original = model.forward

    # `generate` checks its arguments against the class's signature, so that must stay visible.
    @functools.wraps(type(model).forward)
    def forward(*arguments: Any, label_mask: torch.Tensor | None = None, **keywords: Any) -> Any:
        if label_mask is None:
            return original(*arguments, **keywords)
        hidden = model.base_model(*arguments, **keywords).last_hidden_state[:, :-1]  # [batch, seq - 1, width]
        return model.get_output_embeddings()(hidden[label_mask])

    model.forward = forward
