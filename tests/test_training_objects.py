"""What a user of TRL brings along: `SFTConfig`, `LoraConfig`, callbacks, and scripts with an `SFTTrainer`."""

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from hf_instruct import generate_responses, load_examples, load_model, train
from hf_instruct.errors import ConfigError
from hf_instruct.library_fields import REFUSED_TRAINING, SECTIONS
from hf_instruct.models import load_tokenizer
from hf_instruct.prompt_checks import resolve_format
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TrainingSummary
from hf_instruct.training.arguments import build_arguments
from hf_instruct.training.fast.collators import PaddingCollator, SegmentCollator, unpack
from hf_instruct.training.sft import tokenize_examples
from hf_instruct.training.trainer import InstructTrainer

SPLITS = {"train": tiny_models.tiny_examples(12), "validation": tiny_models.tiny_examples(3, start=12)}
ROWS = Dataset.from_list(
    [
        {"prompt": f"Instruction: {example.instruction} {example.input}\nResponse: ", "completion": example.output}
        for example in tiny_models.tiny_examples(12)
    ]
)


def config(folder: Path, **settings: Any) -> SFTConfig:
    plain = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "max_steps": 3}
    return SFTConfig(str(folder), **{**plain, "learning_rate": 1e-2, "logging_steps": 1, **settings})


def train_with(tiny_gpt2: Path, folder: Path, args: Any, **options: Any) -> TrainingSummary:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    return train(model, tokenizer, options.pop("data", SPLITS), output_dir=folder, args=args, **options)


def test_an_sft_config_is_obeyed_and_left_as_it_was(tiny_gpt2: Path, tmp_path: Path) -> None:
    args = config(tmp_path / "theirs", per_device_train_batch_size=4, max_grad_norm=1.0, eval_strategy="no")
    summary = train_with(tiny_gpt2, tmp_path / "run", args)
    assert (summary.steps, summary.epochs, summary.validation_loss) == (3, 1.0, None)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "theirs").exists(), "`output_dir` of train() wins"
    assert args.output_dir == str(tmp_path / "theirs")
    losses = [row for row in summary.log_history if "loss" in row]
    assert len(losses) == 3
    assert all(row["grad_norm"] > 0 for row in losses), "clipping is on, as that config has it"
    assert "log_history" not in summary.to_dict()


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({"eval_strategy": "no"}, (True, False)),
        # Its first evaluation is the outcome then, and not what it began with.
        ({"eval_on_start": False}, (False, True)),
    ],
)
def test_a_summary_tells_before_from_after(
    tiny_gpt2: Path, tmp_path: Path, settings: dict[str, Any], measured: tuple[bool, bool]
) -> None:
    settings = {**tiny_models.TINY_SETTINGS, "max_steps": 1, **settings}
    summary = train_with(tiny_gpt2, tmp_path / "run", settings)
    losses = summary.validation_loss_before, summary.validation_loss
    assert tuple(loss is not None for loss in losses) == measured


def test_a_lora_config_is_obeyed(tiny_gpt2: Path, tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    args = config(tmp_path)
    summary = train_with(tiny_gpt2, tmp_path / "run", args, peft_config=adapter)
    layer = next(iter(tiny_models.load_copy(tiny_gpt2)[0].transformer.h)).attn.c_attn.weight
    assert summary.num_trainable_parameters == 2 * 2 * sum(layer.shape)


def test_what_is_slow_is_said(tiny_gpt2: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    train_with(tiny_gpt2, tmp_path / "run", config(tmp_path, activation_checkpointing=True, max_steps=1))
    assert "computes every forward pass twice" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"args": "2 epochs"}, "`args` is a `str`; pass a `SFTConfig` or a mapping"),
        ({"peft_config": 16}, "`peft_config` is a `int`; pass a `LoraConfig`"),
        ({"args": {"chat_template_path": "x.jinja"}}, r"no chat template can be read there \(.*No such file"),
        ({"args": {"chat_template_path": "{model}"}}, "no chat template can be read there"),
        ({"args": {"chat_template_path": "x.jinja"}, "prompt_format": "phi3"}, "`phi3` is set; remove one"),
        ({"args": {"eos_token": "<|endofext|>"}}, r"not a token of .* Did you mean `<\|endoftext\|>`\?"),
        ({"args": {"pad_token": "[PAD]"}}, r"`pad_token` is `\[PAD\]`, which is not a token of"),
        ({"args": {"activation_offloading": True}}, "and this run has no GPU; leave it out"),
        ({"args": {"optim": "galore_adamw"}}, "needs a package that is missing:\n  - .*`galore_torch`"),
    ],
)
def test_a_misused_argument_is_one_sentence(tiny_gpt2: Path, tmp_path: Path, options: Any, said: str) -> None:
    args = options.get("args")
    if isinstance(args, dict):
        args = {name: str(tiny_gpt2) if value == "{model}" else value for name, value in args.items()}
    with pytest.raises(ConfigError, match=said):
        train_with(tiny_gpt2, tmp_path / "run", args, **{n: v for n, v in options.items() if n != "args"})


@pytest.mark.parametrize(
    ("kind", "name", "value", "harmless"),
    [
        ("SFTConfig", "push_to_hub", True, False),
        ("SFTConfig", "hub_token", "hf_secret", None),
        ("SFTConfig", "resume_from_checkpoint", "runs/a/checkpoints/checkpoint-1", None),
        ("SFTConfig", "model_init_kwargs", {"dtype": "bfloat16"}, None),
        ("SFTConfig", "dataset_text_field", "content", "text"),
        ("SFTConfig", "truncation_mode", "keep_end", "keep_start"),
        ("SFTConfig", "logging_nan_inf_filter", True, False),
        ("DPOConfig", "sync_ref_model", True, False),
        ("GRPOConfig", "chat_template_kwargs", {"enable_thinking": False}, None),
        ("GRPOConfig", "log_completions_hub_repo", "me/answers", None),
    ],
)
def test_fields_that_would_not_do_what_they_say(
    tmp_path: Path, kind: str, name: str, value: Any, harmless: Any
) -> None:
    """Their values that change nothing are taken, also beside those of a configuration object."""
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "activation_checkpointing": False}
    with pytest.raises(ConfigError, match=f"`{SECTIONS[kind]}.{name}` cannot be set; {REFUSED_TRAINING[name][:20]}"):
        build_arguments({**settings, name: value}, tmp_path, kind=kind)
    for given in ({**settings, name: harmless}, getattr(trl, kind)("x", **settings, **{name: harmless})):
        assert build_arguments(given, tmp_path, kind=kind).output_dir == str(tmp_path)


def test_a_row_cut_at_its_start_does_not_begin_as_a_prompt_does(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    with pytest.warns(FutureWarning, match="keep_end"):
        args = config(tmp_path, truncation_mode="keep_end", max_length=16)
    trainer = SFTTrainer(model=model, args=args, train_dataset=ROWS, processing_class=tokenizer)
    prompt = tokenizer(ROWS[0]["prompt"])["input_ids"]
    assert trainer.train_dataset[0]["input_ids"][:4] != prompt[:4]


@pytest.mark.parametrize("path", ["template.jinja", "tokenizer"])
def test_a_chat_template_by_its_path_is_that_of_all_prompts(tiny_gpt2: Path, tmp_path: Path, path: str) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "template.jinja").write_text(template, encoding="utf-8")
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    other.save_pretrained(tmp_path / "tokenizer")
    args = {**tiny_models.TINY_SETTINGS, "max_steps": 1, "chat_template_path": str(tmp_path / path)}
    # No row has turns, which would ask for a chat template; the setting does.
    train(model, copy.deepcopy(tokenizer), SPLITS, output_dir=tmp_path / "run", args=args)
    run = RunFolder(tmp_path / "run")
    assert run.prompt.read_text(encoding="utf-8") == template
    saved = load_tokenizer(str(run.model))
    assert saved.chat_template == template
    prompt = PromptFormat(CHAT, template).encode_prompt(saved, "Name a color.")
    assert saved.decode(prompt) == "user: Name a color.<|endoftext|>assistant: "


def test_a_template_with_tokens_that_the_model_lacks(tiny_gpt2: Path, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny_models.load_copy(tiny_gpt2)[1])
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    other.chat_template = tiny_models.CHAT_TEMPLATE
    other.save_pretrained(tmp_path / "other")
    args = {**tiny_models.TINY_SETTINGS, "max_steps": 1, "chat_template_path": str(tmp_path / "other")}
    with pytest.raises(ConfigError, match=r"writes `<\|im_start\|>`, `<\|im_end\|>`, no tokens .*clone_chat_template"):
        train_with(tiny_gpt2, tmp_path / "run", args)
    # The untuned model would be asked by the pieces of these tokens, and the tuned one by the tokens.
    text = "<|im_start|>user"
    assert tiny_models.load_copy(tiny_gpt2)[1](text)["input_ids"] != other(text)["input_ids"]


def test_tokens_by_their_settings_end_and_pad_answers(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    args = {**tiny_models.TINY_SETTINGS, "max_steps": 1, "eos_token": "!", "pad_token": "?"}
    train(model, copy.deepcopy(tokenizer), SPLITS, output_dir=tmp_path / "run", args=args)
    saved_model, saved = load_model(str(tmp_path / "run" / "model"))
    end, pad = saved.convert_tokens_to_ids(["!", "?"])
    assert (saved.eos_token, saved.pad_token) == ("!", "?")
    assert end in saved_model.generation_config.eos_token_id
    assert (saved_model.config.eos_token_id, saved_model.generation_config.pad_token_id) == (end, pad)
    row = tokenize_examples(SPLITS["train"], saved, PromptFormat.from_name("alpaca"), max_length=None)[0]
    assert row["labels"][-1] == end


def test_early_stopping_and_the_best_model(tiny_gpt2: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    class Watch(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            seen.append(metrics["eval_loss"])

    settings = {
        **tiny_models.TINY_SETTINGS,
        "max_steps": 40,
        # So high that the loss soon rises again.
        "learning_rate": 0.1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        **dict.fromkeys(("eval_steps", "save_steps"), 2),
        "save_total_limit": 3,
    }
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    summary = train_with(tiny_gpt2, tmp_path / "run", settings, callbacks=[stopping, Watch])
    assert summary.steps < 40
    assert summary.validation_loss == min(seen[1:])
    assert seen[-1] > min(seen)


def test_metrics_of_ones_own(tiny_gpt2: Path, tmp_path: Path) -> None:
    shapes = []

    def measure(prediction: Any) -> dict[str, float]:
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        hits = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": float(hits[prediction.label_ids[:, 1:] != -100].mean())}

    settings = {**tiny_models.TINY_SETTINGS, "max_steps": 2}
    summary = train_with(tiny_gpt2, tmp_path / "run", settings, compute_metrics=measure)
    (logits, labels) = shapes[0]
    assert logits[:2] == labels
    assert labels[0] == len(SPLITS["validation"])
    assert logits[2] > 5000
    assert any("eval_accuracy" in row for row in summary.log_history)
    plain = train_with(tiny_gpt2, tmp_path / "plain", settings)
    assert summary.validation_loss_before == pytest.approx(plain.validation_loss_before, rel=0.05)
    assert RunFolder(tmp_path / "run").training_summary.is_file()


ONE_EPOCH = {**tiny_models.TINY_SETTINGS, "num_train_epochs": 1, "max_steps": -1, "max_length": 256}


@pytest.fixture(scope="module")
def plain(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    return train_with(tiny_gpt2, tmp_path_factory.mktemp("plain") / "run", ONE_EPOCH)


@pytest.mark.parametrize("name", ["packing", "padding_free", "assistant_only_loss", "shuffle_dataset"])
def test_what_trl_does_with_rows_changes_no_example(
    tiny_gpt2: Path, tmp_path: Path, plain: TrainingSummary, name: str
) -> None:
    """Every example is learned once an epoch, from its own tokens alone, whatever row TRL would put it in."""
    other = train_with(tiny_gpt2, tmp_path / name, {**ONE_EPOCH, name: True})
    assert other.tokens_seen == plain.tokens_seen
    assert other.validation_loss_before == plain.validation_loss_before
    if name in ("padding_free", "assistant_only_loss"):
        assert other.validation_loss == pytest.approx(plain.validation_loss, rel=1e-5)
    if name == "packing":
        assert other.steps < plain.steps


def test_packed_rows_are_taken_apart() -> None:
    row = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5], "seq_lengths": [2, 3]}
    parts = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}]
    assert unpack([row]) == parts
    whole, apart = (PaddingCollator(0)(rows) for rows in ([row], parts))
    assert all((whole[name] == apart[name]).all() for name in whole)


PACKING = {"packing": True, "max_length": 64}
PADDING_FREE = {"padding_free": True, "max_length": None}


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ("prompt", {}),
        ("prompt", PACKING),
        ("prompt", PADDING_FREE),
        ("prompt", {"loss_type": "dft"}),
        pytest.param(
            *("prompt", {"label_smoothing_factor": 0.1}),
            marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")],
        ),
        pytest.param("prompt", {"neftune_noise_alpha": 5.0}, marks=pytest.mark.slow),
        pytest.param("prompt", {"train_sampling_strategy": "group_by_length"}, marks=pytest.mark.slow),
        pytest.param("prompt", {"pad_to_multiple_of": 8, "max_grad_norm": 0.5}, marks=pytest.mark.slow),
        pytest.param("prompt", {"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        # Not in padded rows: `Trainer` divides their loss by one label too many, the first token's, in each row.
        ("text", PACKING),
        ("text", PADDING_FREE),
    ],
)
def test_the_trainer_stands_in_for_trls(tiny_gpt2: Path, tmp_path: Path, columns: str, settings: Any) -> None:
    rows = ROWS
    if columns == "text":
        rows = ROWS.map(lambda row: {"text": row["prompt"] + row["completion"]}).select_columns("text")
    losses = {}
    for kind in (SFTTrainer, InstructTrainer):
        model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
        sgd = {"per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.1, "save_strategy": "no"}
        args = config(tmp_path / kind.__name__, **sgd, **settings)
        trainer = kind(model=model, args=args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
        trainer.train()
        losses[kind] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    # A data set given later is prepared like the first.
    assert math.isfinite(trainer.evaluate(rows.select(range(3)))["eval_loss"])
    assert len(losses[SFTTrainer]) == 3
    assert losses[InstructTrainer] == pytest.approx(losses[SFTTrainer], rel=1e-5)
    slow = {"loss_type", "label_smoothing_factor", "neftune_noise_alpha"}
    assert isinstance(trainer.data_collator, SegmentCollator) == slow.isdisjoint(settings)


def test_an_adapter_of_any_name_is_trained_by_the_fast_path(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2, dropout=0.0)
    adapter = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, adapter, adapter_name="mine")
    args = config(tmp_path, max_steps=1, save_strategy="no")
    trainer = InstructTrainer(model=adapted, args=args, train_dataset=ROWS, processing_class=tokenizer)
    trainer.train()
    assert isinstance(trainer.data_collator, SegmentCollator)
    assert math.isfinite(trainer.state.log_history[0]["loss"])


TURNS = [("system", "Be brief."), ("user", "Name a color."), ("assistant", "Red."), ("user", "And another?")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
LAST = {"role": "assistant", "content": "Blue."}
# As TRL's own templates for training say what an assistant wrote.
MARKED_TEMPLATE = tiny_models.CHAT_TEMPLATE.replace(
    "{{ message.content }}<|im_end|>",
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}",
)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("chat", {"messages": [*MESSAGES, LAST]}),
        ("chat", {"prompt": MESSAGES, "completion": [LAST]}),
        ("chat", {"prompt": MESSAGES[1:2], "completion": [{"role": "assistant", "content": "Red."}]}),
        ("alpaca", {"prompt": "Question: Name a color.\nAnswer:", "completion": " Red."}),
        ("begun", {"prompt": "Question: Name a color.\nAnswer:", "completion": " Red."}),
    ],
    ids=[
        "messages",
        "prompt of several turns",
        "prompt and completion of messages",
        "prompt and completion",
        "beginning-of-text token",
    ],
)
def test_rows_of_trls_formats_have_trls_ids_and_labels(tiny_gpt2: Path, tmp_path: Path, name: str, row: Any) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = MARKED_TEMPLATE
    if name == "begun":
        name = "alpaca"
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        begin = ("<s>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    prompt_format = resolve_format(PromptFormat.from_name(name), tokenizer)
    ours = tokenize_examples(load_examples([row]), tokenizer, prompt_format, max_length=None)[0]
    num_ends = ours["labels"].count(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert num_ends == (0 if name == "alpaca" else 2 if "messages" in row else 1)
    args = config(tmp_path, assistant_only_loss="messages" in row)
    trainer = SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    theirs = trainer.train_dataset[0]
    if tokenizer.bos_token == "<s>":
        assert ours["input_ids"].index(tokenizer.bos_token_id) == 0
    # A template may write a line end after the last turn, which nobody has to learn.
    after = theirs["input_ids"][len(ours["input_ids"]) :]
    assert not tokenizer.decode(after).strip()
    assert ours["input_ids"] == theirs["input_ids"][: len(ours["input_ids"])]
    assert ours["labels"] == theirs["labels"][: len(ours["labels"])]


def test_conversations_need_a_chat_template_wherever_they_go(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    rows = [{"messages": [*MESSAGES, LAST]}]
    calls = [
        lambda: train(model, tokenizer, {"train": rows, "validation": rows}, output_dir=tmp_path),
        lambda: generate_responses(model, tokenizer, rows),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"`chat` needs a tokenizer with a chat template, and .* has none"):
            call()


@pytest.mark.slow
def test_the_script_of_the_page_for_users_of_trl(tiny_gpt2: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "howto" / "from-trl.md"
    script = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert "smollm2-135m" in script
    path = tmp_path / "script.py"
    path.write_text(script.replace("smollm2-135m", str(tiny_gpt2)), encoding="utf-8")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "response" in done.stdout
    assert "exact_match" in done.stdout
    assert (tmp_path / "runs" / "sums" / "model" / "adapter_model.safetensors").is_file()
