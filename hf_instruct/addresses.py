"""Network addresses: which are this machine's own, sockets bound to them, and how they are written."""

import contextlib
import errno
import os
import socket
from urllib.parse import urlsplit

from hf_instruct.errors import RunError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Of a server that is to be reached by all of this machine's addresses.
EVERY_ADDRESS = ("0.0.0.0", "::")


def is_loopback(url: str) -> bool:
    """Return whether a URL is of this machine itself, which no proxy is to be asked for.

    >>> is_loopback("http://localhost:11434"), is_loopback("http://[::1]:8000/v1"), is_loopback("https://hf.co")
    (True, True, False)
    """
    # A server prints the address that it listens at as 0.0.0.0 or ::, every address of its machine.
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname in (*LOOPBACK, "0.0.0.0", "::")
    return False


def open_socket(host: str, port: int, *, what: str = "The page") -> socket.socket:
    """Return a socket bound to an address; port 0 takes any free one.

    Args:
        host: The address.
        port: The port.
        what: What is to be served there, as the start of a sentence.

    Raises:
        RunError: The port is taken or not to be had, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise RunError(f"`--host {host}` is no address of this machine; `--host 127.0.0.1` is its own.") from error
        raise RunError(
            f"{what} cannot be served at {host}:{port} ({os.strerror(error.errno or 0)}). Stop what runs there, or "
            "name another port with `--port`; `--port 0` takes any free one."
        ) from error


def format_url(host: str, port: int) -> str:
    """Return the URL of an address.

    >>> format_url("::1", 7860)
    'http://[::1]:7860/'
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
