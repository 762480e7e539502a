"""The prompt formats, which turn examples into text and token ids.

Training, generation, judging, chat and export all use the same `PromptFormat`, so that a model always gets the prompts
it was trained with.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ConfigError, DataError, InstructError, did_you_mean, quote_names
from hf_instruct.prompt_tokens import (
    FormatTokens,
    LossOn,
    cut_tokens,
    encode_text,
    find_answer,
    find_answers,
    find_tokens,
    mark_special,
)
from hf_instruct.records import Example
from hf_instruct.templates import UserTemplate, translated_template_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ALPACA_SECTIONS = (
    "\n\n### Instruction:\n{{ instruction }}{% if input %}\n\n### Input:\n{{ input }}{% endif %}\n\n### Response:\n"
)

# Templates use `instruction` and `input` and end where the response begins. `chat` is not listed, because its template
# comes from the tokenizer.
PROMPT_TEMPLATES = {
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


def build_user_message(instruction: str, input: str = "") -> dict[str, str]:
    """Return an instruction and its input as a user message for `chat`."""
    return {"role": "user", "content": f"{instruction}\n{input}" if input else instruction}


def build_prompt_messages(example: Example) -> list[dict[str, str]]:
    """Return the prompt of an example as messages for `chat`: the turns before its answer, or one user message."""
    return (example.messages or [])[:-1] or [build_user_message(example.instruction, example.input)]


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """Converts an instruction and its input to the prompt, and an output to the completion.

    Attributes:
        name: `alpaca`, `alpaca-stanford`, `phi3`, `chat`, or the path of the Jinja file the template came from.
        template: Jinja source. For `chat`, a chat template, or empty for the tokenizer's own without changes;
            `prompt_checks.resolve_format` returns the one to train with.

    Raises:
        ConfigError: The template is not usable.
    """

    name: str
    template: str

    def __post_init__(self) -> None:
        if self.name not in (CHAT, *PROMPT_TEMPLATES):
            self._check()

    @classmethod
    def from_name(cls, name: str | Path) -> "PromptFormat":
        """Return a built-in format by its name, or the format in a Jinja file by its path.

        Raises:
            ConfigError: There is no such format and no such file, or the file is not a usable template.
        """
        name = str(name)
        if name in (CHAT, *PROMPT_TEMPLATES):
            return cls(name, PROMPT_TEMPLATES.get(name, ""))
        try:
            template = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            # The file is missing or not text, or this is not a file name but, for example, the template itself.
            shown = name if len(name) <= 200 else name[:199] + "…"
            known = [*PROMPT_TEMPLATES, CHAT]
            raise ConfigError(
                f"Unknown prompt format `{shown}`.{did_you_mean(name, known)} Choose from {quote_names(known)}, or the "
                "path of a Jinja file, UTF-8 text that uses `instruction` and `input`."
            ) from error
        return cls(name, template)

    def __reduce__(self) -> tuple[Any, ...]:
        # It is sent to worker processes, and a compiled template cannot be pickled.
        return PromptFormat, (self.name, self.template)

    @cached_property
    def _user_template(self) -> UserTemplate:
        return UserTemplate(f"The prompt format `{self.name}`", self.template, keep_trailing_newline=True)

    def _check(self) -> None:
        self.format_prompt("AN INSTRUCTION")
        text = self.format_prompt("AN INSTRUCTION", "AN INPUT")
        missing = [name for name in ("instruction", "input") if f"AN {name.upper()}" not in text.upper()]
        if missing:
            raise ConfigError(f"The prompt format `{self.name}` never uses `{'` and `'.join(missing)}`.")

    def format_prompt(
        self, instruction: str, input: str = "", *, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> str:
        """Return the prompt: all text up to where the response begins.

        Args:
            tokenizer: Only needed by the `chat` format.

        Raises:
            ConfigError: The format is `chat` and there is no tokenizer, or it has no chat template.

        >>> print(PromptFormat.from_name("phi3").format_prompt("Fix the spelling.", "freind"))
        <|user|>
        Fix the spelling.
        freind
        <|assistant|>
        <BLANKLINE>
        """
        if self.name == CHAT:
            return self.render_chat(tokenizer, [build_user_message(instruction, input)])
        return self._user_template.render({"instruction": instruction, "input": input})

    def render_chat(
        self,
        tokenizer: "PreTrainedTokenizerBase | None",
        messages: Sequence[dict[str, str]],
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Render a conversation with the chat template of this format.

        Raises:
            ConfigError: There is no tokenizer, no chat template, or the template refuses the messages.
        """
        template = self.chat_template(tokenizer)
        assert tokenizer is not None, "chat_template() refuses that"
        with translated_template_errors(f"The chat template of `{tokenizer.name_or_path}` refuses this"):
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )

    def chat_template(self, tokenizer: "PreTrainedTokenizerBase | None") -> str:
        """Return the source of the chat template for `chat`: the resolved one, or else the tokenizer's.

        Raises:
            ConfigError: There is no tokenizer, or it has no chat template.
        """
        problem = "no tokenizer given"
        if tokenizer is not None:
            try:
                return self.template or str(tokenizer.get_chat_template())
            except ValueError:
                problem = f"`{tokenizer.name_or_path}` has none, or several and none of them called `default`"
        raise ConfigError(
            f"The prompt format `chat` needs a tokenizer with a chat template, and {problem}. Use a model that has "
            "one, such as `smollm2-135m`, or set `tokenizer.chat_template`. For questions without earlier turns, "
            "you can use `alpaca`, `phi3` or a Jinja file."
        )

    def end_token(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the token that ends a completion: end-of-text, or for `chat` the template's end of turn.

        Raises:
            ConfigError: The tokenizer has no end-of-text token.
        """
        return self._tokens(tokenizer).end

    def _tokens(self, tokenizer: "PreTrainedTokenizerBase") -> FormatTokens:
        template = self.chat_template(tokenizer) if self.name == CHAT else ""
        return find_tokens(self, tokenizer, template, tokenizer.eos_token, len(tokenizer))

    def find_special_tokens(self, tokenizer: "PreTrainedTokenizerBase", *texts: str) -> list[str]:
        """Return the distinct special tokens in user texts; they are encoded as plain text."""
        return list(dict.fromkeys(token for text in texts for token in self._tokens(tokenizer).special.findall(text)))

    def encode_prompt(self, tokenizer: "PreTrainedTokenizerBase", instruction: str, input: str = "") -> list[int]:
        """Return the prompt's token ids, with the tokenizer's beginning-of-text token if it adds one.

        Only the format adds special tokens: if the instruction or the input contains one, it is encoded as plain
        text.

        Raises:
            DataError: The tokenizer cannot encode a special token as plain text.
        """
        build = partial(self.format_prompt, tokenizer=tokenizer)
        ids = self._encode(tokenizer, build, instruction, input)
        # A chat template writes its own beginning-of-text token.
        return ids if self.name == CHAT else [*self._tokens(tokenizer).begin, *ids]

    def _encode(self, tokenizer: "PreTrainedTokenizerBase", build: Callable[..., str], *texts: str) -> list[int]:
        """Return the token ids of the text that `build` makes from texts; their special tokens become plain text."""
        marked = mark_special(texts, self._tokens(tokenizer).special)
        return encode_text(tokenizer, build(*(marked or texts)), is_marked=marked is not None)

    def encode_prompts(self, tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example]) -> list[list[int]]:
        """Return the token ids of each example's prompt, as in `encode_prompt`.

        Raises:
            DataError: The prompt of an example cannot be encoded; the message names the example.
        """
        return [self._encode_example_prompt(tokenizer, example) for example in examples]

    def _encode_example_prompt(self, tokenizer: "PreTrainedTokenizerBase", example: Example) -> list[int]:
        """Return the token ids of an example's prompt: from its `prompt`, the turns before its answer, or its texts."""
        with _naming_example(example):
            if example.prompt is not None:
                return [*self._tokens(tokenizer).begin, *self._encode(tokenizer, str, example.prompt)]
            if not example.messages:
                return self.encode_prompt(tokenizer, example.instruction, example.input)
            return self._encode_messages(tokenizer, example.messages[:-1])

    def encode_turns(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        system: str = "",
    ) -> list[int]:
        """Return the token ids of a conversation, up to where the next response begins.

        Without a history and a system message, they are those of `encode_prompt`.

        Args:
            question: The newest question, not yet answered.
            history: Earlier questions with their answers, oldest first.
            system: The system message.

        Raises:
            ConfigError: There is a history or a system message, which the format or chat template does not support.
        """
        earlier = [(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
        turns = [("system", system)] * bool(system) + [*earlier, ("user", question)]
        return self._encode_messages(tokenizer, [{"role": role, "content": text} for role, text in turns])

    def _encode_messages(
        self, tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]
    ) -> list[int]:
        roles, texts = ([message[key] for message in messages] for key in ("role", "content"))
        if len(messages) == 1:
            return self.encode_prompt(tokenizer, texts[0])
        if self.name != CHAT:
            what = "earlier turns" if "assistant" in roles else "a system message"
            raise ConfigError(
                f"The prompt format `{self.name}` does not support {what}; only `chat` does. Use `chat`, or leave it "
                "out."
            )

        def build(*texts: str) -> str:
            turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            return self._render_system(tokenizer, turns)

        return self._encode(tokenizer, build, *texts)

    def _render_system(
        self, tokenizer: "PreTrainedTokenizerBase", turns: Sequence[dict[str, str]], **options: Any
    ) -> str:
        """Render turns with `render_chat`, and check that their system message, if any, is in the text."""
        text = self.render_chat(tokenizer, turns, **options)
        if turns[0]["role"] == "system" and turns[0]["content"].strip() not in text:
            raise ConfigError(
                f"The chat template of `{tokenizer.name_or_path}` does not support a system message. Leave it out."
            )
        return text

    def keeps_turns(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Return whether a prompt can contain earlier turns."""
        if self.name != CHAT:
            return False
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": f"TURN{number}"} for number, role in enumerate(roles)]
        return "TURN0" in self.render_chat(tokenizer, messages)

    def encode_example(
        self, tokenizer: "PreTrainedTokenizerBase", example: Example | Mapping[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of the prompt and of the completion of an example or a row of a `Dataset`.

        They are tokenized separately, so that training sees exactly the prompt ids that generation starts from. In one
        text, the last character of the prompt and the first of the completion could merge into one token.

        Raises:
            DataError: The example cannot be encoded in this format; the message names it.
        """
        example = Example.of(example)
        prompt_ids, ending = self._encode_example_prompt(tokenizer, example), self._tokens(tokenizer).ending
        with _naming_example(example):
            return prompt_ids, self._encode(tokenizer, lambda text: text + ending, example.output)

    def encode_examples(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        examples: Sequence[Example | Mapping[str, Any]],
        *,
        loss_on: LossOn = "all",
    ) -> list[Sequence[list[int]]]:
        """Return the input of `build_row` for each example: the token ids of its prompt and its completion.

        For a conversation with several answers to train on, prompts and answers alternate; together they are the
        conversation as the chat template renders it, up to the end of its last answer. Plain texts are tokenized in one
        batch, which is several times faster.

        Args:
            loss_on: Whether to train on `all` answers of a conversation or only on the `last` one.

        Raises:
            DataError: An example cannot be encoded in this format, or its earlier answers cannot be trained on; the
                message names it.
        """
        tokens = self._tokens(tokenizer)
        pieces: dict[int, Sequence[list[int]]] = {}
        indices, texts = [], []
        for index, row in enumerate(examples):
            example = Example.of(row)
            own = (example.instruction, example.input, example.output)
            if loss_on == "all" and len(answers := find_answers(example)) > 1 and self.name == CHAT:
                with _naming_example(example):
                    pieces[index] = self._encode_answers(tokenizer, example.messages or [], answers)
            elif example.prompt is not None or example.messages or any(map(tokens.special.search, own)):
                pieces[index] = self.encode_example(tokenizer, example)
            else:
                with _naming_example(example):
                    texts.append(self.format_prompt(example.instruction, example.input, tokenizer=tokenizer))
                    texts.append(example.output + tokens.ending)
                indices.append(index)
        ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        begin = [] if self.name == CHAT else tokens.begin
        pieces |= {index: ([*begin, *next(ids)], next(ids)) for index in indices}
        return [pieces[index] for index in range(len(examples))]

    def _encode_answers(
        self, tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], answers: Sequence[int]
    ) -> list[list[int]]:
        """Return the token ids of a conversation in pieces, which alternate between prompt and answer.

        Args:
            messages: The conversation.
            answers: Indices of the turns to train on; the pieces end with the last of them.
        """
        tokens = self._tokens(tokenizer)
        contents = [turn["content"] for turn in messages]
        marked = mark_special(contents, tokens.special)
        turns = [{**turn, "content": text} for turn, text in zip(messages, marked or contents, strict=True)]
        text, cuts = self._render_system(tokenizer, turns, add_generation_prompt=False), list[int]()
        for number in answers:
            found = find_answer(text, self.render_chat(tokenizer, turns[:number]), turns[number]["content"], tokens.end)
            if found is None:
                raise DataError(
                    f"The chat template of `{tokenizer.name_or_path}` renders the answer in turn {number} of a "
                    "conversation differently than on its own, so it cannot be trained on; set `data.loss_on: last` "
                    "to train on the last answer only."
                )
            cuts += found
        return cut_tokens(tokenizer, text[: cuts[-1]], cuts, is_marked=marked is not None)

    def end_token_id(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        """Return the id of `end_token`."""
        return int(tokenizer.convert_tokens_to_ids(self.end_token(tokenizer)))  # type: ignore[arg-type]  # of one token


@contextlib.contextmanager
def _naming_example(example: Example) -> Iterator[None]:
    """Add the id of the example to an error."""
    try:
        yield
    except InstructError as error:
        raise DataError(f"Example `{example.id}`: {error}") from error
