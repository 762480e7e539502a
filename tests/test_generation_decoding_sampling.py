"""Sampling that repeats, and several responses per prompt."""

from pathlib import Path

import pytest
import tiny_models
import torch

from hf_instruct.generation.decoding import Completion, generate_completions

END = tiny_models.END
PROMPTS = [list(range(300 * n, 300 * n + length)) for n, length in enumerate((5, 1, 40, 12), start=1)]
SEEDS = [7, 8, 9, 10]
SAMPLING = {"do_sample": True, "top_k": 0, "temperature": 0.7}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, tiny_gpt2: Path, tiny_llama: Path):
    return tiny_models.load_copy(tiny_gpt2 if request.param == "gpt2" else tiny_llama)


@pytest.fixture(scope="module")
def gpt2(tiny_gpt2: Path):
    return tiny_models.load_copy(tiny_gpt2)


def complete(tiny, prompts: list[list[int]], **settings) -> list[Completion]:
    return generate_completions(*tiny, prompts, **{"end_id": END, "max_new_tokens": 8, **settings})


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize("settings", [SAMPLING, {**SAMPLING, "num_beams": 3}])
def test_what_is_drawn_depends_on_the_seed_alone(tiny, settings: dict) -> None:
    whole = ids(complete(tiny, PROMPTS, seeds=SEEDS, **settings))
    assert len(set(whole)) == 4
    # Whatever the numbers drawn before, and whatever else is in the batch.
    torch.manual_seed(1)
    assert ids(complete(tiny, PROMPTS, seeds=SEEDS, **settings)) == whole
    for index in range(4):
        assert ids(complete(tiny, [PROMPTS[index]], seeds=[SEEDS[index]], **settings)) == [whole[index]]
    assert ids(complete(tiny, PROMPTS[::-1], seeds=SEEDS[::-1], **settings)) == whole[::-1]
    assert ids(complete(tiny, PROMPTS, seeds=[0, 1, 2, 3], **settings)) != whole


def test_draws_are_pytorchs_own_with_that_seed(gpt2) -> None:
    """A prompt alone, seeded as a program would that uses `generate()` directly."""
    model, _ = gpt2
    (mine,) = complete(gpt2, PROMPTS[:1], seeds=[7], **SAMPLING)
    torch.manual_seed(7)
    theirs = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=8, pad_token_id=END, **SAMPLING)[0, 5:]
    assert list(mine.token_ids) == theirs.tolist()


def test_draws_follow_the_probabilities(gpt2) -> None:
    model, _ = gpt2
    with torch.no_grad():
        expected = (model(torch.tensor(PROMPTS[:1])).logits[0, -1] / 0.2).softmax(-1)
    settings = {**SAMPLING, "temperature": 0.2, "max_new_tokens": 1, "num_return_sequences": 400}
    drawn = torch.tensor(ids(complete(gpt2, PROMPTS[:1], seeds=[3], **settings))).flatten()
    for token in expected.topk(3).indices:
        share, p = float((drawn == token).float().mean()), float(expected[token])
        assert abs(share - p) < 4 * (p * (1 - p) / 400) ** 0.5 + 1e-9


def test_several_responses_of_each_prompt_stand_together(tiny) -> None:
    several = ids(complete(tiny, PROMPTS, seeds=SEEDS, num_return_sequences=3, **SAMPLING))
    assert len(several) == 12
    assert len(set(several)) == 12
    # The first of each is what it would be alone; the others do not depend on the batch either.
    assert several[::3] == ids(complete(tiny, PROMPTS, seeds=SEEDS, **SAMPLING))
    assert several[3:6] == ids(complete(tiny, PROMPTS[1:2], seeds=SEEDS[1:2], num_return_sequences=3, **SAMPLING))
    beams = ids(complete(tiny, PROMPTS, num_beams=3, num_return_sequences=2))
    assert beams[::2] == ids(complete(tiny, PROMPTS, num_beams=3))
