"""`hf-instruct rate`: ratings of several sets of answers by the preferences between them."""

import argparse
from pathlib import Path

from hf_instruct.console import format_json, wrap

DESCRIPTION = """\
Rate sets of answers on one scale (Bradley-Terry) from preferences between them: those of a judge (`hf-instruct judge
pairwise`) or of people (`hf-instruct vote`). A chain of comparisons must connect all sets."""

EPILOG = """\
examples:
  hf-instruct judge pairwise runs/full --baseline runs/full/untuned
  hf-instruct judge pairwise runs/lora --baseline runs/full/untuned
  hf-instruct rate runs/full runs/lora                       use all preferences in these folders
  hf-instruct rate runs/full/votes.lora.jsonl                the votes of people
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "sources", metavar="FILE_OR_RUN", type=Path, nargs="+", help="a file of preferences or votes, or a run folder"
    )
    parser.add_argument("--force", action="store_true", help="combine different judges; the table says so")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(handler=_rate, resume_hint="Nothing was changed; run the same command again.")


def _rate(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.ratings import rate_preferences

    table = rate_preferences(options.sources, force=options.force)
    print(format_json(table.to_dict()) if options.json else wrap(str(table)))
