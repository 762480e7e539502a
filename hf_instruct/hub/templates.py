"""A prompt format for other programs: a chat template in Jinja, and Ollama's template in Go with its Modelfile.

Both come from one `PromptShape`, which is derived from prompts that the format renders for known words and then checked
against the format, so that prompts in other programs are exactly those the model was trained on.
"""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, PublishError
from hf_instruct.prompt_tokens import prefix_ids
from hf_instruct.prompts import CHAT, PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words that no template contains.
_USER, _INPUT, _SYSTEM, _ANSWER = "QUESTION7351", "INPUT7352", "SYSTEM7353", "ANSWER7354"
# Texts that show whether a template trims a text, changes its case or escapes it.
_TRIALS = ("Name a color.", " two\n\nlines \n", "a < b && {{ c }} {% d %}", "“Grün”, 你好\t\\n", "# 'Q' \"A\"")
# A longer context takes memory for every user of the server; users who need it can increase `num_ctx`.
_LARGEST_WINDOW = 4096


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """A prompt, split at the texts of the user and the system.

    Attributes:
        name: Name of the prompt format.
        head: Start of the prompt, before the system text.
        before: Between the system text and the user's text.
        after: Between the user's text and the response.
        answer_end: After the response, before another turn.
        system_before: Before a system message, if there is one.
        system_after: After a system message; both are empty if the format does not support one.
        default_system: The system text of a conversation that has none; empty for none.
        joint: Between instruction and input, if both together as the user's text give the training prompt; None if the
            format adds more.
        begin: The beginning-of-text token that the tokenizer adds to every prompt, which is not in the other parts;
            empty if it adds none.
    """

    name: str
    head: str
    before: str
    after: str
    answer_end: str
    system_before: str = ""
    system_after: str = ""
    default_system: str = ""
    joint: str | None = None
    begin: str = ""

    def format_turn(self, text: str) -> str:
        """Return the prompt of a user's text without a system message; without `begin`."""
        system = f"{self.system_before}{self.default_system}{self.system_after}" if self.default_system else ""
        return f"{self.head}{system}{self.before}{text}{self.after}"


def shape_prompt(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    """Return the shape of a prompt format.

    A format other than `chat` does not support system messages. If there is one anyway, it is placed before the
    instruction, with an empty line between them.

    Raises:
        PublishError: The format does not contain the text exactly once and unchanged.
    """
    is_chat = prompt_format.name == CHAT
    shape = _shape_chat(prompt_format, tokenizer) if is_chat else _shape_text(prompt_format, tokenizer)
    for text in _TRIALS:
        expected = prompt_format.format_prompt(text, tokenizer=tokenizer)
        if (shape.begin if is_chat else "") + shape.format_turn(text) != expected:
            raise _refusal(prompt_format)
    return shape


def _refusal(prompt_format: PromptFormat) -> PublishError:
    return PublishError(
        f"The prompts of `{prompt_format.name}` cannot be written as a chat template or an Ollama template, which "
        "contain the instruction once and unchanged. Export with `--format merged`, and build the prompt in your "
        "program."
    )


def _shape_text(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    head, _, after = prompt_format.format_prompt(_USER, tokenizer=tokenizer).partition(_USER)
    both = prompt_format.format_prompt(_USER, _INPUT, tokenizer=tokenizer)
    joint = both.removeprefix(head + _USER).removesuffix(_INPUT + after)
    return PromptShape(
        name=prompt_format.name,
        head=head,
        before="",
        after=after,
        answer_end=prompt_format.end_token(tokenizer),
        system_after="\n\n",
        joint=joint if both == f"{head}{_USER}{joint}{_INPUT}{after}" else None,
        begin=_begin_token(tokenizer),
    )


def _shape_chat(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    """Return the shape of a chat template whose turns follow each other, with a system message first."""

    def render(*messages: tuple[str, str], add_generation_prompt: bool = True) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return prompt_format.render_chat(tokenizer, turns, add_generation_prompt=add_generation_prompt)

    user, answer = ("user", _USER), ("assistant", _ANSWER)
    plain, begin = render(user), _begin_token(tokenizer)
    # A chat template's text already contains the token that the tokenizer would add.
    begin = begin if plain.startswith(begin) else ""
    lead, _, after = plain.removeprefix(begin).partition(_USER)
    end = render(user, answer, add_generation_prompt=False).rpartition(_ANSWER)[2]
    # Between an answer and the next question are the end of one turn and the start of the next.
    between = render(user, answer, ("user", _INPUT)).partition(_ANSWER)[2].partition(_INPUT)[0]
    before = between.removeprefix(end) if between.startswith(end) else lead
    shape = PromptShape(CHAT, "", before, after, end, joint="\n", begin=begin)
    try:
        system_before, _, rest = render(("system", _SYSTEM), user).removeprefix(begin).partition(_SYSTEM)
    except ConfigError:
        # Some templates refuse a system message, each with its own message.
        return shape
    middle, user_text, tail = rest.partition(_USER)
    system_after = middle.removesuffix(before)
    default = lead.removeprefix(system_before).removesuffix(middle) if lead != before else ""
    if user_text and tail == after and middle == system_after + before:
        parts = {"system_before": system_before, "system_after": system_after, "default_system": default}
        return dataclasses.replace(shape, **parts)
    return shape


def build_chat_template(shape: PromptShape) -> str:
    """Return the Jinja chat template of a format without turns, which renders the last question as in training.

    Earlier turns are left out, because the model has never seen any. If the last message is an answer, the template
    renders the whole training row.
    """
    # All text is quoted, so that trimming whitespace around blocks cannot change it.
    head, after, end = (repr(text) for text in (shape.begin + shape.head, shape.after, shape.answer_end))
    return (
        "{% set ns = namespace(system='', question='') %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        f"{{% set ns.system = message['content'] + {shape.system_after!r} %}}"
        "{% elif message['role'] == 'user' %}{% set ns.question = message['content'] %}"
        "{% endif %}{% endfor %}"
        f"{{{{ {head} + ns.system + ns.question + {after} }}}}"
        "{% if messages[-1]['role'] == 'assistant' %}"
        f"{{{{ messages[-1]['content'] + {end} }}}}"
        "{% endif %}"
    )


def build_go_template(shape: PromptShape) -> str:
    """Return Ollama's template: one turn, with `.System`, `.Prompt` and `.Response`.

    It does not contain the beginning-of-text token, because the GGUF file tells the server to add it.

    Raises:
        PublishError: Go, or the Modelfile, would interpret a part of the prompt as its own syntax.
    """
    parts = (shape.head, shape.system_before, shape.system_after, shape.before, shape.after, shape.answer_end)
    if any("{{" in part or part.endswith("{") or '"""' in part for part in (*parts, shape.default_system)):
        raise PublishError(
            f'The prompt format `{shape.name}` contains `{{{{` or `"""`, which an Ollama template cannot contain. Use '
            "`--format gguf`, which includes the chat template."
        )
    before, after = shape.system_before, shape.system_after
    system = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ end }}}}" if before or after else ""
    return f"{shape.head}{system}{shape.before}{{{{ .Prompt }}}}{shape.after}{{{{ .Response }}}}{shape.answer_end}"


@dataclasses.dataclass(frozen=True)
class Modelfile:
    """The file that Ollama needs in addition to the weights.

    Attributes:
        template: The prompt of one turn, in Go's template language.
        system: The system text of a conversation that has none; empty for none.
        parameters: Default options of requests.
        note: Comment lines for readers of the file.
    """

    template: str
    system: str
    parameters: dict[str, Any]
    note: str

    def format(self, weights: str) -> str:
        """Return the text of the file, given the name of the GGUF file in the same folder."""
        lines = [self.note, f"FROM ./{weights}", f'TEMPLATE """{self.template}"""']
        if self.system:
            lines.append(f'SYSTEM """{self.system}"""')
        for name, value in self.parameters.items():
            for item in value if isinstance(value, list) else [value]:
                lines.append(f"PARAMETER {name} {json.dumps(item, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def build_modelfile(shape: PromptShape, *, context: int | None) -> Modelfile:
    """Return the Modelfile of a model that answers its training prompt greedily.

    Args:
        shape: The training prompt.
        context: The model's context length, in tokens; None if unknown.

    Raises:
        PublishError: The prompt cannot be written as a Go template.
    """
    parameters = {
        "temperature": 0,
        "num_ctx": min(context or _LARGEST_WINDOW, _LARGEST_WINDOW),
        # Before Ollama 0.32.10 the default was 1.1, which changes greedy answers.
        "repeat_penalty": 1.0,
        "stop": find_stop_words(shape),
    }
    note = f"# The TEMPLATE is the prompt that the model was trained on, `{shape.name}`."
    if shape.joint is None:
        note += "\n# This prompt format differs if there is an input: put the input into the instruction."
    elif shape.name != CHAT:
        joined = json.dumps(f"INSTRUCTION{shape.joint}INPUT", ensure_ascii=False)
        note += f"\n# An instruction with an input, as it was in training: {joined}"
    return Modelfile(build_go_template(shape), shape.default_system, parameters, note)


def find_stop_words(shape: PromptShape) -> list[str]:
    """Return the texts that no answer contains: its end, and the heading of the next question."""
    words = [shape.answer_end.strip()]
    lines = [line.strip() for line in (shape.head + shape.system_before + shape.before).splitlines() if line.strip()]
    # A line of prose could be part of an answer; a heading or a special token is not.
    if lines and lines[-1].startswith(("#", "<", "[")):
        words.append(lines[-1])
    return [word for word in dict.fromkeys(words) if word]


def _begin_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the token that the tokenizer adds before every text, or an empty string if it adds none."""
    return str(tokenizer.bos_token) if prefix_ids(tokenizer)[:1] == [tokenizer.bos_token_id] else ""
