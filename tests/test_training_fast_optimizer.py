import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from hf_instruct.training.arguments import build_arguments
from hf_instruct.training.fast.optimizer import BackwardAdamW, build_optimizer


def build_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 7, bias=False))
    model[3].weight = model[0].weight  # tied, as GPT-2's head is
    return model


def build(kind: type[torch.optim.AdamW], model: nn.Module) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return kind(groups, lr=0.1, fused=True)


def steps(model: nn.Module, optimizer: torch.optim.AdamW, count: int) -> None:
    scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=6)
    for number in range(count):
        ids = torch.tensor([number % 7, 3, 5])
        nn.functional.cross_entropy(model(ids), torch.tensor([1, 2, number % 7])).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def test_it_steps_as_adamw_does_and_keeps_no_gradient() -> None:
    plain, ours = build_model(), build_model()
    steps(plain, build(torch.optim.AdamW, plain), 6)
    steps(ours, build(BackwardAdamW, ours), 6)
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)
        assert other.grad is None


def test_its_state_goes_on_from_adamws_and_back() -> None:
    first, second, plain = build_model(), build_model(), build_model()
    steps(first, half := build(BackwardAdamW, first), 2)
    second.load_state_dict(first.state_dict())
    resumed = build(BackwardAdamW, second)
    # Copies: an optimizer takes over the tensors that it is given.
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    assert resumed.state_dict()["param_groups"] == half.state_dict()["param_groups"]
    plain.load_state_dict(first.state_dict())
    other = build(torch.optim.AdamW, plain)
    other.load_state_dict(copy.deepcopy(half.state_dict()))
    steps(second, resumed, 2)
    steps(plain, other, 2)
    for one, two in zip(second.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"optim": "adamw_torch"}, True),
        ({"max_grad_norm": 1.0}, False),
        ({"gradient_accumulation_steps": 2}, False),
        ({"optim": "sgd"}, False),
    ],
)
def test_it_is_used_where_no_step_needs_all_gradients(tmp_path, settings, expected: bool) -> None:
    chosen = build_optimizer(build_arguments({"use_cpu": True, "bf16": False, "adam_beta2": 0.9, **settings}, tmp_path))
    assert (chosen is not None) == expected
    if chosen:
        assert chosen[0] is BackwardAdamW
        assert chosen[1]["betas"] == (0.9, 0.9)
        assert chosen[1]["lr"] == 5e-5


def test_detached_it_leaves_the_weights_to_others() -> None:
    model = build_model()
    build(BackwardAdamW, model).detach()
    before = [parameter.clone() for parameter in model.parameters()]
    model(torch.tensor([1])).sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is not None for parameter in model.parameters())
