"""The seam between judging and whoever judges: one protocol, and the choice of who implements it."""

import asyncio
import dataclasses
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.judging.rubrics import Question

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Reply:
    """One reply of a judge, or why there is none.

    Attributes:
        text: What the judge wrote, to be kept as it is.
        seconds: Time from the question to the reply, waiting in the server's queue included.
        failure: Why the reply cannot count, where that is known without reading it: cut off, timed out, refused.
        final: Whether asking once more is pointless.
        score: The score, 0 to 100, from a judge that computes one instead of writing it.
    """

    text: str
    seconds: float
    failure: str | None = None
    final: bool = False
    score: int | None = None


class Judge(Protocol):
    """Whoever scores a response."""

    async def check(self) -> None:
        """Make sure that the judge will be able to answer, as far as that costs little: no weights are loaded.

        Raises:
            JudgeUnavailable: It will not; the text says which command mends it.
        """

    async def prepare(self) -> None:
        """Make sure that questions can be asked now: the server runs, the model is loaded.

        Raises:
            JudgeUnavailable: They cannot; the text says which command mends it.
        """

    def identity(self) -> dict[str, Any]:
        """Return which judge this is, exactly, once prepared.

        The keys are `backend`, `model`, `digest` (None where unknown), `server_version` (None where unknown) and
        `options`. Two judges of equal identity give the same question the same verdict, as far as anybody can know.
        """

    def reseed(self, seed: int) -> None:
        """Give the judge another seed, which its identity then tells; one that draws nothing at random ignores it."""

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question; what went wrong with this question alone is the reply's `failure`.

        Raises:
            JudgeError: No further question would be answered either.
        """

    async def close(self) -> None:
        """Let go of connections and memory; safe to call at any time."""


async def open_judge(settings: JudgeSection) -> Judge:
    """Return the judge that the settings name, prepared.

    Raises:
        JudgeUnavailable: It does not answer, or lacks the model.
    """
    judge = await choose_judge(settings)
    try:
        await judge.prepare()
    except BaseException:
        await judge.close()
        raise
    return judge


async def choose_judge(settings: JudgeSection) -> Judge:
    """Return the judge that the settings name, not prepared yet.

    Raises:
        JudgeUnavailable: `auto` and an address were given, and no Ollama answers there.
    """
    # The clients below take a while to import, so each is imported only where it is used.
    if settings.backend in ("auto", "ollama"):
        check_ollama_host()
    backend: str = await _choose_backend(settings) if settings.backend == "auto" else settings.backend
    if backend == "ollama":
        from hf_instruct.judging.ollama import OllamaJudge

        return OllamaJudge(settings)
    if backend == "openai":
        from hf_instruct.judging.openai import OpenAIJudge

        return OpenAIJudge(settings)
    from hf_instruct.judging.local import LocalJudge

    return LocalJudge(settings)


def check_ollama_host() -> None:
    """Refuse an OLLAMA_HOST that is no address; with one, importing the `ollama` package (0.6.3) fails.

    Raises:
        JudgeError: It is not usable.
    """
    host = os.environ.get("OLLAMA_HOST", "")
    try:
        _ = urlsplit(host if "://" in host else f"http://{host}").port
    except ValueError as error:
        raise JudgeError(f"OLLAMA_HOST is `{host}`: {error}. It looks like http://127.0.0.1:11434.") from error


async def _choose_backend(settings: JudgeSection) -> str:
    from hf_instruct.judging.local import DEFAULT_MODEL
    from hf_instruct.judging.ollama import find_server

    found, url = await find_server(settings.base_url)
    if found:
        return "ollama"
    if settings.base_url:
        raise JudgeUnavailable(
            f"No Ollama server answers at {url} (`base_url`). Start it there, or name what runs there with "
            "`--judge openai`, or leave `base_url` out to judge with a local model."
        )
    logger.warning(
        "No Ollama server answers at %s, so the local judge %s scores the answers. For the course's judge: start "
        "`ollama serve`, run `ollama pull llama3`, and judge again.",
        url,
        settings.model or DEFAULT_MODEL,
    )
    return "local"


async def retry(
    call: Callable[[], Awaitable[Result]], *, delays: list[float], transient: Callable[[Exception], int]
) -> Result:
    """Return what a call returns, after trying again as often as its error deserves.

    Args:
        call: What to do.
        delays: Seconds to wait before each further try; the real wait is up to half longer, so that many callers do
            not return in one wave.
        transient: Says how many further tries an error is worth, at most `len(delays)`; 0 for none.

    Raises:
        Exception: What the last try raised.
    """
    tries = 0
    while True:
        try:
            return await call()
        except Exception as error:
            if tries >= min(transient(error), len(delays)):
                raise
            logger.debug("trying again after: %s", error)
        await asyncio.sleep(delays[tries] * (1 + random.random() / 2))
        tries += 1
