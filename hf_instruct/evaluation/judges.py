"""The seam between judging and whoever judges: what any judge does, and what it replies."""

import dataclasses
import json
import re
from typing import Any, Protocol

from hf_instruct.config import JudgeSection
from hf_instruct.evaluation.rubrics import Question


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

    def reseed(self, seed: int | None) -> None:
        """Give the judge another seed, which its identity then tells; one that draws nothing at random ignores it."""

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question; what went wrong with this question alone is the reply's `failure`.

        Raises:
            JudgeError: No further question would be answered either.
        """

    async def close(self) -> None:
        """Let go of connections and memory; safe to call at any time."""


def find_cut(text: str, thinking: str | None, *, is_cut: bool, settings: JudgeSection) -> str | None:
    """Return why a reply that arrived holds no whole answer, or None.

    Args:
        text: The reply.
        thinking: What the model thought before it, where the server keeps that apart.
        is_cut: Whether the reply reached the limit of tokens, which thinking counts towards.
        settings: The limit and whether the judge was told to think.
    """
    only_thought = bool(thinking and thinking.strip()) and not text.strip()
    if is_cut:
        what = "the judge was still thinking when its reply was cut" if only_thought else "the reply was cut"
        return f"{what} at {settings.max_new_tokens} tokens (`judge.max_new_tokens`)"
    if only_thought:
        return (
            f"the judge thought and then wrote no answer (`judge.think` is {json.dumps(settings.think)}; some models "
            "take only `low`, `medium` or `high`)"
        )
    return None


def advise_on_refusal(text: str) -> str:
    """Return which setting a server's refusal is about, as a sentence to follow it; empty where it is about none.

    >>> advise_on_refusal("Unsupported value: 'temperature' does not support 0.0 with this model.")
    ' `judge.temperature: null` leaves the temperature to the server.'
    """
    for name in ("temperature", "seed"):
        if re.search(rf"\b{name}\b", text, re.IGNORECASE):
            return f" `judge.{name}: null` leaves the {name} to the server."
    if re.search(r"\bthink|\breasoning", text, re.IGNORECASE):
        return " Set `judge.think` to what this model takes: false, true, low, medium or high."
    return ""
