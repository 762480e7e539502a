import asyncio
import os
import sys
from typing import Any

import pytest

from hf_instruct.errors import ConfigError, RunError
from hf_instruct.pages import Headers, check_gradio, open_socket


def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    with open_socket("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError) as caught:
            open_socket("127.0.0.1", port)
    assert str(caught.value) == (
        f"The page cannot be served at 127.0.0.1:{port} (Address already in use). Stop what runs there, or name "
        "another port with `--port`; `--port 0` takes any free one."
    )
    open_socket("127.0.0.1", port).close()


def test_an_address_of_another_machine_is_refused() -> None:
    for host in ("203.0.113.1", "no such host"):
        with pytest.raises(RunError, match=f"`--host {host}` is no address of this machine; `--host 127.0.0.1` is"):
            open_socket(host, 0)


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    with pytest.raises(ConfigError) as caught:
        check_gradio("The vote page", "vote")
    assert str(caught.value) == (
        "The vote page needs Gradio, which is not installed; install it with `pip install 'hf-instruct[vote]'`."
    )
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_every_reply_says_that_nothing_is_fetched_from_elsewhere() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Headers(app)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self' ")
    assert b"http" not in headers[b"content-security-policy"]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
