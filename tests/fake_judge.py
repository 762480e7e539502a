"""A judge without a model: replies from a queue, then by a function of the question; and a question to any judge."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from rows import response

from hf_instruct.errors import JudgeUnavailable
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.rubrics import Question, load_rubric

RESPONSE = response("a", "Blue.", "Red.", instruction="Name a color.")
QUESTION = load_rubric("course").build_question(RESPONSE)


def always_50(question: Question) -> Reply:
    return Reply('{"score": 50}', 0.25)


class FakeJudge(Judge):
    """A judge that keeps what it was asked.

    Args:
        replies: Its first replies, or what it raises instead of one.
        reply: Makes those after them.
        model: Part of its identity, as `seed` is.
    """

    def __init__(
        self, *replies: Reply | Exception, reply: Callable[[Question], Reply] = always_50, model: str = "fake"
    ) -> None:
        self.replies = list(replies)
        self.reply = reply
        self.model = model
        self.seed = 1
        self.asked: list[Question] = []
        self.interrupt_after: int | None = None
        self.dies_after: int | None = None

    def identity(self) -> dict[str, Any]:
        options = {"seed": self.seed}
        return {"backend": "fake", "model": self.model, "digest": "d" * 12, "server_version": "1", "options": options}

    def reseed(self, seed: int) -> None:
        self.seed = seed

    async def ask(self, question: Question) -> Reply:
        self.asked.append(question)
        await asyncio.sleep(0)
        if len(self.asked) == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        if self.dies_after is not None and len(self.asked) > self.dies_after:
            raise JudgeUnavailable("The server is gone.")
        reply = self.replies.pop(0) if self.replies else self.reply(question)
        if isinstance(reply, Exception):
            raise reply
        return reply
