"""The client for model servers: addresses, redirects, sizes, forms of answers."""

import asyncio
import gzip
from typing import Any

import pytest
from fake_ollama import Answer, FakeOllama

from hf_instruct.servers import Body, Redirected, Server, ServerError


class Version(Body):
    version: str


def call(url: str, *, lines: bool = False, **settings: Any) -> str:
    """Return the version that a server tells, or the last one of a stream of them."""

    async def work() -> str:
        server = Server(url, key=None, where="It", timeout_seconds=60, **settings)
        try:
            if lines:
                return [line.version async for line in server.lines("/api/pull", Version, {"model": "llama3"})][-1]
            return (await server.call("/api/version", Version)).version
        finally:
            await server.aclose()

    return asyncio.run(work())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("lines", [False, True])
def test_no_redirect_is_followed(server: FakeOllama, status: int, lines: bool) -> None:
    target = server.url.replace("http://", "http://me:secret@") + "/elsewhere?key=secret#secret"
    server.version = server.pull = Answer(raw="{}", status=status, headers={"Location": target})
    with pytest.raises(Redirected) as caught:
        call(server.url, lines=lines, retries=4)
    assert str(caught.value) == (f"the server redirects to {server.url}/elsewhere, and redirects are not followed")
    assert [path for path, _ in server.requests] == ["/api/pull" if lines else "/api/version"]


@pytest.mark.parametrize("target", ["//[", "http://a:b:c", "x\x7fy", "javascript:alert(1)"])
def test_a_redirect_target_that_is_not_an_address(server: FakeOllama, target: str) -> None:
    server.version = Answer(raw="{}", status=302, headers={"Location": target})
    with pytest.raises(ServerError, match="the server redirects to"):
        call(server.url)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("lines", [False, True])
def test_endless_body_is_read_to_its_limit_only(server: FakeOllama, status: int, lines: bool) -> None:
    server.version = server.pull = Answer(raw=b"x" * (1 << 20), status=status, endless=True)
    with pytest.raises(ServerError, match=r"^the answer is longer than 8 MB$"):
        call(server.url, lines=lines)
    # Beyond the limit, what lies in the buffers of two sockets.
    assert server.sent < 24 << 20


def test_stream_of_many_lines_is_read_whole(server: FakeOllama) -> None:
    line = b'{"version": "1", "padding": "' + b"x" * 1000 + b'"}\n'
    server.pull = Answer(raw=line * 9000, headers={"Content-Type": "application/x-ndjson"})
    assert len(server.pull.raw or b"") > 8 << 20
    assert call(server.url, lines=True) == "1"


def test_compressed_body_is_refused(server: FakeOllama) -> None:
    packed = gzip.compress(b'{"version": "' + b"1" * (16 << 20) + b'"}', 1)
    assert len(packed) < 1 << 20
    server.version = Answer(raw=packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(ServerError, match=r"^the answer is compressed \(gzip\), which was not requested$"):
        call(server.url)


@pytest.mark.parametrize(("asked", "wait"), [("7", 7.0), ("100000", 60.0), ("soon", 0.0), ("-1", 0.0), ("\u0663", 0.0)])
def test_retry_after(server: FakeOllama, asked: str, wait: float) -> None:
    server.version = Answer(raw="busy", status=429, headers={"Retry-After": asked.encode().decode("latin-1")})
    with pytest.raises(ServerError, match=r"^busy$") as caught:
        call(server.url)
    assert (caught.value.wait, caught.value.transient, caught.value.status) == (wait, True, 429)
