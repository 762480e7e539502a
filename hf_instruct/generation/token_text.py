"""Encode prompts, and show tokens as readable text, with visible spaces, line ends and partial characters."""

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
    """Return what a user typed, with plain line ends.

    Args:
        text: The text.
        what: What it is, for the message.

    Raises:
        DataError: It is empty, contains control characters, or is not UTF-8 text.
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
        text: The text as it is; or token ids, which are only checked.
        room: Number of tokens that are to follow.

    Raises:
        DataError: The text is empty, contains control characters, or does not fit the model's context with `room`.
    """
    ids = list(tokenizer(check_text(text, what="prompt"))["input_ids"] if isinstance(text, str) else text)
    # Some tokenizers end every text with end-of-text, after which there is nothing to continue.
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
    r"""Return a token as text on one line: `␣dog` for a word with its space, `\n` for a line end.

    Part of a character is shown as the tokenizer writes it, an id beyond its vocabulary (models pad theirs) by number.
    """
    token = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    if not isinstance(token, str):
        return f"<id {token_id}>"
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if not text or "\N{REPLACEMENT CHARACTER}" in text or token_id in tokenizer.added_tokens_decoder:
        return show_text(token)
    # A tokenizer of SentencePiece's kind writes a space so, and leaves out the first.
    return show_text(f" {text}" if token.startswith("▁") and not text.startswith(" ") else text)


def show_text(text: str) -> str:
    r"""Return a text on one line, with what cannot be seen, or could steer a terminal, written out.

    >>> show_text(" a dog\n\x1b")
    '␣a␣dog\\n\\u001b'
    """
    # Controls, formats, unassigned, and spaces other than the usual one.
    return "".join(
        _NAMED.get(char) or (f"\\u{ord(char):04x}" if unicodedata.category(char)[0] in "CZ" else char) for char in text
    )
