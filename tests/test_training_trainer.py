from pathlib import Path

import pytest
import tiny_models
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hf_instruct.generation.decoding import generate_completions
from hf_instruct.prompts import PromptFormat
from hf_instruct.training.arguments import build_arguments, build_lora_config
from hf_instruct.training.fast.collators import IGNORED, PaddingCollator, PrefixSharingCollator
from hf_instruct.training.fast.loss import has_plain_head
from hf_instruct.training.sft import tokenize_examples
from hf_instruct.training.trainer import InstructTrainer

# GPT-2 with its dropout off, so that two forward passes are equal.
CONFIGS = {
    "gpt2": tiny_models.gpt2_config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "llama": tiny_models.llama_config(),
    "llama tied": tiny_models.llama_config(tie_word_embeddings=True, attention_bias=True),
}


@pytest.fixture(scope="module")
def rows(tiny_gpt2: Path):
    _, tokenizer = tiny_models.load_copy(tiny_gpt2)
    examples = tiny_models.tiny_examples(7)
    return tokenize_examples(examples, tokenizer, PromptFormat.from_name("phi3"), max_length=None)


def build_trainer(tiny_gpt2: Path, rows, tmp_path: Path, *, config=None, lora: bool = False, **settings):
    model = tiny_models.build_model(config or CONFIGS["gpt2"], scale=4)
    return InstructTrainer(
        model=model,
        args=build_arguments({**tiny_models.TINY_SETTINGS, **settings}, tmp_path),
        data_collator=PaddingCollator(tiny_models.END),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_models.load_copy(tiny_gpt2)[1],
        peft_config=build_lora_config({"r": 4}, model) if lora else None,
    )


def plain_losses(model, batch) -> torch.Tensor:
    """Return each label's loss the way the course computes it: over the full logits of a padded batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "lora", "total"),
    [
        ("gpt2", False, None),
        # As in one of several accumulated batches, or on one of several GPUs.
        ("gpt2", False, 40),
        ("gpt2", True, None),
        ("llama", False, None),
        ("llama", True, None),
        ("llama tied", False, None),
    ],
)
def test_loss_and_gradients_equal_the_plain_ones(tiny_gpt2, rows, tmp_path, name, lora, total) -> None:
    trainer = build_trainer(tiny_gpt2, rows, tmp_path, config=CONFIGS[name], lora=lora)
    model = trainer.model
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    batch = PaddingCollator(tiny_models.END)(list(rows))
    assert batch["attention_mask"].min() == 0, "a batch without padding would prove less"
    labels = int((batch["labels"][:, 1:] != IGNORED).sum())

    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=total and torch.tensor(total))
    expected = plain_losses(model, batch).sum() / (total or labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    ours, plain = gradients(model, loss), gradients(model, expected)
    assert ours.keys() == plain.keys()
    assert all("lora_" in key for key in ours) == lora
    for key, gradient in plain.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()), msg=key)


def test_nothing_is_asked_of_the_device_once_the_forward_pass_is_under_way(tiny_gpt2, rows, tmp_path) -> None:
    """A GPU would first have to end what it was given, and stand idle while Python goes on."""
    asked: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            # Of unknown size or a Python number; so is what a mask of booleans picks.
            waits = any(part in name for part in ("nonzero", "_local_scalar_dense", "masked_select"))
            picks = "aten.index." in name and any(i is not None and i.dtype == torch.bool for i in args[1])
            if waits or picks or (name == "aten.embedding.default" and "forward" not in asked):
                asked.append("forward" if "embedding" in name else name)
            return func(*args, **(kwargs or {}))

    trainer = build_trainer(tiny_gpt2, rows, tmp_path)
    batch = PrefixSharingCollator(tiny_models.END, weighted=True)(list(rows))
    with Watch():
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(9)).backward()
        trainer._track_num_input_tokens(batch)
    assert asked[-1] == "forward"


@pytest.mark.parametrize("batch_size", [3, 7])
def test_mean_loss_is_exact_over_uneven_batches(tiny_gpt2, rows, tmp_path, batch_size: int) -> None:
    trainer = build_trainer(tiny_gpt2, rows, tmp_path, per_device_eval_batch_size=batch_size)
    batch = PaddingCollator(tiny_models.END)(list(rows))
    labels = int((batch["labels"][:, 1:] != IGNORED).sum())
    with torch.no_grad():
        expected = plain_losses(trainer.model.eval(), batch).sum() / labels
    assert trainer.mean_loss(rows) == pytest.approx(float(expected), rel=1e-5)


def test_workers_that_persist_read_the_data_asked_for(tiny_gpt2, rows, tmp_path) -> None:
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    plain, ours = (build_trainer(tiny_gpt2, rows, tmp_path, **settings) for settings in ({}, workers))
    for data in (rows, rows.select([3])):
        assert ours.mean_loss(data) == plain.mean_loss(data)


@pytest.mark.slow
def test_accumulated_steps_equal_one_large_step(tiny_gpt2, rows, tmp_path) -> None:
    def weights(**settings) -> dict[str, torch.Tensor]:
        # Plain gradient descent: Adam would magnify rounding where a gradient is near zero.
        settings |= {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "eval_on_start": False, "save_steps": 100}
        trainer = build_trainer(tiny_gpt2, rows.select(range(6)), tmp_path, **settings)
        trainer.train()
        return trainer.model.state_dict()

    one = weights(per_device_train_batch_size=6)
    for key, value in weights(per_device_train_batch_size=2, gradient_accumulation_steps=3).items():
        torch.testing.assert_close(value, one[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
def test_recomputing_activations_changes_nothing(tiny_gpt2, rows, tmp_path) -> None:
    def weights(**settings) -> dict[str, torch.Tensor]:
        trainer = build_trainer(tiny_gpt2, rows, tmp_path, max_steps=2, save_steps=100, **settings)
        trainer.train()
        return trainer.model.state_dict()

    plain = weights()
    for key, value in weights(gradient_checkpointing=True).items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-5, msg=key)


def test_without_loss_labels_the_forward_is_the_models_own(tiny_gpt2, rows, tmp_path) -> None:
    trainer = build_trainer(tiny_gpt2, rows, tmp_path)
    reference = tiny_models.build_model(CONFIGS["gpt2"], scale=4)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(ids).logits, reference(ids).logits)
        one = trainer.model(ids, logits_to_keep=1).logits
    assert one.shape == (1, 1, tiny_models.VOCABULARY)


def test_heads_that_do_more_are_left_to_trl() -> None:
    from transformers import BertConfig, Gemma2Config, GPT2Model, OPTConfig, RecurrentGemmaConfig

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    gemma = {"num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 1, **sizes}
    assert has_plain_head(tiny_models.build_model(CONFIGS["gpt2"]))
    assert has_plain_head(tiny_models.build_model(Gemma2Config(**gemma, final_logit_softcapping=None)))
    assert not has_plain_head(tiny_models.build_model(Gemma2Config(**gemma, final_logit_softcapping=30.0)))
    # Its forward goes past its base model.
    assert has_plain_head(tiny_models.build_model(OPTConfig(vocab_size=50, hidden_size=16, num_attention_heads=1)))
    # A soft cap by another name, and a head of several layers, the last of which is the output layer.
    recurrent = RecurrentGemmaConfig(**sizes, num_hidden_layers=3, num_key_value_heads=1, lru_width=16, head_dim=16)
    assert not has_plain_head(tiny_models.build_model(recurrent))
    assert not has_plain_head(tiny_models.build_model(BertConfig(**sizes, num_hidden_layers=1, is_decoder=True)))
    assert not has_plain_head(GPT2Model(tiny_models.gpt2_config()))


def test_a_model_of_experts_generates_while_it_is_trained_on_its_routers(tiny_gpt2, rows, tmp_path) -> None:
    from transformers import MixtralConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = MixtralConfig(vocab_size=tiny_models.VOCABULARY, num_key_value_heads=1, num_local_experts=2, **sizes)
    prompts = [[1, 2, 3], [1, 2, 4, 5]]
    end = {"end_id": tiny_models.END, "max_new_tokens": 3}
    tokenizer = tiny_models.load_copy(tiny_gpt2)[1]
    trainer = build_trainer(tiny_gpt2, rows, tmp_path, config=config)
    assert trainer.aux_loss_enabled
    batch = PaddingCollator(tiny_models.END)(list(rows))
    trainer.compute_loss(trainer.model, batch).backward()
    assert trainer.model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0
    assert trainer.model.config.output_router_logits is False
    found = generate_completions(trainer.model, tokenizer, prompts, **end)
    assert len(found) == 2


def test_several_processes_look_for_unused_weights_only_where_there_can_be_some(tiny_gpt2, rows, tmp_path) -> None:
    from transformers import DeepseekV3Config

    def looks(config=None, **settings) -> bool:
        trainer = build_trainer(tiny_gpt2, rows, tmp_path, config=config, **settings)
        return trainer.accelerator.ddp_handler.find_unused_parameters

    assert looks() is False
    assert looks(ddp_find_unused_parameters=True) is True
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    experts = {
        "n_routed_experts": 2,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 1,
        "first_k_dense_replace": 0,
    }
    deepseek = DeepseekV3Config(vocab_size=tiny_models.VOCABULARY, **sizes, **experts)
    assert looks(deepseek) is True
