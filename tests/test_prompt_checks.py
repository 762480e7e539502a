"""What training takes prompts to be, for every chat template that TRL ships and for formats of one's own."""

import contextlib
import copy
import re
from importlib.resources import files
from itertools import chain
from pathlib import Path

import pytest
import tiny_models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.prompt_checks import choose_format, find_problems, resolve_format
from hf_instruct.prompt_tokens import IGNORED, build_row
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

CHAT = PromptFormat.from_name("chat")
TEMPLATES = {
    path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
    for path in files("trl").joinpath("chat_templates").iterdir()
    if path.name.endswith(".jinja") and not path.name.endswith("_training.jinja")
}
# The end of each prompt, after the question; a template that is not here is right as it is.
CLOSED = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
REPAIRED = {
    "glm4moe": "/nothink<|assistant|>\n<think></think>\n",
    "gptoss": "<|end|><|start|>assistant<|channel|>final<|message|>",
    "muse_glimmer": "<|eot|><|start|>assistant to=user<|message|>",
    **dict.fromkeys(("qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8"), CLOSED),
    **dict.fromkeys(
        ("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
        "<|im_end|>\n<|im_start|>assistant\n<think></think>",
    ),
}
REFUSED = {
    "deepseek_r1_distill": "ends the prompt inside an open `<think>` block",
    "deepseekv3": "ends the prompt inside an open `<think>` block",
    # Of models that also see: a content of theirs is a list of parts.
    "idefics3": "writes the instruction 0 times instead of once",
    "llava_next": "refuses this: 'str object' has no attribute 'text'",
    "smolvlm": "writes the instruction 0 times instead of once",
}
# They write an earlier answer without the thinking, or with another end, than the last one.
LAST_ALONE = {"glm4moe", "gptoss", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}
DATED = {"gptoss", "llama3_2", "muse_glimmer"}
TALK = [("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four.")]
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MISTRAL = "{% for m in messages %}{{ '[Q] ' + m.content + ' [A]' if m.role == 'user' else m.content }}{% endfor %}"
# As Qwen3's: an answer that has no thinking is shown with an empty block of it.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_gpt2: Path) -> PreTrainedTokenizerBase:
    """A tokenizer that has the special tokens of all these templates."""
    tokenizer = copy.deepcopy(tiny_models.load_copy(tiny_gpt2)[1])
    found = {token for text in TEMPLATES.values() for token in re.findall(r"<[|｜][\w▁]+[|｜]>|<\w+\|>", text)}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*found, "<end_of_turn>"})})
    return tokenizer


def test_conversations_are_chats_unless_a_format_is_named(caplog) -> None:
    caplog.set_level("INFO")
    assert choose_format("phi3", has_conversations=True) == PromptFormat.from_name("phi3")
    assert choose_format(CHAT, has_conversations=False) is CHAT
    assert choose_format(None, has_conversations=False).name == "alpaca"
    assert caplog.messages == []
    assert choose_format(None, has_conversations=True) == CHAT
    assert "the tokenizer's chat template (prompt format `chat`)" in caplog.text


def settle(template: str, tokenizer: PreTrainedTokenizerBase, **options: bool) -> PromptFormat:
    tokenizer.chat_template = template
    return resolve_format(CHAT, tokenizer, **options)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - REFUSED.keys()))
def test_templates_of_model_families(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    settled = settle(TEMPLATES[name], tokenizer)
    assert (settled.template == TEMPLATES[name]) == (name not in {*REPAIRED, *DATED})
    prompt = settled.format_prompt("One?", tokenizer=tokenizer)
    if name in REPAIRED:
        assert prompt.rpartition("One?")[2] == REPAIRED[name]
    # A training row is what the template makes of a question and its answer.
    row = "".join(map(tokenizer.decode, settled.encode_example(tokenizer, Example("a", "One?", "", "Two."))))
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    turn = settled.render_chat(tokenizer, messages, add_generation_prompt=False)
    if name == "glm4moe":
        # It ends an answer by the next turn's header; the row has the tokenizer's end-of-text.
        row = row.removesuffix("<|endoftext|>")
    assert turn.startswith(row)
    # Whoever settles it again, from the run or from the tokenizer saved with the model, gets the same.
    assert resolve_format(settled, tokenizer) is settled
    assert settle(settled.template, tokenizer) == settled


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - REFUSED.keys()))
def test_conversations_of_model_families(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    settled = settle(TEMPLATES[name], tokenizer)
    messages = [{"role": role, "content": text} for role, text in TALK]
    example = Example("a", "Three?", "", "Four.", messages=messages)
    (last,) = settled.encode_examples(tokenizer, [example], loss_on="last")
    end = settled.end_token(tokenizer)
    assert tokenizer.decode(last[1]) == f"Four.{end}"
    if name in LAST_ALONE:
        with pytest.raises(DataError, match=r"^Example `a`: .* the answer in turn 1 of a .* `data.loss_on: last`"):
            settled.encode_examples(tokenizer, [example])
        return
    (pieces,) = settled.encode_examples(tokenizer, [example])
    assert [tokenizer.decode(piece) for piece in pieces[1::2]] == [f"Two.{end}", f"Four.{end}"]
    # Each answer follows the prompt that it is given to, and the tokens are the template's.
    for number, before in ((1, pieces[:1]), (3, pieces[:3])):
        assert tokenizer.decode([*chain(*before)]) == settled.render_chat(tokenizer, messages[:number])
    ids = tokenizer(settled.render_chat(tokenizer, messages, add_generation_prompt=False), add_special_tokens=False)
    row = build_row(*pieces, max_length=None)
    assert ids["input_ids"][: len(row["input_ids"])] == row["input_ids"]
    # TRL knows no way to train on some of these, and puts another block of thinking into Qwen 3.8's.
    tokenizer.chat_template = TEMPLATES[name]
    with contextlib.suppress(ValueError):
        template = get_training_chat_template(tokenizer)
        options = {"return_dict": True, "return_assistant_tokens_mask": True, "chat_template": template}
        theirs = tokenizer.apply_chat_template(messages, **options)
        if name != "qwen3_8" and name not in DATED:
            assert theirs["input_ids"][: len(row["input_ids"])] == row["input_ids"]
            masked = list(zip(row["labels"], theirs["input_ids"], theirs["assistant_masks"], strict=False))
            assert all(is_theirs for label, _, is_theirs in masked if label != IGNORED)
            # Some of TRL's templates have loss on words that are always the same: before an answer, or after its end.
            more = tokenizer.decode([id for label, id, is_theirs in masked if is_theirs and label == IGNORED])
            assert re.fullmatch(r"(\s|<think></think>|<\|END_OF_TURN_TOKEN\|>)*", more)


def test_templates_that_cannot_be_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    assert TEMPLATES.keys() >= REFUSED.keys() | REPAIRED.keys() | DATED
    for name, reason in REFUSED.items():
        with pytest.raises(ConfigError, match=re.escape(reason)):
            settle(TEMPLATES[name], tokenizer)


def test_without_training_a_model_keeps_its_own_template(tokenizer: PreTrainedTokenizerBase, caplog) -> None:
    assert settle(THINKING, tokenizer, for_training=False).template == THINKING
    assert f"but writes {CLOSED!r} before an answer" in caplog.text
    assert settle(THINKING, tokenizer).template == "{% set enable_thinking = false %}\n" + THINKING


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        # No header at all where an answer begins: `add_generation_prompt` is ignored.
        (TURNS + "\n", "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"),
        # As Mistral's, with the header in the question's turn; and as Llama 2's, with a space before the answer.
        (MISTRAL, None),
        (MISTRAL.replace("else m", "else ' ' + m"), "[Q] One? [A] "),
    ],
)
def test_the_templates_own_words_before_an_answer(template: str, prompt: str | None, tokenizer) -> None:
    settled = settle(template, tokenizer)
    assert settled.format_prompt("One?", tokenizer=tokenizer) == (prompt or "[Q] One? [A]")
    assert (settled.template == template) == (prompt is None)


OPEN_HEADER = HEADER.replace("assistant\n", "assistant\n<think>\n")
TWICE = TURNS.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "nothing between the question and the answer"),
        (TURNS + OPEN_HEADER, "ends the prompt inside an open `<think>` block"),
        (TWICE + HEADER, "writes the instruction 2 times"),
        ("{{ messages[0].content }} -> ", "leaves answers out"),
        (TURNS.replace("<|im_end|>", " bye <|im_end|>") + HEADER, "writes ' bye <|im_end|>\\n' after an answer"),
        (TURNS + HEADER + "{{ ['a', 'b'] | random }}", "renders differently each time"),
        (TURNS + HEADER + "{{ strftime_now('%' + 'd') }}", "renders differently each time"),
        ("<|endoftext|><|endoftext|>" + TURNS + HEADER, "begins with two beginning-of-text tokens"),
    ],
)
def test_problems_that_cannot_be_repaired(template: str, reason: str, tokenizer) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        settle(template, tokenizer)


def test_the_date_is_that_of_the_first_prompt(tokenizer) -> None:
    settled = settle(
        "Today: {{ strftime_now('%H:%M:%S.%f') }} {{ strftime_now(\"it's %Y\") }}\n" + TURNS + HEADER, tokenizer
    )
    prompt = settled.format_prompt("One?", tokenizer=tokenizer)
    assert re.match(r"Today: \d\d:\d\d:\d\d\.\d{6} it's \d{4}\n<\|im_start\|>user\nOne", prompt)
    # Microseconds later it is still the same.
    assert settled.format_prompt("One?", tokenizer=tokenizer) == prompt
    assert settle(settled.template, tokenizer) == settled


def test_a_missing_begin_token_is_put_in_front(tokenizer) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<s>"})
    single = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", own.bos_token_id)])
    own.backend_tokenizer.post_processor = single
    settled = settle("\n" + TURNS + HEADER, own)
    prompt = settled.format_prompt("One?", tokenizer=own)
    assert prompt == "<s>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    ids = settled.encode_prompt(own, "One?")
    assert (ids[0], ids.count(own.bos_token_id)) == (own.bos_token_id, 1)
    assert settle("{{ bos_token }}" + TURNS + HEADER, own).template == "{{ bos_token }}" + TURNS + HEADER
    twice = PromptFormat("mine", "<s>Q: {{ instruction }} {{ input }}\nA:")
    with pytest.raises(ConfigError, match="The prompt format `mine` cannot be used for training: it begins with two"):
        resolve_format(twice, own)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ instruction }}\n{{ input }}\n", "nothing between the question and the answer"),
        ("{{ instruction }} {{ instruction }} {{ input }} ->", "the instruction 2 times"),
        ("{{ instruction if input else '' }} {{ input }} ->", "the instruction 0 times instead of once if there is"),
        ("{{ instruction }} {{ input }}\n<think>\n", "inside an open `<think>` block"),
        ("{{ instruction }} {{ input }} {{ ['a', 'b'] | random }}", "differently each time"),
    ],
)
def test_user_formats_are_checked_too(template: str, reason: str, tokenizer) -> None:
    with pytest.raises(ConfigError, match=f"The prompt format `mine` cannot be used for training: it .*{reason}"):
        resolve_format(PromptFormat("mine", template), tokenizer)


@pytest.mark.parametrize("name", ["alpaca", "alpaca-stanford", "phi3"])
def test_built_in_formats_have_no_problems(name: str, tokenizer) -> None:
    assert find_problems(PromptFormat.from_name(name), tokenizer) == []
