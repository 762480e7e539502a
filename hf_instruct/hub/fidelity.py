"""Check that an exported model gives the same answers as the run's model (adapter and base model, not merged)."""

import dataclasses
from typing import TYPE_CHECKING

from hf_instruct.errors import PublishError
from hf_instruct.generation.decoding import generate_completions
from hf_instruct.models import context_length
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, read_rows
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NUM_PROMPTS = 10
MAX_NEW_TOKENS = 32
# Largest difference of a logit, relative to the standard deviation of the logits, by type of the weights. Measured for
# SmolLM2-135M with a LoRA adapter on all layers: 2e-5 for merging and F32, 0.01 for F16, 0.25 for Q8_0, and 2.4 or more
# for one projection in a wrong order in one of its 30 layers.
TOLERANCE = {"F32": 1e-3, "F16": 5e-2, "Q8_0": 1.0}
# For a run without a test split.
_INSTRUCTIONS = ("Name the capital of France.", "Write a sentence about the sea.", "What is 12 plus 30?")


@dataclasses.dataclass(frozen=True)
class Reference:
    """The output of a run's model on prompts of the run, each followed by the model's greedy answer.

    Attributes:
        rows: Token ids of a prompt and its answer, and the index in them that predicts the answer's first token.
        logits: Logits of each row from that index on, [positions, vocabulary], in float32 on the CPU.
    """

    rows: list[tuple[list[int], int]]
    logits: list["Tensor"]


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """The difference of a model from a `Reference`.

    Attributes:
        tensor_type: Type of its weights: `F32`, `F16` or `Q8_0`.
        logit_error: The largest difference of a logit, relative to the standard deviation of the logits.
        same_tokens: Number of positions in the answers where the most likely token is the same.
        num_tokens: Number of positions in the answers.
        same_answers: Number of greedy answers that are the same.
        num_prompts: Number of answers.
    """

    tensor_type: str
    logit_error: float
    same_tokens: int
    num_tokens: int
    same_answers: int
    num_prompts: int


def take_reference(
    run: RunFolder, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat
) -> Reference:
    """Return the answers of a run's model to ten prompts of its test split, with their logits.

    Args:
        run: The run.
        model: The model; an adapter is not merged.
        tokenizer: Its tokenizer.
        prompt_format: The format of the prompts it was trained on.
    """
    examples = read_rows(run.split("test"), Example)[:_NUM_PROMPTS] if run.split("test").is_file() else []
    pairs = [(example.instruction, example.input) for example in examples] or [(text, "") for text in _INSTRUCTIONS]
    prompts = [prompt_format.encode_prompt(tokenizer, *pair) for pair in pairs]
    if limit := context_length(model):
        # The end of a prompt that is too long, with room for the answer.
        prompts = [prompt[-max(limit - MAX_NEW_TOKENS, 1) :] for prompt in prompts]
    end = prompt_format.end_token_id(tokenizer)
    answers = generate_completions(model, tokenizer, prompts, end_id=end, max_new_tokens=MAX_NEW_TOKENS)
    rows = [
        ([*prompt, *answer.token_ids[:-1]], len(prompt) - 1) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Reference(rows, [_compute_logits(model, row) for row in rows])


def compare_models(model: "PreTrainedModel", reference: Reference, *, tensor_type: str = "F32") -> Fidelity:
    """Return the difference of a model from a reference.

    If the most likely tokens are the same along an answer, the greedy answer is the same.
    """
    import torch

    pairs = [
        (expected, _compute_logits(model, row)) for row, expected in zip(reference.rows, reference.logits, strict=True)
    ]
    # PyTorch's maximum is NaN if there is one.
    largest = torch.stack([(expected - got).abs().max() for expected, got in pairs]).max()
    spread = torch.cat([expected - expected.mean(-1, keepdim=True) for expected, _ in pairs]).square().mean().sqrt()
    matches = [(expected.argmax(-1) == got.argmax(-1)).tolist() for expected, got in pairs]
    return Fidelity(
        tensor_type=tensor_type,
        logit_error=float(largest / spread) if largest else 0.0,
        same_tokens=sum(map(sum, matches)),
        num_tokens=sum(map(len, matches)),
        same_answers=sum(map(all, matches)),
        num_prompts=len(matches),
    )


def check_fidelity(model: "PreTrainedModel", reference: Reference, what: str, *, tensor_type: str = "F32") -> Fidelity:
    """Return the difference of a model from the run's model.

    Args:
        model: The model that was written, or that will be.
        reference: The output of the run's model, with the adapter not merged.
        what: Name of the model in the error.
        tensor_type: Type of its weights.

    Raises:
        PublishError: It differs by more than rounding.
    """
    fidelity = compare_models(model, reference, tensor_type=tensor_type)
    # A comparison with NaN is false.
    if not fidelity.logit_error <= TOLERANCE[tensor_type]:
        advice = (
            "" if tensor_type == "F32" else " If this precision is too low for the model, `export --type F32` is exact."
        )
        raise PublishError(
            f"{what} differs from the trained model: its logits differ by up to {fidelity.logit_error:.2g} of their "
            f"standard deviation ({tensor_type} explains {TOLERANCE[tensor_type]:g}), and {fidelity.same_answers} of "
            f"{fidelity.num_prompts} greedy answers are the same as with the separate adapter and base model. It was "
            f"deleted.{advice}"
        )
    return fidelity


def _compute_logits(model: "PreTrainedModel", row: tuple[list[int], int]) -> "Tensor":
    """Return the logits of one row from its start on, [positions, vocabulary], in float32 on the CPU."""
    import torch

    ids, start = row
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0, start:].float().cpu()
