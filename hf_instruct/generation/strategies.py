"""Decoding strategies by name and presets by task, as fields of `GenerationConfig`, from `strategies.yaml`."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError, did_you_mean, quote_names
from hf_instruct.yaml_text import read_yaml

# Initial values of `explore`, in the terminal and on the page: small top-k and top-p, so that they cut the table.
# Source: https://huggingface.co/blog/how-to-generate
EXPLORED_TEXT, EXPLORED_TOP_K, EXPLORED_TOP_P = "I enjoy walking with my cute dog", 10, 0.7
EXPLORED_STRATEGIES = ("greedy", "beam", "sample", "top-k", "top-p")
# Fields of `GenerationConfig` that only have an effect with some strategies.
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")
# All fields that a strategy sets; a new strategy replaces the values of the old one.
STRATEGY_FIELDS = ("do_sample", *_OF_SAMPLING, *_OF_BEAMS)
# Transformers treats some values outside of these ranges as "off".
_RANGES = {
    **dict.fromkeys(("top_p", "min_p", "typical_p"), (0, 1)),
    **{"temperature": (0.01, 100), "top_k": (0, 10**6), "num_beams": (1, 1000)},
}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to choose the next token: a strategy, or a preset, which is a strategy for a kind of task."""

    name: str  # as the user types it
    description: str  # one line
    source: str  # origin of the strategy and of the numbers in `settings`
    settings: Mapping[str, Any]  # fields of `GenerationConfig`

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return bool(self.settings["do_sample"])

    @property
    def tunable(self) -> tuple[str, ...]:
        """Fields that have an effect with this strategy but not with every one."""
        has_beams = self.settings["num_beams"] > 1
        return (*(_OF_SAMPLING if self.samples else ()), *(_OF_BEAMS if has_beams else ()))


@functools.cache
def load_strategies(*, presets: bool = False) -> dict[str, Strategy]:
    """Return the strategies, or the presets, by name."""
    content = read_yaml(Path(__file__).with_name("strategies.yaml"))
    strategies = {}
    for name, row in content["presets" if presets else "strategies"].items():
        settings = dict(load_strategies()[row["strategy"]].settings) if presets else {}
        strategies[name] = Strategy(name, row["description"], row["source"], settings | row.get("settings", {}))
    return strategies


def find_strategy(name: str, *, preset: bool = False) -> Strategy:
    """Return a strategy, or a preset, by its name; underscores are treated as hyphens.

    Raises:
        ConfigError: The name is unknown; the closest allowed one is suggested.
    """
    normalized = name.strip().lower().replace("_", "-")
    allowed = load_strategies(presets=preset)
    if normalized not in allowed:
        near = did_you_mean(normalized, allowed, cutoff=0.5)
        raise ConfigError(
            f"Unknown {'preset' if preset else 'strategy'} `{name}`.{near} Choose from {quote_names(allowed)}."
        )
    return allowed[normalized]


def build_generation_settings(strategy: str | Strategy, /, **overrides: Any) -> dict[str, Any]:
    """Return the fields of `GenerationConfig` that a strategy sets, updated with `overrides`.

    Args:
        strategy: A strategy or its name.
        **overrides: Any field of `GenerationConfig`.

    Raises:
        ConfigError: There is no such strategy, or overrides have no effect with it or are out of range; all are listed.

    >>> build_generation_settings("top-p", top_p=0.5)
    {'do_sample': True, 'num_beams': 1, 'temperature': 1.0, 'top_k': 0, 'top_p': 0.5}
    """
    chosen = find_strategy(strategy) if isinstance(strategy, str) else strategy
    settings = {**chosen.settings, **overrides}
    problems = []
    for name, value in overrides.items():
        if name in STRATEGY_FIELDS and name not in chosen.tunable and value != chosen.settings.get(name):
            takes = f"it supports {quote_names(chosen.tunable)}" if chosen.tunable else "it has no settings"
            problems.append(f"`{name}` is {value!r}, which has no effect with it; {takes}")
        low, high = _RANGES.get(name, (0, 0))
        if name in _RANGES and value is not None and not (isinstance(value, int | float) and low <= value <= high):
            problems.append(f"`{name}` is {value!r}; it must be a number from {low} to {high}")
    wanted = settings.get("num_return_sequences") or 1
    if not problems and not chosen.samples and wanted > settings["num_beams"]:
        problems.append(f"{wanted} answers per prompt need a strategy that samples, or `beam` with as many `num_beams`")
    if problems:
        raise ConfigError(f"The strategy `{chosen.name}` cannot be used like this:", problems)
    return settings
