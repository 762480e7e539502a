"""`hf-instruct report`: write the page of a run."""

import argparse
from pathlib import Path

DESCRIPTION = "Write report.html in a run folder: scores, losses and all answers, untuned and tuned."
EPILOG = """\
examples:
  hf-instruct report runs/demo

RUN/report.html is one self-contained file that needs no network. If a part of the run is missing, the page names the
command for it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.set_defaults(handler=_report, resume_hint="Run the same command again.")


def _report(options: argparse.Namespace) -> None:
    from hf_instruct.reporting.page import report
    from hf_instruct.reporting.summary import format_summary
    from hf_instruct.run_folder import RunFolder

    run = RunFolder(options.run)
    print(report(run))
    print(format_summary(run))
