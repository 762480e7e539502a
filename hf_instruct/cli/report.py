"""`hf-instruct report`: write the page of a run."""

import argparse
from pathlib import Path

_EPILOG = """examples:
  hf-instruct report runs/smollm2-135m-demo

The page, RUN/report.html, is one file that needs no network: open it in any browser, mail it, keep it.
Whatever the run lacks so far is named on the page with the command that makes it.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb `report`."""
    parser = subparsers.add_parser(
        "report",
        help="write report.html: scores, losses and all answers, before and after",
        description="Write report.html in a run folder: scores, losses and all answers, before and after.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.set_defaults(handler=_report, resume_hint="Give the same command again.")


def _report(options: argparse.Namespace) -> None:
    from hf_instruct.reporting.stage import report
    from hf_instruct.reporting.summary import format_summary_line
    from hf_instruct.run_folder import RunFolder

    run = RunFolder(options.run)
    print(report(run, run.load_experiment()))
    line = format_summary_line(run)
    if line:
        print(line)
