"""`hf-instruct judge --self-check`: test the judge itself."""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.cli.judge_flags import build_options, build_section, require_verdicts

if TYPE_CHECKING:
    from hf_instruct.records import Example


def check_judge(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Check a judge with answers of known worth, made from a run's test split, a file or the packaged examples.

    Args:
        options: The flags of `hf-instruct judge`.
        settings: Fields of the `judge` section that flags set.

    Raises:
        ConfigError: A flag is wrong.
        DataError: The source is missing, has faults or too few examples.
        JudgeError: Judging cannot go on; or, with `--strict`, the judge failed.
    """
    from hf_instruct.errors import JudgeError
    from hf_instruct.evaluation.self_check import DEFAULT_LIMIT, format_self_check, run_self_check
    from hf_instruct.run_folder import RunFolder

    examples = _load_examples(options.source)
    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if options.source and options.source.is_dir():
        run = RunFolder(options.source)
        settings = run.load_judge_settings(settings)
        lock = run.locked()
    section = build_section(settings)
    out = _choose_folder(options.source, options.out)
    with lock:
        result = run_self_check(
            examples,
            section,
            limit=DEFAULT_LIMIT if options.limit is None else options.limit,
            out=out,
            options=build_options(options),
        )
    print(format_self_check(result))
    if out:
        print(f"{out / 'self_check.json'}\n{out / 'self_check' / 'judgments.jsonl'}")
    judgments = (out / "self_check" / "judgments.jsonl") if out else None
    require_verdicts(result["probes"] - result["failures"], result["probes"], files=judgments)
    if options.strict and not result["passed"]:
        raise JudgeError(f"The judge failed its self-check: {', '.join(result['failed'])}.")


def _load_examples(source: Path | None) -> "list[Example]":
    from hf_instruct.data.sources import EVERYDAY, load_examples
    from hf_instruct.data.splits import split_examples
    from hf_instruct.errors import DataError
    from hf_instruct.run_folder import RunFolder

    if source is None:
        return split_examples(load_examples(EVERYDAY)).test
    if source.is_dir():
        run = RunFolder(source)
        # Says what is wrong with the folder where it is no run.
        run.load_experiment()
        return run.read_split("test")
    if not source.exists():
        raise DataError(
            f"`{source}` does not exist; name a run folder or a file of responses, or leave it out for the packaged "
            "examples."
        )
    return load_examples(str(source))


def _choose_folder(source: Path | None, out: Path | None) -> Path | None:
    """Return where the result goes: `--out`, the run, or beside the file; None for the packaged examples."""
    from hf_instruct.errors import ConfigError
    from hf_instruct.evaluation.judgment_files import choose_files

    if source is None:
        return None if out is None else choose_files(Path("the packaged examples"), out).folder
    if source.is_dir():
        if out:
            raise ConfigError(
                "`--out` is for files of responses; a run's self-check belongs in its folder. Leave it out."
            )
        return source
    return choose_files(source, out).folder
