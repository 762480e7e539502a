"""The prompt formats: the one place where an example becomes text and token ids.

Training, generation, judging, chat and export all take their text from the same `PromptFormat`, so that a model is
asked in exactly the words it was trained on.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError
from hf_instruct.records import Example

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

_ALPACA_SECTIONS = (
    "\n\n### Instruction:\n{{ instruction }}{% if input %}\n\n### Input:\n{{ input }}{% endif %}\n\n### Response:\n"
)

# Templates see `instruction` and `input` and end where the response begins. `chat` is not here: its text comes from
# the tokenizer.
TEMPLATES = {
    # Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/ch07.ipynb
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request." + _ALPACA_SECTIONS
    ),
    # Source: https://github.com/tatsu-lab/stanford_alpaca#data-release
    "alpaca-stanford": (
        "Below is an instruction that describes a task"
        "{% if input %}, paired with an input that provides further context{% endif %}. "
        "Write a response that appropriately completes the request." + _ALPACA_SECTIONS
    ),
    # Source: https://github.com/rasbt/LLMs-from-scratch/blob/28c65cd/ch07/01_main-chapter-code/exercise-solutions.ipynb
    "phi3": "<|user|>\n{{ instruction }}{% if input %}\n{{ input }}{% endif %}\n<|assistant|>\n",
}
CHAT = "chat"
# The label of a token that carries no loss; PyTorch's cross entropy skips it.
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class TokenizedExample:
    """One training row.

    Attributes:
        input_ids: Prompt and completion.
        labels: The ids that carry loss, `IGNORED` elsewhere; as long as `input_ids`.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def num_labels(self) -> int:
        """How many labels carry loss; never the first token of a row, because nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def build_row(
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    *,
    max_length: int | None,
    completion_only_loss: bool = True,
) -> TokenizedExample:
    """Return the training row of an example, cut to `max_length` tokens at the end.

    Args:
        prompt_ids: As `PromptFormat.encode_example` returns them.
        completion_ids: The same.
        max_length: Most tokens in a row; None for no limit.
        completion_only_loss: Whether prompt tokens are left out of the loss.

    >>> build_row([1, 2], [3, 4], max_length=3)
    TokenizedExample(input_ids=[1, 2, 3], labels=[-100, -100, 3])
    """
    labels = [IGNORED] * len(prompt_ids) if completion_only_loss else list(prompt_ids)
    labels += completion_ids
    return TokenizedExample([*prompt_ids, *completion_ids][:max_length], labels[:max_length])


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How an instruction and its input become the prompt, and an output the completion.

    Attributes:
        name: `alpaca`, `alpaca-stanford`, `phi3`, `chat`, or the path of the Jinja file the template came from.
        template: Jinja source; empty for `chat`, which uses the tokenizer's own chat template.

    Raises:
        ConfigError: The template is not usable.
    """

    name: str
    template: str

    def __post_init__(self) -> None:
        if self.name not in (CHAT, *TEMPLATES):
            self._check()

    @classmethod
    def named(cls, name: str | Path) -> "PromptFormat":
        """Return a built-in format by its name, or the format in a Jinja file by its path.

        Raises:
            ConfigError: There is no such format and no such file, or the file is not a usable template.
        """
        name = str(name)
        if name in (CHAT, *TEMPLATES):
            return cls(name, TEMPLATES.get(name, ""))
        try:
            template = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"The prompt format `{name}` is not UTF-8 text (byte {error.start}).") from error
        except (OSError, ValueError) as error:
            # No file of this name, or no name of a file: the template itself, say.
            shown = name if len(name) <= 200 else name[:199] + "…"
            known = ", ".join(f"`{known}`" for known in [*TEMPLATES, CHAT])
            raise ConfigError(
                f"Unknown prompt format `{shown}`. Allowed are {known}, or the "
                "path of a Jinja file that uses `instruction` and `input`."
            ) from error
        return cls(name, template)

    @cached_property
    def _compiled(self) -> "Template":
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # A format file may come from somebody else: the sandbox keeps it from reaching Python objects.
        environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
        return environment.from_string(self.template)

    def _check(self) -> None:
        from jinja2 import TemplateError

        try:
            self._compiled.render(instruction="AN INSTRUCTION", input="")
            text = self._compiled.render(instruction="AN INSTRUCTION", input="AN INPUT")
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            # What a template computes raises Python's own errors.
            raise ConfigError(
                f"The prompt format `{self.name}` is not a usable Jinja template: {error}. It may use `instruction` "
                "and `input`, and ends where the response begins."
            ) from error
        missing = [name for name in ("instruction", "input") if f"AN {name.upper()}" not in text.upper()]
        if missing:
            raise ConfigError(f"The prompt format `{self.name}` never uses `{'` and `'.join(missing)}`.")

    def format_prompt(
        self, instruction: str, input: str = "", *, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> str:
        """Return every character the model is conditioned on, up to where the response begins.

        Args:
            tokenizer: Needed by the `chat` format only.

        Raises:
            ConfigError: The format is `chat` and there is no tokenizer, or it has no chat template.

        >>> print(PromptFormat.named("phi3").format_prompt("Fix the spelling.", "freind"))
        <|user|>
        Fix the spelling.
        freind
        <|assistant|>
        <BLANKLINE>
        """
        if self.name == CHAT:
            messages = [{"role": "user", "content": _user_turn(instruction, input)}]
            return _apply_chat_template(tokenizer, messages, add_generation_prompt=True)
        return self._compiled.render(instruction=instruction, input=input)

    def format_completion(self, output: str, *, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the text trained on: the output and the one token that ends it.

        For `chat` that token is the one the chat template puts after an assistant's answer.
        """
        return output + self.end_token(tokenizer)

    def end_token(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the token that ends a completion: end-of-text, or for `chat` the template's end of turn.

        Raises:
            ConfigError: The tokenizer has no end-of-text token.
        """
        if self.name == CHAT:
            user = {"role": "user", "content": "Q"}
            text = _apply_chat_template(tokenizer, [user, {"role": "assistant", "content": "ANSWER"}])
            tail = text.rpartition("ANSWER")[2].strip()
            # Phi-3's template goes on after the end of the turn, so what counts is the first token.
            ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
            if ids and ids[0] in tokenizer.added_tokens_decoder:
                return str(tokenizer.added_tokens_decoder[ids[0]])
        if not tokenizer.eos_token:
            raise ConfigError(
                f"The tokenizer `{tokenizer.name_or_path}` has no end-of-text token, so a model could never learn to "
                "stop; choose another model."
            )
        return str(tokenizer.eos_token)

    def encode_prompt(self, tokenizer: "PreTrainedTokenizerBase", instruction: str, input: str = "") -> list[int]:
        """Return the prompt's token ids, with the tokenizer's beginning-of-text token where it adds one."""
        text = self.format_prompt(instruction, input, tokenizer=tokenizer)
        # A chat template writes its own beginning-of-text token.
        ids: list[int] = tokenizer(text, add_special_tokens=self.name != CHAT)["input_ids"]
        # Some tokenizers end every text with end-of-text; a prompt that has ended has no response.
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids

    @property
    def has_turns(self) -> bool:
        """Whether a prompt can hold earlier turns; without, each question stands alone."""
        return self.name == CHAT

    def encode_turns(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        system: str = "",
    ) -> list[int]:
        """Return the token ids of a conversation, up to where the next response begins.

        Without history and system text they are those of `encode_prompt`.

        Args:
            question: The newest, not yet answered.
            history: Earlier questions with their answers, oldest first.
            system: What the model is told beforehand.

        Raises:
            ConfigError: There is a history or a system text, and the format or the chat template has no place for it.
        """
        if not history and not system:
            return self.encode_prompt(tokenizer, question)
        if not self.has_turns:
            raise ConfigError(
                f"The prompt format `{self.name}` has no place for {'earlier turns' if history else 'a system text'}: "
                "only `chat` has. Leave it out."
            )
        messages = [{"role": "system", "content": system}] * bool(system)
        for user, assistant in history:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages.append({"role": "user", "content": question})
        text = _apply_chat_template(tokenizer, messages, add_generation_prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode_example(self, tokenizer: "PreTrainedTokenizerBase", example: Example) -> tuple[list[int], list[int]]:
        """Return the token ids of the prompt and of the completion.

        They are tokenized apart, so that training sees exactly the prompt ids that generation starts from: tokenized
        as one text, the last character of the prompt and the first of the completion could merge into one token.
        """
        prompt_ids = self.encode_prompt(tokenizer, example.instruction, example.input)
        text = self.format_completion(example.output, tokenizer=tokenizer)
        completion_ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return prompt_ids, completion_ids

    def end_token_id(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        """Return the id of `end_token`."""
        ids = tokenizer.convert_tokens_to_ids([self.end_token(tokenizer)])
        return int(ids[0])  # type: ignore[index]  # a list of tokens gives a list of ids


def _user_turn(instruction: str, input: str) -> str:
    return f"{instruction}\n{input}" if input else instruction


def _apply_chat_template(
    tokenizer: "PreTrainedTokenizerBase | None", messages: list[dict[str, Any]], *, add_generation_prompt: bool = False
) -> str:
    if tokenizer is None or not tokenizer.chat_template:
        name = "no tokenizer given" if tokenizer is None else f"`{tokenizer.name_or_path}` has none"
        raise ConfigError(
            f"The prompt format `chat` needs a tokenizer with a chat template, and {name}. "
            "Use `alpaca`, `phi3` or a Jinja file, or an instruction-tuned model."
        )
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as error:
        raise ConfigError(f"The chat template of `{tokenizer.name_or_path}` refuses this: {error}") from error
