"""Rows that share a prefix are exact: contract 2, in every shape a batch can take."""

import contextlib
import functools
import random
from pathlib import Path

import pytest
import tiny_models
import torch
from torch.nn import functional

from hf_instruct.prompt_tokens import build_row
from hf_instruct.training.fast.attention import segment_attention
from hf_instruct.training.fast.collators import IGNORED, PaddingCollator, PrefixSharingCollator, SegmentCollator
from hf_instruct.training.fast.loss import add_label_losses

Row = dict[str, list[int]]
# A small vocabulary: the logits of the plain computation are what takes the time.
SIZE, PAD = 3000, 2999
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
PREAMBLE, OTHER = list(range(1000, 1020)), list(range(2000, 2012))


def row(prompt: list[int], completion: list[int], *, everywhere: bool = False) -> Row:
    labels = prompt if everywhere else [IGNORED] * len(prompt)
    return {"input_ids": prompt + completion, "labels": labels + completion}


def batch_of(name: str, everywhere: bool) -> list[Row]:
    """Return a batch of one of the shapes that a batch can have."""
    words = random.Random(name)

    def text(length: int) -> list[int]:
        return [words.randrange(SIZE) for _ in range(length)]

    ragged = [(PREAMBLE + text(n), text(1 + 7 * n % 11)) for n in (1, 9, 3, 17, 5, 30, 2)]
    twice = PREAMBLE + text(6)
    # As `build_row` makes them of a conversation: labels, prompt, labels.
    talks = [(*ragged[0], *later) for later in (ragged[1], ragged[1], ragged[2], (ragged[2][0][:-1], text(3)))]
    pieces = {
        "ragged": ragged,
        "several answers": [*talks, ragged[0], ragged[3]],
        "one": ragged[:1],
        "no common prefix": [(text(n), text(n)) for n in (3, 8, 5)],
        "two templates": [(template + text(n), text(4)) for n in (2, 6, 9) for template in (PREAMBLE, OTHER)],
        # The whole prompt in common, the whole example in common, one a prefix of the other.
        "repeated": [(twice, [7, 8, 9]), (twice, [7, 8, 9]), (twice, [7, 5]), ([*twice, 3], [7, 8]), (twice[:-1], [4])],
        "one token": [([5], [6]), ([5], [6, 7]), ([5], [8])],
    }[name]
    return [build_row(*one, max_length=None, completion_only_loss=not everywhere) for one in pieces]


SHAPES = ("ragged", "several answers", "one", "no common prefix", "two templates", "repeated", "one token")


def count_labels(batch: list[Row]) -> int:
    return sum(label != IGNORED for one in batch for label in one["labels"][1:])


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@functools.cache
def train_plainly(model, shape: str, everywhere: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the summed loss as the course computes it, each row padded, logits everywhere, and its gradients."""
    padded = PaddingCollator(PAD)(batch_of(shape, everywhere))
    logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), padded["labels"][:, 1:].flatten(), reduction="sum")
    return loss.detach(), gradients(model, loss)


def assert_equal_training(model, loss: torch.Tensor, expected: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """Loss and all gradients are within 1e-5, relative to their size."""
    ours = gradients(model, loss)
    plain_loss, plain = expected
    torch.testing.assert_close(loss.detach(), plain_loss, rtol=1e-5, atol=0)
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        if (size := float(gradient.norm())) > 1e-6:
            assert float((ours[name] - gradient).norm()) <= 1e-5 * size, name
        else:
            # A key's bias moves no score: its gradient is rounding alone.
            assert float(ours[name].norm()) < 1e-5, name


def build_small(name: str):
    config = tiny_models.gpt2_config(**NO_DROPOUT) if name == "gpt2" else tiny_models.llama_config()
    config.vocab_size = SIZE
    config.bos_token_id = config.eos_token_id = PAD
    return tiny_models.build_model(config, scale=4)


@pytest.fixture(scope="module", params=["gpt2", "gpt2 eager", "llama", "gpt2 lora", "llama lora"])
def model(request: pytest.FixtureRequest):
    name, *how = request.param.split()
    built = build_small(name)
    add_label_losses(built)
    if "eager" in how:
        built.set_attn_implementation("eager")
    if "lora" not in how:
        return built
    from peft import get_peft_model

    from hf_instruct.training.arguments import build_lora_config

    adapted = get_peft_model(built, build_lora_config({"r": 4, "lora_alpha": 16}, built))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted


@pytest.fixture(scope="module")
def untouched():
    return build_small("gpt2")


@pytest.mark.parametrize("row_length", [30, 1000])
@pytest.mark.parametrize("everywhere", [False, True], ids=["completion", "whole text"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_equal_the_padded_ones(model, shape: str, everywhere: bool, row_length: int) -> None:
    expected, batch = train_plainly(model, shape, everywhere), batch_of(shape, everywhere)
    additive = model.config._attn_implementation == "eager"
    collate = PrefixSharingCollator(PAD, row_length=row_length, additive_mask=additive, weighted=True)
    shared = collate(batch)
    weights, labels = shared.pop("label_weights"), shared.pop("labels")
    assert int(weights.sum()) == count_labels(batch)
    assert shared.pop("num_tokens") == sum(len(one["input_ids"]) for one in batch)
    losses = model(**shared, use_cache=False, loss_labels=labels)
    assert_equal_training(model, (losses * weights[labels != IGNORED]).sum(), expected)


@pytest.mark.parametrize("model", ["gpt2", "llama", "gpt2 lora", "llama lora"], indirect=True)
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["completion", "whole text"])
@pytest.mark.parametrize("shape", SHAPES)
def test_segments_equal_the_padded_rows_too(model, shape: str, everywhere: bool, recomputed: bool) -> None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    expected, batch = train_plainly(model, shape, everywhere), batch_of(shape, everywhere)
    shared = SegmentCollator(PAD)(batch)
    weights, labels = shared.pop("label_weights"), shared.pop("labels")
    assert int(weights.sum()) == count_labels(batch)
    assert shared.pop("num_tokens") == sum(len(one["input_ids"]) for one in batch)
    with contextlib.ExitStack() as changes:
        changes.enter_context(segment_attention(base))
        if recomputed:
            base.activation_checkpointing_enable({"use_reentrant": False})
            changes.callback(base.activation_checkpointing_disable)
            changes.callback(base.train, base.training)
            base.train()
        losses = model(**shared, use_cache=False, loss_labels=labels)
        assert_equal_training(model, (losses * weights[labels != IGNORED]).sum(), expected)


@pytest.mark.parametrize("everywhere", [False, True], ids=["completion", "whole text"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_weights_any_trainer_gets_the_same_loss(untouched, shape: str, everywhere: bool) -> None:
    """A plain model, the labels shifted by one, the mean over labels: what every trainer does."""
    batch = batch_of(shape, everywhere)
    shared = PrefixSharingCollator(PAD)(batch)
    assert shared.keys() == {"input_ids", "position_ids", "attention_mask", "labels"}
    loss = untouched(**shared).loss * count_labels(batch)
    assert_equal_training(untouched, loss, train_plainly(untouched, shape, everywhere))


def test_the_prefix_is_there_once() -> None:
    batch = [row([*PREAMBLE, n, n + 1], [50 + n, 60 + n]) for n in (3, 1, 2)]
    shared = PrefixSharingCollator(0, weighted=True)(batch)
    ids = [*PREAMBLE, 1, 2, 51, 61, 2, 3, 52, 62, 3, 4, 53, 63]
    assert shared["input_ids"][0].tolist() == ids
    assert shared["position_ids"][0].tolist() == [*range(20), *[20, 21, 22, 23] * 3]
    assert shared["labels"][0].tolist() == [IGNORED] * 20 + [IGNORED, IGNORED, 51, 61] + [
        IGNORED,
        IGNORED,
        52,
        62,
    ] + [IGNORED, IGNORED, 53, 63]
    sees = shared["attention_mask"][0, 0]
    # The second example's last token: the prefix and its own four, not the first example's.
    assert sees[27].nonzero()[:, 0].tolist() == [*range(20), 24, 25, 26, 27]
    # The first token of all sees itself alone.
    assert sees[0].nonzero()[:, 0].tolist() == [0]


def test_a_label_in_common_counts_for_all() -> None:
    batch = [row([1, 2, 3], [4], everywhere=True), row([1, 2, 3], [5], everywhere=True)]
    shared = PrefixSharingCollator(0, weighted=True)(batch)
    # The last token in common stands before each example's own, and its label is the first one's, for both.
    assert shared["input_ids"][0, :6].tolist() == [1, 2, 3, 4, 3, 5]
    assert shared["labels"][0, :6].tolist() == [IGNORED, 2, 3, 4, IGNORED, 5]
    assert shared["label_weights"][0, :6].tolist() == [0, 2, 2, 1, 0, 1]
    # Without weights nothing that carries a label can be shared.
    plain = PrefixSharingCollator(0)(batch)
    assert plain["input_ids"][0, :8].tolist() == [1, 2, 3, 4, 1, 2, 3, 5]
    assert plain["labels"][0, :8].tolist() == [IGNORED, 2, 3, 4, IGNORED, 2, 3, 5]


def test_rows_are_few_and_even() -> None:
    batch = [row(PREAMBLE + [n] * 10, [n] * 10) for n in range(12)]
    shared = PrefixSharingCollator(0, row_length=110)(batch)
    # 12 examples of 20 own tokens: 4 rows of 20 + 4 x 20 would be the most at 110, and 3 rows of 4 are even.
    assert shared["input_ids"].shape == (3, 112)
    assert shared["labels"].ne(IGNORED).sum(dim=1).tolist() == [40, 40, 40]


def test_templates_are_not_mixed_where_that_costs_tokens() -> None:
    pairs = [([*template, n], [n]) for n in range(6) for template in (PREAMBLE, OTHER)]
    shared = PrefixSharingCollator(0, row_length=1000)([row(*pair) for pair in pairs])
    assert sorted(ids[0] for ids in shared["input_ids"].tolist()) == [PREAMBLE[0], OTHER[0]]


def test_segments_stand_in_one_row_whatever_their_templates() -> None:
    pairs = [([*template, n], [n]) for n in range(6) for template in (PREAMBLE, OTHER)]
    shared = SegmentCollator(7)([row(*pair) for pair in pairs])
    # Two prefixes and two own tokens of each of twelve examples; one token of padding at least.
    tokens = len(PREAMBLE) + len(OTHER) + 2 * 12
    assert shared["input_ids"].shape == (1, 64)
    assert shared["input_ids"][0, tokens:].tolist() == [7] * (64 - tokens)
    assert shared["position_ids"][0, :24].tolist() == [*range(20), 20, 21, 20, 21]
    full = SegmentCollator(7)([row(list(range(30)), [1, 2])])
    assert full["input_ids"].shape == (1, 48)


def test_an_example_longer_than_a_row_has_its_own() -> None:
    batch = [row(list(range(300)), [1]), row(list(range(5)), [1]), row(list(range(5)), [2])]
    shared = PrefixSharingCollator(0, row_length=64)(batch)
    assert shared["input_ids"].shape == (2, 304)


def test_rows_without_labels_are_whole_texts() -> None:
    shared = PrefixSharingCollator(0)([{"input_ids": [1, 2, 3]}])
    assert shared["labels"][0, :3].tolist() == [IGNORED, 2, 3]


def test_a_row_holds_something() -> None:
    with pytest.raises(ValueError, match="`row_length` is 0; it must be a number of tokens, at least 1"):
        PrefixSharingCollator(0, row_length=0)


def test_batches_of_instructions_halve(tiny_gpt2: Path, sample_file: Path) -> None:
    """`design.md`: 65,424 padded and 33,805 shared tokens an epoch, at batch 8 in file order."""
    import json

    from hf_instruct.prompts import PromptFormat
    from hf_instruct.records import Example
    from hf_instruct.training.sft import tokenize_examples

    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    records = json.loads(sample_file.read_text())[:80]
    examples = [Example(str(n), r["instruction"], r["input"], r["output"]) for n, r in enumerate(records)]
    rows = list(tokenize_examples(examples, tokenizer, PromptFormat.from_name("alpaca"), max_length=None))
    batches = [rows[start : start + 8] for start in range(0, 80, 8)]
    padded = sum(PaddingCollator(0)(batch)["input_ids"].numel() for batch in batches)
    shared = sum(PrefixSharingCollator(0, row_length=1000)(batch)["input_ids"].numel() for batch in batches)
    assert shared < 0.56 * padded
