"""`hf-instruct sweep`: many runs of one experiment; validation chooses, the test is used once."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import natural, whole
from hf_instruct.cli.run import SECTIONS
from hf_instruct.console import align, pluralize, wrap

if TYPE_CHECKING:
    from hf_instruct.sweeping.sweep import Sweep

DESCRIPTION = """\
Train an experiment with every combination of some settings, choose the run with the lowest validation loss, and answer
and judge the test split with that run only. With `--trials`, search instead of trying every combination.

Each run has a folder in the sweep's folder, next to sweep.json and sweep.csv. If a run fails, the others continue.
--SECTION.FIELD VALUE sets a field for all runs, as in `run`."""

EPILOG = """\
examples:
  hf-instruct sweep gpt2-medium/lora --set train.learning_rate=1e-5,5e-5,1e-4 --set lora.r=8,16
  hf-instruct sweep gpt2-medium/lora --set lora.r=8,16,32 --dry-run
  hf-instruct sweep gpt2-medium/lora --set lora.r=8,16 --resume
  hf-instruct sweep gpt2-medium/lora --set train.learning_rate=1e-5..1e-3 --set lora.r=4..64 --trials 12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("experiment", type=Path, help="YAML file, or name of a recipe")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="FIELD=VALUES",
        help="what to vary: SECTION.FIELD=VALUE,VALUE,… or, with `--trials`, SECTION.FIELD=LOW..HIGH, on a log "
        "scale if real numbers span a factor of 10; can be repeated",
    )
    parser.add_argument("--sweep-dir", type=Path, help="folder of the sweep (default: runs/MODEL-EXPERIMENT-sweep)")
    parser.add_argument("--trials", type=natural, metavar="N", help="search with N runs in total (Optuna)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the search (default: 0)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted sweep, or add values to it")
    parser.add_argument("--judge-all", action="store_true", help="answer and judge the test split with every run")
    parser.add_argument("--dry-run", action="store_true", help="list the runs without writing anything")
    parser.set_defaults(handler=_sweep, sections=SECTIONS)


def _sweep(options: argparse.Namespace) -> None:
    from hf_instruct.sweeping.sweep import plan_sweep, read_sweep, run_sweep

    sweep = plan_sweep(
        options.experiment,
        options.settings,
        options.sweep_dir,
        overrides=options.overrides,
        trials=options.trials,
        seed=options.seed,
    )
    if options.dry_run:
        _print_plan(sweep, read_sweep(sweep.path))
        return
    options.resume_hint = "Finished runs are kept; run the same command with `--resume` to continue."
    run_sweep(sweep, resume=options.resume, judge_all=options.judge_all)
    _print_table(sweep)
    _print_choice(sweep, judge_all=options.judge_all)


def _print_plan(sweep: "Sweep", known: "Sweep | None") -> None:
    statuses = {candidate.name: candidate.status for candidate in known.candidates} if known else {}
    if sweep.trials:
        print(f"{sweep.trials} trials in {sweep.path}, seed {sweep.seed}, {len(statuses)} of them already started:")
        for axis in sweep.axes:
            print(f"  {axis}{'  log scale' if axis.is_log else ''}")
        return
    print(f"{pluralize(len(sweep.candidates), 'run')} in {sweep.path}:")
    for candidate in sweep.candidates:
        print(f"  {candidate.name:<60}  {statuses.get(candidate.name, 'to run')}")


def _print_table(sweep: "Sweep") -> None:
    """Print the runs as aligned lines, best first, the chosen one marked."""
    from hf_instruct.sweeping.space import format_setting, short_names

    ranked = sweep.ranked()
    names = list(dict.fromkeys(name for candidate in ranked for name in candidate.settings))
    table = [["", *short_names(names), "validation loss", "training loss", "seconds", "folder"]]
    for candidate in ranked:
        mark = "*" if candidate.name == sweep.selected else ""
        row = [mark, *(format_setting(candidate.settings.get(name, "-")) for name in names)]
        row.append(candidate.status if candidate.validation_loss is None else f"{candidate.validation_loss:.4f}")
        row += [_format_number(candidate.train_loss, 4), _format_number(candidate.seconds, 0)]
        table.append([*row, candidate.name])
    print(f"{sweep.path}, by validation loss:")
    print("\n".join(align(table, right=range(1, len(table[0]) - 1))))
    for candidate in ranked:
        if candidate.error:
            print(wrap(f"failed: {candidate.name}: {candidate.error}"))


def _format_number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _print_choice(sweep: "Sweep", *, judge_all: bool) -> None:
    """Print the chosen run and, with `judge_all`, the test scores of all compared with the start model's."""
    from hf_instruct.evaluation.comparison import compare_runs
    from hf_instruct.evaluation.scores import format_scores

    best = sweep.ranked()[0]
    print(f"\n* chosen, validation loss {best.validation_loss:.4f}: {sweep.folder(best).path}")
    if sweep.test_scores:
        print(wrap(f"  test score {format_scores(sweep.test_scores)}"))
    print(f"  report {sweep.folder(best).report}")
    finished = [candidate for candidate in sweep.candidates if candidate.status == "finished"]
    folders = [sweep.folder(candidate) for candidate in finished if candidate.name in sweep.tested]
    if len(folders) < len(finished) and not judge_all:
        print("  The others were not tested: hf-instruct sweep … --resume --judge-all")
    elif judge_all:
        # The baseline is the start model, because a run chosen for its score would be biased.
        start = folders[0].load_experiment().start
        baseline = [folders[0].path / start] if folders[0].read_scores(start) else []
        if len(runs := [*baseline, *(folder.path for folder in folders)]) > 1:
            print(f"\n{compare_runs(runs)}")
