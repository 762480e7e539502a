"""`hf-instruct agree`: agreement of two judges, or of a judge and people."""

import argparse
from pathlib import Path

from hf_instruct.cli.flags import whole
from hf_instruct.console import format_json, wrap

DESCRIPTION = """\
Measure the agreement of two judges, or of a judge with people, on the same answers.

Compares two run folders (their `judgments.jsonl`), files of judgments, preferences or votes, JSON lists of numbers,
JSON objects of ids and numbers, or .jsonl or .csv files with `id` and `score`. Rows are joined by id, or by order if
there are no ids. For scores: Pearson, Spearman and Kendall correlation, differences, and the share within 10 points.
For preferences: the share that agrees, and Cohen's kappa."""

EPILOG = """\
examples:
  hf-instruct agree gpt4-scores.json llama3-scores.json
  hf-instruct agree runs/my-run runs/my-run/judgments.llama3-course-1f2e3d.jsonl
  hf-instruct agree runs/my-run/votes.untuned.jsonl runs/my-run/pairwise/untuned.jsonl
  hf-instruct agree votes.jsonl votes.jsonl --voter-a Ann --voter-b Ben"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", metavar="A", type=Path, help="a run folder or a file of verdicts")
    parser.add_argument("b", metavar="B", type=Path, help="the other")
    parser.add_argument("--voter-a", metavar="NAME", help="use only this voter's votes in A")
    parser.add_argument("--voter-b", metavar="NAME", help="use only this voter's votes in B")
    parser.add_argument("--seed", metavar="S", type=whole, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(handler=_agree, resume_hint="Nothing was changed; run the same command again.")


def _agree(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.agreement import measure_agreement

    voters = options.voter_a, options.voter_b
    agreement = measure_agreement(options.a, options.b, voters=voters, seed=options.seed)
    print(format_json(agreement.to_dict()) if options.json else wrap(str(agreement)))
