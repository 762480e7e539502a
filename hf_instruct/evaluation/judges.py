"""The interface of judges, and their replies."""

import dataclasses
from typing import Any, Protocol

from hf_instruct.evaluation.rubrics import Question


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply of a judge, or why there is none.

    Attributes:
        text: The judge's raw text.
        seconds: Time from the question to the reply, waiting in the server's queue included.
        failure: Why the reply does not count, if known without parsing it: cut off, timed out, refused.
        final: Whether asking again is pointless.
        score: The score, 0 to 100, from a judge that computes one instead of writing it.
    """

    text: str
    seconds: float
    failure: str | None = None
    final: bool = False
    score: int | None = None


class Judge(Protocol):
    """A judge that scores responses."""

    async def check(self) -> None:
        """Check cheaply that the judge will be able to answer, without loading weights.

        Raises:
            JudgeUnavailable: It will not; the text names the command that fixes it.
        """
        await self.prepare()

    async def prepare(self) -> None:
        """Prepare for questions: the server is running, the model is loaded.

        Raises:
            JudgeUnavailable: They cannot; the text names the command that fixes it.
        """

    def identity(self) -> dict[str, Any]:
        """Return the exact identity of the judge, once prepared.

        The keys are `backend`, `model`, `digest` (None if unknown), `server_version` (None if unknown) and
        `options`. Two judges of equal identity give the same question the same verdict, as far as anybody can know.
        """

    def reseed(self, seed: int | None) -> None:
        """Give the judge another seed, which its identity then shows; one that draws nothing at random ignores it."""
        return

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question; what went wrong with this question alone is the reply's `failure`.

        Raises:
            JudgeError: No further question would be answered either.
        """

    async def close(self) -> None:
        """Release connections and memory; safe to call at any time."""
