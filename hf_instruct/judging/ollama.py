"""A judge that an Ollama server runs."""

import asyncio
import functools
import json
import logging
import random
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import httpx
import pydantic
from ollama import AsyncClient, ChatResponse, ResponseError

from hf_instruct.addresses import is_loopback
from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.judging.judges import Reply, shorten
from hf_instruct.judging.rubrics import Question
from hf_instruct.progress import progress_bar

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "llama3"
_PROBE_SECONDS = 3.0
_CONNECT_SECONDS = 10.0
# Loading a large model from a slow disk; the server itself gives up after as long without progress.
_LOAD_SECONDS = 300.0
_KEEP_LOADED = "10m"
# No prompt of prose, code or numbers has as many characters to a token, on average; of plain English it has 4 to 5.
_MOST_CHARACTERS_A_TOKEN = 6

# Further tries after each HTTP status. 500 is mostly a fault of the request or the model, and rarely passes.
_RETRIES = {429: 4, 500: 1, 502: 4, 503: 4}
_CONNECTION_RETRIES = 3
_DELAYS = [0.5, 1.0, 2.0, 4.0]

# Each client would read all certificates anew, 17 ms each, and finding and opening a judge makes four.
_tls = functools.cache(httpx.create_ssl_context)

Answer = TypeVar("Answer")


class _Client(AsyncClient):
    """Ollama's client, and the two things that it (0.6.3) has no arguments for: `truncate` and the server's version."""

    @property
    def url(self) -> str:
        return str(self._client.base_url).rstrip("/")

    async def version(self) -> str:
        answer = await self._client.get("/api/version")
        answer.raise_for_status()
        return str(answer.json()["version"])

    async def aclose(self) -> None:
        await self._client.aclose()

    async def chat_whole(self, **request: Any) -> ChatResponse:
        """Chat without streaming; a prompt that does not fit is refused.

        Unless told so, the server drops what does not fit, and the judge scores a text that it has seen half of.
        """
        body = {**request, "stream": False, "truncate": False}
        answer: ChatResponse = await self._request(ChatResponse, "POST", "/api/chat", json=body)
        return answer


class _NotOllamaError(Exception):
    """What answered is not Ollama's JSON."""


def _open_client(base_url: str | None) -> _Client:
    # How many calls are under way is the judging loop's business, and so is how long each may take.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    settings = {"timeout": httpx.Timeout(None, connect=_CONNECT_SECONDS), "limits": limits, "verify": _tls()}
    try:
        client = _Client(base_url, **settings)
    except (ValueError, httpx.InvalidURL) as error:
        raise JudgeError(
            f"The Ollama address {base_url or 'in OLLAMA_HOST'} is not usable: {error}. It looks like "
            "http://127.0.0.1:11434."
        ) from error
    if is_loopback(client.url):
        # A proxy named in the environment would be asked for this machine's own server.
        client = _Client(base_url, **settings, trust_env=False)
    return client


async def find_server(base_url: str | None) -> tuple[bool, str]:
    """Return whether an Ollama server answers at an address (default: OLLAMA_HOST, else this machine), and its URL."""
    client = _open_client(base_url)
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            await _translated(client.version())
    except (httpx.HTTPError, OSError, ResponseError, _NotOllamaError):
        return False, client.url
    finally:
        await client.aclose()
    return True, client.url


async def _translated(answer: Awaitable[Answer]) -> Answer:
    """Return an answer; what shows that the other end does not speak Ollama's protocol becomes one error."""
    try:
        return await answer
    except (json.JSONDecodeError, UnicodeDecodeError, pydantic.ValidationError, KeyError, TypeError) as error:
        text = error.doc if isinstance(error, json.JSONDecodeError) else str(error)
        raise _NotOllamaError(shorten(text)) from error
    except AttributeError as error:
        # The client (0.6.3) expects every error to be a JSON object.
        raise _NotOllamaError("an error that is not a JSON object") from error


class OllamaJudge:
    """A model behind Ollama's `/api/chat`.

    Args:
        settings: Model, address, options, timeout.
        delays: Seconds before each further try of a call that failed for a passing reason.
    """

    def __init__(self, settings: JudgeSection, *, delays: list[float] | None = None) -> None:
        self._settings = settings
        self._model = settings.model or DEFAULT_MODEL
        self._client = _open_client(settings.base_url)
        self._delays = _DELAYS if delays is None else delays
        self._digest: str | None = None
        self._version: str | None = None
        self._known: list[str] = []
        # Everything that moves a greedy reply, so that no server's or model file's default does: `repeat_penalty` was
        # 1.1 before Ollama 0.32.10.
        self._options = {
            "temperature": settings.temperature,
            "seed": settings.seed,
            "num_ctx": settings.num_ctx,
            "num_predict": settings.max_new_tokens,
            "repeat_penalty": 1.0,
            "top_k": 40,
            "top_p": 0.9,
        }

    def identity(self) -> dict[str, Any]:
        """Return model tag, digest, server version and options."""
        return {
            "backend": "ollama",
            "model": self._model,
            "digest": self._digest,
            "server_version": self._version,
            "options": self._options,
        }

    def reseed(self, seed: int) -> None:
        """Ask with another seed from now on."""
        # A new dictionary: the old one is part of identities that were given out.
        self._options = {**self._options, "seed": seed}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def prepare(self) -> None:
        """Check as `check` does, and have the model loaded.

        Raises:
            JudgeUnavailable: The server does not answer, is not Ollama, or lacks the model.
        """
        await self.check()
        await self._load_model()

    async def check(self) -> None:
        """Check that the server runs and has the model, and pull it if asked to.

        Raises:
            JudgeUnavailable: The server does not answer, is not Ollama, or lacks the model.
        """
        url = self._client.url
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                self._version = await _translated(self._client.version())
                found = await self._find_model()
            if not found:
                await self._obtain_model()
        except httpx.HTTPStatusError as error:
            raise self._not_ollama(f"status {error.response.status_code}") from error
        except (httpx.HTTPError, OSError) as error:
            raise JudgeUnavailable(
                f"No Ollama server answers at {url} ({_describe(error)}). Start it with `ollama serve`, or name "
                "another with `--base-url` or OLLAMA_HOST, or judge without a server: `--judge local`."
            ) from error
        except (ResponseError, _NotOllamaError) as error:
            raise self._not_ollama(shorten(error)) from error

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question.

        Raises:
            JudgeUnavailable: The server is gone, or no longer has the model.
            JudgeError: The server refuses every such question.
        """
        start = time.monotonic()
        failure, final, text = None, False, ""
        try:
            answer = await self._retried_chat(question)
            text = answer.message.content or ""
            cut = self._cut_prompt(question, answer.prompt_eval_count or 0)
            # Asked again, the same would be cut off again.
            failure, final = cut or self._fault(answer), cut is not None
        except TimeoutError:
            failure = f"no reply within {self._settings.timeout_seconds:g} s"
        except ConnectionError as error:
            raise self._gone(error) from error
        except httpx.HTTPError as error:
            failure = f"the connection broke ({_describe(error)})"
        except _NotOllamaError as error:
            failure = f"the server's answer is not Ollama's: {error}"
        except ResponseError as error:
            failure = self._judge_error(error)
            final = error.status_code == 400
        return Reply(text, time.monotonic() - start, failure, final)

    async def _retried_chat(self, question: Question) -> ChatResponse:
        """Return the answer to a question, asked again as often as what went wrong deserves."""
        delays = self._delays[: self._settings.retries]
        tries = 0
        while True:
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    return await _translated(
                        self._client.chat_whole(
                            model=self._model,
                            messages=question.messages,
                            format=question.schema,
                            options=self._options,
                            # On a model that can think, leaving this out means true.
                            think=False,
                            keep_alive=_KEEP_LOADED,
                        )
                    )
            except (ResponseError, httpx.TransportError, ConnectionError) as error:
                if tries >= min(_count_retries(error), len(delays)):
                    raise
                logger.debug("trying again after: %s", error)
            # Up to half longer, so that many callers do not return in one wave.
            await asyncio.sleep(delays[tries] * (1 + random.random() / 2))
            tries += 1

    def _fault(self, answer: ChatResponse) -> str | None:
        """Return why an answer that came whole is not a whole reply."""
        if not answer.done:
            return "the server broke the reply off (`done` is false), as it does when a model repeats itself"
        if answer.done_reason == "length":
            return f"the reply was cut at {self._settings.max_new_tokens} tokens (`judge.max_new_tokens`)"
        return None

    def _cut_prompt(self, question: Question, num_read: int) -> str | None:
        """Return the failure of a prompt that the server cut to its context window although told not to, else None.

        Servers that know no `truncate` (before 0.12) fill the window with what is left of the prompt, or, as those that
        render templates themselves still do without it, half of it and two tokens.
        """
        characters = sum(len(message["content"]) for message in question.messages)
        window = self._settings.num_ctx
        is_half = abs(num_read - (window // 2 + 2)) <= 1 and characters > _MOST_CHARACTERS_A_TOKEN * num_read
        if num_read < window and not is_half:
            return None
        return (
            f"the question of {characters:,} characters does not fit: the server cut it and the judge read "
            f"{num_read:,} tokens of it (`judge.num_ctx` is {window:,})"
        )

    def _judge_error(self, error: ResponseError) -> str:
        """Return what was wrong with one question, or raise what will be wrong with every one."""
        text = shorten(_read_nested(error.error))
        if error.status_code == 404:
            raise JudgeUnavailable(f"Ollama at {self._client.url} says: {text}. Run `ollama pull {self._model}`.")
        if "exceeds the available context size" in text or "exceed_context_size" in text:
            return f"{text} (`judge.num_ctx` is {self._settings.num_ctx})"
        if error.status_code in (400, 401, 403, 405):
            raise JudgeError(
                f"Ollama at {self._client.url} refuses the question: {text or 'no reason given'} "
                f"(status {error.status_code})."
            )
        return f"the server failed: {text} (status {error.status_code})"

    def _not_ollama(self, reason: str) -> JudgeUnavailable:
        return JudgeUnavailable(
            f"What answers at {self._client.url} is not an Ollama server ({reason}). Start one with `ollama serve`, or "
            "name its address with `--base-url` or OLLAMA_HOST."
        )

    def _gone(self, error: Exception) -> JudgeUnavailable:
        return JudgeUnavailable(
            f"The Ollama server at {self._client.url} no longer answers ({_describe(error)}). Start it again with "
            "`ollama serve`."
        )

    async def _find_model(self) -> bool:
        """Return whether the server has the model, and keep its digest."""
        listing = await _translated(self._client.list())
        self._known = [str(model.model) for model in listing.models]
        for model in listing.models:
            if _normalize(str(model.model)) == _normalize(self._model):
                self._digest = (model.digest or "").removeprefix("sha256:") or None
                return True
        # Models that run elsewhere (Ollama's cloud, a proxy's upstream) are known without being listed.
        try:
            await _translated(self._client.show(self._model))
        except ResponseError as error:
            if error.status_code != 404:
                raise
            return False
        return True

    async def _obtain_model(self) -> None:
        if not self._settings.pull:
            known = ", ".join(f"`{name}`" for name in sorted(self._known)[:8]) or "none"
            raise JudgeUnavailable(
                f"Ollama at {self._client.url} does not have the model `{self._model}` (it has: {known}). "
                f"Run `ollama pull {self._model}`, or judge with `--pull`, or choose a model with `--model`."
            )
        await self._pull()
        if not await self._find_model():
            raise JudgeUnavailable(f"Ollama pulled `{self._model}` and does not list it; see `ollama list`.")

    async def _pull(self) -> None:
        status = ""
        total, seen = 0, dict[str, int]()
        try:
            with progress_bar(f"Pulling {self._model} (percent)", 100) as advance:
                shown = 0
                async for line in await self._client.pull(self._model, stream=True):
                    status = line.status or ""
                    if line.digest and line.total:
                        total += 0 if line.digest in seen else line.total
                        seen[line.digest] = line.completed or 0
                    percent = 100 if status == "success" else min(99, 100 * sum(seen.values()) // max(total, 1))
                    if percent > shown:
                        advance(percent - shown, status)
                        shown = percent
        except ResponseError as error:
            raise JudgeUnavailable(
                f"Ollama at {self._client.url} cannot pull `{self._model}`: {shorten(error.error)}. Check the "
                "name at https://ollama.com/library and the server's network."
            ) from error
        # The stream may end without an error and without having finished.
        if status != "success":
            raise JudgeUnavailable(
                f"Ollama at {self._client.url} stopped pulling `{self._model}` at '{status}'. Run `ollama pull "
                f"{self._model}`; it goes on where it stopped."
            )

    async def _load_model(self) -> None:
        """Have the model loaded with the judge's own options, so that no question waits (and times out) for that."""
        try:
            async with asyncio.timeout(max(_LOAD_SECONDS, self._settings.timeout_seconds)):
                await _translated(
                    self._client.chat_whole(
                        model=self._model, messages=[], options=self._options, keep_alive=_KEEP_LOADED
                    )
                )
        except (httpx.HTTPError, OSError, ResponseError, _NotOllamaError) as error:
            # Servers that imitate Ollama may refuse an empty chat. Whatever is wrong, the first question meets it too.
            logger.debug("loading the model ahead failed: %s", error)


def _count_retries(error: ResponseError | httpx.TransportError | ConnectionError) -> int:
    if isinstance(error, ResponseError):
        return _RETRIES.get(error.status_code, 0)
    # A timeout is not tried again here: the next attempt at the whole question does that, once.
    return 0 if isinstance(error, httpx.TimeoutException) else _CONNECTION_RETRIES


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "timed out"
    # The client (0.6.3) replaces what the system says about a connection by advice of its own.
    cause = error.__context__ if isinstance(error, ConnectionError) and error.__context__ else error
    return shorten(cause) or type(cause).__name__


def _read_nested(text: str) -> str:
    """Return the message in an error whose text is itself JSON, as the engine below Ollama writes it."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(text)


def _normalize(name: str) -> str:
    """Return a model's name as Ollama compares it: any case, `latest` where no tag is given.

    >>> _normalize("Llama3"), _normalize("registry:5000/me/llama3:8b")
    ('llama3:latest', 'registry:5000/me/llama3:8b')
    """
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
