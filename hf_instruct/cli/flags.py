"""Flags shared by several commands, and flags for fields of an experiment."""

import argparse
import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.local_server import LOOPBACK, format_url, list_hosts, open_socket

logger = logging.getLogger(__name__)


def whole(text: str, least: int = 0, most: int | None = None) -> int:
    """Return a whole number, for argparse's `type`.

    Raises:
        ArgumentTypeError: The text is not a whole number, or the number is out of range.
    """
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number {limits}")
    return int(text)


def natural(text: str) -> int:
    """Return a `whole` number of at least 1."""
    return whole(text, 1)


def add_plot_flag(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--plot FILE.png`, with a help text."""
    parser.add_argument("--plot", metavar="FILE.png", type=_figure_file, help=text)


def _figure_file(text: str) -> Path:
    if not text.lower().endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"`{text}` should end in .png or .svg")
    return Path(text)


class FieldFlag(argparse.Action):
    """A flag that sets a field of the experiment, exactly as `--SECTION.FIELD VALUE` does: into `options.overrides`.

    The field's own section knows its help text and checks its value; it is asked when that is needed, because
    importing it takes longer than everything else that a `--help` does.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, *, field: str, **given: Any) -> None:
        super().__init__(option_strings, "overrides", default=argparse.SUPPRESS, help=field, **given)
        self.field = field

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Set the field to the text given, or to true by a flag without a value."""
        from hf_instruct.config import parse_setting

        value = True if self.nargs == 0 else parse_setting(self.field, values)
        namespace.overrides = {**getattr(namespace, "overrides", {}), self.field: value}

    def describe(self) -> str:
        """Return the help text: the field's description and default."""
        from hf_instruct.config import describe_fields

        found = next(format_help(default, text) for name, default, text in describe_fields() if name == self.field)
        return found.replace("%", "%%")


def format_help(default: Any, text: str) -> str:
    """Return the help text of a field: its description and its default."""
    return text if default is None else f"{text} (default: {default})"


def add_field_flags(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
    section: str,
    *names: str,
    switches: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Add flags that stand for fields of one section of an experiment: `--base-url URL` for `--judge.base_url URL`.

    What is given lands in `options.overrides` by its dotted name; a field that is not given is not there.

    Args:
        parser: Where they are added.
        section: Of the experiment.
        names: Fields that take a value.
        switches: Fields that a flag without a value turns on.
        renamed: Names of flags that are not called as their field, by the field.
    """
    for name in (*names, *switches):
        flag = (renamed or {}).get(name, name).replace("_", "-")
        kind: dict[str, Any] = {"nargs": 0} if name in switches else {"metavar": flag.upper().replace("-", "_")}
        parser.add_argument(f"--{flag}", action=FieldFlag, field=f"{section}.{name}", **kind)


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`: a run folder may be from somebody else, so nothing in it gives this consent."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def add_page_flags(parser: argparse.ArgumentParser) -> None:
    """Add where a page is served, and whether a browser opens it."""
    add_address_flags(parser, default_port=7860)
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


@contextlib.contextmanager
def open_page(options: argparse.Namespace, *, risk: str) -> Iterator[dict[str, Any]]:
    """Bind the address of a page and print it; gives `server` and `hosts` for `serve_page`, which Ctrl-C ends.

    Args:
        options: With what `add_page_flags` adds.
        risk: What others can do with the page, for a warning if it is served to other machines too.

    Raises:
        RunError: The page cannot be served there.
    """
    from hf_instruct.ui.pages import open_browser

    if options.host not in LOOPBACK:
        logger.warning("`--host %s`: everybody who can reach this machine can %s.", options.host, risk)
    with open_socket(options.host, options.port) as server, contextlib.suppress(KeyboardInterrupt):
        url = format_url(options.host, server.getsockname()[1])
        print(f"Open {url}   (press Ctrl-C to stop)", flush=True)
        if not options.no_browser:
            open_browser(url)
        yield {"server": server, "hosts": list_hosts(options.host, options.allow_host)}
    print()


def add_address_flags(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """Add where something is served, and under which names."""
    parser.add_argument("--host", default=LOOPBACK[0], metavar="H", help="address to serve at (default: 127.0.0.1)")
    port = functools.partial(whole, most=65535)
    parser.add_argument(
        "--port",
        metavar="N",
        type=port,
        default=default_port,
        help=f"port (default: {default_port}; 0 picks a free one)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="additional host name to accept, such as that of a proxy; can be repeated",
    )
