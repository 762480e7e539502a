"""The command line: one module per verb, each only translating flags into a call of the package."""

from hf_instruct.cli.main import main

__all__ = ["main"]
