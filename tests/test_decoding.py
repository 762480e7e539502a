from pathlib import Path

import pytest
import tiny_models
import torch

from hf_instruct.decoding import Completion, generate_completions

END = tiny_models.END
# Ragged: from 1 to 40 tokens.
PROMPTS = [list(range(300 * n, 300 * n + length)) for n, length in enumerate((5, 1, 40, 12, 3, 27, 8, 19), start=1)]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, tiny_gpt2: Path, tiny_llama: Path):
    return tiny_models.load_copy(tiny_gpt2 if request.param == "gpt2" else tiny_llama)


@pytest.fixture(scope="module")
def gpt2(tiny_gpt2: Path):
    return tiny_models.load_copy(tiny_gpt2)


def complete(tiny, prompts: list[list[int]], **settings) -> list[Completion]:
    return generate_completions(*tiny, prompts, **{"end_id": END, "max_new_tokens": 12, **settings})


@pytest.mark.parametrize("batch_size", [3, 8])
def test_a_batch_answers_as_each_prompt_alone(tiny, batch_size: int) -> None:
    """Contract 4."""
    alone = [complete(tiny, [prompt])[0] for prompt in PROMPTS]
    assert len({completion.text for completion in alone}) == len(PROMPTS), (
        "answers that are all alike would prove nothing"
    )
    batches = [PROMPTS[start : start + batch_size] for start in range(0, len(PROMPTS), batch_size)]
    assert [completion for batch in batches for completion in complete(tiny, batch)] == alone


def greedy(model, prompt: list[int], count: int = 8) -> list[int]:
    """Return the likeliest next tokens, one at a time, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_alone_is_what_a_plain_loop_computes(tiny) -> None:
    model, tokenizer = tiny
    for prompt in PROMPTS[:3]:
        assert complete(tiny, [prompt], max_new_tokens=8)[0].text == tokenizer.decode(greedy(model, prompt)).strip()


def test_an_answer_stops_at_the_end_token(gpt2) -> None:
    model, tokenizer = gpt2
    whole = complete(gpt2, PROMPTS)
    assert {(completion.stopped, completion.num_tokens) for completion in whole} == {(False, 12)}
    # What it answers some prompt with in the middle becomes the end.
    prompt, answer = next((p, ids) for p in PROMPTS if (ids := greedy(model, p)) and ids.index(ids[-1]) >= 2)
    end, index = answer[-1], answer.index(answer[-1])
    stopped, *others = complete(gpt2, [prompt, *PROMPTS], end_id=end)
    assert stopped == Completion(tokenizer.decode(answer[:index]).strip(), stopped=True, num_tokens=index + 1)
    # The others, filled up or run on, are not touched by it.
    assert others == [complete(gpt2, [prompt], end_id=end)[0] for prompt in PROMPTS]


def test_the_end_of_text_ends_an_answer_whatever_the_format_ends_with(gpt2) -> None:
    _, tokenizer = gpt2
    from hf_instruct.decoding import _read_completion

    ends = {198, END}
    assert _read_completion(tokenizer, [64, 65, END, END], ends) == Completion("ab", True, 3)
    assert _read_completion(tokenizer, [64, 198, 65, END], ends) == Completion("a", True, 2)
    assert _read_completion(tokenizer, [64, 65], ends) == Completion("ab", False, 2)
    assert _read_completion(tokenizer, [END, END], ends) == Completion("", True, 1)


def test_an_end_of_the_models_own_ends_an_answer(tiny_gpt2: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    first = greedy(model, PROMPTS[0], 1)[0]
    model.generation_config.eos_token_id = [END, first]
    assert complete((model, tokenizer), PROMPTS[:1]) == [Completion("", True, 1)]


def test_only_the_response_is_kept(gpt2) -> None:
    _, tokenizer = gpt2
    from hf_instruct.decoding import _read_completion

    ids = tokenizer("\n  Don't , stop !  \n")["input_ids"] + [END]
    # As written: no tidying of the space before a comma.
    assert _read_completion(tokenizer, ids, {END}).text == "Don't , stop !"


def test_sampling_follows_the_seed(gpt2) -> None:
    from transformers import set_seed

    def sample(seed: int) -> list[Completion]:
        set_seed(seed)
        return complete(gpt2, PROMPTS, do_sample=True, temperature=5.0, top_k=0)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_beams_and_other_fields_are_passed_on(gpt2) -> None:
    assert complete(gpt2, PROMPTS[:2], num_beams=3) != complete(gpt2, PROMPTS[:2])
    assert complete(gpt2, PROMPTS, num_beams=2) == [complete(gpt2, [prompt], num_beams=2)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode(gpt2, training: bool) -> None:
    model, _ = gpt2
    model.train(training)
    complete(gpt2, PROMPTS[:1], max_new_tokens=1)
    assert model.training is training
    model.eval()
