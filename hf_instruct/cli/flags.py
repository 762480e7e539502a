"""Flags that several verbs have."""

import argparse

from hf_instruct.addresses import LOOPBACK
from hf_instruct.cli.numbers import port


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`: the only consent there is for a run folder, whoever it is from."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def add_address_flags(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """Add where something is served, and under which names."""
    parser.add_argument("--host", default=LOOPBACK[0], metavar="H", help="address to serve at (default: 127.0.0.1)")
    parser.add_argument(
        "--port", metavar="N", type=port, default=default_port, help=f"default: {default_port}; 0 takes any free one"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which this machine may be asked, as behind a proxy; may be given several times",
    )
