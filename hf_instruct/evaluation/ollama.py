"""A judge on an Ollama server."""

import asyncio
import contextlib
import ipaddress
import logging
import os
from typing import Any

import pydantic

from hf_instruct.config import JudgeSection
from hf_instruct.console import redact
from hf_instruct.errors import JudgeError, JudgeUnavailable, quote_names
from hf_instruct.evaluation.judges import Reply, ServerJudge
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.progress import progress_bar
from hf_instruct.servers import Body, NoAnswer, NoServer, ServerError, one_line

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "llama3"
_PROBE_SECONDS = 3.0
# For loading a large model from a slow disk; the server itself gives up after 300 seconds without progress.
_LOAD_SECONDS = 300.0
_KEEP_LOADED = "10m"
# More characters per token than any prompt of prose, code or numbers has on average; plain English has 4 to 5.
_MAX_CHARACTERS_A_TOKEN = 6


class _Version(Body):
    version: str


class _Model(Body):
    model: str
    digest: str | None = None


class _Models(Body):
    models: list[_Model]


class _Message(Body):
    content: str | None = None
    thinking: str | None = None


class _Chat(Body):
    message: _Message
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None


class _Ready(pydantic.BaseModel, extra="forbid", strict=True):
    ready: bool


# No model answers this with `_Ready` by itself; with a schema that is enforced it can give no other answer.
_TRIAL = [{"role": "user", "content": "Are you ready? Answer in one word."}]


class _Progress(Body):
    status: str | None = None
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


def parse_ollama_host(text: str) -> str:
    """Return the URL for a value of OLLAMA_HOST, or an address in its place, as Ollama's own client parses it.

    >>> [parse_ollama_host(text) for text in ("", ":8080", "0.0.0.0:8080", " '::1' ", "[::]", "https://host/api/")]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['http://127.0.0.1:11434', 'http://127.0.0.1:8080', 'http://127.0.0.1:8080', 'http://[::1]:11434',
     'http://[::1]:11434', 'https://host:443/api']

    Source: https://github.com/ollama/ollama, `envconfig/config.go`, `Host` and `ConnectableHost`.
    """
    scheme, separator, rest = text.strip().strip("\"'").strip().rpartition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    with contextlib.suppress(ValueError):
        host = f"[{ipaddress.IPv6Address(host)}]"
    # A colon in brackets is part of the address.
    name, _, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
    port = port or ({"http": "80", "https": "443"}.get(scheme, "") if separator else "11434")
    # A server may listen on all addresses of its machine, but a client connects to one.
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)
    return f"{scheme or 'http'}://{user}{at}{name}:{port}{slash}{path}".rstrip("/")


class OllamaJudge(ServerJudge):
    """A model behind Ollama's `/api/chat`.

    Args:
        settings: Model, address (default: OLLAMA_HOST, otherwise this machine), options, timeout, retries.
    """

    def __init__(self, settings: JudgeSection) -> None:
        host = settings.base_url or os.environ.get("OLLAMA_HOST", "")
        where = f"{'The Ollama address' if settings.base_url else 'OLLAMA_HOST'} `{redact(host)}`"
        key = os.environ.get("OLLAMA_API_KEY")
        super().__init__(settings, parse_ollama_host(host), name="Ollama", key=key, where=where)
        self._model = settings.model or DEFAULT_MODEL
        self._window = f" (`judge.num_ctx` is {settings.num_ctx})"
        self._digest: str | None = None
        self._version: str | None = None
        # None to leave it out, because some versions ignore the schema if it is false.
        self._think: bool | str | None = settings.think
        # Number of replies so far, and number of the last one for which the model was confirmed.
        self._replies = self._confirmed = 0
        self._confirming = asyncio.Lock()

    def _options(self) -> dict[str, Any]:
        # Everything that can change a greedy reply, so that it does not depend on the defaults of the server or the
        # model file: `repeat_penalty` was 1.1 before Ollama 0.32.10.
        options = {
            "temperature": self._settings.temperature,
            "seed": self._seed,
            "num_ctx": self._settings.num_ctx,
            "num_predict": self._settings.max_new_tokens,
            "repeat_penalty": 1.0,
            "top_k": 40,
            "top_p": 0.9,
        }
        return {name: value for name, value in options.items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """Return model tag, digest, server version and options."""
        # Left out if false, so that judgments made before the option existed still count.
        think = {} if self._think is False else {"think": self._think}
        return {
            "backend": "ollama",
            "model": self._model,
            "digest": self._digest,
            "server_version": self._version,
            "options": {**self._options(), **think},
        }

    async def find_problem(self) -> str | None:
        """Return why no Ollama server answers at the address, or None if one answers."""
        try:
            await self._server.call("/api/version", _Version, seconds=_PROBE_SECONDS, retry=False)
        except ServerError as error:
            return str(error)
        return None

    async def prepare(self) -> None:
        """Run `check`, load the model, and test whether it follows the schema of a reply.

        Loading happens here so that no question waits for it and times out.

        Raises:
            JudgeUnavailable: The server does not answer, is not Ollama, or does not have the model.
        """
        await self.check()
        seconds = max(_LOAD_SECONDS, self._settings.timeout_seconds)
        # Servers that imitate Ollama may refuse an empty chat. Real problems also show at the first question.
        with contextlib.suppress(ServerError):
            await self._server.call("/api/chat", _Chat, self._build_chat([]), seconds=seconds, retry=False)
            if self._think is False:
                await self._try_schema()

    async def _try_schema(self) -> None:
        """Test whether a reply follows its schema; if not, try without `think`, otherwise warn.

        Until July 2026 Ollama silently dropped the schema if a reasoning model was set not to think:
        https://github.com/ollama/ollama/issues/14645 and 15260.
        """
        chat = self._build_chat(_TRIAL, format=_Ready.model_json_schema())
        if await self._keeps_schema(chat):
            return
        del chat["think"]
        if await self._keeps_schema(chat):
            self._think = None
            logger.warning(
                "Ollama %s ignores the JSON schema if `%s` is told not to think, so the model is allowed to think, "
                "which takes longer. Update Ollama, or set `judge.think`.",
                self._version,
                self._model,
            )
        else:
            logger.warning(
                "`%s` on Ollama %s does not follow the JSON schema, so scores are parsed from its text. If it is a "
                "reasoning model, update Ollama: versions before August 2026 ignore the schema of such models.",
                self._model,
                self._version,
            )

    async def _keeps_schema(self, chat: dict[str, Any]) -> bool:
        answer = await self._server.call("/api/chat", _Chat, chat, retry=False)
        with contextlib.suppress(pydantic.ValidationError):
            _Ready.model_validate_json(answer.message.content or "")
            return True
        return False

    async def check(self) -> None:
        """Check that the server runs and has the model, and pull it if the settings say so.

        Raises:
            JudgeUnavailable: The server does not answer, is not Ollama, or does not have the model.
        """
        try:
            self._version = (await self._server.call("/api/version", _Version, retry=False)).version
            if not await self._find_model():
                await self._obtain_model()
        except NoAnswer as error:
            raise JudgeUnavailable(
                f"No Ollama server answers at {self.url} ({error}). Start it with `ollama serve`, use another server "
                "with `--judge.base_url` or OLLAMA_HOST, or judge without a server with `--judge.backend local`."
            ) from error
        except ServerError as error:
            reason = f"status {error.status}: {error}" if error.status else error
            raise JudgeUnavailable(
                f"The server at {self.url} is not an Ollama server ({reason}). Start one with `ollama serve`, or set "
                "its address with `--judge.base_url` or OLLAMA_HOST."
            ) from error

    async def _ask(self, question: Question) -> Reply:
        chat = self._build_chat(question.messages, format=question.schema)
        answer = await self._server.call("/api/chat", _Chat, chat)
        await self._confirm()
        text = answer.message.content or ""
        if cut := self._find_cut_prompt(question, answer.prompt_eval_count or 0):
            # The same question would be cut again.
            return Reply(text, failure=cut, final=True)
        failure = self._find_cut(text, answer.message.thinking, is_cut=answer.done_reason == "length")
        if not answer.done:
            failure = "the server stopped the reply (`done` is false), which happens if a model repeats itself"
        return Reply(text, failure=failure)

    def _build_chat(self, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": messages,
            "options": self._options(),
            # For reasoning models, leaving this out means true.
            **({} if self._think is None else {"think": self._think}),
            "keep_alive": _KEEP_LOADED,
            "stream": False,
            # By default the server drops what does not fit, and the judge would score a text that it only saw in part.
            "truncate": False,
            **more,
        }

    def _refusal(self, error: ServerError) -> JudgeError:
        if error.status == 404:
            return JudgeUnavailable(f"{self._where} says: {error}. Run `ollama pull {self._model}`.")
        return super()._refusal(error)

    async def _confirm(self) -> None:
        """Check that the reply that just arrived is from the model in the identity.

        The model was the same at the start and after each earlier reply, so if it is still the same now, the reply is
        from it. Replies that arrive during a check share the next one.

        Raises:
            JudgeError: Another model has the name now, or another version of the server runs.
            ServerError: The server does not answer the check.
        """
        self._replies += 1
        number = self._replies
        async with self._confirming:
            if self._confirmed >= number:
                return
            latest = self._replies
            try:
                answer, models = await asyncio.gather(self._server.call("/api/version", _Version), self._list_models())
            except NoServer:
                raise
            except ServerError as error:
                raise ServerError(f"cannot check that the model is still the same: {error}") from error
            before, now = (self._digest, self._version), (models.get(_normalize(self._model)), answer.version)
            if before != now:
                labels = [f"{(digest or 'none')[:12]} on Ollama {version}" for digest, version in (before, now)]
                raise JudgeError(
                    f"The model `{self._model}` at {self.url} changed during judging (digest {labels[0]}; now "
                    f"{labels[1]}), so the scores would be from two different judges. Judge again to start over with "
                    "the new one."
                )
            self._confirmed = latest

    def _find_cut_prompt(self, question: Question, num_read: int) -> str | None:
        """Return the failure if the server cut the prompt to its context window despite `truncate: false`, else None.

        Servers that do not support `truncate` (before 0.12) fill the window with the rest of the prompt, or keep half a
        window and two tokens, as servers that render templates themselves still do without `truncate`.
        """
        characters = sum(len(message["content"]) for message in question.messages)
        window = self._settings.num_ctx
        is_half = abs(num_read - (window // 2 + 2)) <= 1 and characters > _MAX_CHARACTERS_A_TOKEN * num_read
        if num_read < window and not is_half:
            return None
        return (
            f"the question of {characters:,} characters does not fit: the server cut it and the judge read "
            f"{num_read:,} tokens of it (`judge.num_ctx` is {window:,})"
        )

    async def _list_models(self) -> dict[str, str | None]:
        """Return the digests of the server's models by name."""
        listing = await self._server.call("/api/tags", _Models)
        digests = {_normalize(model.model): (model.digest or "").removeprefix("sha256:") for model in listing.models}
        return {name: digest or None for name, digest in digests.items()}

    async def _find_model(self) -> bool:
        """Return whether the server has the model, and store its digest."""
        digests = await self._list_models()
        self._digest = digests.get(_normalize(self._model))
        try:
            # Models that run elsewhere (Ollama's cloud, a proxy's upstream) can be used without being listed.
            if _normalize(self._model) not in digests:
                await self._server.call("/api/show", Body, {"model": self._model})
        except ServerError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def _obtain_model(self) -> None:
        if not self._settings.pull:
            available = quote_names(sorted(await self._list_models())[:8]) or "none"
            raise JudgeUnavailable(
                f"{self._where} does not have the model `{self._model}` (it has: {available}). Run `ollama pull "
                f"{self._model}`, add `--judge.pull true`, or choose another model with `--judge.model`."
            )
        await self._pull()
        if not await self._find_model():
            raise JudgeUnavailable(f"Ollama pulled `{self._model}` but does not list it; check `ollama list`.")

    async def _pull(self) -> None:
        status = ""
        total, completed = 0, dict[str, int]()
        try:
            with progress_bar(f"Pulling {self._model} (percent)", 100) as advance:
                shown_percent = 0
                async for line in self._server.lines("/api/pull", _Progress, {"model": self._model, "stream": True}):
                    status = line.status or ""
                    if line.digest and line.total:
                        total += 0 if line.digest in completed else line.total
                        completed[line.digest] = line.completed or 0
                    percent = 100 if status == "success" else min(99, 100 * sum(completed.values()) // max(total, 1))
                    if percent > shown_percent:
                        advance(percent - shown_percent, status)
                        shown_percent = percent
        except ServerError as error:
            raise JudgeUnavailable(
                f"{self._where} cannot pull `{self._model}`: {error}. Check the name at "
                "https://ollama.com/library and the server's network."
            ) from error
        # The stream may end early without an error.
        if status != "success":
            raise JudgeUnavailable(
                f"{self._where} stopped pulling `{self._model}` at '{one_line(status)}'. Run `ollama "
                f"pull {self._model}`; it continues where it stopped."
            )


def _normalize(name: str) -> str:
    """Return a model's name as Ollama compares it: lowercase, with the tag `latest` if it has none.

    >>> _normalize("Llama3"), _normalize("registry:5000/me/llama3:8b")
    ('llama3:latest', 'registry:5000/me/llama3:8b')
    """
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
