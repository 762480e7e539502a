"""Token ids of prompts and answers: special tokens, and which tokens of a row carry loss."""

import bisect
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_instruct.prompts import PromptFormat

LossOn = Literal["all", "last"]
# The label of a token that carries no loss; PyTorch's cross entropy skips it.
IGNORED = -100


def build_row(
    *pieces: Sequence[int], max_length: int | None, completion_only_loss: bool = True
) -> dict[str, list[int]]:
    """Return the training row of an example, truncated to `max_length` tokens: `input_ids` and `labels`.

    Labels are the ids that carry loss, and `IGNORED` elsewhere.

    Args:
        *pieces: As `PromptFormat.encode_examples` returns them: prompt and completion, as often as there are answers.
        max_length: Maximum number of tokens in a row; None for no limit.
        completion_only_loss: Whether prompt tokens are left out of the loss.

    >>> build_row([1, 2], [3, 4], max_length=3)
    {'input_ids': [1, 2, 3], 'labels': [-100, -100, 3]}
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, piece in enumerate(pieces):
        ids += piece
        labels += [IGNORED] * len(piece) if completion_only_loss and number % 2 == 0 else piece
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def count_labels(row: Mapping[str, Sequence[int]]) -> int:
    """Return the number of labels in a row that carry loss; never the first token, because nothing predicts it."""
    return sum(label != IGNORED for label in row["labels"][1:])


class FormatTokens(NamedTuple):
    """The special tokens that a format writes with one tokenizer.

    Attributes:
        begin: Ids that the tokenizer puts before every text, such as beginning-of-text.
        end: The token that ends a completion.
        ending: What follows an output: the end token, and the white space that a chat template writes before it.
        special: Matches the tokens that only a format may write: the tokenizer's special tokens and the end token.
    """

    begin: list[int]
    end: str
    ending: str
    special: re.Pattern[str]


# Looked up for every row. What may change about a tokenizer is part of the key.
@lru_cache(maxsize=8)
def find_tokens(
    prompt_format: "PromptFormat",
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    eos_token: str | None,
    num_tokens: int,
) -> FormatTokens:
    """Return the special tokens of a format; `template` is empty for a format that is not the tokenizer's own.

    Raises:
        ConfigError: The tokenizer has no end-of-text token.
    """
    added = tokenizer.added_tokens_decoder
    end = ending = eos_token
    if template:
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        tail = prompt_format.render_chat(tokenizer, messages, add_generation_prompt=False).rpartition("ANSWER")[2]
        # Phi-3's template writes more after the end of the turn, so what counts is the first token.
        ids = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"]
        if ids and ids[0] in added:
            end = str(added[ids[0]])
            ending = tail[: tail.index(end)] + end
    if not end or not ending:
        raise ConfigError(
            f"The tokenizer `{tokenizer.name_or_path}` has no end-of-text token, so the model could not learn to "
            "stop; choose another model."
        )
    tokens = {end, *(str(token) for token in added.values() if token.special)}
    # The longest first, as one may be the beginning of another.
    special = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    return FormatTokens(prefix_ids(tokenizer), end, ending, special)


def prefix_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer puts before every text; what it puts after a text is left out."""
    whole, plain = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
    return [int(id) for id in whole[: whole.index(plain[0])]]


def mark_special(texts: Sequence[str], special: re.Pattern[str]) -> list[str] | None:
    """Return texts of a user with markers around their special tokens, or None if there are none.

    A tokenizer reads `<|endoftext|>` in an answer as the end of it. Transformers tells the two apart by marks of its
    own around a token in a text, made before a template is rendered.
    """
    if not any(special.search(text) for text in texts):
        return None
    from transformers.utils.chat_template_utils import mark_control_tokens

    return [mark_control_tokens(text, special) for text in texts]


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_marked: bool) -> list[int]:
    """Return the token ids of a rendered text, with marked special tokens encoded as plain text.

    Raises:
        DataError: The tokenizer cannot encode a special token as plain text.
    """
    if not is_marked:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    from transformers.utils.chat_template_utils import encode_marked_chat

    try:
        return encode_marked_chat(tokenizer, text)
    except ValueError as error:
        raise DataError(
            f"A text contains a special token that the tokenizer `{tokenizer.name_or_path}` cannot encode as plain "
            f"text ({error}). Delete it from the text."
        ) from error


def cut_tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str, cuts: Sequence[int], *, is_marked: bool
) -> list[list[int]]:
    """Return the token ids of a text, tokenized as a whole, in pieces that begin and end at some of its characters.

    A token over a cut belongs to the piece behind it, as in Transformers' masks of what an assistant said.

    Args:
        cuts: Where pieces end, in ascending order, the last at the end of the text.
    """
    if tokenizer.is_fast and not is_marked:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = encoding["input_ids"], [end for _, end in encoding["offset_mapping"]]
        places = [bisect.bisect_right(ends, cut) for cut in cuts]
    else:
        # Marks are not part of what is tokenized, so offsets say nothing here.
        ids = encode_text(tokenizer, text, is_marked=is_marked)
        begins = [encode_text(tokenizer, text[:cut], is_marked=is_marked) for cut in cuts]
        pairs = [enumerate(zip(begin, ids, strict=False)) for begin in begins]
        differing = [next((index for index, (one, other) in each if one != other), None) for each in pairs]
        places = [len(begin) if index is None else index for begin, index in zip(begins, differing, strict=True)]
    return [ids[start:end] for start, end in zip([0, *places], places, strict=False)]


def find_answers(example: Example) -> list[int]:
    """Return the turns of an example's conversation that are trained on, if it has one."""
    turns = enumerate(example.messages or [])
    return [number for number, turn in turns if turn["role"] == "assistant" and number >= (example.prompt_turns or 0)]


def find_answer(text: str, prompt: str, answer: str, end: str) -> tuple[int, int] | None:
    """Return the position of an answer and its end token in a conversation, or None if it was rendered differently.

    Args:
        text: The whole conversation.
        prompt: What it has to begin with: the prompt that the answer is given to.
        answer: The answer, which templates may strip.
        end: The end token.

    >>> find_answer("Q: a A: b. END Q: c A: d. END", "Q: a A:", "b.", "END")
    (7, 14)
    """
    start, answer = len(prompt), answer.strip()
    begin = text.find(answer, start)
    closing = text.find(end, begin + len(answer))
    between = text[start:begin] + text[begin + len(answer) : closing]
    if not text.startswith(prompt) or begin < 0 or closing < 0 or between.strip():
        return None
    return start, closing + len(end)
