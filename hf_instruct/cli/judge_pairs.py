"""`hf-instruct judge --pairwise`: which of two sets of answers a judge prefers."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.cli.judge_flags import build_options, build_section, require_verdicts

if TYPE_CHECKING:
    from hf_instruct.evaluation.pairwise import PairFiles


def judge_pairs(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Judge the answers of `options.source` against those of `options.baseline` and print what comes of it.

    Args:
        options: The flags of `hf-instruct judge`.
        settings: Fields of the `judge` section that the flags set.

    Raises:
        ConfigError: A flag is missing, or does not go with `--pairwise`.
        DataError: The answers cannot be read or joined.
        JudgeError: Judging cannot go on; what was judged is kept.
    """
    from os.path import normpath

    from hf_instruct.evaluation.judgment_files import load_responses
    from hf_instruct.evaluation.pairing import join_responses
    from hf_instruct.evaluation.pairwise import prefer
    from hf_instruct.run_folder import RunFolder

    _check_flags(options, settings)
    first, second = load_responses(options.source), load_responses(options.baseline)
    names = normpath(options.source), normpath(options.baseline)
    joined = join_responses(first, second, names=names)
    run = RunFolder(options.source)
    is_run = run.config.is_file()
    # Of a run's own settings those of the judge hold here too; its rubric and repeats are for scores.
    section = build_section(run.load_judge_settings(settings) if is_run else settings)
    files = _choose_files(options.source, options.baseline, options.out)
    with run.locked() if is_run else nullcontext():
        judged = prefer(joined, section, names=names, files=files, options=build_options(options))
    print(f"{judged}\n{files.preferences}\n{files.summary}")
    asked = judged.summary["total"] - judged.summary["identical"]
    require_verdicts(asked - judged.summary["failures"], asked, files=files.preferences)


def _check_flags(options: argparse.Namespace, settings: dict[str, Any]) -> None:
    from hf_instruct.errors import ConfigError

    faults = [
        f"`--{name}` is for scores; `--pairwise` {why}, so leave it out"
        for name, why in (("rubric", "has a question of its own"), ("repeats", "asks in both orders, once each"))
        if name in settings
    ]
    if options.baseline is None:
        faults.append("`--pairwise` needs the other answers: add `--baseline`, such as `--baseline RUN/base`")
    if faults:
        raise ConfigError.listing(faults, "in the flags")


def _choose_files(source: Path, baseline: Path, out: Path | None) -> "PairFiles":
    """Return where the preferences go: `pairwise/` in the run or beside the file, or `out`.

    Raises:
        RunError: Nothing can be written there.
    """
    from hf_instruct.evaluation.judgment_files import choose_files
    from hf_instruct.evaluation.pairwise import PairFiles, to_file_name

    name = _name(baseline, seen_from=source)
    if out is not None or not source.is_dir():
        # Others may keep their preferences there.
        name = f"{_name(source, seen_from=baseline)}-against-{name}"
    folder = out or (source if source.is_dir() else source.parent) / "pairwise"
    return PairFiles(choose_files(source, folder).folder, to_file_name(name))


def _name(path: Path, *, seen_from: Path) -> str:
    """Return a short name for a set of answers; an untuned side keeps its run's name where that is another run."""
    resolved = path.resolve()
    if not path.is_dir():
        return resolved.stem
    if resolved.name == "base" and resolved.parent != seen_from.resolve():
        return f"{resolved.parent.name}-base"
    return resolved.name
