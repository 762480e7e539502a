import asyncio
import os
import sys
from typing import Any

import pytest

from hf_instruct.errors import ConfigError
from hf_instruct.ui.pages import add_headers, check_gradio


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

    asyncio.run(add_headers(app)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self' ")
    assert b"http" not in headers[b"content-security-policy"]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
