"""Reward functions for TRL's trainers: reference metrics, the length, and whether the model stopped."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import ConfigError, did_you_mean, quote_names
from hf_instruct.evaluation.text_metrics import exact_match, rouge_l, token_f1


def _length(response: str, reference: str) -> float:
    """Return the ratio of the shorter to the longer length, in characters: 1 if they are equal."""
    lengths = sorted((len(response), len(reference)))
    return lengths[0] / max(lengths[1], 1)


# Each compares an answer with the reference. A new one also needs its weight, a field of `config.RewardsSection`.
_MEASURES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "length": _length,
}
_STOPPED = "stopped"


def build_rewards(names: Iterable[str], *, ends: Collection[int] = ()) -> list[Callable[..., list[float]]]:
    """Return reward functions by name, for `train_with_rewards` or a `GRPOTrainer` of your own.

    Args:
        names: `exact_match`, `token_f1`, `rouge_l` and `length` compare the answer with the column `output`, the
            reference, and are from 0 to 1; `stopped` is 1 where the last token is one of `ends`.
        ends: Token ids that end an answer.

    Raises:
        ConfigError: There is no reward of a name, or `stopped` lacks its `ends`.

    >>> (reward,) = build_rewards(["exact_match"])
    >>> reward(completions=["Jane Austen", "Emma"], output=["Jane Austen.", "Jane Austen."])
    [1.0, 0.0]
    """
    names = list(names)
    if unknown := [name for name in names if name not in (*_MEASURES, _STOPPED)]:
        raise ConfigError(
            f"There is no reward `{unknown[0]}`.{did_you_mean(unknown[0], [*_MEASURES, _STOPPED])} The rewards are "
            f"{quote_names([*_MEASURES, _STOPPED])}."
        )
    if _STOPPED in names and not ends:
        raise ConfigError("The reward `stopped` needs `ends`, the token ids that end an answer.")
    return [_build_reward(name, frozenset(ends)) for name in names]


def _build_reward(name: str, ends: frozenset[int]) -> Callable[..., list[float]]:
    def stopped(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [float(ids[-1] in ends) for ids in completion_ids]

    def compared(completions: Sequence[str], output: Sequence[str], **_: Any) -> list[float]:
        return [_MEASURES[name](text.strip(), reference) for text, reference in zip(completions, output, strict=True)]

    function = stopped if name == _STOPPED else compared
    # By which trainers log its mean.
    function.__name__ = name
    return function


def load_reward(place: str) -> Callable[..., Any]:
    """Return a reward function of the user's, and run the file that it is in; its `origin` names both, with a hash.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        ConfigError: There is no such file or function, or running the file fails.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"`--reward` is `{place}`; it must be FILE.py:NAME, and there is no file `{file}`.")
    spec: Any = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
    # Registered, as dataclasses and pickle expect of the module of a class.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"`{file}` of `--reward` fails: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = quote_names(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise ConfigError(f"`{file}` has no function `{name}`; it has {names or 'none'}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    function.origin = f"{path.name}:{name} sha256:{digest[:12]}"
    return function  # type: ignore[no-any-return]
