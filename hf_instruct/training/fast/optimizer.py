"""AdamW that updates each weight as soon as its gradient is computed, so that not all gradients are stored."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import AdamW
from transformers import Trainer

if TYPE_CHECKING:
    from trl import SFTConfig


class BackwardAdamW(AdamW):
    """`torch.optim.AdamW` that steps during the backward pass.

    Each weight is updated with the same arithmetic and state as in `AdamW`, only earlier, and its gradient is freed
    immediately: GPT-2 medium needs 1.4 GB less. It supports one backward pass per step, and nothing that needs all
    gradients before the first update: no accumulation, no clipping by norm, no gradient scaler, one process.

    Source: https://docs.pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))
            for index, group in enumerate(self.param_groups)
            for parameter in group["params"]
        ]

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def step_one(parameter: Tensor) -> None:
            groups = self.param_groups
            # The group is read here, because a scheduler changes its learning rate in every step.
            self.param_groups = [{**groups[index], "params": [parameter]}]
            try:
                super(BackwardAdamW, self).step()
            finally:
                self.param_groups = groups
            parameter.grad = None

        return step_one

    def detach(self) -> None:
        """Remove the hooks, because later training uses its own optimizer."""
        for handle in self._handles:
            handle.remove()

    def step(self, closure: Any = None) -> Any:
        """Do nothing, because the steps have already been taken."""
        return None if closure is None else closure()


def build_optimizer(arguments: "SFTConfig") -> tuple[type[AdamW], dict[str, Any]] | None:
    """Return `BackwardAdamW` and its arguments if no setting needs all gradients, otherwise None for TRL's choice.

    It is not used on a GPU, where one fused call for all weights is faster and there are other ways to save memory.
    """
    if (
        arguments.device.type != "cpu"
        or arguments.world_size > 1
        or arguments.optim not in ("adamw_torch", "adamw_torch_fused")
        or arguments.gradient_accumulation_steps > 1
        or arguments.max_grad_norm
        or arguments.fp16
    ):
        return None
    return BackwardAdamW, Trainer.get_optimizer_cls_and_kwargs(arguments)[1]
