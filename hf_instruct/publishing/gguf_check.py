"""Read a GGUF file back and compare it with the model it was written from.

The reader is Transformers', which shares no line with our writer: it has its own names, its own reversal of the rotary
order and its own transposes. A file that passes has the same weights, vocabulary and answers as the model.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.decoding import Completion, generate_completions
from hf_instruct.errors import PublishError
from hf_instruct.models import fuse_activations
from hf_instruct.publishing.merging import RunModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Largest difference of a weight, relative to the largest weight of its tensor. F16 keeps 11 significant bits. Q8_0
# rounds to the 127th part of a block's largest number, half of it off at most, with a scale in F16 in addition.
TENSOR_TOLERANCE = {"F32": 0.0, "F16": 2.0**-11, "Q8_0": 0.5 / 127 + 2.0**-11}
# Root mean square of the logits' differences, relative to the logits' own standard deviation.
LOGIT_TOLERANCE = {"F32": 1e-4, "F16": 1e-2, "Q8_0": 2e-1}
# Share of the positions of the answers at which the most likely token must be the same.
TOKEN_TOLERANCE = {"F32": 1.0, "F16": 0.95, "Q8_0": 0.8}
MAX_NEW_TOKENS = 32
# Below this, F16 has no smaller steps.
_SMALLEST_STEP = 2.0**-24
_TEXTS = ("In 1984, 3.14 * 2 = 6.28!", "  def f(x):\n\treturn x  # it's\n\n", "Grüße, 你好 🙂", "<|endoftext|>Hi")


@dataclasses.dataclass(frozen=True)
class GgufCheck:
    """How near a file is to the model it was written from.

    Attributes:
        tensor_type: How the matrices are stored.
        num_tensors: Tensors compared, one by one.
        tensor_error: The largest difference of a weight, relative to the largest weight of its tensor.
        worst_tensor: That tensor's name in the model.
        logit_error: Root mean square difference of the logits, relative to their standard deviation.
        same_tokens: At how many positions of the answers the most likely token is the same.
        num_tokens: How many positions that is out of.
        same_answers: How many greedy answers are the same, to the letter.
        num_prompts: How many there were.
    """

    tensor_type: str
    num_tensors: int
    tensor_error: float
    worst_tensor: str
    logit_error: float
    same_tokens: int
    num_tokens: int
    same_answers: int
    num_prompts: int


def check_gguf(path: Path, source: RunModel, prompts: Sequence[Sequence[int]], *, tensor_type: str) -> GgufCheck:
    """Return how near a file is to its model.

    Args:
        path: The file.
        source: What it was written from.
        prompts: Token ids of each prompt to answer.
        tensor_type: How its matrices are stored.

    Raises:
        PublishError: It cannot be read back, or differs by more than its type explains; the layer is named.
    """
    loaded = load_gguf(path, source.model.config)
    _compare_settings(source.model.config, loaded.config)
    _compare_vocabularies(path, source)
    tensor_error, worst, num_tensors = _compare_tensors(source.model, loaded, tensor_type)
    answers, others = (_answer(model, source, prompts) for model in (source.model, loaded))
    rows = [_join(source, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    error, same, total = _compare_logits(source.model, loaded, rows, tensor_type)
    check = GgufCheck(
        tensor_type=tensor_type,
        num_tensors=num_tensors,
        tensor_error=tensor_error,
        worst_tensor=worst,
        logit_error=error,
        same_tokens=same,
        num_tokens=total,
        same_answers=sum(one.text == other.text for one, other in zip(answers, others, strict=True)),
        num_prompts=len(prompts),
    )
    if tensor_type == "F32" and check.same_answers < check.num_prompts:
        raise PublishError(
            f"The GGUF answers {check.num_prompts - check.same_answers} of {check.num_prompts} prompts otherwise than "
            "the model, although its numbers are the same. Please report this."
        )
    return check


def load_gguf(path: Path, config: "PretrainedConfig") -> "PreTrainedModel":
    """Return a GGUF file as a Transformers model in float32.

    Args:
        config: The source model's, for the one thing that Transformers does not read: Llama 3's slowed rotation.

    Raises:
        PublishError: Transformers cannot read it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        # Transformers draws a bar here that cannot be switched off.
        with contextlib.redirect_stderr(io.StringIO()):
            read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            if read.model_type == "gpt2":
                keys, _ = read_gguf_metadata(str(path))
                # Transformers reads these two under names that its GPT-2 does not use.
                read.n_positions = int(keys["gpt2.context_length"])
                read.n_inner = int(keys["gpt2.feed_forward_length"])
            elif config.rope_parameters.get("rope_type") == "llama3":
                read.rope_parameters = dict(config.rope_parameters)
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, config=read, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PublishError(f"The GGUF cannot be read back ({error}). Please report this.") from error
    fuse_activations(model)
    model.eval()
    return model


def _compare_settings(config: "PretrainedConfig", read: "PretrainedConfig") -> None:
    """Raise where the file's keys build another model than the source's config."""
    names = ["vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    names += ["layer_norm_epsilon"] if config.model_type == "gpt2" else ["num_key_value_heads", "rms_norm_eps"]
    pairs = [(name, getattr(config, name), getattr(read, name)) for name in names]
    if config.model_type == "llama":
        pairs.append(("rope_theta", config.rope_parameters["rope_theta"], read.rope_parameters["rope_theta"]))
    for name, expected, got in pairs:
        # The file keeps these in float32.
        if not math.isclose(expected, got, rel_tol=1e-6):
            raise PublishError(f"The GGUF has `{name}` {got}, and the model {expected}. Please report this.")


def _compare_vocabularies(path: Path, source: RunModel) -> None:
    """Raise where the file's vocabulary cuts a text into other tokens than the model's tokenizer."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, stored, _ = get_gguf_tokenizer(str(path))
    read, _ = convert_gguf_tokenizer(architecture, stored)
    for text in _TEXTS:
        ids = list(source.tokenizer(text, add_special_tokens=False)["input_ids"])
        others = read.encode(text, add_special_tokens=False).ids
        if ids != others:
            raise PublishError(
                f"The vocabulary in the GGUF cuts {text!r} into the tokens {others}, and the model's tokenizer into "
                f"{ids}. Please report this."
            )


def _compare_tensors(source: "PreTrainedModel", loaded: "PreTrainedModel", tensor_type: str) -> tuple[float, str, int]:
    """Return the largest relative difference of a weight, its tensor, and how many tensors there are."""
    others = loaded.state_dict()
    worst, where, count = 0.0, "", 0
    for name, tensor in source.state_dict().items():
        count += 1
        if name not in others or others[name].shape != tensor.shape:
            raise PublishError(f"The GGUF lacks the tensor `{name}` of {list(tensor.shape)}. Please report this.")
        largest = float(tensor.abs().max())
        difference = float((tensor.float() - others[name]).abs().max())
        # Vectors are stored in float32 whatever the type of the file.
        tolerance = TENSOR_TOLERANCE[tensor_type if tensor.dim() > 1 else "F32"]
        # A comparison with NaN is false, and so is a fault.
        if not difference <= largest * tolerance + (_SMALLEST_STEP if tolerance else 0.0):
            raise PublishError(_explain_tensor(name, difference, largest, tensor_type))
        if largest and difference / largest > worst:
            worst, where = difference / largest, name
    return worst, where, count


def _explain_tensor(name: str, difference: float, largest: float, tensor_type: str) -> str:
    layer = next((part for part in reversed(name.split(".")[:-1]) if not part.isdigit()), name)
    text = (
        f"The GGUF differs from the model in the layer type `{layer}` (tensor `{name}`): by up to {difference:.3g}, "
        f"where its largest weight is {largest:.3g} and {tensor_type} explains "
        f"{largest * TENSOR_TOLERANCE[tensor_type]:.3g}. The file is deleted."
    )
    if tensor_type == "F16" and largest > 65504:
        return f"{text} F16 holds no number above 65,504: use `--type F32`."
    return f"{text} Please report this."


def _answer(model: "PreTrainedModel", source: RunModel, prompts: Sequence[Sequence[int]]) -> list[Completion]:
    end = source.prompt_format.end_token_id(source.tokenizer)
    return generate_completions(model, source.tokenizer, prompts, end_id=end, max_new_tokens=MAX_NEW_TOKENS)


def _join(source: RunModel, prompt: Sequence[int], answer: Completion) -> tuple[list[int], int]:
    """Return a prompt with its answer as one row of token ids, and the position that predicts the answer's first."""
    ids = source.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    return [*prompt, *ids], len(prompt) - 1


def _compare_logits(
    source: "PreTrainedModel", loaded: "PreTrainedModel", rows: Sequence[tuple[list[int], int]], tensor_type: str
) -> tuple[float, int, int]:
    """Return the logits' relative difference, at how many positions the best token is the same, and of how many."""
    import torch

    squared, spread, same, total, numbers = 0.0, 0.0, 0, 0, 0
    with torch.inference_mode():
        for ids, start in rows:
            # [positions, vocabulary]
            expected, got = (model(torch.tensor([ids])).logits[0, start:].double() for model in (source, loaded))
            squared += float((expected - got).square().sum())
            spread += float((expected - expected.mean(-1, keepdim=True)).square().sum())
            numbers += expected.numel()
            same += int((expected.argmax(-1) == got.argmax(-1)).sum())
            total += len(expected)
    error = (squared / spread) ** 0.5 if spread else 0.0
    if not error <= LOGIT_TOLERANCE[tensor_type] or same < TOKEN_TOLERANCE[tensor_type] * total:
        raise PublishError(
            f"The GGUF computes otherwise than the model: its logits differ by {error:.2g} of their spread "
            f"({tensor_type} explains {LOGIT_TOLERANCE[tensor_type]:g}), and the best token is the same at {same} of "
            f"{total} positions. The weights agree, so {tensor_type} is too coarse for this model (try "
            "`--type F32`), or the file's settings are wrong. The file is deleted."
        )
    return error, same, total
