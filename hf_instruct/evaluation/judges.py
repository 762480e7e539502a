"""Judges: their interface, the choice of one by the settings, and the base class of judges on a server."""

import abc
import contextlib
import dataclasses
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.evaluation.rubrics import Question, load_rubric
from hf_instruct.servers import NoServer, Server, ServerError, run_sync

logger = logging.getLogger(__name__)

_TOO_LONG = re.compile(r"context|too long|maximum")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply of a judge, or why there is none.

    Attributes:
        text: The judge's raw text.
        seconds: Time from the question to the reply, including waiting in the server's queue.
        failure: Why the reply does not count, if clear without parsing it: cut off, timed out, refused.
        final: Whether asking again is pointless.
        score: The score, 0 to 100, from a judge that computes one instead of writing it.
    """

    text: str
    seconds: float = 0.0
    failure: str | None = None
    final: bool = False
    score: int | None = None


class Judge(Protocol):
    """A judge that scores responses."""

    async def check(self) -> None:
        """Check cheaply that the judge will be able to answer, without loading weights.

        Raises:
            JudgeUnavailable: It will not; the message names the command that fixes it.
        """
        await self.prepare()

    async def prepare(self) -> None:
        """Prepare for questions: make sure that the server is running and the model is loaded.

        Raises:
            JudgeUnavailable: They are not; the message names the command that fixes it.
        """

    def identity(self) -> dict[str, Any]:
        """Return the exact identity of the judge, once prepared.

        The keys are `backend`, `model`, `digest` (None if unknown), `server_version` (None if unknown) and
        `options`. Two judges with the same identity are expected to give a question the same verdict.
        """

    def reseed(self, seed: int | None) -> None:
        """Set another seed, which becomes part of the identity; judges without randomness ignore it."""
        return

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question; an error that concerns this question alone is the reply's `failure`.

        Raises:
            JudgeError: Further questions would fail too.
        """

    async def close(self) -> None:
        """Release connections and memory; safe to call at any time."""


@contextlib.asynccontextmanager
async def opened_judge(settings: JudgeSection, judge: Judge | None = None) -> AsyncIterator[Judge]:
    """Yield a prepared judge: `judge` if given, otherwise the one in the settings, which is closed at the end.

    Raises:
        JudgeUnavailable: It does not answer, or does not have the model.
    """
    if judge is not None:
        yield judge
        return
    opened = await choose_judge(settings)
    try:
        await opened.prepare()
        yield opened
    finally:
        await opened.close()


async def choose_judge(settings: JudgeSection) -> Judge:
    """Return the judge in the settings, not yet prepared.

    Raises:
        JudgeUnavailable: The backend is `auto` with an address at which no Ollama server answers, or it is `openai`
            with neither an address nor a key.
        ConfigError: The address is not usable.
    """
    # The clients take a while to import, so each is imported only where it is used.
    if settings.backend == "openai":
        from hf_instruct.evaluation.openai import OpenAIJudge

        return OpenAIJudge(settings)
    from hf_instruct.evaluation.local import DEFAULT_MODEL, LocalJudge

    if settings.backend == "local":
        return LocalJudge(settings)
    from hf_instruct.evaluation.ollama import OllamaJudge

    ollama = OllamaJudge(settings)
    problem = await ollama.find_problem() if settings.backend == "auto" else None
    if problem is None:
        return ollama
    await ollama.close()
    if settings.base_url:
        raise JudgeUnavailable(
            f"No Ollama server answers at {ollama.url} (`base_url`; {problem}). Start it there, use `--judge.backend "
            "openai` for another server, or leave `base_url` out to judge with a local model."
        )
    logger.warning(
        "No Ollama server answers at %s (%s), so the local judge %s is used. To use the course's judge, start "
        "`ollama serve`, run `ollama pull llama3`, and judge again.",
        ollama.url,
        problem,
        settings.model or DEFAULT_MODEL,
    )
    return LocalJudge(settings)


def check_judge(settings: JudgeSection) -> None:
    """Check that judging will work: the rubric is valid, the server is running and has the model.

    For a local judge this checks that the model exists, without loading it.

    Raises:
        ConfigError: The rubric is not usable.
        ModelLoadError: The local judge's model cannot be found.
        JudgeUnavailable: The server does not answer, or does not have the model.
    """
    load_rubric(settings.rubric)

    async def work() -> None:
        judge = await choose_judge(settings)
        try:
            await judge.check()
        finally:
            await judge.close()

    run_sync(work())


class ServerJudge(Judge):
    """A model behind a server.

    Args:
        settings: Model, options, timeout, retries.
        url: The server's address.
        name: Name of the server in messages, before its address.
        more: Other arguments of `Server`.
    """

    def __init__(self, settings: JudgeSection, url: str, *, name: str, **more: Any) -> None:
        self._settings = settings
        self._seed = settings.seed
        self._server = Server(url, timeout_seconds=settings.timeout_seconds, retries=settings.retries, **more)
        self.url = self._server.url
        self._where = f"{name} at {self.url}"
        # The setting that limits the length of a question, in parentheses for a message.
        self._window = ""

    def reseed(self, seed: int | None) -> None:
        """Use another seed for the following questions."""
        self._seed = seed

    async def close(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question.

        Raises:
            JudgeUnavailable: The server no longer answers, or no longer has the model.
            JudgeError: The server refuses all questions, or runs another model than before.
        """
        start = time.monotonic()
        try:
            reply = await self._ask(question)
        except NoServer as error:
            raise JudgeUnavailable(f"{self._where} no longer answers ({error}). Start it again.") from error
        except ServerError as error:
            reply = Reply("", failure=self._explain(error), final=error.status == 400)
        return dataclasses.replace(reply, seconds=time.monotonic() - start)

    @abc.abstractmethod
    async def _ask(self, question: Question) -> Reply:
        """Return the reply, without its `seconds`."""

    def _explain(self, error: ServerError) -> str:
        """Return the failure of this question, or raise JudgeError if every question would fail."""
        text, status = str(error), error.status
        if status is None:
            return text
        if status == 400 and _TOO_LONG.search(text):
            return f"the question is too long: {text}{self._window}"
        if status in (400, 401, 403, 404, 405):
            raise self._refusal(error)
        return f"the server failed: {text} (status {status})"

    def _refusal(self, error: ServerError) -> JudgeError:
        return JudgeError(
            f"{self._where} refuses the question: {error} (status {error.status}).{advise_on_refusal(str(error))}"
        )

    def _find_cut(self, text: str, thinking: str | None, *, is_cut: bool) -> str | None:
        """Return why a reply is incomplete, or None.

        Args:
            text: The reply.
            thinking: The model's reasoning before it, if the server returns that separately.
            is_cut: Whether the reply reached the limit of tokens, which includes those of the reasoning.
        """
        only_thought = bool(thinking and thinking.strip()) and not text.strip()
        if is_cut:
            problem = "the judge was still thinking when its reply was cut off" if only_thought else "the reply was cut"
            return f"{problem} at {self._settings.max_new_tokens} tokens (`judge.max_new_tokens`)"
        if only_thought:
            think = json.dumps(self._settings.think)
            hint = f"`judge.think` is {think}; some models only accept `low`, `medium` or `high`"
            return f"the judge wrote no answer after thinking ({hint})"
        return None


def advise_on_refusal(text: str) -> str:
    """Return how to fix a server's refusal, as a sentence; empty if it does not name one of our settings.

    >>> advise_on_refusal("Unsupported value: 'temperature' does not support 0.0 with this model.")
    ' Set `judge.temperature: null` to leave the temperature to the server.'
    """
    for name in ("temperature", "seed"):
        if re.search(rf"\b{name}\b", text, re.IGNORECASE):
            return f" Set `judge.{name}: null` to leave the {name} to the server."
    if re.search(r"\bthink|\breasoning", text, re.IGNORECASE):
        return " Set `judge.think` to a value that this model accepts: false, true, low, medium or high."
    return ""
