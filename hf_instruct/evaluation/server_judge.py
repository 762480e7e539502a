"""What judges behind a server have in common."""

import json
import re

from hf_instruct.config import JudgeSection


def find_cut(text: str, thinking: str | None, *, is_cut: bool, settings: JudgeSection) -> str | None:
    """Return why a reply that arrived holds no whole answer, or None.

    Args:
        text: The reply.
        thinking: What the model thought before it, where the server keeps that apart.
        is_cut: Whether the reply reached the limit of tokens, which thinking counts towards.
        settings: The limit and whether the judge was told to think.
    """
    only_thought = bool(thinking and thinking.strip()) and not text.strip()
    if is_cut:
        what = "the judge was still thinking when its reply was cut" if only_thought else "the reply was cut"
        return f"{what} at {settings.max_new_tokens} tokens (`judge.max_new_tokens`)"
    if only_thought:
        return (
            f"the judge thought and then wrote no answer (`judge.think` is {json.dumps(settings.think)}; some models "
            "take only `low`, `medium` or `high`)"
        )
    return None


def advise_on_refusal(text: str) -> str:
    """Return which setting a server's refusal is about, as a sentence to follow it; empty where it is about none.

    >>> advise_on_refusal("Unsupported value: 'temperature' does not support 0.0 with this model.")
    ' `judge.temperature: null` leaves the temperature to the server.'
    """
    for name in ("temperature", "seed"):
        if re.search(rf"\b{name}\b", text, re.IGNORECASE):
            return f" `judge.{name}: null` leaves the {name} to the server."
    if re.search(r"\bthink|\breasoning", text, re.IGNORECASE):
        return " Set `judge.think` to what this model takes: false, true, low, medium or high."
    return ""
