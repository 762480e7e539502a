"""The base of judges on a server: ask, detect replies that were cut off, and classify errors."""

import abc
import json
import re
import time

import httpx

from hf_instruct.config import JudgeSection
from hf_instruct.errors import JudgeError, JudgeUnavailable
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.rubrics import Question
from hf_instruct.servers import NoServer, Server, ServerError

_TOO_LONG = re.compile(r"context|too long|maximum")


class ServerJudge(Judge):
    """A model behind a server.

    Args:
        settings: Model, options, timeout, retries.
        http: The connection, from `open_http`.
        name: What messages call the server, before its address.
    """

    def __init__(self, settings: JudgeSection, http: httpx.AsyncClient, *, name: str) -> None:
        self._settings = settings
        self._seed = settings.seed
        self._server = Server(http, timeout_seconds=settings.timeout_seconds, retries=settings.retries)
        self.url = self._server.url
        self._where = f"{name} at {self.url}"
        # Which setting says how long a question may be, to follow in brackets.
        self._window = ""

    def reseed(self, seed: int | None) -> None:
        """Ask with another seed afterwards."""
        self._seed = seed

    async def close(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    async def ask(self, question: Question) -> Reply:
        """Return the reply to one question.

        Raises:
            JudgeUnavailable: The server is gone, or no longer has the model.
            JudgeError: The server refuses every such question, or runs another model than before.
        """
        start = time.monotonic()
        text, final = "", False
        try:
            text, failure, final = await self._ask(question)
        except NoServer as error:
            raise JudgeUnavailable(f"{self._where} no longer answers ({error}). Start it again.") from error
        except ServerError as error:
            failure, final = self._explain(error), error.status == 400
        return Reply(text, time.monotonic() - start, failure, final)

    @abc.abstractmethod
    async def _ask(self, question: Question) -> tuple[str, str | None, bool]:
        """Return a reply's text, why it cannot count, and whether asking once more is pointless."""

    def _explain(self, error: ServerError) -> str:
        """Return what was wrong with one question, or raise what will be wrong with every one."""
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
        """Return why a reply that arrived holds no whole answer, or None.

        Args:
            text: The reply.
            thinking: What the model thought before it, where the server keeps that apart.
            is_cut: Whether the reply reached the limit of tokens, which thinking counts towards.
        """
        only_thought = bool(thinking and thinking.strip()) and not text.strip()
        if is_cut:
            what = "the judge was still thinking when its reply was cut off" if only_thought else "the reply was cut"
            return f"{what} at {self._settings.max_new_tokens} tokens (`judge.max_new_tokens`)"
        if only_thought:
            think = json.dumps(self._settings.think)
            hint = f"`judge.think` is {think}; some models only accept `low`, `medium` or `high`"
            return f"the judge wrote no answer after thinking ({hint})"
        return None


def advise_on_refusal(text: str) -> str:
    """Return the remedy for a server's refusal, as a sentence; empty if it is about no known setting.

    >>> advise_on_refusal("Unsupported value: 'temperature' does not support 0.0 with this model.")
    ' Set `judge.temperature: null` to leave the temperature to the server.'
    """
    for name in ("temperature", "seed"):
        if re.search(rf"\b{name}\b", text, re.IGNORECASE):
            return f" Set `judge.{name}: null` to leave the {name} to the server."
    if re.search(r"\bthink|\breasoning", text, re.IGNORECASE):
        return " Set `judge.think` to a value that this model accepts: false, true, low, medium or high."
    return ""
