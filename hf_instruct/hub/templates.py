"""A prompt format as other programs write it: a chat template in Jinja, and Ollama's template in Go.

Both come from one `PromptShape`, found by asking the format itself for prompts of known words, and both are compared
with it again, so that a prompt written elsewhere is, letter for letter, one the model was trained on.
"""

import dataclasses
import re
from typing import TYPE_CHECKING

from hf_instruct.errors import ConfigError, PublishError
from hf_instruct.prompt_checks import quote_jinja
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.special_tokens import begin_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Words that no template writes by itself.
_USER, _INPUT, _SYSTEM, _ANSWER = "QUESTION7351", "INPUT7352", "SYSTEM7353", "ANSWER7354"
# What a template may do to a text only shows on such texts: trim it, change its case, escape it.
_TRIALS = ("Name a color.", " two\n\nlines \n", "a < b && {{ c }} {% d %}", "“Grün”, 你好\t\\n", "# 'Q' \"A\"")
_ADVICE = "Export it with `--format merged`, and write the prompt in your program."


@dataclasses.dataclass(frozen=True)
class PromptShape:
    """A prompt, cut where a person's words go.

    Attributes:
        name: The prompt format's.
        head: First of all, and before the system text.
        system_before: Written before a system text, where there is one.
        system_after: Written after it.
        before: Between that and what the user writes.
        after: From there to where the response begins.
        answer_end: After the response, before another turn.
        joint: Between instruction and input, where writing both as the user's words gives the training prompt;
            None where the format writes more.
        default_system: The system text of a conversation that has none; empty for none.
        begin: The beginning-of-text token that the tokenizer puts before every prompt, in none of the other parts;
            empty where it puts none.
        has_system: Whether there is a place for a system text.
    """

    name: str
    head: str
    before: str
    after: str
    answer_end: str
    system_before: str = ""
    system_after: str = ""
    joint: str | None = None
    default_system: str = ""
    begin: str = ""
    has_system: bool = True

    def format_turn(self, text: str) -> str:
        """Return the prompt of what a user writes, where nobody sends a system text; without `begin`."""
        system = f"{self.system_before}{self.default_system}{self.system_after}" if self.default_system else ""
        return f"{self.head}{system}{self.before}{text}{self.after}"


def shape_prompt(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    """Return where a prompt format puts what it is given.

    A format other than `chat` has no place for a system text: one that somebody sends anyway goes in front of the
    instruction, with an empty line between.

    Raises:
        PublishError: The format does more with a text than to write it once, as it is.
    """
    if prompt_format.name == CHAT:
        return _shape_chat(prompt_format, tokenizer)
    parts = prompt_format.format_prompt(_USER, tokenizer=tokenizer).split(_USER)
    faults = len(parts) != 2 or any(
        prompt_format.format_prompt(text, tokenizer=tokenizer) != text.join(parts) for text in _TRIALS
    )
    if faults:
        raise PublishError(
            f"The prompt format `{prompt_format.name}` does more with an instruction than to write it once, as it is; "
            f"no chat template and no Ollama template can be made of that. {_ADVICE}"
        )
    head, after = parts
    both = prompt_format.format_prompt(_USER, _INPUT, tokenizer=tokenizer)
    joint = both.removeprefix(head + _USER).removesuffix(_INPUT + after)
    is_exact = both == f"{head}{_USER}{joint}{_INPUT}{after}"
    return PromptShape(
        name=prompt_format.name,
        head=head,
        before="",
        after=after,
        answer_end=prompt_format.end_token(tokenizer),
        system_after="\n\n",
        joint=joint if is_exact else None,
        begin=begin_token(tokenizer),
    )


def _shape_chat(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    plain = prompt_format.render_chat(tokenizer, [user])
    # What the tokenizer would put there by itself is in a chat template's text already.
    begin = begin_token(tokenizer)
    begin = begin if begin and plain.startswith(begin) else ""
    lead, _, after = plain.removeprefix(begin).partition(_USER)
    end = prompt_format.render_chat(tokenizer, [user, answer], add_generation_prompt=False).rpartition(_ANSWER)[2]
    # Between an answer and the next question stand the end of the one turn and the start of the other.
    second = prompt_format.render_chat(tokenizer, [user, answer, {"role": "user", "content": _INPUT}])
    between = second.partition(_ANSWER)[2].partition(_INPUT)[0]
    before = between.removeprefix(end) if between.startswith(end) else lead
    shape = PromptShape(
        name=prompt_format.name,
        head=lead.removesuffix(before),
        before=before if lead.endswith(before) else "",
        after=after,
        answer_end=end,
        joint="\n",
        begin=begin,
        has_system=False,
    )
    return _add_system(shape, prompt_format, tokenizer)


def _add_system(shape: PromptShape, prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    """Return the shape of a chat template with its place for a system text, where it has one."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
    try:
        text = prompt_format.render_chat(tokenizer, messages).removeprefix(shape.begin)
    except ConfigError:
        # Some templates refuse a system text, in words of their own.
        return shape
    first, found, rest = text.partition(_SYSTEM)
    middle, asked, after = rest.partition(_USER)
    if not found or not asked or after != shape.after or not middle.endswith(shape.before):
        return shape
    last = middle.removesuffix(shape.before)
    if shape.head and not (shape.head.startswith(first) and shape.head.endswith(last)):
        # Without a system text it writes something else than a system text of its own.
        return shape
    default = shape.head[len(first) : len(shape.head) - len(last)] if shape.head else ""
    return dataclasses.replace(
        shape, head="", system_before=first, system_after=last, default_system=default, has_system=True
    )


def build_chat_template(shape: PromptShape) -> str:
    """Return the Jinja chat template of a format that has no turns: the last question, as in training.

    Earlier turns are left out, because the model has never seen any. With an answer as the last message it writes the
    whole training row.
    """
    # Everything is a quoted text, so that no trimming of white space around blocks can touch it.
    head, after, end = (quote_jinja(text) for text in (shape.begin + shape.head, shape.after, shape.answer_end))
    return (
        "{% set ns = namespace(system='', question='') %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        f"{{% set ns.system = message['content'] + {quote_jinja(shape.system_after)} %}}"
        "{% elif message['role'] == 'user' %}{% set ns.question = message['content'] %}"
        "{% endif %}{% endfor %}"
        f"{{{{ {head} + ns.system + ns.question + {after} }}}}"
        "{% if messages[-1]['role'] == 'assistant' %}"
        f"{{{{ messages[-1]['content'] + {end} }}}}"
        "{% endif %}"
    )


def build_go_template(shape: PromptShape) -> str:
    """Return Ollama's template: one turn, with `.System`, `.Prompt` and `.Response`.

    The beginning-of-text token is not in it, because the GGUF tells the server to put that first.
    """
    system = (
        f"{{{{ if .System }}}}{_escape_go(shape.system_before)}{{{{ .System }}}}{_escape_go(shape.system_after)}"
        "{{ end }}"
        if shape.has_system
        else ""
    )
    return (
        f"{_escape_go(shape.head)}{system}{_escape_go(shape.before)}{{{{ .Prompt }}}}{_escape_go(shape.after)}"
        f"{{{{ .Response }}}}{_escape_go(shape.answer_end)}"
    )


def _escape_go(text: str) -> str:
    # A brace at the end as well: Go would read it together with the two of the action that follows.
    return re.sub(r"\{\{|\{\Z", lambda match: f'{{{{ "{match[0]}" }}}}', text)


def check_go_template(shape: PromptShape, prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Compare what Ollama will write with what the model was trained on.

    Raises:
        PublishError: A prompt differs, or a text ends the quotation that it stands in.
    """
    pairs = [(text, prompt_format.format_prompt(text, tokenizer=tokenizer)) for text in _TRIALS]
    if shape.joint is not None:
        pairs.append((f"A{shape.joint}B", prompt_format.format_prompt("A", "B", tokenizer=tokenizer)))
    begin = shape.begin if shape.name == CHAT else ""
    if '"""' in build_go_template(shape) + shape.default_system or any(
        shape.format_turn(text) != expected.removeprefix(begin) for text, expected in pairs
    ):
        raise PublishError(
            f"The prompts of `{prompt_format.name}` cannot be written as an Ollama template: what Ollama would write "
            "differs from what the model was trained on. Use `--format gguf`: that file carries the chat template."
        )
