"""Send requests to a model server over HTTP, and only accept complete answers of the expected form and limited size."""

import asyncio
import contextlib
import functools
import json
import logging
import random
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import pydantic

from hf_instruct.console import redact
from hf_instruct.errors import ConfigError
from hf_instruct.local_server import is_loopback

logger = logging.getLogger(__name__)

# A verdict has about 1 kB, the list of a server's models 100 kB.
MAX_BYTES = 8 << 20
_CONNECT_SECONDS = 10.0
_SHOWN_CHARACTERS = 200
# 500 usually means a problem with the request or the model, and is rarely transient.
_TRANSIENT_STATUSES = (429, 502, 503)
# Seconds before each retry.
DELAYS = [0.5, 1.0, 2.0, 4.0]
# Maximum wait that a server may request with `Retry-After`.
_MAX_WAIT_SECONDS = 60.0

# Cached, because each client would read all certificates again (17 ms), and opening a judge creates four clients.
_tls = functools.cache(httpx.create_ssl_context)


class ServerError(Exception):
    """A server's answer cannot be used; the text is the end of a sentence.

    Attributes:
        status: The HTTP status, if the server itself reports the failure in the text.
        transient: Whether a retry may succeed.
        wait: Seconds that the server asks to wait before a retry.
    """

    def __init__(self, text: str, *, status: int | None = None, transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.transient = transient
        self.wait = wait


class NoAnswer(ServerError):  # noqa: N818  (reads better without `Error`)
    """No answer arrived in time, or the connection broke."""


class NoServer(NoAnswer):
    """No server accepts connections at the address."""


class Redirected(ServerError):  # noqa: N818
    """The server redirected the request; redirects are not followed."""


class Body(pydantic.BaseModel):
    """The fields read from a JSON answer; servers may also send an `error` with status 200."""

    model_config = pydantic.ConfigDict(strict=True)

    error: Any = None


Form = TypeVar("Form", bound=Body)
Result = TypeVar("Result")


def run_sync(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine and return its result, even if an event loop is already running (in a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def shown_url(url: httpx.URL) -> str:
    """Return a URL for messages, without the user, password and key that it may contain."""
    return str(redact(str(url.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")))


async def _guard(response: httpx.Response) -> None:
    """Raise ServerError for a redirect or a compressed body (8 MB may contain 8 GB), and limit the size of the body."""
    if response.has_redirect_location:
        target = "something that is not an address"
        with contextlib.suppress(httpx.InvalidURL, ValueError):
            target = one_line(shown_url(response.request.url.join(response.headers["location"])))
        raise Redirected(f"the server redirects to {target}, and redirects are not followed")
    if (coding := response.headers.get("content-encoding", "identity")) != "identity":
        raise ServerError(f"the answer is compressed ({one_line(coding)}), which was not requested")
    response.stream = _Capped(response.stream, lines="lines" in response.request.extensions)


class _Capped(httpx.AsyncByteStream):
    """A body that raises ServerError once it, or one line of it, is longer than 8 MB."""

    def __init__(self, stream: Any, *, lines: bool) -> None:
        self._stream = stream
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            end = chunk.rfind(b"\n") if self._lines else -1
            size = len(chunk) - end - 1 if end >= 0 else size + len(chunk)
            if size > MAX_BYTES:
                raise ServerError(f"the answer is longer than {MAX_BYTES >> 20} MB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class Server:
    """A server with a JSON API. Redirects are not followed, and compressed bodies or ones over 8 MB are rejected.

    Args:
        url: The base URL.
        key: Sent as a bearer token.
        where: Start of the error message for an address that is not usable.
        timeout_seconds: Maximum time to wait for an answer.
        retries: Maximum number of retries after a temporary failure.
        headers: Sent with each request.

    Raises:
        ConfigError: The address is not usable.
    """

    def __init__(
        self, url: str, *, key: str | None, where: str, timeout_seconds: float, retries: int = 0, **headers: str
    ) -> None:
        try:
            parsed = httpx.URL(url)
            # A larger port would only fail when a connection is opened, with an OverflowError.
            if not parsed.host or parsed.scheme not in ("http", "https") or not 0 <= (parsed.port or 0) <= 65_535:
                raise httpx.InvalidURL("not of a server")
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"{where} is not usable. It looks like http://127.0.0.1:11434.") from error
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Accept-Encoding": "identity", **headers},
            # The caller limits the number of concurrent calls and the time of each.
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            verify=_tls(),
            # A proxy from the environment cannot reach a server on this machine.
            trust_env=not is_loopback(url),
            follow_redirects=False,
            event_hooks={"response": [_guard]},
        )
        self._timeout = timeout_seconds
        self._delays = DELAYS[:retries]
        self.url = shown_url(self._http.base_url)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self, path: str, form: type[Form], body: Any = None, *, seconds: float | None = None, retry: bool = True
    ) -> Form:
        """Send a body with POST, or GET without a body, and return the answer.

        Args:
            path: Relative to the address.
            form: The expected form of the answer.
            body: Any value that can be written as JSON.
            seconds: Maximum time for one attempt; `timeout_seconds` by default.
            retry: Whether to retry after a temporary failure.

        Raises:
            NoServer: Nothing accepts connections.
            NoAnswer: The answer came too late or broke off.
            Redirected: The server redirects to another address.
            ServerError: The answer is an error or has another form.
        """
        delays = iter(self._delays if retry else ())
        seconds = self._timeout if seconds is None else seconds
        while True:
            try:
                with _translated(seconds):
                    async with asyncio.timeout(seconds):
                        response = await self._http.request("GET" if body is None else "POST", path, json=body)
                check_answer(response)
                return parse_body(response.content, form)
            except ServerError as error:
                delay = next(delays, None)
                if delay is None or not error.transient:
                    raise
                logger.debug("trying again after: %s", error)
                wait = max(delay, error.wait)
            # Up to 50 % longer, so that many callers do not retry at the same time.
            await asyncio.sleep(wait * (1 + random.random() / 2))

    async def lines(self, path: str, form: type[Form], body: Any) -> AsyncIterator[Form]:
        """Yield the fields of each line of an answer as it arrives; raises the same errors as `call`."""
        with _translated():
            async with self._http.stream("POST", path, json=body, extensions={"lines": True}) as response:
                if not response.is_success:
                    await response.aread()
                    check_answer(response)
                async for line in response.aiter_lines():
                    yield parse_body(line, form)


@contextlib.contextmanager
def _translated(seconds: float = 0.0) -> Iterator[None]:
    """Turn connection errors into a ServerError; `seconds` is the maximum wait for the whole answer."""
    try:
        yield
    except TimeoutError as error:
        # Not retried here: the caller retries the whole question once.
        raise NoAnswer(f"no reply within {seconds:g} s") from error
    except httpx.TimeoutException as error:
        raise NoAnswer(f"no connection within {_CONNECT_SECONDS:g} s") from error
    except httpx.HTTPError as error:
        # Without the invalid bytes, which httpx appends, and the number of a system error.
        text = re.sub(r"^\[Errno -?\d+\] ", "", str(error).partition(": bytearray(")[0])
        text = one_line(text) or "the server closed it"
        if isinstance(error, httpx.ConnectError):
            raise NoServer(text, transient=True) from error
        raise NoAnswer(f"the connection broke ({text})", transient=True) from error


def check_answer(response: httpx.Response) -> None:
    """Raise ServerError if a response that was already read has an error status, or is not JSON."""
    if not response.is_success:
        status, delay = response.status_code, response.headers.get("retry-after", "")
        wait = min(float(delay), _MAX_WAIT_SECONDS) if delay.isascii() and delay.isdecimal() else 0.0
        text = one_line(_find_message(response.text)) or "no reason given"
        raise ServerError(text, status=status, transient=status in _TRANSIENT_STATUSES, wait=wait)
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind and "json" not in kind:
        raise ServerError(f"the answer is not JSON but {one_line(kind)}: {one_line(response.text)}")


def parse_body(body: str | bytes, form: type[Form]) -> Form:
    """Return the fields of a JSON object; raise ServerError if it is not one, has another form or has an `error`."""
    try:
        error = Body.model_validate_json(body).error
        if error:
            raise ServerError(one_line(_find_message(error)) or "no reason given", status=200)
        return form.model_validate_json(body)
    except pydantic.ValidationError as problems:
        where = ".".join(str(part) for part in problems.errors(include_url=False)[0]["loc"])
        excerpt = one_line(body.decode("utf-8", "replace") if isinstance(body, bytes) else body) or "nothing"
        problem = f"lacks a valid `{where}`" if where else "is not a complete JSON object"
        raise ServerError(f"the answer {problem}: {excerpt}") from problems


def _find_message(error: Any) -> str:
    """Return the message in an error: a string, an object with a message, or such an object as a JSON string.

    >>> _find_message('{"error": "{\\\\"error\\\\": {\\\\"code\\\\": 400, \\\\"message\\\\": \\\\"too long\\\\"}}"}')
    'too long'
    """
    text = ""
    while error:
        if isinstance(error, str):
            text, error = error, None
            with contextlib.suppress(ValueError, RecursionError):
                error = json.loads(text)
        error = (error.get("error") or error.get("message") or error.get("detail")) if isinstance(error, dict) else None
    return text


def one_line(value: object) -> str:
    """Return a server's text on one line, for a message: at most 200 characters, without a period at the end.

    >>> one_line("model not found,   try pulling it.")
    'model not found, try pulling it'
    """
    text = " ".join(str(value).split())
    return (text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…").rstrip(".")
