import re
from collections.abc import Sequence
from pathlib import Path

import publishing_runs
import pytest
import tiny_models
from transformers import PreTrainedTokenizerBase

from hf_instruct.errors import PublishError
from hf_instruct.hub.merging import use_training_prompt
from hf_instruct.hub.templates import (
    build_chat_template,
    build_go_template,
    build_modelfile,
    find_stop_words,
    shape_prompt,
)
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

# As SmolLM2-135M-Instruct's: a system message of its own, unless the conversation brings one.
SMOLLM_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCTION, INPUT = " Say 'it' {{ twice }}:\n\n“Grün”\t\\n", "now\nnow"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def render_go_template(template: str, *, system: str = "", prompt: str = "", response: str | None = None) -> str:
    """Return what Ollama makes of one turn, for the part of Go's templates that `build_go_template` writes.

    Without a response it ends where that begins, as Ollama does for the last turn.
    """
    if response is None:
        template = template.partition("{{ .Response }}")[0]
    template = re.sub(r"\{\{ if \.System \}\}(.*)\{\{ end \}\}", r"\1" if system else "", template, flags=re.DOTALL)
    values = {".System": system, ".Prompt": prompt, ".Response": response}
    return re.sub(r"\{\{ (.*?) \}\}", lambda match: str(values[match[1]]), template)


def render_go_conversation(template: str, messages: Sequence[dict[str, str]], *, default_system: str = "") -> str:
    """Return the prompt that Ollama makes of a conversation: finished turns one after another, then the open one.

    Source: https://github.com/ollama/ollama, `template/template.go`, `Execute`, where a template has no `.Messages`.
    """
    written, system, prompt, answer = [], default_system, "", ""
    for message in messages:
        role, content = message["role"], message["content"]
        if (role == "system" and (prompt or answer)) or (role == "user" and answer):
            written.append(render_go_template(template, system=system, prompt=prompt, response=answer))
            system = prompt = answer = ""
        if role == "system":
            system = content
        elif role == "user":
            prompt = content
        else:
            answer = content
    written.append(render_go_template(template, system=system, prompt=prompt))
    return "".join(written)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    tokenizer = publishing_runs.build_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


# The original Alpaca prompt begins in other words when there is an input.
@pytest.mark.parametrize(("name", "joint"), [("alpaca", "\n\n### Input:\n"), ("phi3", "\n"), ("alpaca-stanford", None)])
def test_both_templates_write_the_training_prompt(
    name: str, joint: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt_format = PromptFormat.from_name(name)
    shape = shape_prompt(prompt_format, tokenizer)
    template = build_go_template(shape)
    assert render_go_template(template, prompt=INSTRUCTION) == prompt_format.format_prompt(INSTRUCTION)
    assert shape.joint == joint
    if joint is not None:
        joined = render_go_template(template, prompt=f"{INSTRUCTION}{joint}{INPUT}")
        assert joined == prompt_format.format_prompt(INSTRUCTION, INPUT)
    tokenizer.chat_template = build_chat_template(shape)
    user = {"role": "user", "content": INSTRUCTION}
    written = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    assert written == prompt_format.encode_prompt(tokenizer, INSTRUCTION)
    # With the answer it is the whole training row.
    row = tokenizer.apply_chat_template([user, {"role": "assistant", "content": "So."}])["input_ids"]
    assert row == [
        id for ids in prompt_format.encode_example(tokenizer, Example("a", INSTRUCTION, "", "So.")) for id in ids
    ]


def test_alpaca_in_full(tokenizer: PreTrainedTokenizerBase) -> None:
    shape = shape_prompt(PromptFormat.from_name("alpaca"), tokenizer)
    head = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n"
    )
    template = build_go_template(shape)
    assert template == (
        head + "{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}\n\n### Response:\n{{ .Response }}<|endoftext|>"
    )
    assert build_modelfile(shape, context=1024).format("m.gguf") == (
        "# The TEMPLATE is the prompt that the model was trained on, `alpaca`.\n"
        '# An instruction with an input, as it was in training: "INSTRUCTION\\n\\n### Input:\\nINPUT"\n'
        f'FROM ./m.gguf\nTEMPLATE """{template}"""\nPARAMETER temperature 0\nPARAMETER num_ctx 1024\n'
        'PARAMETER repeat_penalty 1.0\nPARAMETER stop "<|endoftext|>"\nPARAMETER stop "### Instruction:"\n'
    )
    assert render_go_conversation(template, CONVERSATION) == (
        f"{head}Be brief.\n\nOne?\n\n### Response:\nTwo.<|endoftext|>{head}Three?\n\n### Response:\n"
    )
    # A chat template goes by what the model knows: one question.
    tokenizer.chat_template = build_chat_template(shape)
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == (
        f"{head}Be brief.\n\nThree?\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("chat", "default"), [(tiny_models.CHAT_TEMPLATE, ""), (SMOLLM_TEMPLATE, "Be helpful.")], ids=["plain", "smollm"]
)
def test_a_chat_template_in_go(chat: str, default: str, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = chat
    prompt_format = PromptFormat.from_name("chat")
    shape = shape_prompt(prompt_format, tokenizer)
    template = build_go_template(shape)
    assert (shape.default_system, shape.joint) == (default, "\n")
    assert template == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}"
        "<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
    )
    for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[:2], CONVERSATION[3:]):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render_go_conversation(template, messages, default_system=default) == expected
    assert find_stop_words(shape) == ["<|im_end|>", "<|im_start|>user"]
    # The tokenizer's own stays as it is.
    use_training_prompt(tokenizer, prompt_format)
    assert tokenizer.chat_template == chat


def test_a_chat_template_without_a_place_for_a_system_text(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + (
        tiny_models.CHAT_TEMPLATE
    )
    shape = shape_prompt(PromptFormat.from_name("chat"), tokenizer)
    assert "{{ .System }}" not in build_go_template(shape)


@pytest.mark.parametrize(
    "template",
    ["{{ instruction }}\n{{ instruction }}\nA:", "{{ instruction | trim }}\nA:", "{{ instruction | upper }}"],
)
def test_a_format_that_changes_the_instruction(
    template: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(template + "{% if input %}{{ input }}{% endif %}")
    with pytest.raises(PublishError, match=r"which contain the instruction once and unchanged"):
        shape_prompt(PromptFormat(str(file), file.read_text()), tokenizer)


@pytest.mark.parametrize("text", ["{{ x }}", "{", '"""'])
def test_a_prompt_that_go_would_take_for_its_own(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt_format = PromptFormat("mine", f"{{{{ {text!r} }}}}{{{{ instruction }}}}{{{{ input }}}}\nA:")
    shape = shape_prompt(prompt_format, tokenizer)
    with pytest.raises(PublishError, match=r"which an Ollama template cannot"):
        build_go_template(shape)
    # The chat template has no such limit.
    tokenizer.chat_template = build_chat_template(shape)
    written = tokenizer.apply_chat_template([{"role": "user", "content": "Q"}], tokenize=False)
    assert written == prompt_format.format_prompt("Q") == f"{text}Q\nA:"
