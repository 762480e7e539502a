import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from hf_instruct.data import findings, near_duplicates
from hf_instruct.data.findings import (
    advise,
    build_preflight,
    find_warnings,
    format_findings,
    format_preflight,
    refuse_leaks,
)
from hf_instruct.data.near_duplicates import METHOD, find_near_duplicates
from hf_instruct.data.sources import build_dataset
from hf_instruct.data.splits import split_examples
from hf_instruct.data.tokens import TokenCounter, load_counter
from hf_instruct.errors import DataError, ModelLoadError
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example
from hf_instruct.schema import SpecialTokens

TRAIN = [Example("1", "a", "", "x"), Example("2", "a", "", "y"), Example("3", "b", "i", "z")]
TEST = [Example("4", "a", "", "w"), Example("5", "b", "", "z")]
VALIDATION = [Example("6", "b", "i", "v")]


def rows(examples: Sequence[Example]) -> Dataset:
    return build_dataset(examples, Example)


def build_splits(
    train: Sequence[Example],
    test: Sequence[Example] = (),
    validation: Sequence[Example] = (),
    counter: TokenCounter | None = None,
) -> dict[str, Dataset]:
    splits = {"train": rows(train), "test": rows(test), "validation": rows(validation)}
    return splits if counter is None else {name: counter.add_counts(part) for name, part in splits.items()}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one id for each blank-separated word, and one for `<end>`."""
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")


def build_counter(max_length: int | None, **settings: bool) -> TokenCounter:
    return TokenCounter(
        "words",
        build_tokenizer(),
        prompt_format=PromptFormat("words", "{{ instruction }} {{ input }}"),
        max_length=max_length,
        **settings,
    )


def test_everything_is_counted_exactly() -> None:
    splits = build_splits(TRAIN, TEST, VALIDATION)
    assert build_preflight(splits, source="mine", split="sequential", num_left_out=4).to_dict() == {
        "data_sha256": None,
        "source": "mine",
        "split": "sequential",
        "prompt_format": "alpaca",
        "examples": {"train": 3, "test": 2, "validation": 1, "total": 6},
        "empty_inputs": {"train": 2, "test": 2, "validation": 0, "total": 4},
        "empty_outputs": {"train": 0, "test": 0, "validation": 0, "left_out": 4, "total": 4},
        "duplicate_rows": 0,
        "repeated_prompts": 2,
        "repeated_rows": 3,
        "seen_in_train": {
            "test": [{"id": "4", "train_ids": ["1", "2"]}],
            "validation": [{"id": "6", "train_ids": ["3"]}],
        },
        "instruction_seen_in_train": {"test": [{"id": "5", "num_train": 1}], "validation": []},
        "near_duplicates": {
            "threshold": 0.9,
            "method": METHOD,
            "compared": "instruction and input of test and validation examples, compared with all training examples",
            "sampled": None,
            "test": [],
            "validation": [],
        },
        "tokens": None,
    }


def test_duplicates() -> None:
    row, twin = Example("1", "a", "", "x"), Example("2", "a", "", "x")
    preflight = build_preflight(build_splits([row, twin], [twin], [Example("3", "c", "", "y")]), source="mine")
    assert (preflight.duplicate_rows, preflight.repeated_rows, preflight.repeated_prompts) == (2, 2, 1)


def test_the_courses_data_in_the_courses_split(course_file: Path) -> None:
    preflight = build_preflight(split_examples(course_file), source="course", split="sequential")
    texts = [tuple(row.values()) for row in json.loads(course_file.read_text(encoding="utf-8"))]
    assert preflight.duplicate_rows == len(texts) - len(set(texts)) == 0
    assert preflight.repeated_rows == len(texts) - len({row[:2] for row in texts}) == 25
    assert preflight.repeated_prompts == sum(n > 1 for n in Counter(row[:2] for row in texts).values()) == 20
    expected = {"test": (texts[935:1045], 2, 16, 6), "validation": (texts[1045:], 4, 8, 3)}
    for name, (held_out, leaks, others, near) in expected.items():
        seen = [any(row[:2] == other[:2] for other in texts[:935]) for row in held_out]
        known = [any(row[0] == other[0] for other in texts[:935]) for row in held_out]
        assert len(preflight.seen_in_train[name]) == sum(seen) == leaks
        both = zip(known, seen, strict=True)
        assert len(preflight.instruction_seen_in_train[name]) == sum(k and not s for k, s in both) == others
        assert len(preflight.near_duplicates.by_split[name]) == near


def test_the_grouped_split_has_no_leaks(repeating_file: Path) -> None:
    leaks = build_preflight(split_examples(repeating_file), source="course").seen_in_train
    assert {name: len(found) for name, found in leaks.items()} == {"test": 2, "validation": 4}
    for seed in range(5):
        splits = split_examples(repeating_file, split="grouped", seed=seed)
        assert build_preflight(splits, source="course").seen_in_train == {"test": [], "validation": []}
        refuse_leaks(splits, source="course", strict="`--strict`", remedy="--split grouped")


def split_ngrams(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word in text.lower().split():
        padded = f" {word} "
        for size in (3, 4, 5):
            counts.update(padded[start : start + size] for start in range(max(1, len(padded) - size + 1)))
            if len(padded) <= size:
                break
    return counts


def test_near_duplicates_equal_a_computation_by_hand() -> None:
    splits = split_examples("everyday")
    train, held_out = splits["train"], concatenate_datasets([splits["test"], splits["validation"]])
    pairs = [(row["instruction"], row["input"]) for row in held_out]
    train_pairs = [(row["instruction"], row["input"]) for row in train]
    places = [n for n, pair in enumerate(pairs) if pair not in set(train_pairs)]
    documents = [split_ngrams("\n".join(pair)) for pair in [*(pairs[n] for n in places), *train_pairs]]
    frequency = Counter(gram for document in documents for gram in document)
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    vectors = []
    for number, document in enumerate(documents):
        weights = {g: n * (math.log((1 + len(documents)) / (1 + frequency[g])) + 1) for g, n in document.items()}
        norm = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
        vectors.append({gram: weight / norm for gram, weight in weights.items()})
        if number >= len(places):
            for gram, weight in vectors[-1].items():
                postings[gram].append((number - len(places), weight))
    expected = []
    for place, vector in zip(places, vectors, strict=False):
        cosines: Counter[int] = Counter()
        for gram, weight in vector.items():
            for other, other_weight in postings[gram]:
                cosines[other] += weight * other_weight  # type: ignore[assignment]
        best = max(cosines.values(), default=0)
        if best >= 0.7:
            expected.append((place, min(n for n, cosine in cosines.items() if cosine > best - 1e-9), best))
    found = find_near_duplicates(held_out, train, threshold=0.7)
    assert len(found) == 12
    assert [near[:2] for near in found] == [near[:2] for near in expected]
    assert [near.cosine for near in found] == pytest.approx([near[2] for near in expected], abs=2e-6)
    assert [near for near in found if near.cosine >= 0.85] == find_near_duplicates(held_out, train, threshold=0.85)
    # Below 0.7 every pair is compared by all of its n-grams.
    assert [near[:2] for near in find_near_duplicates(held_out, train, threshold=0.6) if near.cosine >= 0.7] == [
        near[:2] for near in found
    ]


def test_candidates_are_few_where_all_texts_have_frequent_words(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [
        Example(str(n), f"Translate the following sentence, please: {n:x}{n * n:x} {n**3:x}.", "", "x")
        for n in range(400)
    ]
    compared = []
    keep_rare = near_duplicates._keep_rare

    def kept(vectors: Any, weights: Any, *, aside: float) -> tuple[Any, Any]:
        rare, norms = keep_rare(vectors, weights, aside=aside)
        assert norms.max() <= aside
        compared.append(rare.nnz / vectors.nnz)
        return rare, norms

    monkeypatch.setattr(near_duplicates, "_keep_rare", kept)
    find_near_duplicates(rows(examples[:100]), rows(examples[100:]))
    assert compared[0] < 0.5


def test_near_duplicates_are_no_exact_repeats_and_ignore_case_and_blanks() -> None:
    train = [Example("t0", "Name a color.", "", "Red."), Example("t1", "Add the numbers.", "1 2", "3")]
    held_out = [
        Example("e0", "Name a color.", "", "Blue."),
        Example("e1", "name  a Color.", "", "Blue."),
        Example("e2", "Add the numbers. 1 2", "", "3"),
        Example("e3", "Whistle!", "", "…"),
    ]
    found = find_near_duplicates(rows(held_out), rows(train), threshold=1.0)
    assert found == [(1, 0, 1.0), (2, 1, 1.0)]
    assert find_near_duplicates(rows(held_out), rows([]), threshold=0.5) == []
    assert find_near_duplicates(rows([Example("e", " ", "", "x")]), rows(train)) == []


def test_conversations_are_near_as_a_whole() -> None:
    def talk(id: str, *texts: str) -> Example:
        turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        return Example(id, texts[-2], "", texts[-1], messages=turns)

    train = [talk("t", "Name a color.", "Red.", "And another?", "Blue.")]
    held_out = [talk("e0", "Whistle loudly!", "…", "And another?", "…"), talk("e1", "name a color.", "Red.", *"ab")]
    assert [near.number for near in find_near_duplicates(rows(held_out), rows(train), threshold=0.6)] == [1]


def test_many_blocks_of_held_out_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    test, train = (split_examples("everyday")[name] for name in ("test", "train"))
    whole = find_near_duplicates(test, train, threshold=0.7)
    monkeypatch.setattr("hf_instruct.data.near_duplicates._BLOCK", 7)
    assert find_near_duplicates(test, train, threshold=0.7) == whole


def test_very_many_rows_are_sampled_unless_a_threshold_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [Example(f"t{n}", f"Name color number {n}.", "", "Red.") for n in range(40)]
    test = [Example(f"e{n}", f"name color number {n}.", "", "Red.") for n in range(40)]
    splits = build_splits(train, test, [Example("v", "Sing.", "", "La.")])
    assert len(build_preflight(splits, source="mine").near_duplicates.test) == 40
    monkeypatch.setattr(findings, "MAX_ROWS", 40)
    monkeypatch.setattr(findings, "SAMPLE", {"train": 36, "test": 2, "validation": 2})
    preflight = build_preflight(splits, source="mine", split="sequential")
    sample = "2 test and 1 validation examples with 36 of train"
    assert preflight.near_duplicates.sampled == sample
    assert [pair.id for pair in preflight.near_duplicates.test] == ["e0", "e20"]
    assert f"searched in a sample: {sample}." in format_findings(preflight)
    assert "near-duplicate in a sample of train" in format_preflight(preflight)
    asked = build_preflight(splits, source="mine", threshold=0.9).near_duplicates
    assert (asked.sampled, len(asked.test)) == (None, 40)


def test_tokens_are_counted_after_the_cut() -> None:
    train = [Example("1", "one two", "", "a b c"), Example("2", "one two", "three four", "a")]
    parts = (train, [Example("3", "one", "", "a")], [Example("4", "one two three four five", "", "a")])
    counter = build_counter(4)
    tokens = build_preflight(build_splits(*parts, counter), source="mine", counter=counter).tokens
    assert tokens is not None
    assert tokens.to_dict() == {
        "model": "words",
        "prompt_format": "words",
        "max_length": 4,
        "completion_only_loss": True,
        "longest": 7,
        "label_tokens": {"train": 2, "test": 2, "validation": 0, "total": 4},
        "cut": {"train": 2, "test": 0, "validation": 1, "total": 3},
        "without_labels": {"train": 1, "test": 0, "validation": 1, "total": 2},
        "special_tokens": {"train": [], "test": [], "validation": []},
    }
    # The first token of a row is predicted by nothing, so that it is no label.
    counter = build_counter(None, completion_only_loss=False)
    tokens = build_preflight(build_splits(*parts, counter), source="mine", counter=counter).tokens
    assert tokens is not None
    assert tokens.label_tokens == {"train": 5 + 5, "test": 2, "validation": 6, "total": 18}
    assert tokens.cut["total"] == tokens.without_labels["total"] == 0


def test_the_table_and_its_advice() -> None:
    train = [Example("1", "one two", "", "a b c"), Example("2", "one two three four", "", "a")]
    counter = build_counter(4)
    parts = (train, [Example("3", "one two", "", "<end>")], [Example("4", "one two", "", "a b c")])
    preflight = build_preflight(build_splits(*parts, counter), source="mine", split="sequential", counter=counter)
    assert format_findings(preflight).splitlines() == [
        "mine: 2 train, 1 test, 1 validation; label tokens: 2, 2, 2",
        "split `sequential`                        train  test  validation  total",
        "rows that repeat another row exactly                                   1",
        "rows that repeat an instruction + input                                2",
        "instruction + input also in train                   1           1      2",
        "rows truncated at `max_length` 4              2     0           1      3",
        "rows without any label after truncation       1     0           0      1",
        "rows whose text contains a special token      0     1           0      1",
        "What to do: `--data.split grouped` keeps training prompts out of test; delete 1 row that repeats another; "
        "shorten 1 row or raise `--train.max_length`; otherwise training stops.",
    ]
    assert preflight.tokens is not None
    assert preflight.tokens.special_tokens["test"] == [SpecialTokens(id="3", tokens=["<end>"])]
    assert advise(build_preflight(build_splits(train), source="mine")) is None


def test_refused_leaks_are_counted_and_the_first_are_named() -> None:
    test = [Example(f"e{n}", "Name\ta color.", "", str(n)) for n in range(7)]
    splits = build_splits([Example(f"t{n}", "Name\ta color.", "", "x") for n in (1, 2)], test)
    with pytest.raises(DataError) as caught:
        refuse_leaks(splits, source="mine", strict="`--strict`", remedy="--split grouped")
    assert caught.value.summary.startswith("7 test and 0 validation examples of `mine` have the same instruction")
    assert caught.value.problems == [
        *(f'test, example `e{n}` ("Name\\ta color."): also example `t1` and 1 more of train' for n in range(5)),
        "and 2 more",
    ]


def test_a_tokenizer_without_a_config_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: object) -> int:
        raise ModelLoadError("no config")

    monkeypatch.setattr("hf_instruct.models.load_tokenizer", lambda name, **_: build_tokenizer())
    monkeypatch.setattr("hf_instruct.models.load_context_length", refuse)
    alpaca = PromptFormat.from_name("alpaca")
    assert load_counter("mine", prompt_format=alpaca, training={}).max_length is None
    monkeypatch.setattr("hf_instruct.models.load_context_length", lambda name, **_: 64)
    assert load_counter("mine", prompt_format=alpaca, training={}).max_length == 64
    assert load_counter("mine", prompt_format=alpaca, training={"max_length": 1024}).max_length == 64


def test_warnings_name_repeated_prompts_long_rows_and_special_tokens() -> None:
    examples = [Example(str(n), "a", "", output) for n, output in enumerate(["x", "x", "y y y"])]
    examples += [Example("3", "b", "i", "<end>"), Example("4", "b", "i", "<end>")]
    checked = rows(examples).add_column("row", [f"line {n}" for n in range(1, 6)])
    counter = build_counter(4)
    warnings = [str(one) for one in find_warnings(counter.add_counts(checked), file="f.json", counter=counter)]
    assert [warning.partition(";")[0] for warning in warnings] == [
        "`f.json` line 1 has the same instruction and input (and output) as line 2",
        "`f.json` line 1 has the same instruction and input (but not output) as line 3",
        "`f.json` line 4 has the same instruction and input (and output) as line 5",
        "`f.json` line 3 has 5 tokens, more than `max_length` 4",
        "`f.json` line 4 contains `<end>`, a special token of `words`",
        "`f.json` line 5 contains `<end>`, a special token of `words`",
    ]
    assert len(find_warnings(checked, file="f.json")) == 3
    many = rows([Example(str(n), "a", "", "x") for n in range(13)]).add_column("row", [f"row {n}" for n in range(13)])
    (warning,) = find_warnings(many, file="f")
    assert warning.what.endswith("as row 1, row 2, row 3, row 4, row 5, row 6, row 7, row 8, row 9, row 10 and 2 more")


def test_tokens_are_counted_in_several_processes() -> None:
    counter = build_counter(4)
    examples = rows([Example(str(n), "one " * n, "", "a") for n in range(1, 9)])
    alone = counter.add_counts(examples)
    assert counter.add_counts(examples, num_proc=2).to_list() == alone.to_list()
