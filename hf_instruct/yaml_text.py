"""Read YAML that somebody else may have written: what is not YAML, or is too much of it, is a ValueError."""

import re
from collections.abc import Iterable
from typing import Any

MOST_BYTES = 1_000_000
"""Longest YAML file that is read."""

_MOST_LEVELS = 100
_MOST_VALUES = 10_000
# More digits than the largest float has.
_LONG_INTEGER = re.compile(r"[-+]?([\d_]{309,}|0[xob][\da-fA-F_]{256,})")


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML 1.2 text.

    Raises:
        ValueError: It is not YAML, nested over 100 levels, holds over 10,000 values (each alias counts as all that
            it stands for), or holds a number that nothing can compute with.

    >>> parse_yaml("a: &rate 5e-5\\nb: *rate")
    {'a': 5e-05, 'b': 5e-05}
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        _check_size(YAML(typ="safe", pure=True).parse(text))
        return YAML(typ="safe", pure=True).load(text)
    except LookupError as error:
        # Of ruamel.yaml 0.19 where a value does not go with its tag, as in `!!bool maybe`.
        raise ValueError("a value does not go with its `!!` tag") from error
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split("To suppress")[0].split())) from error


def _check_size(events: Iterable[Any]) -> None:
    """Raise where the value would be too large to build, from the parser's events, which are few and flat.

    Ten lines of YAML whose aliases name each other stand for billions of values.
    """
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    count = 0
    sizes: dict[str, int] = {}
    levels: list[tuple[str | None, int]] = []
    for event in events:
        if isinstance(event, CollectionStartEvent):
            levels.append((event.anchor, count))
        elif isinstance(event, CollectionEndEvent):
            anchor, before = levels.pop()
            sizes[anchor or ""] = count - before + 1
        elif isinstance(event, AliasEvent):
            if any(event.anchor == anchor for anchor, _ in levels):
                raise ValueError(f"`*{event.anchor}` is inside the value that it names")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent) and event.style is None and _LONG_INTEGER.fullmatch(event.value):
            raise ValueError(f"a number has {len(event.value):,} digits; it may have 308")
        count += isinstance(event, CollectionStartEvent | ScalarEvent)
        if len(levels) > _MOST_LEVELS:
            raise ValueError(f"it is nested too deeply; {_MOST_LEVELS} levels are read")
        if count > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values, aliases written out")
