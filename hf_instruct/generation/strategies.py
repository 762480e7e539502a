"""The decoding strategies by name, and presets by task: which fields of `GenerationConfig` each of them sets.

A strategy is what Transformers does with the probabilities of the next token; nothing here computes anything.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError

_PRESETS_FILE = Path(__file__).with_name("presets.yaml")
# Fields of `GenerationConfig` that belong to some strategies only: set with another, they would do nothing.
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")
_OF_CONTRAST = ("penalty_alpha", "top_k")
# All that a strategy decides; with a new strategy, what an older one has set of these no longer holds.
STRATEGY_FIELDS = tuple(dict.fromkeys(("do_sample", *_OF_SAMPLING, *_OF_BEAMS, *_OF_CONTRAST)))
# Fields whose values out of range Transformers takes for "off", or stumbles over: what is allowed, and whether it is.
_RANGES: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("above 0", lambda value: 0 < value < math.inf),
    "top_k": ("0 for all tokens, or a whole number above", lambda value: value >= 0 and value == int(value)),
    "top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "min_p": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "typical_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "num_beams": ("a whole number from 1", lambda value: value >= 1 and value == int(value)),
    "penalty_alpha": ("above 0 and at most 1", lambda value: 0 < value <= 1),
}
# Explicit, because a model's own `generation_config` may say otherwise.
_NO_SAMPLING = {"do_sample": False, "num_beams": 1}
_ALL_TOKENS = {"do_sample": True, "num_beams": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to choose the next token.

    Attributes:
        name: As the user types it.
        description: One line.
        source: Where it, and the numbers of `settings`, come from.
        settings: Fields of `GenerationConfig`.
        tunable: Further fields that have an effect with it, besides those that have one with every strategy.
    """

    name: str
    description: str
    source: str
    settings: Mapping[str, Any]
    tunable: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether chance has a part in it."""
        return bool(self.settings["do_sample"])


_BLOG = "https://huggingface.co/blog/how-to-generate"
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("greedy", "always the likeliest token", _BLOG, _NO_SAMPLING),
        Strategy(
            "beam",
            "the likeliest text among those that five beams follow",
            f"{_BLOG} (5 beams)",
            {**_NO_SAMPLING, "num_beams": 5},
            _OF_BEAMS,
        ),
        Strategy("sample", "a token by its probability, any of them", _BLOG, _ALL_TOKENS, _OF_SAMPLING),
        Strategy(
            "top-k",
            "a token by its probability, of the 50 likeliest",
            f"https://arxiv.org/abs/1805.04833; 50 as in {_BLOG}",
            {**_ALL_TOKENS, "top_k": 50},
            _OF_SAMPLING,
        ),
        Strategy(
            "top-p",
            "a token by its probability, of the likeliest that together have 92 %",
            f"https://arxiv.org/abs/1904.09751; 0.92 as in {_BLOG}",
            {**_ALL_TOKENS, "top_p": 0.92},
            _OF_SAMPLING,
        ),
        Strategy(
            "min-p",
            "a token by its probability, of those at least a tenth as likely as the likeliest",
            "https://arxiv.org/abs/2407.01082",
            {**_ALL_TOKENS, "min_p": 0.1},
            _OF_SAMPLING,
        ),
        Strategy(
            "typical",
            "a token by its probability, of those about as surprising as is to be expected",
            "https://arxiv.org/abs/2202.00666",
            {**_ALL_TOKENS, "typical_p": 0.95},
            _OF_SAMPLING,
        ),
        Strategy(
            "beam-sample",
            "five beams, whose continuations are drawn by their probability",
            _BLOG,
            {**_ALL_TOKENS, "num_beams": 5},
            (*_OF_SAMPLING, *_OF_BEAMS),
        ),
        Strategy(
            "contrastive",
            "of the 4 likeliest tokens, the one that is both likely and unlike what stands there",
            "https://arxiv.org/abs/2202.06417 (alpha 0.6, k 4)",
            {**_NO_SAMPLING, "penalty_alpha": 0.6, "top_k": 4},
            _OF_CONTRAST,
        ),
    )
}
# Transformers 5 has moved these to repositories on the Hub, as code to download and run.
_ON_THE_HUB = {
    "group-beam": "transformers-community/group-beam-search",
    "constrained-beam": "transformers-community/constrained-beam-search",
    "dola": "transformers-community/dola",
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Decoding settings for a kind of task.

    Attributes:
        name: As the user types it.
        description: What it is for.
        source: Where its numbers come from.
        strategy: Name of its strategy.
        settings: What it sets otherwise than the strategy does.
    """

    name: str
    description: str
    source: str
    strategy: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build_settings(self, /, **overrides: Any) -> dict[str, Any]:
        """Return the fields of `GenerationConfig` to generate with; see `build_generation_settings`."""
        return build_generation_settings(self.strategy, **{**self.settings, **overrides})


@functools.cache
def load_presets() -> dict[str, Preset]:
    """Return the presets of `presets.yaml` by name."""
    from hf_instruct.config import read_yaml

    return {name: Preset(name, **values) for name, values in read_yaml(_PRESETS_FILE).items()}


def find_preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        ConfigError: There is no such preset; the nearest is named.
    """
    presets = load_presets()
    if name not in presets:
        raise ConfigError(f"Unknown preset `{name}`;{_suggest(name, presets)} `--preset` takes one of them.")
    return presets[name]


def find_strategy(name: str) -> Strategy:
    """Return a strategy by its name; underscores are taken for hyphens.

    Raises:
        ConfigError: There is no such strategy, or Transformers no longer has it; the nearest is named.
    """
    known = name.strip().lower().replace("_", "-")
    if known in _ON_THE_HUB:
        raise ConfigError(
            f"The strategy `{name}` is no longer part of Transformers: it became code on the Hub "
            f"(`{_ON_THE_HUB[known]}`), which hf_instruct does not download and run. Allowed are {_list(STRATEGIES)}."
        )
    if known not in STRATEGIES:
        raise ConfigError(f"Unknown strategy `{name}`;{_suggest(known, STRATEGIES)}")
    return STRATEGIES[known]


def build_generation_settings(strategy: str, /, **overrides: Any) -> dict[str, Any]:
    """Return the fields of `GenerationConfig` that a strategy sets, with others over them.

    Args:
        strategy: Its name.
        **overrides: Any field of `GenerationConfig`.

    Raises:
        ConfigError: There is no such strategy, or fields are set that have no effect with it or are out of range; all
            are listed.

    >>> build_generation_settings("top-p", top_p=0.5)
    {'do_sample': True, 'num_beams': 1, 'temperature': 1.0, 'top_k': 0, 'top_p': 0.5}
    """
    chosen = find_strategy(strategy)
    settings = {**chosen.settings, **overrides}
    faults = [
        f"`{name}` is {value!r}, which has no effect with it; {_say_tunable(chosen)}"
        for name, value in overrides.items()
        if name in STRATEGY_FIELDS and name not in chosen.tunable and value != chosen.settings.get(name)
    ]
    faults += [_say_range(name, value) for name, value in overrides.items() if not _is_in_range(name, value)]
    wanted = settings.get("num_return_sequences") or 1
    if not faults and isinstance(wanted, int) and wanted > 1 and not chosen.samples:
        if settings["num_beams"] == 1:
            faults.append(
                f"{wanted} answers a prompt would all be the same one; take a strategy that samples, or `beam`"
            )
        elif wanted > settings["num_beams"]:
            faults.append(
                f"{wanted} answers a prompt need at least as many beams; `num_beams` is {settings['num_beams']}"
            )
    if faults:
        raise ConfigError(f"The strategy `{chosen.name}` cannot be used so:", faults)
    return settings


def _is_in_range(name: str, value: Any) -> bool:
    if name not in _RANGES or value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and _RANGES[name][1](value)


def _say_range(name: str, value: Any) -> str:
    return f"`{name}` is {value!r}; it should be {_RANGES[name][0]}"


def _say_tunable(strategy: Strategy) -> str:
    if not strategy.tunable:
        return "it has nothing to set"
    return f"it takes {', '.join(f'`{name}`' for name in strategy.tunable)}"


def _suggest(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    hint = f" did you mean `{near[0]}`?" if near else ""
    return f"{hint} {'Allowed' if near else 'allowed'} are {_list(allowed)}."


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
