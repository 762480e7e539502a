"""The flags of `hf-instruct judge`, as the settings that they stand for, whatever is judged."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_instruct.config import JudgeSection
    from hf_instruct.evaluation.loop import JudgeOptions

# Flag -> field of the experiment's `judge` section.
_FIELDS = {
    "judge": "backend",
    "model": "model",
    "rubric": "rubric",
    "base_url": "base_url",
    "concurrency": "concurrency",
    "timeout_seconds": "timeout_seconds",
    "pull": "pull",
    "repeats": "repeats",
}


def collect_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the `judge` section that the flags set.

    Raises:
        ConfigError: A flag belongs to another section.
    """
    from hf_instruct.errors import ConfigError

    settings = {field: value for flag, field in _FIELDS.items() if (value := getattr(options, flag)) is not None}
    faults = []
    for dotted, value in getattr(options, "overrides", {}).items():
        section, _, field = dotted.partition(".")
        if section != "judge":
            faults.append(f"`--{dotted}` is not a setting of judging; only `--judge.FIELD` is allowed here")
        else:
            settings[field] = value
    if faults:
        raise ConfigError.listing(faults, "in the flags")
    return settings


def build_section(values: dict[str, Any]) -> "JudgeSection":
    """Return the `judge` section with these values.

    Raises:
        ConfigError: A value is not allowed.
    """
    from hf_instruct.config import build_experiment

    return build_experiment({"judge": values}, where="the flags", deep=False).judge


def require_verdicts(num_verdicts: int, num_asked: int, *, files: Path | None) -> None:
    """Raise where a judge was asked and not one of its verdicts could be read: the command has failed.

    Args:
        num_verdicts: How many of its verdicts there are.
        num_asked: How many it was asked for.
        files: Where its replies are, if they are kept.

    Raises:
        JudgeError: There are none.
    """
    from hf_instruct.errors import JudgeError

    if num_asked and not num_verdicts:
        where = f" `{files}` has its replies and the reasons." if files else ""
        raise JudgeError(
            f"The judge gave no verdict: all {num_asked} failed.{where} Choose another with `--judge` and `--model`."
        )


def build_options(options: argparse.Namespace) -> "JudgeOptions":
    """Return how to judge, from the flags that are not of the `judge` section."""
    from hf_instruct.evaluation.loop import JudgeOptions
    from hf_instruct.redaction import redact

    # `--force` would throw away what was judged before the interruption.
    command = redact(shlex.join(["hf-instruct", *(word for word in sys.argv[1:] if word != "--force")]))
    return JudgeOptions(
        use_cache=not options.no_cache, force=options.force, go_on=f"Go on with the same command: `{command}`."
    )
