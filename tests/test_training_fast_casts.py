"""Weights cast where they are needed: the same numbers as autocast's, bit for bit."""

import pytest
import tiny_models
import torch
from torch import nn

from hf_instruct.models import matching_precision
from hf_instruct.training.fast.casts import casting_linear_layers, halve_linear_weights

CONFIGS = {
    "gpt2": tiny_models.gpt2_config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "llama": tiny_models.llama_config(attention_bias=True),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]])


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest):
    config = CONFIGS[request.param]
    config.vocab_size = 100
    return tiny_models.build_model(config, scale=4)


def run_step(model) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradients_are_autocasts(model) -> None:
    loss, gradients = run_step(model)
    with casting_linear_layers(model, enabled=True):
        own, own_gradients = run_step(model)
    assert own == loss
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(own_gradients[name], gradient), name


def test_no_copy_of_a_weight_is_kept_for_the_backward_pass(model) -> None:
    def kept(enabled: bool) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            is_weight = tensor.dim() == 2 and tensor.dtype == torch.bfloat16 and 32 in tensor.shape
            sizes.append(tensor.numel() if is_weight and tensor.shape[0] != IDS.numel() else 0)
            return tensor

        with (
            casting_linear_layers(model, enabled=enabled),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            model(input_ids=IDS, labels=IDS)
        return sum(sizes)

    head = model.get_output_embeddings().weight.numel()
    assert kept(True) <= head < kept(False)


def test_the_layers_are_their_own_again_afterwards_and_without_autocast(model) -> None:
    expected = model(input_ids=IDS).logits
    with casting_linear_layers(model, enabled=True):
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert all("forward" not in module.__dict__ for module in model.modules())
    with casting_linear_layers(model, enabled=False):
        assert all("forward" not in module.__dict__ for module in model.modules())


def test_halved_weights_compute_the_same_under_autocast(model) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(input_ids=IDS).logits
    size = sum(parameter.numel() for parameter in model.parameters())
    halve_linear_weights(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    assert {p.dtype for p in model.get_output_embeddings().parameters()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in model.parameters()}
    with torch.no_grad(), matching_precision(model):
        assert torch.equal(model(input_ids=IDS).logits, expected)


def test_weights_that_are_halved_already_stay(model) -> None:
    halve_linear_weights(model)
    first = {name: parameter.clone() for name, parameter in model.named_parameters()}
    halve_linear_weights(model)
    assert all(torch.equal(parameter, first[name]) for name, parameter in model.named_parameters())


def test_neither_biases_nor_quantised_weights_are_halved() -> None:
    """LoRA may train the first, where bf16 would lose small steps; the second are bytes, not numbers."""
    model = tiny_models.build_model(tiny_models.llama_config(attention_bias=True))
    first, second = model.model.layers
    first.mlp.up_proj.weight = nn.Parameter(torch.arange(9, dtype=torch.uint8), requires_grad=False)
    halve_linear_weights(model)
    assert first.self_attn.q_proj.bias.dtype == torch.float32
    assert torch.equal(first.mlp.up_proj.weight, torch.arange(9, dtype=torch.uint8))
    assert second.mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_layer_that_computes_something_else_keeps_its_own_forward(model) -> None:
    class Doubled(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    model.add_module("doubled", Doubled(3, 3))
    with casting_linear_layers(model, enabled=True):
        assert "forward" not in vars(model.doubled)


def test_a_weight_of_two_layers_is_halved_once() -> None:
    model = tiny_models.build_model(tiny_models.llama_config())
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    expected = first.mlp.up_proj.weight.to(torch.bfloat16)
    halve_linear_weights(model)
    assert torch.equal(second.mlp.up_proj.weight, expected)
    assert first.mlp.up_proj.weight is second.mlp.up_proj.weight


def test_a_model_of_one_precision_computes_in_it() -> None:
    layer = nn.Linear(3, 3)
    with matching_precision(layer):
        assert layer(torch.ones(1, 3)).dtype == torch.float32
