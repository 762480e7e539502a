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

    Labels are the ids of tokens that carry loss, and `IGNORED` for all others.

    Args:
        *pieces: As returned by `PromptFormat.encode_examples`: prompt and completion, repeated for each answer.
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
    """Return the number of labels in a row that carry loss, without the first token, because nothing predicts it."""
    return sum(label != IGNORED for label in row["labels"][1:])


class FormatTokens(NamedTuple):
    """The special tokens that a format writes with one tokenizer.

    Attributes:
        begin: Ids that the tokenizer puts before every text, such as beginning-of-text.
        end: The token that ends a completion.
        ending: The text after an output: the end token, and the whitespace that a chat template writes before it.
        special: Matches the tokens that only a format may write: the tokenizer's special tokens and the end token.
    """

    begin: list[int]
    end: str
    ending: str
    special: re.Pattern[str]


# Cached, because every row needs it. Attributes of the tokenizer that may change are part of the key.
@lru_cache(maxsize=8)
def find_tokens(
    prompt_format: "PromptFormat",
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    eos_token: str | None,
    num_tokens: int,
) -> FormatTokens:
    """Return the special tokens of a format; `template` is its chat template, or empty without one.

    Raises:
        ConfigError: The tokenizer has no end-of-text token.
    """
    added = tokenizer.added_tokens_decoder
    end = ending = eos_token
    if template:
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        tail = prompt_format.render_chat(tokenizer, messages, add_generation_prompt=False).rpartition("ANSWER")[2]
        # Phi-3's template writes more after the end of the turn, so only the first token counts.
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
    # Longest first, because one token may be a prefix of another.
    special = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    return FormatTokens(prefix_ids(tokenizer), end, ending, special)


def prefix_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer puts before every text, without those that it puts after it."""
    whole, plain = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
    return [int(id) for id in whole[: whole.index(plain[0])]]


def mark_special(texts: Sequence[str], special: re.Pattern[str]) -> list[str] | None:
    """Return user texts with markers around their special tokens, or None if there are none.

    A tokenizer would read `<|endoftext|>` in an answer as its end. Transformers distinguishes the two with markers
    around special tokens in user texts, which are added before a template is rendered.
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
    """Tokenize a text as a whole, and return its token ids in pieces that end at given character positions.

    A token that spans a cut belongs to the piece after it, as in Transformers' assistant masks.

    Args:
        cuts: Character positions where pieces end, in ascending order; the last one is the end of the text.
    """
    if tokenizer.is_fast and not is_marked:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = encoding["input_ids"], [end for _, end in encoding["offset_mapping"]]
        places = [bisect.bisect_right(ends, cut) for cut in cuts]
    else:
        # The markers are not tokenized, so offsets would not match the text.
        ids = encode_text(tokenizer, text, is_marked=is_marked)
        begins = [encode_text(tokenizer, text[:cut], is_marked=is_marked) for cut in cuts]
        pairs = [enumerate(zip(begin, ids, strict=False)) for begin in begins]
        differing = [next((index for index, (one, other) in each if one != other), None) for each in pairs]
        places = [len(begin) if index is None else index for begin, index in zip(begins, differing, strict=True)]
    return [ids[start:end] for start, end in zip([0, *places], places, strict=False)]


def find_answers(example: Example) -> list[int]:
    """Return the indices of the turns in an example's conversation, if any, that are trained on."""
    turns = enumerate(example.messages or [])
    return [number for number, turn in turns if turn["role"] == "assistant" and number >= (example.prompt_turns or 0)]


def find_answer(text: str, prompt: str, answer: str, end: str) -> tuple[int, int] | None:
    """Return start and end of an answer with its end token in a conversation, or None if it is rendered differently.

    Args:
        text: The whole rendered conversation.
        prompt: The prompt of the answer, which the text has to begin with.
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
