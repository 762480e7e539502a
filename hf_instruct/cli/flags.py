"""Flags that several verbs have."""

import argparse


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`: the only consent there is for a run folder, whoever it is from."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
