"""`hf-instruct rate`: ratings of several sets of answers by the preferences between them."""

import argparse
from pathlib import Path

from hf_instruct.console import format_json, wrap

DESCRIPTION = """\
Rate sets of answers on one scale (Bradley-Terry) by the preferences between them: of a judge, from `hf-instruct
judge pairwise`, or of people, from `hf-instruct vote`. Each set needs a chain of comparisons to each other one."""

EPILOG = """\
examples:
  hf-instruct judge pairwise runs/full --baseline runs/full/untuned
  hf-instruct judge pairwise runs/lora --baseline runs/full/untuned
  hf-instruct rate runs/full runs/lora                       all preferences in these folders
  hf-instruct rate runs/full/votes.lora.jsonl                the votes of people
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument(
        "sources", metavar="FILE_OR_RUN", type=Path, nargs="+", help="a file of preferences or votes, or a run folder"
    )
    parser.add_argument("--force", action="store_true", help="put different judges together; the table says so")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(handler=_rate, resume_hint="Nothing was changed; start it again.")


def _rate(options: argparse.Namespace) -> None:

    from hf_instruct.evaluation.ratings import rate_preferences

    table = rate_preferences(options.sources, force=options.force)
    print(format_json(table.to_dict()) if options.json else wrap(str(table)))
