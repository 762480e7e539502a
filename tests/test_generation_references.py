"""The loss of reference answers, beside what the model's own loss and the training code say of the same rows."""

import inspect
import math
from pathlib import Path

import pytest
import tiny_models
import torch

from hf_instruct.config import build_experiment
from hf_instruct.generation.answers import answer_examples, measure_references
from hf_instruct.generation.stage import answer
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example, read_rows, write_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response
from hf_instruct.training.fast.loss import find_labels, label_losses
from hf_instruct.training.sft import tokenize_examples

ALPACA = PromptFormat.from_name("alpaca")
EXAMPLES = [
    *tiny_models.tiny_examples(4),
    Example("long", "Count.", "", " ".join(map(str, range(40)))),
    Example("empty", "Say nothing.", "", ""),
]


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest, tiny_gpt2: Path, tiny_llama: Path):
    return tiny_models.load_copy(tiny_gpt2 if request.param == "gpt2" else tiny_llama)


def test_reference_loss_is_the_models_loss_times_the_tokens(tiny) -> None:
    model, tokenizer = tiny
    found = measure_references(model, tokenizer, EXAMPLES, prompt_format=ALPACA)
    for example, loss in zip(EXAMPLES, found, strict=True):
        prompt, completion = ALPACA.encode_example(tokenizer, example)
        assert completion[-1] == tiny_models.END
        labels = torch.tensor([[-100] * len(prompt) + completion])
        expected = float(model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.detach())
        assert loss.tokens == len(completion)
        assert loss.nll == pytest.approx(expected * len(completion), rel=1e-5)
    # One token ends the empty answer.
    assert found[-1].tokens == 1


def test_reference_loss_equals_the_validation_loss_of_training(tiny) -> None:
    model, tokenizer = tiny
    found = measure_references(model, tokenizer, EXAMPLES, prompt_format=ALPACA)
    rows = tokenize_examples(EXAMPLES, tokenizer, ALPACA, max_length=None)
    total = 0.0
    with torch.no_grad():
        for row in rows:
            hidden = model.base_model(torch.tensor([row["input_ids"]])).last_hidden_state
            labels = torch.tensor([row["labels"]])
            head = model.get_output_embeddings()
            total += float(label_losses(hidden, labels, head, where=find_labels(labels)).sum())
    assert math.fsum(loss.nll for loss in found) == pytest.approx(total, rel=1e-5)


def test_a_loss_does_not_depend_on_the_other_rows(tiny) -> None:
    together = measure_references(*tiny, EXAMPLES, prompt_format=ALPACA)
    assert [measure_references(*tiny, [example], prompt_format=ALPACA)[0] for example in EXAMPLES] == together


def test_a_model_without_logits_to_keep(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    expected = measure_references(model, tokenizer, EXAMPLES, prompt_format=ALPACA)
    forward = model.forward

    def plain(input_ids, attention_mask, use_cache):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", plain)
    assert "logits_to_keep" not in inspect.signature(model.forward).parameters
    found = measure_references(model, tokenizer, EXAMPLES, prompt_format=ALPACA)
    assert [loss.nll for loss in found] == pytest.approx([loss.nll for loss in expected], rel=1e-5)


def test_reference_loss_of_an_adapter(tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_models.load_copy(tiny_llama)
    before = measure_references(model, tokenizer, EXAMPLES, prompt_format=ALPACA)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=True)).train()
    assert measure_references(tuned, tokenizer, EXAMPLES, prompt_format=ALPACA) == before
    assert tuned.training
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    assert measure_references(tuned, tokenizer, EXAMPLES, prompt_format=ALPACA) != before


def test_a_reference_that_does_not_fit_has_no_loss(tiny) -> None:
    model, tokenizer = tiny
    prompt, _ = ALPACA.encode_example(tokenizer, Example("", "Go on.", "", ""))
    # Each word is a token; the end is one more.
    fits = Example("fits", "Go on.", "", "word" + " word" * (256 - len(prompt) - 2))
    longer = Example("longer", "Go on.", "", fits.output + " word")
    found = measure_references(model, tokenizer, [longer, fits], prompt_format=ALPACA)
    assert found[0] is None
    assert found[1].tokens == 256 - len(prompt)
    (response,) = answer_examples(model, tokenizer, [longer], max_new_tokens=1, reference_loss=True)
    assert (response.reference_nll, response.reference_tokens) == (None, None)


def test_a_loss_that_is_not_finite_is_left_out(tiny) -> None:
    model, tokenizer = tiny
    next(model.parameters()).data.fill_(float("nan"))
    assert measure_references(model, tokenizer, EXAMPLES[:1], prompt_format=ALPACA) == [None]


def test_a_template_without_a_prompt_before_the_completion(tiny) -> None:
    model, tokenizer = tiny

    class Bare(PromptFormat):
        def encode_example(self, tokenizer, example):
            return [], super().encode_example(tokenizer, example)[1]

    (loss,) = measure_references(
        model, tokenizer, EXAMPLES[:1], prompt_format=Bare("bare", "{{ instruction }}{{ input }}")
    )
    ids = torch.tensor([tokenizer(EXAMPLES[0].output)["input_ids"] + [tiny_models.END]])
    assert loss.tokens == ids.shape[1] - 1
    assert loss.nll == pytest.approx(float(model(input_ids=ids, labels=ids).loss.detach()) * loss.tokens, rel=1e-5)


def test_responses_have_reference_losses_on_request(tiny) -> None:
    asked = answer_examples(*tiny, EXAMPLES, max_new_tokens=2, reference_loss=True)
    losses = measure_references(*tiny, EXAMPLES, prompt_format=ALPACA)
    assert [(row.reference_nll, row.reference_tokens) for row in asked] == losses
    for batch_size in (1, 4):
        assert answer_examples(*tiny, EXAMPLES, max_new_tokens=2, reference_loss=True, batch_size=batch_size) == asked
    plain = answer_examples(*tiny, EXAMPLES, max_new_tokens=2)
    assert {row.reference_nll for row in plain} == {None}
    assert [row.response for row in plain] == [row.response for row in asked]


def test_the_stage_asks_for_both_models_and_keeps_what_was_written(tiny_gpt2: Path, tiny_llama: Path, tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    write_rows(run.split("test"), EXAMPLES)
    run.model.symlink_to(tiny_gpt2)
    values = {"model": {"name": str(tiny_llama)}, "generate": {"max_new_tokens": 2, "batch_size": 2}}
    experiment = build_experiment(values, where="here", deep=False)
    answer(run, experiment)
    for model, path in (("tuned", tiny_gpt2), ("untuned", tiny_llama)):
        rows = run.read_responses(model)
        expected = measure_references(*tiny_models.load_copy(path), EXAMPLES, prompt_format=ALPACA)
        assert [(row.reference_nll, row.reference_tokens) for row in rows] == expected
    # Cut off, with a row of an older version, which had no loss, and one that another process left.
    base, whole = run.read_responses("untuned"), run.read_responses()
    older = Response(id="e0", instruction="", input="", output="", response="kept")
    write_rows(run.responses, [*base, older])
    write_rows(run.response_part(1), [whole[2]])
    answer(run, experiment)
    assert read_rows(run.responses, Response) == [*base, older, *whole[1:]]
