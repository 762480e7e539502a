"""Which requests the servers of this package answer: those that name the server, come from it, and ask what it offers.

A page of any site can make a browser send requests to this machine. By DNS rebinding, a name of its own that suddenly
means this machine, it could read the replies too; such requests carry that name in `Host`.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from hf_instruct.addresses import EVERY_ADDRESS, LOOPBACK


def list_hosts(host: str, allowed: Iterable[str] = ()) -> list[str]:
    """Return the names that a request may give the server in `Host`, besides the address it came in by.

    Args:
        host: What the server is bound to.
        allowed: Further names, as `--allow-host` gives them.
    """
    own = socket.gethostname()
    names = [own, f"{own}.local"] if host in EVERY_ADDRESS else [host]
    return [name.lower() for name in (*LOOPBACK, *names, *allowed)]


def refusal(message: str) -> dict[str, Any]:
    """Return the JSON body of a refused request, in the form that clients of OpenAI's API read."""
    return {"error": {"message": message, "type": "invalid_request_error"}}


class Guard:
    """Refuse requests under another name, from pages of others, and for what is not offered; an ASGI middleware.

    Args:
        app: What answers the others.
        hosts: From `list_hosts`.
        routes: A regular expression of what is offered: method, space and path.
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
        """Return status and message for a request to refuse."""
        hosts, origins = (
            [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]
            for name in (b"host", b"origin")
        )
        if len(hosts) != 1 or not self._is_ours(hosts[0], scope.get("server")):
            return 403, "This server does not go by the name in `Host`; start it with `--allow-host NAME` if it should."
        # Browsers name the page's origin in whatever may change something; programs mostly send none.
        if any(_netloc(origin) != hosts[0] for origin in origins):
            return 403, "This server does not answer pages of other servers."
        if not self._routes.fullmatch(f"{scope.get('method', 'WEBSOCKET')} {scope['path']}"):
            return 404, "This server has no such page."
        return None

    def _is_ours(self, host: str, server: Any) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        # Bound to all addresses, it is asked by each of them; none can be made to mean another machine.
        address = _address(name)
        return name in self._hosts or (address is not None and server is not None and address == _address(server[0]))


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _address(text: str) -> Any:
    """Return an IP address, an IPv4 one also where IPv6 wraps it; None for a name."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
