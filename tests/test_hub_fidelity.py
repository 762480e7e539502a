from pathlib import Path

import publishing_runs
import pytest
import torch

from hf_instruct.errors import PublishError
from hf_instruct.hub import merging
from hf_instruct.hub.fidelity import MAX_NEW_TOKENS, check_fidelity, compare_models, take_reference
from hf_instruct.hub.merging import load_run_model, save_run_model
from hf_instruct.models import load_model
from hf_instruct.prompts import PromptFormat

# What an adapter may do to a model whose input and output embedding are one matrix.
TIED = {
    "input": {"target_modules": ["c_attn", "wte"]},
    "output": {"target_modules": ["c_attn", "lm_head"]},
    "both": {"target_modules": ["c_attn", "wte", "lm_head"]},
    "output-whole": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    "output-rows": {"target_modules": ["c_attn"], "trainable_token_indices": {"lm_head": [5, 70]}},
    "both-as-one": {"target_modules": ["c_attn"], "trainable_token_indices": [5, 70]},
    "neither": {"target_modules": ["c_attn"]},
}
PEFT_WARNS = ("ignore:Model has `tie_word_embed", "ignore:Setting `save_embedding", "ignore:fan_in_fan_out is set to")


@pytest.mark.filterwarnings(*PEFT_WARNS)
@pytest.mark.parametrize("name", TIED)
def test_a_merged_adapter_of_tied_embeddings_is_what_was_trained(name: str, small_model: Path, tmp_path: Path) -> None:
    adapter = publishing_runs.save_adapter(tmp_path / "adapter", small_model, **TIED[name])
    source = load_run_model(publishing_runs.write_run(tmp_path / "run", adapter))
    check = save_run_model(source, tmp_path / "merged")
    assert check.logit_error < 1e-4
    assert check.same_answers == check.num_prompts == 10
    # They are two only where they differ.
    is_one = source.model.get_input_embeddings().weight is source.model.get_output_embeddings().weight
    assert is_one == source.model.config.tie_word_embeddings == (name in ("both-as-one", "neither"))


@pytest.mark.filterwarnings(*PEFT_WARNS)
def test_a_merged_model_that_is_another_is_refused(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = publishing_runs.save_adapter(tmp_path / "adapter", small_model, **TIED["input"])
    monkeypatch.setattr(merging, "_untie", lambda model: None)
    said = r"^The merged model differs from the trained model: its logits differ by up to \S+ of their standard "
    with pytest.raises(PublishError, match=said + r"deviation \(F32 explains 0.001\), and \d of 10 greedy answers are"):
        load_run_model(publishing_runs.write_run(tmp_path / "run", adapter))


def test_an_adapter_that_changes_nothing(small_model: Path, tmp_path: Path) -> None:
    adapter = publishing_runs.save_adapter(tmp_path / "adapter", small_model, init_lora_weights=True)
    with pytest.raises(PublishError, match=r"The adapter changes nothing: the merged model would be its base model"):
        load_run_model(publishing_runs.write_run(tmp_path / "run", adapter))


def test_numbers_that_are_none(small_model: Path, tmp_path: Path) -> None:
    source = load_run_model(publishing_runs.write_run(tmp_path / "run", small_model))
    source.model.transformer.ln_f.bias.data[0] = torch.nan
    assert not compare_models(source.model, source.reference).logit_error <= 1e9
    with pytest.raises(PublishError, match=r"its logits differ by up to nan"):
        check_fidelity(source.model, source.reference, "It")


def test_prompts_of_the_check(small_model: Path, tmp_path: Path) -> None:
    run = publishing_runs.write_run(tmp_path / "run", small_model, examples=4)
    model, tokenizer = load_model(str(small_model))
    prompt_format = PromptFormat.from_name("alpaca")

    def read_prompts() -> list[list[int]]:
        return [ids[: start + 1] for ids, start in take_reference(run, model, tokenizer, prompt_format).rows]

    prompts = read_prompts()
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    assert len(texts) == 4
    assert "Say the word 1.\n\n### Input:\nnow" in texts[1]
    # A short context leaves room for the answer, and sees the end of the prompt.
    model.config.n_positions = MAX_NEW_TOKENS + 9
    assert read_prompts() == [prompt[-9:] for prompt in prompts]
    model.config.n_positions = 256
    run.split("test").unlink()
    assert "Name the capital of France." in tokenizer.decode(read_prompts()[0])
