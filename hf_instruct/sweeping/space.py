"""What a sweep varies: the settings after `--set`, as points of a grid or as ranges to search, and names for them."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_instruct.config import parse_flag_value
from hf_instruct.errors import ConfigError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_NAME = re.compile(r"\w+(\.\w+)+")
# A range of real numbers this wide is searched by its logarithm.
_LOG_RATIO = 10
_LONGEST_NAME = 100
# Why the validation loss cannot choose between values of these.
_NOT_TO_SWEEP = {
    "generate": "it takes effect after training, so the validation loss is the same for all",
    "judge": "it takes effect after training, so the validation loss is the same for all",
    "data": "it changes the validation examples, so their losses cannot be compared",
    "train.completion_only_loss": "it changes which tokens the validation loss is over, so losses cannot be compared",
    "train.max_length": "it changes which tokens the validation loss is over, so losses cannot be compared",
    "train.loss_type": "it changes how the validation loss is computed, so losses cannot be compared",
    "train.label_smoothing_factor": "it changes how the validation loss is computed, so losses cannot be compared",
}


@dataclasses.dataclass(frozen=True)
class Choices:
    """A setting and the values it may take, each once, in the order given."""

    name: str
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """A setting and the ends of the numbers it may take, both included.

    Attributes:
        is_log: Searched evenly by logarithm.
    """

    name: str
    low: float
    high: float
    is_log: bool

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Axis = Choices | Range
Point = dict[str, Any]


def parse_axes(texts: Sequence[str], *, searched: bool) -> list[Axis]:
    """Return what `--set` texts vary.

    Args:
        texts: `SECTION.FIELD=VALUE,VALUE…`, values as in YAML, or `SECTION.FIELD=LOW..HIGH`.
        searched: Whether ranges are allowed: a grid has none.

    Raises:
        ConfigError: All faults found.

    >>> parse_axes(["train.learning_rate=1e-5,5e-5", "lora.r=8..64"], searched=True)
    [Choices(name='train.learning_rate', values=(1e-05, 5e-05)), Range(name='lora.r', low=8, high=64, is_log=False)]
    """
    axes: list[Axis] = []
    faults: list[str] = []
    for text in texts:
        try:
            axis = _parse_axis(text, searched=searched)
        except ValueError as error:
            faults.append(str(error))
            continue
        if any(axis.name == other.name for other in axes):
            faults.append(f"`--set {axis.name}` is given twice; list all its values in one")
        axes.append(axis)
    if not texts:
        faults.append("there is no `--set`; give at least one, as in `--set train.learning_rate=1e-5,5e-5,1e-4`")
    if faults:
        raise ConfigError.listing(faults, "in what to sweep")
    return axes


def _parse_axis(text: str, *, searched: bool) -> Axis:
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(f"`--set {text}` is not SECTION.FIELD=VALUE,VALUE, as in `--set lora.r=8,16`")
    reason = _NOT_TO_SWEEP.get(name, _NOT_TO_SWEEP.get(name.partition(".")[0]))
    if reason and name != "data.prompt_format":
        raise ValueError(f"`{name}` is not for a sweep: {reason}")
    if found := _RANGE.fullmatch(values):
        return _build_range(name, *found.groups(), searched=searched)
    parts = _split_values(values)
    if not values or "" in parts:
        raise ValueError(f"`--set {text}` has an empty value; separate values by one comma")
    parsed = [parse_flag_value(part) for part in parts]
    if bad := [part for part, value in zip(parts, parsed, strict=True) if _is_endless(value)]:
        raise ValueError(f"`--set {name}` holds `{bad[0]}`, which is not a finite number")
    # By their text: 1 and true are equal in Python, and 1e-4 and 0.0001 the same.
    return Choices(name, tuple({json.dumps(value, sort_keys=True, default=str): value for value in parsed}.values()))


def _build_range(name: str, low: str, high: str, *, searched: bool) -> Range:
    # Not as YAML: that takes `1e5` for a number, too, but not `1.` in every case.
    is_whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
    first, last = (int(low), int(high)) if is_whole else (float(low), float(high))
    if not searched:
        raise ValueError(
            f"`--set {name}={low}..{high}` is a range, which needs `--trials N`; a grid takes values: {low},{high}"
        )
    if not first < last or not math.isfinite(last):
        raise ValueError(f"`--set {name}={low}..{high}` goes nowhere; the first end is to be below the second")
    return Range(name, first, last, is_log=not is_whole and first > 0 and last / first >= _LOG_RATIO)


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _split_values(text: str) -> list[str]:
    """Return a text split at the commas that stand in no bracket or quotation marks.

    >>> _split_values("[q_proj, v_proj],all-linear")
    ['[q_proj, v_proj]', 'all-linear']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{") - (character in "]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def build_grid(axes: Sequence[Choices]) -> list[Point]:
    """Return every combination of the values, the last axis changing fastest."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def probe_points(axes: Sequence[Axis]) -> list[Point]:
    """Return points that hold every value and every end of a range at least once, to be checked before a search."""
    ends = [list(axis.values) if isinstance(axis, Choices) else [axis.low, axis.high] for axis in axes]
    longest = max(len(values) for values in ends)
    return [{axis.name: v[i % len(v)] for axis, v in zip(axes, ends, strict=True)} for i in range(longest)]


def format_point(point: Mapping[str, Any]) -> str:
    """Return settings as they are shown, by the last part of their names where that is not ambiguous.

    >>> format_point({"train.learning_rate": 1e-05, "lora.r": 8})
    'learning_rate=1e-05,r=8'
    """
    lasts = [name.rpartition(".")[2] for name in point]
    return ",".join(
        f"{last if lasts.count(last) == 1 else name}={_format_value(value)}"
        for (name, value), last in zip(point.items(), lasts, strict=True)
    )


def folder_name(point: Mapping[str, Any]) -> str:
    """Return the name of a point's run folder: readable, safe in any file system, different for different points.

    >>> folder_name({"train.learning_rate": 1e-05, "lora.target_modules": "all-linear"})
    'learning_rate=1e-05,target_modules=all-linear'
    """
    text = format_point(point)
    name = re.sub(r"[^\w=,.+-]+", "_", text, flags=re.ASCII)
    is_exact = name == text and all(_is_exact(value) for value in point.values())
    if is_exact and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps(point, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{name[:_LONGEST_NAME]}-{digest}"


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "+".join(map(_format_value, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_exact(value: Any) -> bool:
    """Return whether the shown value tells it from any other: a text `8` is shown like the number."""
    shown = _format_value(value)
    read = parse_flag_value(shown)
    return bool(read == value and type(read) is type(value))
