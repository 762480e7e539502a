"""The search space of a sweep: the settings of `--set`, as points of a grid or of a search."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_instruct.errors import ConfigError
from hf_instruct.yaml_text import parse_flag_value

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_NAME = re.compile(r"\w+(\.\w+)+")
# A range of real numbers this wide is searched on a logarithmic scale.
_LOG_RATIO = 10
_LONGEST_NAME = 100
# Sections and fields whose values cannot be chosen by validation loss, and why.
_NOT_TO_SWEEP = {
    **dict.fromkeys(
        ("generate", "judge"), "it only has an effect after training, so the validation loss is the same for all"
    ),
    "data": "it changes the validation examples, so their losses cannot be compared",
    **dict.fromkeys(
        ("train.completion_only_loss", "train.max_length"),
        "it changes which tokens the validation loss is over, so losses cannot be compared",
    ),
    **dict.fromkeys(
        ("train.loss_type", "train.label_smoothing_factor"),
        "it changes how the validation loss is computed, so losses cannot be compared",
    ),
    "data.prompt_format": "",
}

Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Axis:
    """A setting by its dotted name: one of several values, or any number in a range that includes both ends."""

    name: str
    values: tuple[Any, ...]
    is_range: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether a range only contains whole numbers."""
        return all(isinstance(value, int) for value in self.values)

    @property
    def is_log(self) -> bool:
        """Whether a range is searched on a logarithmic scale."""
        return self.is_range and not self.is_whole and 0 < self.values[0] <= self.values[1] / _LOG_RATIO

    def __str__(self) -> str:
        return f"{self.name}={('..' if self.is_range else ',').join(map(json.dumps, self.values))}"


def parse_axes(texts: Sequence[str], *, searched: bool) -> list[Axis]:
    """Return the settings that the texts of `--set` vary.

    Args:
        texts: `SECTION.FIELD=VALUE,VALUE…`, values as in YAML, or `SECTION.FIELD=LOW..HIGH`.
        searched: Whether ranges are allowed, which a grid does not support.

    Raises:
        ConfigError: All problems found.

    >>> list(map(str, parse_axes(["train.learning_rate=1e-5,5e-5", "lora.r=8..64"], searched=True)))
    ['train.learning_rate=1e-05,5e-05', 'lora.r=8..64']
    """
    axes: dict[str, Axis] = {}
    problems = [] if texts else ["there is no `--set`; add at least one, as in `--set train.learning_rate=1e-5,1e-4`"]
    for text in texts:
        try:
            axis = _parse_axis(text, searched=searched)
            if axis.name in axes:
                raise ValueError(f"`--set {axis.name}` is given twice; list all its values in one `--set`")
            axes[axis.name] = axis
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError.listing(problems, "in what to sweep")
    return list(axes.values())


def _parse_axis(text: str, *, searched: bool) -> Axis:
    name, _, values_text = (part.strip() for part in text.partition("="))
    values = parse_flag_value(f"[{values_text}]")
    if not _NAME.fullmatch(name) or not isinstance(values, list) or not values:
        raise ValueError(f"`--set {text}` is not SECTION.FIELD=VALUE,VALUE, as in `--set lora.r=8,16`")
    if reason := _NOT_TO_SWEEP.get(name, _NOT_TO_SWEEP.get(name.partition(".")[0])):
        raise ValueError(f"`{name}` cannot be swept: {reason}")
    if match := _RANGE.fullmatch(values_text):
        # Not parsed as YAML, for which `1.` is not a number.
        is_whole = all(re.fullmatch(r"[-+]?\d+", end) for end in match.groups())
        low, high = ((int if is_whole else float)(end) for end in match.groups())
        if not searched:
            raise ValueError(f"`--set {text}` is a range, which needs `--trials N`; a grid needs values: {name}=A,B")
        if not low < high < math.inf:
            raise ValueError(f"`--set {text}` is empty; the first end must be below the second")
        return Axis(name, (low, high), is_range=True)
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise ValueError(f"`--set {text}` has a value that is not a finite number")
    # Duplicates are compared as JSON: 1 and true, which are equal in Python, differ, and 1e-4 and 0.0001 do not.
    return Axis(name, tuple({json.dumps(value, sort_keys=True, default=str): value for value in values}.values()))


def build_grid(axes: Sequence[Axis]) -> list[Point]:
    """Return every combination of the values, the last axis changing fastest."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def probe_points(axes: Sequence[Axis]) -> list[Point]:
    """Return points that contain every value and every end of a range at least once, to check before a search."""
    longest = max(len(axis.values) for axis in axes)
    return [{axis.name: axis.values[i % len(axis.values)] for axis in axes} for i in range(longest)]


def suggest(axes: Sequence[Axis], tried: Sequence[tuple[Point, float | None]], *, seed: int) -> Point:
    """Return the point to try next, by Optuna's TPE sampler; always the same after the same trials.

    Args:
        axes: The settings that vary.
        tried: The points so far and their losses, None for a failed one.
        seed: Seed of the search.
    """
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def build_distribution(axis: Axis) -> Any:
        if not axis.is_range:
            # As text, because a category may be a list, and 1 and true must differ.
            return CategoricalDistribution([json.dumps(value) for value in axis.values])
        return IntDistribution(*axis.values) if axis.is_whole else FloatDistribution(*axis.values, log=axis.is_log)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {axis.name: build_distribution(axis) for axis in axes}
    # A new sampler for each trial: one for all trials would draw differently after an interruption.
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed + len(tried)))
    for point, loss in tried:
        params = {axis.name: point[axis.name] if axis.is_range else json.dumps(point[axis.name]) for axis in axes}
        state = optuna.trial.TrialState.FAIL if loss is None else optuna.trial.TrialState.COMPLETE
        trial = optuna.trial.create_trial(params=params, distributions=distributions, value=loss, state=state)
        study.add_trial(trial)
    params = study.ask(distributions).params
    return {axis.name: params[axis.name] if axis.is_range else json.loads(params[axis.name]) for axis in axes}


def short_names(names: Iterable[str]) -> list[str]:
    """Return the last part of each dotted name, or the full name if two have the same last part.

    >>> short_names(["train.seed", "data.seed", "lora.r"])
    ['train.seed', 'data.seed', 'r']
    """
    lasts = {name: name.rpartition(".")[2] for name in names}
    counts = Counter(lasts.values())
    return [last if counts[last] == 1 else name for name, last in lasts.items()]


def format_point(point: Mapping[str, Any]) -> str:
    """Return settings as text.

    >>> format_point({"train.learning_rate": 1e-05, "lora.r": 8})
    'learning_rate=1e-05,r=8'
    """
    shown = zip(short_names(point), map(format_setting, point.values()), strict=True)
    return ",".join(f"{name}={value}" for name, value in shown)


def format_setting(value: Any) -> str:
    """Return the value of a setting as short text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "+".join(map(format_setting, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def folder_name(point: Mapping[str, Any]) -> str:
    """Return the name of a point's run folder: readable, safe in any file system, different for different points.

    >>> folder_name({"train.learning_rate": 1e-05, "lora.target_modules": "all-linear"})
    'learning_rate=1e-05,target_modules=all-linear'
    """
    text = format_point(point)
    name = re.sub(r"[^\w=,.+-]+", "_", text, flags=re.ASCII)
    # The text `8` looks like the number, and 0.123456 like 0.1235; a hash then distinguishes them.
    pairs = [(parse_flag_value(format_setting(value)), value) for value in point.values()]
    is_exact = all(parsed == value and type(parsed) is type(value) for parsed, value in pairs)
    if name == text and len(name) <= _LONGEST_NAME and is_exact:
        return name
    digest = hashlib.sha256(json.dumps(point, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{name[:_LONGEST_NAME]}-{digest}"
