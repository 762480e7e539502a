"""A judge that an Ollama server runs."""

import asyncio
import logging
import time
from typing import Any

import httpx

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.evaluation.judges import Reply
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.evaluation.server_judge import advise_on_refusal, find_cut
from hf_instruct.progress import progress_bar
from hf_instruct.servers import Body, NoAnswer, NoServer, Server, ServerError, open_ollama, shorten

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "llama3"
_PROBE_SECONDS = 3.0
# Loading a large model from a slow disk; the server itself gives up after as long without progress.
_LOAD_SECONDS = 300.0
_KEEP_LOADED = "10m"
# No prompt of prose, code or numbers has as many characters to a token, on average; of plain English it has 4 to 5.
_MOST_CHARACTERS_A_TOKEN = 6


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


class _Progress(Body):
    status: str | None = None
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


async def find_server(base_url: str | None) -> tuple[str | None, str]:
    """Look for an Ollama server at an address (default: OLLAMA_HOST, else this machine).

    Returns:
        Why it does not answer, or None where it does; and its URL.
    """
    server = Server(open_ollama(httpx.AsyncClient, base_url), timeout_seconds=_PROBE_SECONDS)
    try:
        await server.call("/api/version", _Version)
    except ServerError as error:
        return str(error), server.url
    finally:
        await server.aclose()
    return None, server.url


class OllamaJudge:
    """A model behind Ollama's `/api/chat`.

    Args:
        settings: Model, address, options, timeout.
        delays: Seconds before each further try of a call that failed for a passing reason.
    """

    def __init__(self, settings: JudgeSection, *, delays: list[float] | None = None) -> None:
        self._settings = settings
        self._model = settings.model or DEFAULT_MODEL
        http = open_ollama(httpx.AsyncClient, settings.base_url)
        timeout, retries = settings.timeout_seconds, settings.retries
        self._server = Server(http, timeout_seconds=timeout, retries=retries, delays=delays)
        self._digest: str | None = None
        self._version: str | None = None
        # How many replies have come, and up to which of them the model is known to have been the same.
        self._replies = self._confirmed = 0
        self._confirming = asyncio.Lock()
        # Everything that moves a greedy reply, so that no server's or model file's default does: `repeat_penalty` was
        # 1.1 before Ollama 0.32.10.
        self._options = _without_none(
            {
                "temperature": settings.temperature,
                "seed": settings.seed,
                "num_ctx": settings.num_ctx,
                "num_predict": settings.max_new_tokens,
                "repeat_penalty": 1.0,
                "top_k": 40,
                "top_p": 0.9,
            }
        )

    def identity(self) -> dict[str, Any]:
        """Return model tag, digest, server version and options."""
        # Left out where it is false, so that judgments made before there was a choice still count.
        think = {"think": self._settings.think} if self._settings.think else {}
        return {
            "backend": "ollama",
            "model": self._model,
            "digest": self._digest,
            "server_version": self._version,
            "options": {**self._options, **think},
        }

    def reseed(self, seed: int | None) -> None:
        """Ask with another seed from now on."""
        # A new dictionary: the old one is part of identities that were given out.
        self._options = _without_none({**self._options, "seed": seed})

    async def close(self) -> None:
        """Close the connections."""
        await self._server.aclose()

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
        try:
            self._version = (await self._server.call("/api/version", _Version, retry=False)).version
            if not await self._find_model():
                await self._obtain_model()
        except NoAnswer as error:
            raise JudgeUnavailable(
                f"No Ollama server answers at {self._server.url} ({error}). Start it with `ollama serve`, or name "
                "another with `--base-url` or OLLAMA_HOST, or judge without a server: `--judge local`."
            ) from error
        except ServerError as error:
            reason = f"status {error.status}: {error}" if error.status else error
            raise JudgeUnavailable(
                f"What answers at {self._server.url} is not an Ollama server ({reason}). Start one with `ollama "
                "serve`, or name its address with `--base-url` or OLLAMA_HOST."
            ) from error

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question.

        Raises:
            JudgeUnavailable: The server is gone, or no longer has the model.
            JudgeError: The server refuses every such question, or runs another model than before.
        """
        start = time.monotonic()
        failure, final, text = None, False, ""
        try:
            answer = await self._server.call(
                "/api/chat", _Chat, self._build_chat(question.messages, format=question.schema)
            )
            await self._confirm()
            text = answer.message.content or ""
            cut = self._cut_prompt(question, answer.prompt_eval_count or 0)
            # Asked again, the same would be cut off again.
            failure, final = cut or self._find_problem(answer), cut is not None
        except NoServer as error:
            raise JudgeUnavailable(
                f"The Ollama server at {self._server.url} no longer answers ({error}). Start it again with "
                "`ollama serve`."
            ) from error
        except ServerError as error:
            failure, final = self._judge_error(error), error.status == 400
        return Reply(text, time.monotonic() - start, failure, final)

    def _build_chat(self, messages: list[dict[str, str]], **more: Any) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": messages,
            "options": self._options,
            # On a model that can think, leaving this out means true.
            "think": self._settings.think,
            "keep_alive": _KEEP_LOADED,
            "stream": False,
            # Unless told so, the server drops what does not fit, and the judge scores a text that it has seen half of.
            "truncate": False,
            **more,
        }

    async def _confirm(self) -> None:
        """Make sure that the reply that just came is by the model that the identity names.

        The model was that one when judging began and after each reply before, so a reply is in no doubt if it is now.
        Replies that come while the server is asked share the next time it is.

        Raises:
            JudgeError: Another model has the name now, or another version of the server runs.
            ServerError: The server does not say.
        """
        self._replies += 1
        number = self._replies
        async with self._confirming:
            if self._confirmed < number:
                latest = self._replies
                await self._compare_identity()
                self._confirmed = latest

    async def _compare_identity(self) -> None:
        try:
            answer, models = await asyncio.gather(self._server.call("/api/version", _Version), self._list_models())
        except NoServer:
            raise
        except ServerError as error:
            raise ServerError(f"whether the model is still the same could not be checked: {error}") from error
        version, digest = answer.version, models.get(_normalize(self._model))
        if (version, digest) != (self._version, self._digest):
            before, now = (
                f"{(digest or 'none')[:12]} on Ollama {version}"
                for digest, version in ((self._digest, self._version), (digest, version))
            )
            raise JudgeError(
                f"The model `{self._model}` at {self._server.url} changed during judging (digest {before}; now {now}), "
                "so the scores would be those of two judges. Judging again starts over with the new one."
            )

    def _find_problem(self, answer: _Chat) -> str | None:
        """Return why an answer that came whole is not a whole reply."""
        if not answer.done:
            return "the server broke the reply off (`done` is false), as it does when a model repeats itself"
        is_cut = answer.done_reason == "length"
        return find_cut(answer.message.content or "", answer.message.thinking, is_cut=is_cut, settings=self._settings)

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

    def _judge_error(self, error: ServerError) -> str:
        """Return what was wrong with one question, or raise what will be wrong with every one."""
        text = str(error)
        if error.status is None:
            return text
        if error.status == 404:
            raise JudgeUnavailable(f"Ollama at {self._server.url} says: {text}. Run `ollama pull {self._model}`.")
        if "exceeds the available context size" in text or "exceed_context_size" in text:
            return f"{text} (`judge.num_ctx` is {self._settings.num_ctx})"
        if error.status in (400, 401, 403, 405):
            raise JudgeError(
                f"Ollama at {self._server.url} refuses the question: {text} (status {error.status})."
                f"{advise_on_refusal(text)}"
            )
        return f"the server failed: {text} (status {error.status})"

    async def _list_models(self) -> dict[str, str | None]:
        """Return the digest of each model that the server has, by its name."""
        listing = await self._server.call("/api/tags", _Models)
        digests = {_normalize(model.model): (model.digest or "").removeprefix("sha256:") for model in listing.models}
        return {name: digest or None for name, digest in digests.items()}

    async def _find_model(self) -> bool:
        """Return whether the server has the model, and keep its digest."""
        digests = await self._list_models()
        if _normalize(self._model) in digests:
            self._digest = digests[_normalize(self._model)]
            return True
        # Models that run elsewhere (Ollama's cloud, a proxy's upstream) are known without being listed.
        try:
            await self._server.call("/api/show", Body, {"model": self._model})
        except ServerError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def _obtain_model(self) -> None:
        if not self._settings.pull:
            names = sorted(await self._list_models())
            known = ", ".join(f"`{name}`" for name in names[:8]) or "none"
            raise JudgeUnavailable(
                f"Ollama at {self._server.url} does not have the model `{self._model}` (it has: {known}). "
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
                async for line in self._server.lines("/api/pull", _Progress, {"model": self._model, "stream": True}):
                    status = line.status or ""
                    if line.digest and line.total:
                        total += 0 if line.digest in seen else line.total
                        seen[line.digest] = line.completed or 0
                    percent = 100 if status == "success" else min(99, 100 * sum(seen.values()) // max(total, 1))
                    if percent > shown:
                        advance(percent - shown, status)
                        shown = percent
        except ServerError as error:
            raise JudgeUnavailable(
                f"Ollama at {self._server.url} cannot pull `{self._model}`: {error}. Check the name at "
                "https://ollama.com/library and the server's network."
            ) from error
        # The stream may end without an error and without having finished.
        if status != "success":
            raise JudgeUnavailable(
                f"Ollama at {self._server.url} stopped pulling `{self._model}` at '{shorten(status)}'. Run `ollama "
                f"pull {self._model}`; it continues where it stopped."
            )

    async def _load_model(self) -> None:
        """Have the model loaded with the judge's own options, so that no question waits (and times out) for that."""
        seconds = max(_LOAD_SECONDS, self._settings.timeout_seconds)
        try:
            await self._server.call("/api/chat", _Chat, self._build_chat([]), seconds=seconds, retry=False)
        except ServerError as error:
            # Servers that imitate Ollama may refuse an empty chat. Whatever is wrong, the first question meets it too.
            logger.debug("loading the model ahead failed: %s", error)


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _normalize(name: str) -> str:
    """Return a model's name as Ollama compares it: any case, `latest` where no tag is given.

    >>> _normalize("Llama3"), _normalize("registry:5000/me/llama3:8b")
    ('llama3:latest', 'registry:5000/me/llama3:8b')
    """
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
