"""Secrets, cut out of what is written or shown."""

import re
from typing import Any

# Of the Hub and of OpenAI and those who write keys its way. Names such as `hf_finetuning_experiments` have no such row
# of letters and digits.
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk[_-][A-Za-z0-9_-]*[A-Za-z0-9]{16}[A-Za-z0-9_-]*)")
# Everything before the last `@` of a host part: a password may hold an `@` itself. `git@` alone is no secret.
_USER = re.compile(r"://(?!git@[^/\s@]*(?:[/\s]|$))[^/\s]+@")


def redact(value: Any) -> Any:
    """Return a plain value whose texts hold no user:password part of an address and no Hub or API token."""
    if isinstance(value, dict):
        return {key: redact(part) for key, part in value.items()}
    if isinstance(value, list):
        return [redact(part) for part in value]
    if not isinstance(value, str):
        return value
    return _TOKEN.sub("[token removed]", _USER.sub("://", value))
