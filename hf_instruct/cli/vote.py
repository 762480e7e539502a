"""`hf-instruct vote`: a page where people say which of two answers is better, or how good one is."""

import argparse
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_page_flags, natural, open_page
from hf_instruct.console import pluralize

if TYPE_CHECKING:
    from hf_instruct.evaluation.votes import Book

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Serve a web page on this machine where people see an instruction and two anonymous answers in random order, and vote for
the better one. With one run, they see one answer at a time, of all models of the run in random order, and score it from
0 to 100; 10 or more scores correct the mean of any judge. Each vote is stored immediately; the same command continues
where each voter stopped."""

EPILOG = """\
examples:
  hf-instruct vote runs/my-run runs/my-run/untuned           the tuned model and the untuned one
  hf-instruct vote runs/full runs/lora --limit 40 --voter Ann
  hf-instruct vote runs/full --limit 40                       scores of the answers to 40 examples; then
  hf-instruct judge runs/full                                 the judge's means, corrected by them
  hf-instruct rate runs/full/votes.lora.jsonl                 ratings from the votes
  hf-instruct judge pairwise runs/full --baseline runs/lora
  hf-instruct agree runs/full/votes.lora.jsonl runs/full/pairwise/lora.jsonl
                                                              do people and the judge agree?

Press Ctrl-C to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("a", metavar="RUN_A", type=Path, help="a run folder, or a file of responses")
    parser.add_argument("b", metavar="RUN_B", type=Path, nargs="?", help="the other; none to score answers")
    places = "RUN_A/votes.<RUN_B>.jsonl; of scores: RUN_A/judgments.people.jsonl"
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"file for the votes (default: {places})")
    parser.add_argument("--voter", metavar="NAME", help="name of the voter (default: the page asks)")
    parser.add_argument("--limit", metavar="N", type=natural, help="vote on a random sample of N examples")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="seed of the sample, the order and the sides (default: 0)"
    )
    add_page_flags(parser)
    parser.set_defaults(handler=_vote, resume_hint="Votes are kept; run the same command to continue.")


def _vote(options: argparse.Namespace) -> None:
    from hf_instruct.evaluation.votes import check_voter, open_votes
    from hf_instruct.ui.pages import check_gradio
    from hf_instruct.ui.vote_tab import serve_votes

    check_gradio("The vote page")
    voter = None if options.voter is None else check_voter(options.voter)
    with open_votes(options.a, options.b, options.out, seed=options.seed, limit=options.limit) as book:
        _announce(book)
        try:
            with open_page(options, risk="read the answers and vote") as address:
                serve_votes(book, voter=voter, **address)
        finally:
            _print_end(book, options.a)


def _announce(book: "Book") -> None:
    from hf_instruct.evaluation.votes import ScoreBook, VoteBook

    if isinstance(book, VoteBook):
        if book.num_alone:
            logger.warning("%d answers are left out, because only one side has them.", book.num_alone)
        equal = f" ({book.num_equal} more have equal answers and count as ties)" if book.num_equal else ""
        print(f"Pairs of answers to vote on: {book.total}{equal}")
    elif isinstance(book, ScoreBook):
        models = f", of {len(book.models)} models in random order" if len(book.models) > 1 else ""
        print(f"Answers to score: {book.total}{models}")
    already = f" (already stored: {book.count_votes()} by {', '.join(book.voters())})" if book.count_votes() else ""
    print(f"Votes are stored in {book.path}{already}")


def _print_end(book: "Book", source: Path) -> None:
    from hf_instruct.evaluation.votes import VoteBook

    kept = book.count_votes()
    if not kept:
        print("No votes stored.")
        return
    voters = book.voters()
    file = shlex.quote(str(book.path))
    by = voters[0] if len(voters) == 1 else f"{len(voters)} voters"
    print(f"{pluralize(kept, 'vote')} by {by} stored in {book.path}")
    if isinstance(book, VoteBook):
        print(f"Continue with:  hf-instruct rate {file}")
        print(f"                hf-instruct agree {file} PREFERENCES_OF_A_JUDGE")
    else:
        run = shlex.quote(str(source))
        print(f"Continue with:  hf-instruct judge {run}    (the judge's means, corrected by these)")
        print(f"                hf-instruct agree {file} {run}")
