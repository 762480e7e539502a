"""`hf-instruct ui`: a web page to chat with models, inspect them and compare runs."""

import argparse
import logging

from hf_instruct.cli.flags import add_page_flags, add_trust_flag, open_page

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Serve a web page on this machine with tabs to chat with the models of the runs (untuned and tuned side by side), to see
how they choose the next token, to read losses, scores and answers of the runs, and to vote."""

EPILOG = """\
examples:
  hf-instruct ui runs/my-run                   chat with its tuned and its untuned model
  hf-instruct ui runs/full runs/lora           two runs side by side
  hf-instruct ui smollm2-135m                  a model without a run: chat and explore
  hf-instruct ui runs/my-run --host 0.0.0.0    for everybody who can reach this machine

A model is loaded when it is first used, and unloaded if the memory is needed for another one. Votes compare any two
sets of answers and are stored in the same files as those of `hf-instruct vote`. Press Ctrl-C to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder; or a model: alias, Hub id or folder")
    add_page_flags(parser)
    add_trust_flag(parser)
    parser.set_defaults(handler=_serve, resume_hint="Run the same command again.")


def _serve(options: argparse.Namespace) -> None:
    from hf_instruct.ui.app import serve_ui
    from hf_instruct.ui.model_pool import find_sources
    from hf_instruct.ui.pages import check_gradio

    check_gradio("The page")
    sources = find_sources(options.runs)
    for source in sources:
        if not source.is_trained:
            logger.warning("`%s` has no tuned model yet; only the untuned model is available.", source.name)
    with open_page(options, risk="use the models and read the runs") as address:
        serve_ui(sources, trust_remote_code=options.trust_remote_code, **address)
