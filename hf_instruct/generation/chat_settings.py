"""What can be set about answers in a conversation, each value checked on its own."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from hf_instruct.errors import ConfigError

_MOST_SEED = 2**32 - 1
Value = float | int | None


class _Rule(NamedTuple):
    """What one setting may be.

    Attributes:
        kind: `int` or `float`.
        accepts: Whether a finite number of that kind is allowed.
        allowed: The same in words.
        optional: Whether it may be unset.
    """

    kind: type[int] | type[float]
    accepts: Callable[[float], bool]
    allowed: str
    optional: bool = False


# Below 0.01 the likeliest token is all that is left, and logits divided by less run over.
_RULES = {
    "temperature": _Rule(
        float, lambda v: v == 0 or 0.01 <= v <= 10, "0 (always the likeliest token) or a number from 0.01 to 10"
    ),
    "top_p": _Rule(float, lambda v: 0 < v <= 1, "a number above 0 and up to 1 (1 keeps all tokens)"),
    "top_k": _Rule(int, lambda v: 0 <= v <= 10**6, "a whole number from 0 (keeps all tokens) to 1,000,000"),
    "max_new_tokens": _Rule(int, lambda v: 1 <= v <= 10**6, "a whole number from 1 to 1,000,000"),
    "repetition_penalty": _Rule(float, lambda v: 0.1 <= v <= 10, "a number from 0.1 to 10 (1 does nothing)"),
    "seed": _Rule(int, lambda v: 0 <= v <= _MOST_SEED, f"a whole number from 0 to {_MOST_SEED:,}, or `none`", True),
}


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """How answers are generated.

    Attributes:
        temperature: 0 takes the likeliest token each time; above, tokens are drawn, the flatter the higher.
        top_p: Draws from the likeliest tokens that together have this probability.
        top_k: Draws from so many likeliest tokens; 0 for all.
        max_new_tokens: Longest answer, in tokens.
        repetition_penalty: Divides the logits of tokens seen before; 1 does nothing.
        seed: Makes what is drawn repeatable; None draws anew each time.

    Raises:
        ConfigError: A value is none of those allowed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in _RULES:
            value = getattr(self, name)
            if not _is_allowed(name, value):
                raise _refuse(name, value)

    @staticmethod
    def parse(name: str, text: str) -> Value:
        """Return the value of a setting that a user typed.

        Raises:
            ConfigError: There is no such setting, or the value is none of those allowed.

        >>> ChatSettings.parse("temperature", "0.7")
        0.7
        """
        if name not in _RULES:
            raise ConfigError(
                f"There is no setting `{name}`. Settings are {', '.join(f'`{known}`' for known in _RULES)}."
            )
        rule = _RULES[name]
        if rule.optional and text.lower() == "none":
            return None
        try:
            value: Value = rule.kind(text)
        except ValueError as error:
            raise _refuse(name, text) from error
        if not _is_allowed(name, value):
            raise _refuse(name, text)
        return value

    def with_text(self, name: str, text: str) -> "ChatSettings":
        """Return these settings with one changed to what a user typed.

        Raises:
            ConfigError: As `parse`.
        """
        return dataclasses.replace(self, **{name: self.parse(name, text)})  # type: ignore[arg-type]  # checked


def describe_settings() -> dict[str, str]:
    """Return what each setting may be, in words."""
    return {name: rule.allowed for name, rule in _RULES.items()}


def _is_allowed(name: str, value: Value) -> bool:
    rule = _RULES[name]
    if value is None:
        return rule.optional
    numbers = int if rule.kind is int else (int, float)
    is_number = isinstance(value, numbers) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and rule.accepts(value)


def _refuse(name: str, value: object) -> ConfigError:
    return ConfigError(f"`{name}` cannot be `{value}`; allowed is {_RULES[name].allowed}.")
