"""Special tokens: written by templates alone, and plain text where a user's own text contains one.

A tokenizer reads `<|endoftext|>` in an answer as the end of it. Transformers can tell the two apart: marks of its own
around a token in a text, before a template is rendered, make it encode that token as plain text.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hf_instruct.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return what matches any of some tokens; the longest first, as one may be the beginning of another."""
    return re.compile("|".join(map(re.escape, sorted(set(tokens), key=len, reverse=True))))


def mark_texts(special: re.Pattern[str], texts: Sequence[str]) -> tuple[list[str], bool]:
    """Return texts with each special token in them marked for `tokenize`, and whether there is any."""
    if not any(special.search(text) for text in texts):
        return list(texts), False
    from transformers.utils.chat_template_utils import mark_control_tokens

    return [mark_control_tokens(text, special) for text in texts], True


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_marked: bool) -> list[int]:
    """Return the token ids of a text, without what the tokenizer adds; what is marked in it is read as plain text.

    Raises:
        DataError: The tokenizer makes a special token even of plain text.
    """
    if not is_marked:
        plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return plain
    from transformers.utils.chat_template_utils import encode_marked_chat

    try:
        ids: list[int] = encode_marked_chat(tokenizer, text)
    except ValueError as error:
        raise DataError(
            f"A text contains a special token that the tokenizer `{tokenizer.name_or_path}` cannot encode as plain "
            f"text ({error}). Delete it from the text."
        ) from error
    return ids


def begin_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer puts before every text; what it puts after a text is left out."""
    whole, plain = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
    return [int(id) for id in whole[: whole.index(plain[0])]]


def begin_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the token that the tokenizer puts before every text, or an empty text where it puts none."""
    return str(tokenizer.bos_token) if begin_ids(tokenizer)[:1] == [tokenizer.bos_token_id] else ""
