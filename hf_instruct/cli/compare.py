"""`hf-instruct compare`: runs side by side, example by example."""

import argparse
import textwrap

from hf_instruct.cli.flags import add_plot_flag
from hf_instruct.console import format_json

_PLOT_TITLE = 110

DESCRIPTION = "Compare the scores, or the reference metrics, of two or more runs example by example."
EPILOG = """\
examples:
  hf-instruct compare runs/my-run/untuned runs/my-run        the tuned model compared with the untuned one
  hf-instruct compare runs/full runs/lora runs/lora-r64      a table, each run compared with the first
  hf-instruct compare runs/* --baseline runs/full --plot runs.png
  hf-instruct compare a/judgments.jsonl b/judgments.jsonl    files of scores; lists of numbers are joined by order

RUN means the tuned model of a run folder, RUN/untuned the untuned one. Examples are joined by id, and only those with a
score in all runs are used. Unless all runs were judged, their reference metrics are compared. Differences are relative
to the first run, or to `--baseline`. Do not choose the baseline by its score (such as the best one): that makes the
differences look larger than they are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("runs", metavar="RUN_OR_FILE", nargs="+", help="a run folder, RUN/untuned, or a file of scores")
    parser.add_argument(
        "--baseline", metavar="RUN_OR_FILE", help="baseline of the differences (default: the first run)"
    )
    parser.add_argument(
        "--force", action="store_true", help="compare runs that were judged differently; the table says so"
    )
    add_plot_flag(parser, "plot means and differences with their intervals")
    parser.add_argument(
        "--power", action="store_true", help="also show how many examples are needed to show a difference"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(handler=_compare, resume_hint="Nothing was changed; run the same command again.")


def _compare(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.comparison import compare_runs

    comparison = compare_runs(options.runs, baseline=options.baseline, force=options.force)
    if options.plot:
        from hf_instruct.evaluation.comparison_views import draw_comparison_plot
        from hf_instruct.plots import write_figure

        title = f"NOT COMPARABLE: {comparison.judge}" if comparison.judging_differences else comparison.judge
        write_figure(draw_comparison_plot(comparison, title=textwrap.shorten(title, _PLOT_TITLE)), options.plot)
    if options.json:
        print(format_json(comparison.to_dict()))
    else:
        print(comparison)
        if options.power:
            from hf_instruct.evaluation.comparison_views import format_power

            print(f"\n{format_power(comparison)}")
        if options.plot:
            print(f"\nPlot: {options.plot}")
