from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import DynamicCache, GenerationConfig, MistralConfig, PreTrainedModel

from hf_instruct.errors import ConfigError
from hf_instruct.generation import decoding, decoding_loop
from hf_instruct.generation.answers import answer_examples
from hf_instruct.generation.decoding import Completion, generate_completions
from hf_instruct.generation.decoding_loop import decodes_greedily
from hf_instruct.records import Example

END = tiny_models.END
# Ragged: from 1 to 40 tokens.
PROMPTS = [list(range(300 * n, 300 * n + length)) for n, length in enumerate((5, 1, 40, 12, 3, 27, 8, 19), start=1)]


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
            ids.append(int(model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax()))
    return ids[len(prompt) :]


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


def test_beams_and_other_fields_are_passed_on(gpt2) -> None:
    assert complete(gpt2, PROMPTS[:2], num_beams=3) != complete(gpt2, PROMPTS[:2])
    assert complete(gpt2, PROMPTS, num_beams=2) == [complete(gpt2, [prompt], num_beams=2)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("wrong", ["", "cannot be captured", "other logits"])
def test_replayed_steps_answer_as_plain_ones(tiny, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """What a GPU replays from memory is done again here by the step itself."""
    model, _ = tiny
    prompts = [PREFIX + prompt for prompt in PROMPTS]
    settings = {"ends": set(range(0, END, 25)) | {END}, "max_new_tokens": 40, "pad_id": END}
    expected = decoding_loop.decode(model, prompts, **settings)
    captured = []

    def capture(step):
        captured.append(step)
        if wrong == "cannot be captured":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return (lambda: (step(), step())) if wrong == "other logits" else step

    monkeypatch.setattr(decoding_loop, "_can_capture", lambda model: True)
    monkeypatch.setattr(decoding_loop, "_captured", capture)
    assert decoding_loop.decode(model, prompts, **settings) == expected
    assert len(captured) == 1 if wrong else len(captured) > 1, "again after rows have left the batch"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loop_draws_what_generate_draws_from_the_same_state(tiny, temperature: float) -> None:
    model, _ = tiny
    # Several answers to a prompt; with this many ends some rows leave the batch early.
    prompts = [PREFIX + prompt for prompt in PROMPTS for _ in range(3)]
    ends = set(range(0, END, 25)) | {END}
    torch.manual_seed(3)
    ours = decoding_loop.decode(model, prompts, ends=ends, max_new_tokens=40, pad_id=END, temperature=temperature)
    after = torch.rand(3)
    torch.manual_seed(3)
    settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "pad_token_id": END, "max_new_tokens": 40}
    theirs = decoding._generate(model, prompts, {**settings, "eos_token_id": sorted(ends)})
    assert ours == [decoding.until_end(row, ends) for row in theirs]
    assert torch.equal(torch.rand(3), after)
    assert len({len(row) for row in ours}) > 5


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode(gpt2, training: bool) -> None:
    model, _ = gpt2
    model.train(training)
    complete(gpt2, PROMPTS[:1], max_new_tokens=1)
    assert model.training is training
    model.eval()


PREFIX = list(range(2000, 2037))


def decode(model: PreTrainedModel, prompts: list[list[int]], ends: set[int], count: int = 40) -> list[list[int]]:
    return decoding_loop.decode(model, prompts, ends=ends, max_new_tokens=count, pad_id=END)


def plain(model: PreTrainedModel, prompts: list[list[int]], ends: set[int], count: int = 40) -> list[list[int]]:
    """Return what `decode` should: no batch, no cache."""
    rows = [greedy(model, prompt, count) for prompt in prompts]
    stops = [next((i for i, token in enumerate(row) if token in ends), count) for row in rows]
    return [row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param([PREFIX + prompt for prompt in PROMPTS], id="a common prefix"),
        pytest.param(PROMPTS, id="no common prefix"),
        pytest.param([PREFIX] * 3, id="identical"),
        pytest.param([[7]] * 2, id="identical, of one token"),
        pytest.param([PREFIX], id="one"),
        pytest.param([[7]], id="one, of one token"),
        pytest.param([[*PREFIX, 5, 6], PREFIX, [*PREFIX, 5]], id="one is the prefix of the others"),
        pytest.param([[*PREFIX, 1], [*PREFIX, *range(3000, 3060)]], id="much padding"),
        pytest.param([PREFIX[:32], [*PREFIX[:31], 4]], id="a whole block"),
        pytest.param([[END, 5, END], [END, 6, END, 7]], id="ends in the prompt"),
    ],
)
def test_the_loop_decodes_as_without_batch_and_cache(tiny, prompts: list[list[int]]) -> None:
    """Over 40 tokens, so that the cache grows by blocks."""
    model, _ = tiny
    assert decode(model, prompts, {END}) == plain(model, prompts, {END})


def test_rows_that_end_leave_the_batch(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny
    prompts = [PREFIX + prompt for prompt in PROMPTS]
    # Ends that some of the rows reach, each at its own time.
    ends = {row[4 * n + 1] for n, row in enumerate(plain(model, prompts[:6], set()))}
    expected = plain(model, prompts, ends)
    assert len({len(row) for row in expected}) > 3
    kept: list[int] = []
    keep = decoding_loop._Batch.keep
    monkeypatch.setattr(decoding_loop._Batch, "keep", lambda self, rows: (kept.append(len(rows)), keep(self, rows))[1])
    assert decode(model, prompts, ends) == expected
    assert len(kept) > 1
    assert kept == sorted(kept, reverse=True)


def test_the_common_prefix_is_computed_once(gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = gpt2
    shapes: list[tuple[int, ...]] = []
    forward = decoding_loop._next_logits

    def recorded(model, keywords, input_ids, mask, positions):
        shapes.append(tuple(input_ids.shape))
        logits = forward(model, keywords, input_ids, mask, positions)
        # A copy at every step is what the layout of the cache is there to save.
        layers = next(value for value in keywords.values() if isinstance(value, DynamicCache)).layers
        assert all(layer.keys.is_contiguous() and layer.values.is_contiguous() for layer in layers)
        assert logits.shape == (len(input_ids), tiny_models.VOCABULARY)
        return logits

    monkeypatch.setattr(decoding_loop, "_next_logits", recorded)
    decode(model, [PREFIX + prompt for prompt in PROMPTS], set(), count=3)
    assert shapes == [(1, 37), (8, 40), (8, 1), (8, 1)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_key_heads_may_be_fewer_than_heads(attention: str, key_heads: int) -> None:
    config = tiny_models.llama_config(num_key_value_heads=key_heads)
    config.num_attention_heads = 4
    config.head_dim = 8
    model = tiny_models.build_model(config, scale=8)
    model.set_attn_implementation(attention)
    assert decode(model, PROMPTS, {END}, 12) == plain(model, PROMPTS, {END}, 12)
    assert model.config._attn_implementation == attention


def test_a_lora_model_goes_through_the_loop(tiny_gpt2: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    before = complete((model, tokenizer), PROMPTS)
    tuned = get_peft_model(
        model, LoraConfig(init_lora_weights=False, target_modules=["c_attn"], fan_in_fan_out=True)
    ).eval()
    assert decodes_greedily(tuned, {})
    after = complete((tuned, tokenizer), PROMPTS)
    assert after != before
    assert after == [complete((tuned, tokenizer), [prompt])[0] for prompt in PROMPTS]
    assert decode(tuned, PROMPTS, {END}, 12) == plain(tuned, PROMPTS, {END}, 12)


def test_bf16_decodes_nearly_as_generate_does(tiny_gpt2: Path) -> None:
    model, _ = tiny_models.load_copy(tiny_gpt2)
    model.to(torch.bfloat16)
    prompts = [PREFIX + prompt for prompt in PROMPTS]
    rows = decode(model, prompts, {END}, 2)
    expected = [model.generate(torch.tensor([p]), max_new_tokens=2, do_sample=False)[0, len(p) :] for p in prompts]
    assert sum(row == other.tolist() for row, other in zip(rows, expected, strict=True)) >= 6


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"do_sample": True},
        {"repetition_penalty": 1.1},
        {"min_new_tokens": 3},
        {"suppress_tokens": [5]},
        {"forced_eos_token_id": 0},
        {"num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"unheard_of": 1},
    ],
)
def test_other_settings_go_through_generate(gpt2, tiny_gpt2: Path, settings: dict) -> None:
    model, _ = gpt2
    assert decodes_greedily(model, {})
    assert decodes_greedily(model, {"do_sample": False, "num_beams": 1, "temperature": 0.7, "repetition_penalty": 1.0})
    assert not decodes_greedily(model, settings)
    # The same, where the model itself asks for it.
    own, _ = tiny_models.load_copy(tiny_gpt2)
    for name, value in settings.items():
        setattr(own.generation_config, name, value)
    assert not decodes_greedily(own, {})
    # What the caller says comes first.
    assert decodes_greedily(own, dict.fromkeys(settings))


# A value that acts, for each field that `generate()` reads but those of sampling and beams.
ACTING = {
    "repetition_penalty": 4.0,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "min_length": 7,
    "min_new_tokens": 4,
    "bad_words_ids": [[END]],
    "sequence_bias": [[[END], -3.0]],
    "exponential_decay_length_penalty": (2, 1.5),
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 3,
    "suppress_tokens": [END],
    "begin_suppress_tokens": [END],
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 4.0, "context_width": 2, "seeding_scheme": "selfhash"},
    "cache_implementation": "static",
    "prefill_chunk_size": 3,
}
REFUSED = {
    "max_time": 60.0,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "use_mtp": True,
    "return_dict_in_generate": True,
    "max_length": 50,
    "cache_implementation": "quantized",
}


@pytest.fixture(scope="module")
def ending_gpt2(tiny_gpt2: Path):
    """A model that may end at any token: what is done to padding, which is the end token too, then shows."""
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    bias = torch.zeros(tiny_models.VOCABULARY)
    bias[END] = 5.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model, tokenizer


@pytest.mark.parametrize(("name", "value"), ACTING.items())
def test_no_field_lets_an_answer_depend_on_the_batch(ending_gpt2, name: str, value) -> None:
    settings = {name: value, "max_new_tokens": 6}
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[3][:5]]
    alone = [complete(ending_gpt2, [prompt], **settings)[0] for prompt in prompts]
    assert complete(ending_gpt2, prompts, **settings) == alone


def test_every_field_of_generation_is_tried_or_refused() -> None:
    known = {*ACTING, *REFUSED, *decoding_loop._WITHOUT_EFFECT, *decoding_loop._BLIND_TO_PADDING}
    no_effect = {name for name in GenerationConfig().to_dict() if name.startswith(("output_", "assistant_", "num_ass"))}
    # Moved to the Hub, refused by Transformers without a tokenizer, or a detail of a field above or of the speed.
    no_effect |= {
        *("penalty_alpha", "dola_layers", "diversity_penalty", "num_beam_groups", "constraints", "force_words_ids"),
        *("stop_strings", "token_healing", "max_matching_ngram_size", "is_assistant", "target_lookbehind"),
        *("cache_config", "max_cache_len", "compile_config", "disable_compile", "continuous_batching_config"),
        *("decoder_start_token_id", "speculation_type"),
    }
    assert not set(GenerationConfig().to_dict()) - known - no_effect


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_a_field_that_would_depend_on_the_batch_is_refused(gpt2, name: str, value) -> None:
    example = Example("1", "Name a color.", "", "Red.")
    with pytest.raises(ConfigError, match=f"`generate.{name}` cannot be set"):
        answer_examples(*gpt2, [example], max_new_tokens=2, **{name: value})


def test_models_that_the_loop_does_not_know_go_through_generate(tiny_gpt2: Path) -> None:
    from peft import IA3Config, PromptTuningConfig, get_peft_model

    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    mistral = MistralConfig(
        vocab_size=tiny_models.VOCABULARY, **sizes, num_key_value_heads=1, sliding_window=8, max_position_embeddings=256
    )
    windowed = tiny_models.build_model(mistral, scale=8)
    assert not decodes_greedily(windowed, {})
    assert complete((windowed, tokenizer), PROMPTS[:1])[0].num_tokens == 12
    mistral.sliding_window = None
    assert decodes_greedily(tiny_models.build_model(mistral), {})
    varying = tiny_models.llama_config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert not decodes_greedily(tiny_models.build_model(varying), {})
    for adapter in (
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True),
    ):
        model, _ = tiny_models.load_copy(tiny_gpt2)
        assert not decodes_greedily(get_peft_model(model, adapter), {})


def test_ends_of_the_model_and_those_asked_for_end_an_answer(gpt2, tiny_gpt2: Path) -> None:
    model, _ = gpt2
    first = greedy(model, PROMPTS[0], 1)[0]
    own, tokenizer = tiny_models.load_copy(tiny_gpt2)
    own.generation_config.eos_token_id = [END, first]
    assert complete((own, tokenizer), PROMPTS[:1]) == [Completion("", True, 1)]
    assert complete(gpt2, PROMPTS[:1], eos_token_id=first) == [Completion("", True, 1)]
    # And by `generate()`.
    assert complete(gpt2, PROMPTS[:1], eos_token_id=[5, first], min_length=1) == [Completion("", True, 1)]


def test_the_attention_of_the_model_stays_as_it_was(gpt2) -> None:
    model, _ = gpt2
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError):
        decode(model, [[tiny_models.VOCABULARY]], {END})
    assert model.config._attn_implementation == "sdpa"


SEEDS = [7, 8, 9, 10]
SAMPLING = {"do_sample": True, "top_k": 0, "temperature": 0.7}
FOUR = PROMPTS[:4]


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


@pytest.mark.parametrize("settings", [SAMPLING, {**SAMPLING, "num_beams": 3}])
def test_what_is_drawn_depends_on_the_seed_alone(tiny, settings: dict) -> None:
    whole = ids(complete(tiny, FOUR, seeds=SEEDS, **settings))
    assert len(set(whole)) == 4
    # Whatever the numbers drawn before, and whatever else is in the batch.
    torch.manual_seed(1)
    assert ids(complete(tiny, FOUR, seeds=SEEDS, **settings)) == whole
    for index in range(4):
        assert ids(complete(tiny, [PROMPTS[index]], seeds=[SEEDS[index]], **settings)) == [whole[index]]
    assert ids(complete(tiny, FOUR[::-1], seeds=SEEDS[::-1], **settings)) == whole[::-1]
    assert ids(complete(tiny, FOUR, seeds=[0, 1, 2, 3], **settings)) != whole


def test_draws_are_pytorchs_own_with_that_seed(gpt2) -> None:
    """A prompt alone, seeded as a program would that uses `generate()` directly."""
    model, _ = gpt2
    (mine,) = complete(gpt2, PROMPTS[:1], seeds=[7], **SAMPLING)
    torch.manual_seed(7)
    theirs = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=12, pad_token_id=END, **SAMPLING)[0, 5:]
    assert list(mine.token_ids) == theirs.tolist()


@pytest.mark.parametrize("more", [{}, {"num_return_sequences": 3}, {"temperature": 1.0}])
def test_the_loop_draws_what_generate_draws_with_the_same_seeds(
    tiny, more: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this many ends some rows leave the batch early.
    settings = {**SAMPLING, **more, "max_new_tokens": 30, "eos_token_id": list(range(0, END, 25))}
    ours = ids(complete(tiny, FOUR, seeds=SEEDS, **settings))
    monkeypatch.setattr(decoding_loop, "find_temperature", lambda *_: None)
    monkeypatch.setattr(decoding_loop, "decode", None)
    assert ids(complete(tiny, FOUR, seeds=SEEDS, **settings)) == ours


@pytest.mark.parametrize(
    ("settings", "own", "temperature"),
    [
        (SAMPLING, {}, 0.7),
        ({**SAMPLING, "top_k": None, "top_p": 1.0, "num_return_sequences": 2}, {}, 0.7),
        ({"do_sample": True, "top_k": 0}, {"temperature": 0.3}, 0.3),
        # Unset, it is Transformers' own: 50.
        ({"do_sample": True}, {}, None),
        ({**SAMPLING, "top_k": 5}, {}, None),
        (SAMPLING, {"top_p": 0.9}, None),
        (SAMPLING, {"repetition_penalty": 1.1}, None),
        ({**SAMPLING, "num_beams": 2}, {}, None),
        ({**SAMPLING, "temperature": -1.0}, {}, None),
        ({"do_sample": False}, {}, None),
    ],
)
def test_only_sampling_by_temperature_alone_goes_through_the_loop(
    gpt2, settings: dict, own: dict, temperature: float | None
) -> None:
    model, _ = gpt2
    before = model.generation_config
    model.generation_config = GenerationConfig(**own)
    try:
        assert decoding_loop.find_temperature(model, settings) == temperature
    finally:
        model.generation_config = before


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
    several = ids(complete(tiny, FOUR, seeds=SEEDS, num_return_sequences=3, **SAMPLING))
    assert len(several) == 12
    assert len(set(several)) == 12
    # The first of each is what it would be alone; the others do not depend on the batch either.
    assert several[::3] == ids(complete(tiny, FOUR, seeds=SEEDS, **SAMPLING))
    assert several[3:6] == ids(complete(tiny, PROMPTS[1:2], seeds=SEEDS[1:2], num_return_sequences=3, **SAMPLING))
    beams = ids(complete(tiny, FOUR, num_beams=3, num_return_sequences=2))
    assert beams[::2] == ids(complete(tiny, FOUR, num_beams=3))
