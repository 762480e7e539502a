from pathlib import Path

import pytest
import tiny_models

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.generation import answers
from hf_instruct.generation.answers import answer_examples, choose_batch_size, generate_responses
from hf_instruct.records import Example

EXAMPLES = [
    Example(f"e{n}", "Say " + "word " * length, "", f"out {n}", "facts") for n, length in enumerate((3, 30, 1, 9, 20))
]


@pytest.fixture(scope="module")
def tiny(tiny_gpt2: Path):
    return tiny_models.load_copy(tiny_gpt2)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_changes_nothing_and_order_is_kept(tiny, batch_size: int) -> None:
    alone = [answer_examples(*tiny, [example], max_new_tokens=8)[0] for example in EXAMPLES]
    assert answer_examples(*tiny, EXAMPLES, max_new_tokens=8, batch_size=batch_size) == alone
    assert len({response.response for response in alone}) == len(alone)
    assert [response.id for response in alone] == ["e0", "e1", "e2", "e3", "e4"]


def test_examples_come_back_with_their_responses_as_a_dataset(tiny) -> None:
    columns = ("id", "instruction", "input", "output", "category")
    rows = [{name: getattr(example, name) for name in columns} for example in EXAMPLES]
    dataset = generate_responses(*tiny, rows, max_new_tokens=8)
    assert [{name: row[name] for name in columns} for row in dataset] == rows
    expected = answer_examples(*tiny, EXAMPLES, max_new_tokens=8)
    assert [(row["response"], row["stopped"], row["num_tokens"]) for row in dataset] == [
        (row.response, row.stopped, row.num_tokens) for row in expected
    ]
    assert dataset.features["reference_nll"].dtype == "float64"


def test_prompts_that_do_not_fit_are_refused(tiny) -> None:
    long = [Example("long", "word " * 250, "", "o"), *EXAMPLES]
    with pytest.raises(DataError) as caught:
        answer_examples(*tiny, long, prompt_format="phi3", max_new_tokens=200)
    assert caught.value.summary == (
        "1 of 6 prompts with `generate.max_new_tokens` 200 do not fit into the model's 256 positions. Lower "
        "`generate.max_new_tokens`, or shorten or drop these rows:"
    )
    assert caught.value.problems[0].startswith("example `long`: 2")
    with pytest.raises(DataError, match=r"6 of 6 prompts with `generate.max_new_tokens` 256 do not fit") as caught:
        answer_examples(*tiny, long, max_new_tokens=256)
    assert caught.value.problems[5] == "and 1 more"


def test_a_prompt_that_fits_exactly_is_answered(tiny) -> None:
    from hf_instruct.prompts import PromptFormat

    room = 256 - len(PromptFormat.from_name("alpaca").encode_prompt(tiny[1], EXAMPLES[1].instruction))
    (response,) = answer_examples(*tiny, EXAMPLES[1:2], max_new_tokens=room)
    assert response.stopped or response.num_tokens == room
    with pytest.raises(DataError):
        answer_examples(*tiny, EXAMPLES[1:2], max_new_tokens=room + 1)


@pytest.mark.parametrize("settings", [{"temperature": -1.0, "do_sample": True}, {"num_return_sequences": 2}])
def test_settings_that_transformers_refuses(tiny, settings: dict) -> None:
    with pytest.raises(ConfigError, match="The `generate` section is refused by Transformers:\n  - "):
        answer_examples(*tiny, EXAMPLES[:1], max_new_tokens=2, **settings)


GREEDY = {"max_new_tokens": 100, "generation": {}}


def test_the_batch_size_follows_the_free_memory(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny
    free = [0]
    monkeypatch.setattr(answers, "free_bytes", lambda device: free[0])
    prompts = [[1] * 28, [1] * 8]
    # 128 tokens in float32: keys and values of two layers and one to copy, activations, logits.
    row = 3 * 2 * 32 * 4 * 128 + 28 * (16 * 32 * 4 + 4 * 128) + tiny_models.VOCABULARY * 8
    sizes = []
    for count in (0.5, 1.01, 50.01, 10_000):
        free[0] = int(count * row / 0.4)
        sizes.append(choose_batch_size(model, prompts, **GREEDY))
    assert sizes == [1, 1, 50, 128]
    assert choose_batch_size(model, [[1] * 28] * 3, max_new_tokens=10, generation={"num_beams": 1}) == 128
    sampling = {"do_sample": True, "top_k": 0, "seed": 3, "num_return_sequences": 4}
    assert choose_batch_size(model, [[1] * 28] * 3, max_new_tokens=10, generation=sampling) == 32, "of 4 rows each"
    free[0] = int(40.01 * (row + tiny_models.VOCABULARY * 12) / 0.4)
    assert choose_batch_size(model, prompts, max_new_tokens=100, generation=sampling) == 10
    # What `generate()` samples or searches with beams does not depend on the memory.
    for generation in ({"do_sample": True, "top_k": 5}, {"num_beams": 2}):
        assert choose_batch_size(model, [[1]], max_new_tokens=10, generation=generation) == 32


def test_processes_launched_together_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = answers.free_bytes("cpu")
    assert alone > 2**20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert answers.free_bytes("cpu") == pytest.approx(alone / 4, rel=0.2)


def out_of_memory_above(most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    complete = answers.generate_completions

    def limited(model, tokenizer, prompts, **settings):
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return complete(model, tokenizer, prompts, **settings)

    monkeypatch.setattr(answers, "generate_completions", limited)


def test_a_batch_that_does_not_fit_is_halved(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer_examples(*tiny, EXAMPLES, max_new_tokens=4)
    sizes: list[int] = []
    out_of_memory_above(2, sizes, monkeypatch)
    rows: list[str] = []
    found = answer_examples(
        *tiny, EXAMPLES, max_new_tokens=4, on_batch=lambda batch: rows.extend(row.id for row in batch)
    )
    assert found == expected
    assert sizes == [5, 2, 2, 1]
    assert sorted(rows) == ["e0", "e1", "e2", "e3", "e4"]


def test_memory_that_runs_out_is_an_error_where_nothing_is_left_to_try(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    out_of_memory_above(0, sizes, monkeypatch)
    with pytest.raises(ConfigError, match=r"ran out of memory with a batch of 1. Lower `generate.max_new_tokens`"):
        answer_examples(*tiny, EXAMPLES, max_new_tokens=4)
    assert sizes == [5, 2, 1]
    with pytest.raises(ConfigError, match=r"with a batch of 3. Lower `generate.batch_size` \(3\) or leave it out"):
        answer_examples(*tiny, EXAMPLES, max_new_tokens=4, batch_size=3)


def test_an_error_of_another_kind_is_not_about_memory(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(answers, "generate_completions", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        answer_examples(*tiny, EXAMPLES, max_new_tokens=4)
