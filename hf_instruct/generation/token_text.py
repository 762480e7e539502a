"""A prompt into token ids, and tokens into text that can be read: spaces, line ends and parts of characters shown."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_instruct.errors import ConfigError
from hf_instruct.models import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPACE = "␣"
_NAMED = {" ": SPACE, "\n": "\\n", "\t": "\\t", "\r": "\\r"}
# How tokenizers of SentencePiece's kind write a space.
_PIECE_SPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACEMENT = "\ufffd"


def check_text(text: str) -> str:
    """Return a prompt that can be continued, as it is.

    Raises:
        ConfigError: It is empty, or holds control characters.
    """
    if not text.strip():
        raise ConfigError("The prompt is empty; give the text to continue, as in `hf-instruct explore 'Once upon a'`.")
    for place, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
            raise ConfigError(
                f"The prompt has the control character U+{ord(character):04X} at character {place + 1}; a prompt is "
                "text with spaces, tabs and line ends. Take it out."
            )
    return text


def encode_text(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", text: str | Sequence[int], *, room: int
) -> list[int]:
    """Return the token ids of a text to continue, with the tokenizer's beginning-of-text token where it adds one.

    Args:
        text: The text as it is; or token ids, which are only checked.
        room: Tokens that are to follow.

    Raises:
        ConfigError: The text is empty, holds control characters, or does not fit the model's context with `room`.
    """
    if isinstance(text, str):
        ids: list[int] = tokenizer(check_text(text))["input_ids"]
        # Some tokenizers end every text with end-of-text, after which there is nothing to continue.
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
    else:
        ids = list(text)
        if not ids:
            raise ConfigError("The prompt has no tokens; give at least one.")
    limit = context_length(model)
    if limit is not None and len(ids) + room > limit:
        problem = f"The prompt has {len(ids):,} tokens" + (f" and {room:,} are to follow" if room else "")
        raise ConfigError(
            f"{problem}, but the model has {limit:,} positions. Shorten the prompt"
            + (", or ask for fewer tokens to follow." if room else ".")
        )
    return ids


def show_token(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str:
    r"""Return a token as text on one line: `␣dog` for a word with its space, `\n` for a line end, `\xe2\x80` for bytes.

    An id beyond the tokenizer's vocabulary (models pad theirs) is shown as its number.
    """
    token = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    if not isinstance(token, str):
        return f"<id {token_id}>"
    if token_id in tokenizer.added_tokens_decoder or _BYTE_PIECE.fullmatch(token):
        return show_text(token)
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if _REPLACEMENT in text and (content := _bytes_of(token)) is not None and _REPLACEMENT.encode() not in content:
        return "".join(show_text(chr(byte)) if byte < 0x80 else f"\\x{byte:02x}" for byte in content)
    if token.startswith(_PIECE_SPACE) and not text.startswith(" "):
        text = " " + text
    return show_text(text) or show_text(token)


def show_text(text: str) -> str:
    r"""Return a text on one line, with what cannot be seen, or could steer a terminal, written out.

    >>> show_text(" a dog\n\x1b")
    '␣a␣dog\\n\\u001b'
    """
    return "".join(_show_character(character) for character in text)


def _show_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    # Controls, formats, unassigned, and spaces other than the usual one.
    if unicodedata.category(character)[0] in "CZ":
        return f"\\u{ord(character):04x}"
    return character


def _bytes_of(token: str) -> bytes | None:
    """Return the bytes that a token of a byte-level tokenizer stands for, or None where it is not of that kind."""
    try:
        return bytes(_byte_alphabet()[character] for character in token)
    except KeyError:
        return None


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of GPT-2's alphabet stands for.

    Source: `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def display_width(text: str) -> int:
    """Return how many columns a terminal takes for a text.

    >>> display_width("dog"), display_width("東京")
    (3, 4)
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(bool(unicodedata.combining(character)) for character in text)


def pad_text(text: str, width: int) -> str:
    """Return a text filled with spaces to a number of columns, or cut to it with an ellipsis."""
    while display_width(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text + " " * (width - display_width(text))
