from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from hf_instruct.errors import ConfigError
from hf_instruct.generation import strategies
from hf_instruct.generation.decoding import own_methods
from hf_instruct.generation.strategies import (
    STRATEGIES,
    build_generation_settings,
    find_preset,
    find_strategy,
    load_presets,
)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=8, n_layer=1, n_head=1)).eval()


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_generate_takes_every_strategy(name: str, model: GPT2LMHeadModel) -> None:
    settings = build_generation_settings(name)
    assert set(settings) <= set(GenerationConfig().to_dict()) | {"penalty_alpha"}
    options = {**settings, **own_methods(settings), "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    assert model.generate(torch.tensor([[1, 2, 3]]), **options).shape == (1, 7)


def test_a_strategy_beats_what_the_model_says_of_itself(model: GPT2LMHeadModel) -> None:
    """A model's own `generation_config` may ask for sampling."""
    plain = model.generate(torch.tensor([[1, 2]]), max_new_tokens=6, do_sample=False, pad_token_id=0)
    own = model.generation_config
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, top_p=0.9, num_beams=2)
    try:
        settings = build_generation_settings("greedy")
        assert torch.equal(plain, model.generate(torch.tensor([[1, 2]]), max_new_tokens=6, pad_token_id=0, **settings))
    finally:
        model.generation_config = own


def test_the_presets_file() -> None:
    presets = load_presets()
    assert list(presets) == ["exact", "code", "comments", "chat", "explore-code", "creative", "diverse"]
    for preset in presets.values():
        assert preset.description
        assert preset.source.startswith("https://")
        assert preset.build_settings().keys() >= {"do_sample", "num_beams"}
    assert presets["code"].build_settings() == {
        "do_sample": True,
        "num_beams": 1,
        "temperature": 0.2,
        "top_k": 0,
        "top_p": 0.1,
    }
    # The more open the task, the more is left to chance.
    order = [
        presets[name].build_settings()["top_p"] for name in ("code", "comments", "chat", "explore-code", "creative")
    ]
    assert order == sorted(order)
    assert Path(strategies.__file__).with_name("presets.yaml").is_file()


def test_fields_beat_a_preset() -> None:
    settings = find_preset("creative").build_settings(top_p=0.6, max_new_tokens=9)
    assert (settings["top_p"], settings["temperature"], settings["max_new_tokens"]) == (0.6, 0.7, 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("topp", "Unknown strategy `topp`; did you mean `top-p`? Allowed are `greedy`, `beam`, `sample`, `top-k`, "),
        ("zzz", "Unknown strategy `zzz`; allowed are `greedy`"),
        ("dola", "`dola` is no longer part of Transformers: it became code on the Hub (`transformers-community/dola`)"),
    ],
)
def test_an_unknown_strategy(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_strategy(name)
    assert message in str(caught.value)


def test_names_are_read_kindly() -> None:
    assert find_strategy(" Top_P ").name == "top-p"
    with pytest.raises(ConfigError, match="Unknown preset `creativ`; did you mean `creative`"):
        find_preset("creativ")


@pytest.mark.parametrize(
    ("strategy", "fields", "fault"),
    [
        ("greedy", {"top_p": 0.5}, "`top_p` is 0.5, which has no effect with it; it has nothing to set"),
        ("sample", {"num_beams": 3}, "`num_beams` is 3, which has no effect with it; it takes `temperature`, `top_k`"),
        (
            "contrastive",
            {"temperature": 2},
            "`temperature` is 2, which has no effect with it; it takes `penalty_alpha`",
        ),
        ("top-p", {"top_p": 1.5}, "`top_p` is 1.5; it should be above 0 and at most 1"),
        ("top-p", {"temperature": "hot"}, "`temperature` is 'hot'; it should be above 0"),
        ("top-k", {"top_k": float("nan")}, "`top_k` is nan; it should be 0 for all tokens"),
        ("contrastive", {"penalty_alpha": 0}, "`penalty_alpha` is 0; it should be above 0 and at most 1"),
        ("greedy", {"num_return_sequences": 5}, "5 answers a prompt would all be the same one"),
        ("beam", {"num_return_sequences": 6}, "6 answers a prompt need at least as many beams; `num_beams` is 5"),
    ],
)
def test_fields_without_effect_are_refused(strategy: str, fields: dict, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_generation_settings(strategy, **fields)
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


def test_what_has_an_effect_with_every_strategy_passes() -> None:
    assert build_generation_settings("greedy", repetition_penalty=1.2, do_sample=False)["repetition_penalty"] == 1.2
    assert build_generation_settings("beam", num_beams=8, num_return_sequences=8)["num_beams"] == 8
