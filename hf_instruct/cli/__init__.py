"""The command line: one module per command, which translates flags into a call of the package."""

from hf_instruct.cli.main import main

__all__ = ["main"]
