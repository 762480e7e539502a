"""How to ask a published model: code that runs as it stands, with the very prompt the model was trained on."""

import html
import json
import re
from typing import Any

PROMPT_FILE = "prompt_format.jinja"

_PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({repo_id})
model = AutoModelForCausalLM.from_pretrained({repo_id})
"""
_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained({repo_id})
base_model = AutoModelForCausalLM.from_pretrained({base_id}{revision})
model = PeftModel.from_pretrained(base_model, {repo_id})
# Names the tokens that end an answer, which an adapter cannot.
model.generation_config = GenerationConfig.from_pretrained({repo_id})
"""
_TEXT = """
prompt = {prompt}
inputs = tokenizer(prompt, return_tensors="pt")
"""
_CHAT = """
messages = [{{"role": "user", "content": {question}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
_ANSWER = """\
answer = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def build_snippet(
    repo_id: str,
    *,
    base_id: str | None,
    base_revision: str | None,
    question: str,
    prompt: str | None,
    max_new_tokens: int,
) -> str:
    """Return a code block that loads a published model and asks it one thing.

    Args:
        repo_id: Where the model is.
        base_id: The base model of an adapter; None for whole weights.
        base_revision: Its commit, tag or branch.
        question: An instruction.
        prompt: The prompt of it; None for the tokenizer's own chat template.
        max_new_tokens: Longest answer, in tokens.
    """
    revision = f", revision={json.dumps(base_revision)}" if base_revision else ""
    load = _PLAIN if base_id is None else _ADAPTER
    code = load.format(repo_id=json.dumps(repo_id), base_id=json.dumps(base_id), revision=revision)
    if prompt is None:
        code += _CHAT.format(question=json.dumps(question, ensure_ascii=False))
    else:
        code += _TEXT.format(prompt=_quote(prompt))
    return fence(code + _ANSWER.format(max_new_tokens=max_new_tokens), "python")


def fence(text: str, language: str) -> str:
    """Return a Markdown code block that holds a text whatever back-ticks are in it.

    >>> print(fence("print(1)", "python"))
    ```python
    print(1)
    ```
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{marks}"


def escape(text: Any) -> str:
    """Return a text of others as one line of Markdown that shows it and does nothing else.

    >>> escape("<b>`llama3`\\n---\\n| a_b |")
    '&lt;b&gt;\\\\`llama3\\\\` --- | a_b |'
    """
    line = html.escape(" ".join(str(text).split()), quote=False)
    # A table escapes its `|` itself.
    return re.sub(r"([\\`*\[\]~])", r"\\\1", line)


def _quote(text: str) -> str:
    """Return a text as a Python literal that is easy to read, and equal to it."""
    is_plain = text.isprintable() or all(character.isprintable() or character == "\n" for character in text)
    if "\n" in text and is_plain and '"""' not in text and "\\" not in text and not text.endswith('"'):
        return f'"""{text}"""'
    return repr(text)
