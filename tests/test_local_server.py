import asyncio
import json
import socket
from typing import Any

import pytest

from hf_instruct.errors import RunError
from hf_instruct.local_server import Guard, list_hosts, open_socket

ROUTES = r"GET /|POST /run/\w+"


def ask(*, method: str = "GET", path: str = "/", server: str = "127.0.0.1", kind: str = "http", **headers: str) -> Any:
    """Return the status that a guarded app answers with, and what a refusal says; "passed" where it does not refuse."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append("passed")

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, hosts=list_hosts("127.0.0.1", ["Box.Lan"]), routes=ROUTES)
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": named, "server": (server, 7860)}
    asyncio.run(guard(scope, None, send))
    if sent == ["passed"] or kind == "websocket":
        return sent[0]
    assert "passed" not in sent
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:9", "LOCALHOST", "[::1]:7860", "box.lan", "BOX.LAN:80"])
def test_names_of_this_machine_pass(host: str) -> None:
    assert ask(host=host) == "passed"


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.9", "[", ""])
def test_other_names_are_refused(host: str) -> None:
    status, message = ask(host=host)
    assert (status, "`--allow-host NAME`" in message) == (403, True)
    assert ask()[0] == 403
    # Gradio and Uvicorn make addresses out of this one; it says nothing about who was meant.
    assert ask(host=host, **{"x-forwarded-host": "localhost"})[0] == 403


def test_a_server_for_all_addresses_goes_by_the_one_it_is_asked_at() -> None:
    own = socket.gethostname().lower()
    assert {own, f"{own}.local", "localhost"} <= set(list_hosts("0.0.0.0"))
    assert own not in list_hosts("127.0.0.1")
    assert ask(host="10.0.0.9:7860", server="10.0.0.9") == "passed"
    assert ask(host="10.0.0.9:7860", server="::ffff:10.0.0.9") == "passed"
    assert ask(host="[fe80::1]:7860", server="fe80::1%eth0") == "passed"
    assert ask(host="10.0.0.8:7860", server="10.0.0.9")[0] == 403


def test_requests_from_other_sites_are_refused() -> None:
    for origin in ("https://evil.example", "http://localhost:3000", "http://127.0.0.1", "null", "http://["):
        for method, path in (("POST", "/run/predict"), ("GET", "/"), ("OPTIONS", "/run/predict")):
            assert ask(host="localhost:7860", origin=origin, method=method, path=path)[0] == 403
    for origin in ("http://localhost:7860", "https://localhost:7860"):
        assert ask(host="localhost:7860", origin=origin, method="POST", path="/run/predict") == "passed"


def test_only_offered_routes_exist() -> None:
    for words in ("POST /upload", "GET /run/x", "POST /run/a/b", "GET /%2e%2e", "GET //"):
        method, path = words.split()
        assert ask(host="localhost", method=method, path=path) == (404, "This server has no such page.")


def test_there_are_no_websockets() -> None:
    assert ask(host="localhost", kind="websocket", path="/run/x") == {"type": "websocket.close", "code": 1008}


def test_an_address_that_cannot_be_bound() -> None:
    with open_socket("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError, match=rf"cannot be served at 127.0.0.1:{port} \(Address .* in use\).*`--port 0`"):
            open_socket("127.0.0.1", port)
    open_socket("127.0.0.1", port).close()
    for host in ("203.0.113.1", "no such host"):
        with pytest.raises(RunError, match=f"`--host {host}` is not an address of this machine"):
            open_socket(host, 0)
