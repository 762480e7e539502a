"""`hf-instruct serve`: a run's model over OpenAI's API."""

import argparse
import logging
from pathlib import Path

from hf_instruct.cli.flags import add_address_flags, add_trust_flag
from hf_instruct.local_server import LOOPBACK, format_url, open_socket

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Serve a run's tuned model on this machine with an OpenAI-compatible API, using `transformers serve`. An adapter is
merged first, into the cache, and the chat template is the training prompt. If the prompt format has no turns, the model
sees each question on its own, and a system message goes before the instruction."""

EPILOG = """\
examples:
  hf-instruct serve runs/my-run
  hf-instruct serve runs/my-run --port 8001 --device cpu

Press Ctrl-C to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    add_address_flags(parser, default_port=8000)
    parser.add_argument("--device", metavar="D", default="auto", help="`auto` (default), `cpu`, `cuda:0`, `mps`")
    add_trust_flag(parser)
    parser.set_defaults(handler=_serve)


def _serve(options: argparse.Namespace) -> None:
    from hf_instruct.hub.serving import build_snippet, check_serving, prepare_served_model, serve_model
    from hf_instruct.run_folder import RunFolder

    check_serving()
    # Checked before a model is loaded; the server then binds the same port.
    with open_socket(options.host, options.port, what="The model") as bound:
        port = int(bound.getsockname()[1])
    folder = prepare_served_model(RunFolder(options.run, trust_remote_code=options.trust_remote_code))
    if options.host not in LOOPBACK:
        logger.warning("`--host %s`: everybody who can reach this machine can use the model.", options.host)
    url = f"{format_url(options.host, port)}v1"

    def print_address() -> None:
        print(
            f"`{folder.name}` is served at {url}   (press Ctrl-C to stop)\n\n{build_snippet(folder.name, url)}",
            flush=True,
        )

    logger.info("Loading %s", folder)
    try:
        serve_model(
            folder,
            on_ready=print_address,
            allowed_hosts=options.allow_host,
            host=options.host,
            port=port,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        )
    except KeyboardInterrupt:
        # The usual way to stop the server.
        print("\nStopped.")
