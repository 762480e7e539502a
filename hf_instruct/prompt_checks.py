"""Check that prompts are what training expects; every format is checked before the first step.

Chat templates are written for inference. Some open a thinking block that no training answer closes, render an answer
differently in a conversation, or read the clock. `resolve_format` detects this with probe texts, fixes the template if
it can (with the template's own switch, its own words before an answer, or today's date), and refuses it otherwise. The
result is one plain template, which renders the same prompt in training, answers, chat, serving and export.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, ModelLoadError, did_you_mean, quote_names
from hf_instruct.prompt_tokens import prefix_ids
from hf_instruct.prompts import CHAT, PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Words that no template contains.
_QUESTION, _INPUT, _ANSWER = "QUESTION7351", "INPUT7352", "ANSWER7354"
# Names of the switch for thinking in templates.
_SWITCHES = ("enable_thinking", "thinking")
_THINKING = re.compile(r"<(/?)think>")
_CLOCK = re.compile(r"""\bstrftime_now\s*\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
# How to add tokens that a model does not have.
_ADDING = "`trl.clone_chat_template` does, or `add_tokens` and `resize_token_embeddings`; save both in one folder"
_RANDOM = re.compile(r"\|\s*random\b|\blipsum\s*\(")


def choose_format(
    prompt_format: PromptFormat | str | None, *, has_conversations: bool, args: Any = None
) -> PromptFormat:
    """Return a prompt format, which may be given by name; by default `chat` for conversations, else `alpaca`.

    Args:
        prompt_format: The format, its name or None.
        has_conversations: Whether some of the examples are conversations.
        args: As in `adjust_tokenizer`; the default is also `chat` if they name a chat template.

    Raises:
        ConfigError: As in `PromptFormat.from_name`, or the settings name a chat template and another format.
    """
    template = _get(args, "chat_template_path")
    if prompt_format is None and (has_conversations or template):
        logger.info("Prompts use the tokenizer's chat template (prompt format `chat`).")
        return PromptFormat.from_name(CHAT)
    if not isinstance(prompt_format, PromptFormat):
        prompt_format = PromptFormat.from_name(prompt_format or "alpaca")
    if template and prompt_format.name != CHAT:
        raise ConfigError(
            f"`train.chat_template_path` needs the prompt format `chat`, but `{prompt_format.name}` is set; remove "
            "one of the two."
        )
    return prompt_format


def adjust_tokenizer(tokenizer: "PreTrainedTokenizerBase", args: Any) -> None:
    """Set the special tokens and chat template in TRL's settings on a tokenizer, which is saved with the model.

    Args:
        tokenizer: The tokenizer, which is changed in place.
        args: A configuration of TRL, or its fields; `eos_token`, `pad_token` and `chat_template_path` are read.

    Raises:
        ConfigError: A token is not in the vocabulary, or there is no such chat template.
    """
    if path := _get(args, "chat_template_path"):
        tokenizer.chat_template = _load_template(path, tokenizer)
    vocabulary = tokenizer.get_vocab()
    for name in ("eos_token", "pad_token"):
        token = _get(args, name)
        if token is not None and token not in vocabulary:
            near = did_you_mean(token, map(str, tokenizer.added_tokens_decoder.values()))
            raise ConfigError(
                f"`{name}` is `{token}`, which is not a token of `{tokenizer.name_or_path}`.{near} Name one that is, "
                f"or add it to the tokenizer and the model first ({_ADDING})."
            )
        if token is not None:
            setattr(tokenizer, name, token)


def _load_template(path: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the chat template in a Jinja file, or the one of another model's tokenizer."""
    from hf_instruct.models import load_tokenizer

    setting = f"`train.chat_template_path` is `{path}`"
    try:
        if path.endswith((".jinja", ".j2")):
            return Path(path).expanduser().read_text(encoding="utf-8")
        other = load_tokenizer(path)
        template = str(other.get_chat_template())
    except (OSError, ValueError, ModelLoadError) as error:
        raise ConfigError(f"{setting}, and no chat template can be read there ({error}).") from error
    vocabulary = tokenizer.get_vocab()
    added = [str(token) for token in other.added_tokens_decoder.values() if str(token) in template]
    if missing := [token for token in added if token not in vocabulary]:
        # The untuned model would get other token ids.
        raise ConfigError(
            f"{setting}, whose template writes {quote_names(missing)}, no tokens of `{tokenizer.name_or_path}`. Add "
            f"them to the tokenizer and the model first ({_ADDING})."
        )
    if other.eos_token in vocabulary:
        tokenizer.eos_token = other.eos_token
    return template


def _get(args: Any, name: str) -> Any:
    return args.get(name) if isinstance(args, Mapping) else getattr(args, name, None)


def resolve_format(
    prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", *, for_training: bool = True
) -> PromptFormat:
    """Return the format for all prompts of a run, fixed if needed; a resolved format is returned unchanged.

    For `chat`, it is the tokenizer's chat template with today's date in place of the clock. For training, if prompts do
    not match training rows otherwise, the template's switch for thinking is turned off, and the words that it puts
    before an answer and the beginning-of-text token are added.

    Args:
        prompt_format: The format.
        tokenizer: The tokenizer of the model.
        for_training: Whether a model will be trained with it. If not, only the clock is replaced, because the model was
            trained with its template, and problems are only logged.

    Raises:
        ConfigError: The prompts cannot be used for training; the message says why.
    """
    is_chat = prompt_format.name == CHAT
    name = f"chat template of `{tokenizer.name_or_path}`" if is_chat else f"prompt format `{prompt_format.name}`"
    resolved = prompt_format
    repairs: Iterable[str] = ()
    if is_chat and not prompt_format.template:
        resolved = PromptFormat(CHAT, _freeze_clock(prompt_format.chat_template(tokenizer), datetime.now()))
        repairs = _repair(resolved, tokenizer)
    problems = find_problems(resolved, tokenizer)
    if not problems:
        return resolved
    if not for_training:
        logger.warning("The %s %s.", name, "; it ".join(problems))
        return resolved
    for template in repairs:
        repaired = PromptFormat(CHAT, template)
        if not find_problems(repaired, tokenizer):
            end = _format_probe(repaired, tokenizer).rpartition(_QUESTION)[2]
            logger.info("The %s %s; changed for this run, prompts end in %r.", name, "; it ".join(problems), end)
            return repaired
    what = "; it ".join(problems)
    raise ConfigError(
        f"The {name} cannot be used for training: it {what}. Choose another prompt format, or fix this one."
    )


def find_problems(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the problems of a format's prompts, as the ends of sentences that begin with its name.

    Raises:
        ConfigError: The format cannot write a prompt at all.
    """
    is_chat = prompt_format.name == CHAT
    template = prompt_format.chat_template(tokenizer) if is_chat else prompt_format.template
    problems = []
    if _RANDOM.search(template) or _asks_clock(template):
        problems.append("renders differently each time (it uses `random`, `lipsum` or the clock)")
    for input in ("", _INPUT):
        prompt = _format_probe(prompt_format, tokenizer, input)
        words = {"instruction": _QUESTION} | ({"input": _INPUT} if input else {})
        counts = {name: prompt.upper().count(word) for name, word in words.items()}
        problems += [
            f"writes the {name} {count} times instead of once{'' if input else ' if there is no input'}"
            for name, count in counts.items()
            if count != 1
        ]
        end = max(prompt.upper().rfind(word) + len(word) for word in words.values())
        if not prompt[end:].strip():
            problems.append("writes nothing between the question and the answer, such as a line `### Response:`")
        tags = _THINKING.findall(prompt[end:])
        if tags and not tags[-1]:
            problems.append("ends the prompt inside an open `<think>` block")
    problems += _find_begin_problems(prompt_format, tokenizer)
    if is_chat:
        problems += _find_turn_problems(prompt_format, tokenizer)
    return list(dict.fromkeys(problems))


def _find_begin_problems(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    ids, begin = prompt_format.encode_prompt(tokenizer, _QUESTION), prefix_ids(tokenizer)
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        return [f"begins with two beginning-of-text tokens, `{tokenizer.bos_token}`"]
    if ids[: len(begin)] != begin:
        return [f"lacks the beginning-of-text token, `{tokenizer.decode(begin)}`"]
    return []


def _find_turn_problems(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return how a conversation with an answer differs from a training row: prompt + answer + end."""
    prompt, turn = _format_probe(prompt_format, tokenizer), _format_turn(prompt_format, tokenizer)
    before, found, after = turn.partition(_ANSWER)
    if not found:
        return ["leaves answers out"]
    if before != prompt:
        asked, answered = (text.rpartition(_QUESTION)[2] for text in (prompt, before))
        return [f"ends a prompt in {asked!r} but writes {answered!r} before an answer"]
    end = prompt_format.end_token(tokenizer)
    if after.strip() and not after.lstrip().startswith(end):
        return [f"writes {after!r} after an answer, without an end token"]
    return []


def _repair(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Yield candidate templates, the closest to the original first."""
    template = prompt_format.template
    if _find_begin_problems(prompt_format, tokenizer):
        # Jinja removes the newline after a block, so this line writes nothing but the token.
        template = f"{{% if true %}}{{{{ bos_token }}}}{{% endif %}}\n{template}"
    before = _format_probe(prompt_format, tokenizer)
    switched = [
        text
        for name in _SWITCHES
        if re.search(rf"\b{name}\b", template)
        and _format_probe(PromptFormat(CHAT, text := f"{{% set {name} = false %}}\n{template}"), tokenizer) != before
    ]
    yield template
    yield from switched
    for text in (*switched, template):
        candidate = PromptFormat(CHAT, text)
        prompt = _format_probe(candidate, tokenizer)
        lead = _format_turn(candidate, tokenizer).partition(_ANSWER)[0]
        if lead.startswith(prompt):
            words = repr(lead[len(prompt) :])
            # Jinja does not write the last newline of a source.
            yield text.removesuffix("\n") + f"{{{{ {words} if add_generation_prompt else '' }}}}"


def _format_probe(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", input: str = "") -> str:
    return prompt_format.format_prompt(_QUESTION, input, tokenizer=tokenizer)


def _format_turn(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> str:
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    return prompt_format.render_chat(tokenizer, messages, add_generation_prompt=False)


def _asks_clock(template: str) -> bool:
    return bool(re.search(r"\bstrftime_now\s*\(", template)) and "macro strftime_now(" not in template


def _freeze_clock(template: str, now: datetime) -> str:
    """Return a chat template with the current date fixed; unchanged if it computes the date format."""
    calls = _CLOCK.findall(template)
    if not calls or len(calls) != len(re.findall(r"\bstrftime_now\s*\(", template)):
        return template
    # Transformers passes templates a function of this name, and no option replaces it, so a macro does.
    times = ", ".join(
        f"{format!r}: {now.strftime(format)!r}" for format in dict.fromkeys(one or other for one, other in calls)
    )
    return f"{{% macro strftime_now(format) %}}{{{{ {{{times}}}[format] }}}}{{% endmacro %}}\n{template}"
