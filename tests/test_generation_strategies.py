import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from hf_instruct.errors import ConfigError
from hf_instruct.generation.strategies import (
    build_generation_settings,
    find_strategy,
    load_strategies,
)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=8, n_layer=1, n_head=1)).eval()


@pytest.mark.parametrize("name", list(load_strategies()))
def test_generate_takes_every_strategy(name: str, model: GPT2LMHeadModel) -> None:
    settings = build_generation_settings(name)
    assert set(settings) <= set(GenerationConfig().to_dict())
    options = {**settings, "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    assert model.generate(torch.tensor([[1, 2, 3]]), **options).shape == (1, 7)


def test_a_strategy_beats_the_model_s_own_generation_config(model: GPT2LMHeadModel, monkeypatch) -> None:
    ids = torch.tensor([[1, 2]])
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    own = GenerationConfig(do_sample=True, temperature=5.0, top_p=0.9, num_beams=2)
    monkeypatch.setattr(model, "generation_config", own)
    settings = build_generation_settings("greedy")
    assert torch.equal(plain, model.generate(ids, max_new_tokens=6, pad_token_id=0, **settings))


def test_presets_are_strategies_with_fields() -> None:
    presets = load_strategies(presets=True)
    assert all(preset.description and preset.source.startswith("https://") for preset in presets.values())
    nucleus = {"do_sample": True, "num_beams": 1, "temperature": 0.2, "top_k": 0, "top_p": 0.1}
    assert build_generation_settings(presets["code"]) == nucleus
    # The more open the task, the more is left to chance.
    names = ("code", "comments", "chat", "explore-code", "creative")
    order = [presets[name].settings["top_p"] for name in names]
    assert order == sorted(order)
    settings = build_generation_settings(presets["creative"], top_p=0.6, max_new_tokens=9)
    assert (settings["top_p"], settings["temperature"], settings["max_new_tokens"]) == (0.6, 0.7, 9)


def test_names_ignore_case_and_underscores() -> None:
    assert find_strategy(" Top_P ").name == "top-p"
    for preset, name, near in ((False, "topp", "top-p"), (True, "creativ", "creative")):
        with pytest.raises(ConfigError, match=f"`{name}`. Did you mean `{near}`"):
            find_strategy(name, preset=preset)
    with pytest.raises(ConfigError, match="Choose from `greedy`"):
        find_strategy("zzz")


@pytest.mark.parametrize(
    ("strategy", "fields", "problem"),
    [
        ("greedy", {"top_p": 0.5}, "`top_p` is 0.5, which has no effect with it; it has no settings"),
        (
            "sample",
            {"num_beams": 3},
            "`num_beams` is 3, which has no effect with it; it supports `temperature`, `top_k`",
        ),
        ("top-p", {"top_p": 1.5}, "`top_p` is 1.5; it must be"),
        ("top-p", {"temperature": "hot"}, "`temperature` is 'hot'; it must be"),
        ("top-k", {"top_k": float("nan")}, "`top_k` is nan; it must be"),
        ("greedy", {"num_return_sequences": 5}, "5 answers per prompt"),
        ("beam", {"num_return_sequences": 6}, "6 answers per prompt"),
    ],
)
def test_fields_without_effect_or_out_of_range_are_refused(strategy: str, fields: dict, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_generation_settings(strategy, **fields)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]
