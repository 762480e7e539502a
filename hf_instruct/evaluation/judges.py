"""Who judges: what any judge does, what it replies, and which one the settings name."""

import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.rubrics import Question

logger = logging.getLogger(__name__)


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
            JudgeUnavailable: It will not; the text names the command that fixes it.
        """

    async def prepare(self) -> None:
        """Make sure that questions can be asked now: the server runs, the model is loaded.

        Raises:
            JudgeUnavailable: They cannot; the text names the command that fixes it.
        """

    def identity(self) -> dict[str, Any]:
        """Return which judge this is, exactly, once prepared.

        The keys are `backend`, `model`, `digest` (None where unknown), `server_version` (None where unknown) and
        `options`. Two judges of equal identity give the same question the same verdict, as far as anybody can know.
        """

    def reseed(self, seed: int | None) -> None:
        """Give the judge another seed, which its identity then shows; one that draws nothing at random ignores it."""

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question; what went wrong with this question alone is the reply's `failure`.

        Raises:
            JudgeError: No further question would be answered either.
        """

    async def close(self) -> None:
        """Release connections and memory; safe to call at any time."""


@contextlib.asynccontextmanager
async def opened_judge(settings: JudgeSection, judge: Judge | None = None) -> AsyncIterator[Judge]:
    """Give a prepared judge: `judge` where there is one, else the one that the settings name, closed at the end.

    Raises:
        JudgeUnavailable: It does not answer, or lacks the model.
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
    """Return the judge that the settings name, not prepared yet.

    Raises:
        JudgeUnavailable: `auto` and an address were given, and no Ollama answers there.
    """
    # The clients take a while to import, so each is imported only where it is used.
    if settings.backend in ("auto", "ollama"):
        from hf_instruct.evaluation.ollama import OllamaJudge

        ollama = OllamaJudge(settings)
        problem = await ollama.find_problem() if settings.backend == "auto" else None
        if problem is None:
            return ollama
        await ollama.close()
        _explain_fallback(settings, ollama.url, problem)
    if settings.backend == "openai":
        from hf_instruct.evaluation.openai import OpenAIJudge

        return OpenAIJudge(settings)
    from hf_instruct.evaluation.local import LocalJudge

    return LocalJudge(settings)


def _explain_fallback(settings: JudgeSection, url: str, problem: str) -> None:
    from hf_instruct.evaluation.local import DEFAULT_MODEL

    if settings.base_url:
        raise JudgeUnavailable(
            f"No Ollama server answers at {url} (`base_url`; {problem}). Start it there, or name what runs there with "
            "`--judge openai`, or leave `base_url` out to judge with a local model."
        )
    logger.warning(
        "No Ollama server answers at %s (%s), so the local judge %s scores the answers. For the course's judge: start "
        "`ollama serve`, run `ollama pull llama3`, and judge again.",
        url,
        problem,
        settings.model or DEFAULT_MODEL,
    )
