"""Numbers on the command line, for argparse's `type`."""

import argparse


def natural(text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        ArgumentTypeError: The text is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """Return a whole number of at least 0.

    Raises:
        ArgumentTypeError: The text is none.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of at least 0")
    return int(text)


def port(text: str) -> int:
    """Return the number of a port; 0 stands for any free one.

    Raises:
        ArgumentTypeError: The text is none.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"`{text}` is not a port, a whole number from 0 to 65535")
    return int(text)
