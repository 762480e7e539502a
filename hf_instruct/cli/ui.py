"""`hf-instruct ui`: a page to chat with models, see how they pick their words, and read runs side by side."""

import argparse
import logging

from hf_instruct.cli.flags import add_page_flags, add_trust_flag, open_page

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Serve a page on this machine with a tab each to chat with the models of the runs (tuned and untuned side by side), to
see how they pick their words, to read losses, scores and answers of the runs, and to vote."""

EPILOG = """\
examples:
  hf-instruct ui runs/my-run                   chat with it, and with the model that it began with
  hf-instruct ui runs/full runs/lora           two runs side by side
  hf-instruct ui smollm2-135m                  a model of no run: chat and explore
  hf-instruct ui runs/my-run --host 0.0.0.0    for everybody who reaches this machine

A model is loaded when it is asked, and dropped again where the memory would not do for the next. Votes are between any
two sets of answers, and are kept where `hf-instruct vote` keeps them. Ctrl-C ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder; or a model: alias, Hub id or folder")
    add_page_flags(parser)
    add_trust_flag(parser)
    parser.set_defaults(handler=_serve, resume_hint="Nothing is lost; start it again.")


def _serve(options: argparse.Namespace) -> None:
    from hf_instruct.ui.app import serve_ui
    from hf_instruct.ui.model_pool import find_sources
    from hf_instruct.ui.pages import check_gradio

    check_gradio("The page")
    sources = find_sources(options.runs)
    for source in sources:
        if not source.is_trained:
            logger.warning("`%s` has no tuned model yet; only its untuned one can be asked.", source.name)
    with open_page(options, risk="use the models and read the runs") as address:
        serve_ui(sources, trust_remote_code=options.trust_remote_code, **address)
