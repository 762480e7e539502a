"""Sampling that repeats, several responses a prompt, and contrastive search."""

from pathlib import Path

import pytest
import tiny_models
import torch
from torch.nn.functional import cosine_similarity
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

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


def contrastive(model, prompt: list[int], count: int, *, alpha: float, k: int, penalty: float = 1.0) -> list[int]:
    """Return contrastive search's tokens by its definition: no cache, one candidate after the other."""
    row = list(prompt)
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])

    def run(tokens: list[int]):
        with torch.no_grad():
            output = model(torch.tensor([tokens]), output_hidden_states=True)
        return output.logits[0, -1:], output.hidden_states[-1][0]

    for _ in range(count):
        logits, states = run(row)
        probabilities = processors(torch.tensor([row]), logits)[0].softmax(-1)
        scores = []
        for probability, token in zip(*probabilities.topk(k), strict=True):
            state = run([*row, int(token)])[1][-1]
            likeness = max(float(cosine_similarity(state, before, dim=0)) for before in states)
            scores.append(((1 - alpha) * float(probability) - alpha * likeness, int(token)))
        row.append(max(scores)[1])
    return row[len(prompt) :]


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.7}])
def test_contrastive_search_is_what_its_definition_says(tiny, settings: dict) -> None:
    found = ids(complete(tiny, PROMPTS, penalty_alpha=0.6, top_k=4, **settings))
    penalty = settings.get("repetition_penalty", 1.0)
    expected = [contrastive(tiny[0], prompt, 8, alpha=0.6, k=4, penalty=penalty) for prompt in PROMPTS]
    assert [list(row) for row in found] == expected
    assert found != ids(complete(tiny, PROMPTS, **settings))


def test_contrastive_search_ends(gpt2) -> None:
    (whole,) = complete(gpt2, PROMPTS[:1], penalty_alpha=0.6, top_k=4)
    third = whole.token_ids[2]
    first = whole.token_ids.index(third)
    stopped, other = complete(gpt2, PROMPTS[:2], penalty_alpha=0.6, top_k=4, eos_token_id=third)
    assert stopped == Completion(stopped.text, stopped=True, num_tokens=first + 1)
    assert other.num_tokens == 8
