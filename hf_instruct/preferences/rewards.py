"""Reward functions for TRL's trainers: reference metrics, the length, whether the model stopped, and a judge."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.config import JudgeSection, build_experiment
from hf_instruct.errors import ConfigError, did_you_mean, quote_names
from hf_instruct.evaluation.judges import Judge, choose_judge, opened_judge
from hf_instruct.evaluation.loop import JudgeOptions
from hf_instruct.evaluation.scoring import judge_alone
from hf_instruct.evaluation.self_check import check_briefly, refuse_failed_judge
from hf_instruct.evaluation.text_metrics import exact_match, rouge_l, token_f1
from hf_instruct.records import Example
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import Response
from hf_instruct.servers import run_sync


def _length(response: str, reference: str) -> float:
    """Return the ratio of the shorter to the longer length in characters, which is 1 if they are equal."""
    lengths = sorted((len(response), len(reference)))
    return lengths[0] / max(lengths[1], 1)


# Each compares an answer with the reference. A new one also needs a weight, a field of `config.RewardsSection`.
_MEASURES: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "length": _length,
}
_STOPPED = "stopped"
_JUDGE = "judge"
_NAMES = (*_MEASURES, _STOPPED, _JUDGE)


def build_rewards(
    names: Iterable[str], *, ends: Collection[int] = (), judge: "JudgeSection | Mapping[str, Any] | None" = None
) -> list[Callable[..., Any]]:
    """Return reward functions by name, for `train_grpo` or your own `GRPOTrainer`.

    Args:
        names: `exact_match`, `token_f1`, `rouge_l` and `length` compare the answer with the column `output`, the
            reference, and return 0 to 1; `stopped` returns 1 if the last token is one of `ends`, else 0; `judge`
            returns a judge's score from 0 to 1, or None for an answer without a verdict. `judge` is asynchronous,
            which TRL's trainers support.
        ends: Token ids that end an answer, for `stopped`.
        judge: Settings of the judge, as in an experiment's `judge` section.

    Raises:
        ConfigError: A name is unknown, `ends` is missing for `stopped`, or a setting of the judge is wrong.

    >>> (reward,) = build_rewards(["exact_match"])
    >>> reward(completions=["Jane Austen", "Emma"], output=["Jane Austen.", "Jane Austen."])
    [1.0, 0.0]
    """
    names = list(names)
    if unknown := [name for name in names if name not in _NAMES]:
        raise ConfigError(
            f"There is no reward `{unknown[0]}`.{did_you_mean(unknown[0], _NAMES)} The rewards are "
            f"{quote_names(_NAMES)}."
        )
    if _STOPPED in names and not ends:
        raise ConfigError("The reward `stopped` needs `ends`, the token ids that end an answer.")
    if not isinstance(judge, JudgeSection):
        judge = build_experiment({"judge": dict(judge or {})}, where="`judge`", deep=False).judge
    return [_build_judge_reward(judge) if name == _JUDGE else _build_reward(name, frozenset(ends)) for name in names]


def _build_reward(name: str, ends: frozenset[int]) -> Callable[..., list[float]]:
    def stopped(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [float(ids[-1] in ends) for ids in completion_ids]

    def compared(completions: Sequence[str], output: Sequence[str], **_: Any) -> list[float]:
        return [_MEASURES[name](text.strip(), reference) for text, reference in zip(completions, output, strict=True)]

    function = stopped if name == _STOPPED else compared
    # Trainers log its mean under this name.
    function.__name__ = name
    return function


def _build_judge_reward(settings: JudgeSection) -> Callable[..., Any]:
    opened: list[Judge] = []

    # TRL runs all calls in one event loop, which the judge's connections belong to.
    async def judge(
        completions: Sequence[str], id: Sequence[str], instruction: Sequence[str], input: Sequence[str],
        output: Sequence[str], **_: Any,
    ) -> list[float | None]:  # fmt: skip
        if not opened:
            chosen = await choose_judge(settings)
            await chosen.prepare()
            opened.append(chosen)
        keys = list(zip(id, completions, strict=True))
        columns = zip(keys, instruction, input, output, strict=True)
        # An answer that was sampled several times is judged once.
        rows = {
            key: Response(id=f"{key[0]}/{n}", instruction=task, input=text, output=reference, response=key[1])
            for n, (key, task, text, reference) in enumerate(columns)
        }
        judgments = await judge_alone(opened[0], list(rows.values()), settings)
        scores = {key: judgment.score for key, judgment in zip(rows, judgments, strict=True)}
        return [None if (score := scores[key]) is None else score / 100 for key in keys]

    async def close() -> None:
        while opened:
            await opened.pop().close()

    judge.close = close  # type: ignore[attr-defined]
    return judge


def check_rewarding_judge(settings: JudgeSection, examples: Sequence[Example], run: RunFolder) -> None:
    """Check a judge, unless it was checked before or `judge.check` is off, and refuse one that fails.

    Raises:
        JudgeError: The judge fails its check, or does not answer.
    """

    async def work() -> None:
        async with opened_judge(settings) as judge:
            options = JudgeOptions(resume_hint="Continue with `--resume`.")
            await check_briefly(judge, examples, settings, out=run.path, options=options)
            refuse_failed_judge(
                judge,
                settings,
                ", so `rewards.judge` would reward the wrong answers. Choose another (`--judge.backend`, "
                "`--judge.model`), or use it anyway with `--judge.check false`.",
            )

    if settings.check:
        run_sync(work())


def load_reward(place: str) -> Callable[..., Any]:
    """Run a user's file and return the reward function in it; its `origin` names both, with a hash of the file.

    Args:
        place: `FILE.py:NAME`.

    Raises:
        ConfigError: There is no such file or function, or running the file fails.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"`--reward` is `{place}`; it must be FILE.py:NAME, and there is no file `{file}`.")
    # As for a script, modules next to the file can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    spec: Any = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
    # Registered, because dataclasses and pickle look up the module of a class.
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
