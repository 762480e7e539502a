"""A prompt format as other programs write it: a chat template in Jinja, and Ollama's template in Go.

Both come from one `PromptShape`, found by asking the format itself for prompts of known words, and both are compared
with it again, so that a prompt written elsewhere is, letter for letter, one the model was trained on.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import PublishError
from hf_instruct.prompts import CHAT, PromptFormat

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


def begin_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the token that the tokenizer puts before every text, or an empty text where it puts none."""
    ids = tokenizer("x")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def _shape_chat(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    plain = render_chat(tokenizer, [user])
    # What the tokenizer would put there by itself is in a chat template's text already.
    begin = begin_token(tokenizer)
    begin = begin if begin and plain.startswith(begin) else ""
    lead, _, after = plain.removeprefix(begin).partition(_USER)
    end = render_chat(tokenizer, [user, answer], add_generation_prompt=False).rpartition(_ANSWER)[2]
    # Between an answer and the next question stand the end of the one turn and the start of the other.
    second = render_chat(tokenizer, [user, answer, {"role": "user", "content": _INPUT}])
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
    return _add_system(shape, tokenizer)


def _add_system(shape: PromptShape, tokenizer: "PreTrainedTokenizerBase") -> PromptShape:
    """Return the shape of a chat template with its place for a system text, where it has one."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
    try:
        text = render_chat(tokenizer, messages).removeprefix(shape.begin)
    except TemplateError:
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


def render_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True
) -> str:
    """Return a conversation as the tokenizer's chat template writes it."""
    return str(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    )


def build_chat_template(shape: PromptShape) -> str:
    """Return the Jinja chat template of a format that has no turns: the last question, as in training.

    Earlier turns are left out, because the model has never seen any. With an answer as the last message it writes the
    whole training row.
    """
    # Everything is a quoted text, so that no trimming of white space around blocks can touch it.
    head, after, end = (_quote_jinja(text) for text in (shape.begin + shape.head, shape.after, shape.answer_end))
    return (
        "{% set ns = namespace(system='', question='') %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        f"{{% set ns.system = message['content'] + {_quote_jinja(shape.system_after)} %}}"
        "{% elif message['role'] == 'user' %}{% set ns.question = message['content'] %}"
        "{% endif %}{% endfor %}"
        f"{{{{ {head} + ns.system + ns.question + {after} }}}}"
        "{% if messages[-1]['role'] == 'assistant' %}"
        f"{{{{ messages[-1]['content'] + {end} }}}}"
        "{% endif %}"
    )


def _quote_jinja(text: str) -> str:
    for character, escape in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escape)
    return f"'{text}'"


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
    return text.replace("{{", '{{ "{{" }}')


_GO_ACTION = re.compile(r'\{\{ (if \.System|end|\.System|\.Prompt|\.Response|"(?:[^"\\]|\\.)*") \}\}')


def render_go_template(template: str, *, system: str = "", prompt: str = "", response: str | None = None) -> str:
    """Return what Ollama makes of one turn, for the part of Go's templates that `build_go_template` writes.

    Args:
        response: The answer of a finished turn; None ends where the response begins, as Ollama does for the last turn.
    """
    written: list[str] = []
    shown = True
    for index, piece in enumerate(_GO_ACTION.split(template)):
        if index % 2 == 0 or piece.startswith('"'):
            text = piece if index % 2 == 0 else str(json.loads(piece))
        elif piece == "if .System":
            shown, text = bool(system), ""
        elif piece == "end":
            shown, text = True, ""
        elif piece == ".Response":
            if response is None:
                break
            text = response
        else:
            text = system if piece == ".System" else prompt
        written.append(text if shown else "")
    return "".join(written)


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


def check_go_template(
    template: str, shape: PromptShape, prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Compare what Ollama will write with what the model was trained on.

    Raises:
        PublishError: A prompt differs.
    """

    def written(text: str) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        return render_go_conversation(template, messages, default_system=shape.default_system)

    pairs = [(text, prompt_format.format_prompt(text, tokenizer=tokenizer)) for text in _TRIALS]
    if shape.joint is not None:
        pairs.append((f"A{shape.joint}B", prompt_format.format_prompt("A", "B", tokenizer=tokenizer)))
    if '"""' in template + shape.default_system or any(
        written(text) != expected.removeprefix(shape.begin if shape.name == CHAT else "") for text, expected in pairs
    ):
        raise PublishError(
            f"The prompts of `{prompt_format.name}` cannot be written as an Ollama template: what Ollama would write "
            "differs from what the model was trained on. Use `--format gguf`: that file carries the chat template."
        )
