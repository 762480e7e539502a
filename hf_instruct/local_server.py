"""Bind a server on this machine to an address, and check which requests it may answer.

Any website can make a browser send requests to this machine. With DNS rebinding, where the site's own name resolves to
this machine, it could also read the replies; such requests contain that name in `Host`. `Guard` therefore only accepts
requests that name the server, come from its own pages, and use a known route.
"""

import contextlib
import errno
import ipaddress
import json
import os
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from hf_instruct.errors import RunError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# A server bound to these can be reached at all of this machine's addresses.
_EVERY_ADDRESS = ("0.0.0.0", "::")


def is_loopback(url: str) -> bool:
    """Return whether a URL points to this machine, for which no proxy is used.

    >>> is_loopback("http://localhost:11434"), is_loopback("http://[::1]:8000/v1"), is_loopback("https://hf.co")
    (True, True, False)
    """
    # Servers that listen on all addresses print 0.0.0.0 or ::.
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname in (*LOOPBACK, *_EVERY_ADDRESS)
    return False


def open_socket(host: str, port: int, *, what: str = "The page") -> socket.socket:
    """Return a socket bound to an address; port 0 picks a free one, and `what` names the service in errors.

    Raises:
        RunError: The port is taken or reserved, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise RunError(f"`--host {host}` is not an address of this machine; try `--host 127.0.0.1`.") from error
        raise RunError(
            f"{what} cannot be served at {host}:{port} ({os.strerror(error.errno or 0)}). Stop the program that uses "
            "it, or choose another port with `--port`; `--port 0` picks a free one."
        ) from error


def format_url(host: str, port: int) -> str:
    """Return the URL of an address.

    >>> format_url("::1", 7860)
    'http://[::1]:7860/'
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def list_hosts(host: str, allowed: Iterable[str] = ()) -> list[str]:
    """Return the allowed values of `Host` for a server bound to `host`, in addition to the address itself.

    `allowed` are further names, from `--allow-host`.
    """
    own = socket.gethostname()
    names = [own, f"{own}.local"] if host in _EVERY_ADDRESS else [host]
    return [name.lower() for name in (*LOOPBACK, *names, *allowed)]


def refusal(message: str) -> dict[str, Any]:
    """Return the JSON body of a refused request, in the format that clients of OpenAI's API expect."""
    return {"error": {"message": message, "type": "invalid_request_error"}}


class Guard:
    """ASGI middleware that refuses requests to other host names, from other sites, and for unknown paths.

    Args:
        app: The application that answers all other requests.
        hosts: The allowed values of `Host`, from `list_hosts`.
        routes: A regular expression for the known routes: method, space and path.
    """

    def __init__(self, app: Callable[..., Any], *, hosts: Iterable[str], routes: str) -> None:
        self._app, self._hosts, self._routes = app, frozenset(hosts), re.compile(routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        refused = None if scope["type"] == "lifespan" else self._check(scope)
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, message = refused
            headers = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(refusal(message)).encode()})

    def _check(self, scope: Any) -> tuple[int, str] | None:
        """Return the status and message for a request to refuse; None to accept it."""
        hosts, origins = (
            [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]
            for name in (b"host", b"origin")
        )
        if len(hosts) != 1 or not self._is_ours(hosts[0], scope.get("server")):
            return (
                403,
                "This server does not accept the name in `Host`; start it with `--allow-host NAME` to accept it.",
            )
        # Browsers send the page's origin with requests that may change something; programs mostly send none.
        if any(_split(origin) != _split(f"//{hosts[0]}") for origin in origins):
            return 403, "This server does not answer requests from other sites."
        if not self._routes.fullmatch(f"{scope.get('method', 'WEBSOCKET')} {scope['path']}"):
            return 404, "This server has no such page."
        return None

    def _is_ours(self, host: str, server: Any) -> bool:
        name = _split(f"//{host}")[0]
        # With a server bound to all addresses, any of them is accepted, because an IP address cannot be rebound.
        address = _address(name)
        return name in self._hosts or (address is not None and server is not None and address == _address(server[0]))


def _split(url: str) -> tuple[str, str]:
    """Return the host of a URL, and its host and port as written; empty strings if it has none."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        return parts.hostname or "", parts.netloc
    return "", ""


def _address(text: str) -> Any:
    """Parse an IP address, and unwrap an IPv4 address mapped to IPv6; None for a name."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None
