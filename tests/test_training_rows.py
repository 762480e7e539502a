from pathlib import Path

import pytest
import tiny_models

from hf_instruct.errors import DataError
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example
from hf_instruct.training.fast.collators import IGNORED, PaddingCollator
from hf_instruct.training.sft import tokenize_examples

END = tiny_models.END
FORMAT = PromptFormat.from_name("phi3")
EXAMPLES = [Example("a", "Name a color.", "", "Red."), Example("b", "Repeat it.", "a b c", "a b c, of course")]


@pytest.fixture(scope="module")
def tokenizer(tiny_gpt2: Path):
    return tiny_models.load_copy(tiny_gpt2)[1]


def test_the_completion_and_its_one_end_carry_loss(tokenizer) -> None:
    rows = tokenize_examples(EXAMPLES, tokenizer, FORMAT, max_length=100)
    for example, row in zip(EXAMPLES, rows, strict=True):
        prompt = tokenizer(FORMAT.format_prompt(example.instruction, example.input))["input_ids"]
        completion = [*tokenizer(example.output)["input_ids"], END]
        assert row["input_ids"] == prompt + completion
        assert row["labels"] == [IGNORED] * len(prompt) + completion


def test_the_whole_text_carries_loss_where_asked_for(tokenizer) -> None:
    for row in tokenize_examples(EXAMPLES, tokenizer, FORMAT, max_length=None, completion_only_loss=False):
        assert row["labels"] == row["input_ids"]
        assert row["labels"].count(END) == 1


def test_rows_are_cut_at_the_end(tokenizer) -> None:
    whole = tokenize_examples(EXAMPLES, tokenizer, FORMAT, max_length=None)
    cut = tokenize_examples(EXAMPLES, tokenizer, FORMAT, max_length=26)
    for before, after in zip(whole, cut, strict=True):
        assert (after["input_ids"], after["labels"]) == (before["input_ids"][:26], before["labels"][:26])


def test_rows_that_cutting_robs_of_every_label_are_refused(tokenizer) -> None:
    long = [Example(f"long{n}", "word " * 30, "", "out") for n in range(7)]
    with pytest.raises(DataError) as caught:
        tokenize_examples([*EXAMPLES, *long], tokenizer, FORMAT, max_length=30)
    assert caught.value.summary == (
        "7 of 9 examples have no label within `train.max_length` 30, so nothing can be learned from them. Raise "
        "`train.max_length`, or shorten or drop these rows:"
    )
    assert [fault.split("`")[1] for fault in caught.value.problems[:5]] == ["long0", "long1", "long2", "long3", "long4"]
    assert caught.value.problems[5:] == ["and 2 more"]
    # On the whole text there is still something to learn from them.
    assert len(tokenize_examples(long, tokenizer, FORMAT, max_length=30, completion_only_loss=False)) == 7


def test_one_label_is_enough_and_none_is_not(tokenizer) -> None:
    prompt = len(FORMAT.encode_prompt(tokenizer, EXAMPLES[0].instruction))
    assert len(tokenize_examples(EXAMPLES[:1], tokenizer, FORMAT, max_length=prompt + 1)) == 1
    with pytest.raises(DataError, match=rf"example `a`: {prompt} prompt and 4 completion tokens"):
        tokenize_examples(EXAMPLES[:1], tokenizer, FORMAT, max_length=prompt)


def test_padding_is_masked_and_carries_no_loss(tokenizer) -> None:
    rows = list(tokenize_examples(EXAMPLES, tokenizer, FORMAT, max_length=None))
    batch = PaddingCollator(END)(rows)
    width = max(len(row["input_ids"]) for row in rows)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][index].tolist() == row["input_ids"] + [END] * (width - length)
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (width - length)
        assert batch["labels"][index].tolist() == row["labels"] + [IGNORED] * (width - length)
    # Padded with end-of-text, yet the one end of each row is the only one with a label.
    assert (batch["labels"] == END).sum(dim=1).tolist() == [1, 1]


def test_many_rows_are_kept_in_a_file(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tokenize_examples(EXAMPLES, tokenizer, FORMAT, max_length=None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("hf_instruct.training.sft._MAX_IN_MEMORY", 1)
    for num_proc in (None, 2):
        rows = tokenize_examples([*EXAMPLES, *EXAMPLES], tokenizer, FORMAT, max_length=None, num_proc=num_proc)
        assert rows.to_list() == [*held.to_list(), *held.to_list()]
        assert {Path(file["filename"]).parents[1] for file in rows.cache_files} == {tmp_path / "cache"}
