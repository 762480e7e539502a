"""Encode prompts, and show tokens as readable text, with visible spaces, line breaks and partial characters."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_instruct.errors import DataError
from hf_instruct.models import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPACE = "␣"
_NAMED = {" ": SPACE, "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def check_text(text: str, *, what: str = "question") -> str:
    r"""Return a text that a user typed, with `\n` as line breaks.

    Args:
        text: The text.
        what: Name of the text in the message.

    Raises:
        DataError: The text is empty, contains control characters, or is not UTF-8.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise DataError(f"The {what} is empty; enter some text.")
    for index, char in enumerate(text, start=1):
        category = unicodedata.category(char)
        if category == "Cs":
            raise DataError(f"The {what} is not UTF-8 text (character {index:,}). Type or save it as UTF-8.")
        if category == "Cc" and char not in "\n\t":
            raise DataError(
                f"The {what} contains the control character U+{ord(char):04X} (character {index:,}); only line breaks "
                "and tabs are allowed. Remove it."
            )
    return text


def encode_raw_prompt(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", text: str | Sequence[int], *, room: int
) -> list[int]:
    """Return the token ids of a text to continue, with the tokenizer's beginning-of-text token if it adds one.

    Args:
        text: The text, without a prompt format; or token ids, which are only checked.
        room: Number of tokens to generate.

    Raises:
        DataError: The text is empty, contains control characters, or does not fit the model's context with `room`.
    """
    ids = list(tokenizer(check_text(text, what="prompt"))["input_ids"] if isinstance(text, str) else text)
    # Some tokenizers add an end-of-text token to every text, after which there is nothing to continue.
    if isinstance(text, str) and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    if not ids:
        raise DataError("The prompt has no tokens; pass at least one.")
    limit = context_length(model)
    if limit is not None and len(ids) + room > limit:
        raise DataError(
            f"The prompt has {len(ids):,} tokens and {room:,} new tokens are requested, but the model only has "
            f"{limit:,} positions. Shorten the prompt, or request fewer tokens."
        )
    return ids


def show_token(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str:
    r"""Return a token as text on one line: `␣dog` for a word with its space, `\n` for a line break.

    A partial character is shown as in the tokenizer's vocabulary, and an id beyond the vocabulary (models pad theirs)
    as a number.
    """
    token = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    if not isinstance(token, str):
        return f"<id {token_id}>"
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if not text or "\N{REPLACEMENT CHARACTER}" in text or token_id in tokenizer.added_tokens_decoder:
        return show_text(token)
    # SentencePiece tokenizers write a space as "▁", and leave it out when they decode the first token.
    return show_text(f" {text}" if token.startswith("▁") and not text.startswith(" ") else text)


def show_text(text: str) -> str:
    r"""Return a text on one line, with invisible characters, and those that could control a terminal, escaped.

    >>> show_text(" a dog\n\x1b")
    '␣a␣dog\\n\\u001b'
    """
    # Unicode categories C (control, format, unassigned) and Z (separators, except the usual space).
    return "".join(
        _NAMED.get(char) or (f"\\u{ord(char):04x}" if unicodedata.category(char)[0] in "CZ" else char) for char in text
    )
