"""Read untrusted YAML, with limits on its size, and write YAML."""

import copy
import functools
import re
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError, did_you_mean_path

# Limits of one file.
_MAX_BYTES = 1_000_000
_MAX_LEVELS = 100
_MAX_VALUES = 10_000
# More digits than the largest float has.
_LONG_INTEGER = re.compile(r"[-+]?([\d_]{309,}|0[xob][\da-fA-F_]{256,})")


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML 1.2 text.

    Raises:
        ValueError: It is not YAML, is nested more than 100 levels deep, has more than 10,000 values (with aliases
            expanded), or has a number with more than 308 digits.

    >>> parse_yaml("a: &rate 5e-5\\nb: *rate")
    {'a': 5e-05, 'b': 5e-05}
    """
    return copy.deepcopy(_parse(text))


# Cached, because a command reads its `run.yaml` several times, which takes 10 ms or more each time.
@functools.lru_cache(maxsize=16)
def _parse(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        _check_size(YAML(typ="safe", pure=True).parse(text))
        return YAML(typ="safe", pure=True).load(text)
    except LookupError as error:
        # ruamel.yaml 0.19 raises this if a value does not match its tag, as in `!!bool maybe`.
        raise ValueError("a value does not match its `!!` tag") from error
    except MarkedYAMLError as error:
        mark, begun = error.problem_mark or error.context_mark, error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f", {error.context} that starts on line {begun.line + 1}" if error.context and begun else ""
        raise ValueError(f"{where}{error.problem}{context}") from error
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split()).replace(' in "<unicode string>",', " at")) from error


def parse_flag_value(text: str) -> Any:
    """Parse the text of a flag as YAML; if it is not YAML, the text is returned.

    >>> parse_flag_value("5e-5"), parse_flag_value("null"), parse_flag_value("[q_proj, v_proj]")
    (5e-05, None, ['q_proj', 'v_proj'])
    """
    try:
        return parse_yaml(text)
    except ValueError:
        return text


def _check_size(events: Iterable[Any]) -> None:
    """Raise if the value would be too large to build, based on the parser's events, which are few and flat.

    Ten lines of YAML whose aliases refer to each other can expand to billions of values.
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
                raise ValueError(f"`*{event.anchor}` refers to a value that contains it")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent) and event.style is None and _LONG_INTEGER.fullmatch(event.value):
            raise ValueError(f"a number has {len(event.value):,} digits; the limit is 308")
        count += isinstance(event, CollectionStartEvent | ScalarEvent)
        if len(levels) > _MAX_LEVELS:
            raise ValueError(f"it is nested too deeply; the limit is {_MAX_LEVELS} levels")
        if count > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES:,} values with aliases expanded")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML 1.2 file.

    Raises:
        ConfigError: The file is missing, not UTF-8, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"`{path}` is over {_MAX_BYTES:,} bytes long, which is too long for an experiment file.")
        values = parse_yaml(content.decode("utf-8"))
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        near = did_you_mean_path(path, path.parent.glob("*.yaml"))
        raise ConfigError(f"`{path}` {what}.{near}") from error
    except ValueError as error:
        raise ConfigError(f"`{path}` is not valid YAML: {error}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"`{path}` contains a {type(values).__name__}; it must contain `section:` keys.")
    return values or {}


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return nested plain values as YAML, with keys in their order."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # typed as always None
    yaml.allow_unicode = True
    yaml.width = 110
    stream = StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue()
