"""Put many questions to a judge at once and keep each result as soon as it is there, whatever the results are."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from hf_instruct.errors import JudgeError, VerdictError
from hf_instruct.evaluation.judges import Judge, Reply
from hf_instruct.evaluation.rubrics import Question

_ATTEMPTS = 2
_FAILURES_IN_A_ROW = 8
_KEPT_CHARACTERS = 65_536

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Answer(NamedTuple, Generic[Value]):
    """What came of one question.

    Attributes:
        value: The verdict; None where none could be read.
        replies: The judge's raw replies, one for each attempt that brought any; then an empty one if the last attempt
            brought none, so that the last one is what `failure` is about.
        seconds: Time the judge took, all attempts together.
        failure: Why there is no verdict.
    """

    value: Value | None
    replies: list[str]
    seconds: float = 0.0
    failure: str | None = None


class Asker:
    """Puts questions to a judge, an unreadable or failed one once more, and gives up on a judge that stays silent.

    Args:
        judge: The judge, prepared.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._silent = 0

    async def ask(self, question: Question, read: Callable[[Reply], Value]) -> Answer[Value]:
        """Return what the judge says to a question.

        Args:
            question: What to ask.
            read: Takes the verdict out of a reply, or raises VerdictError.

        Raises:
            JudgeError: The judge cannot go on, or has not replied at all to eight questions in a row.
        """
        seconds, texts, failure = 0.0, [], ""
        for _ in range(_ATTEMPTS):
            reply = await self._judge.ask(question)
            seconds += reply.seconds
            if reply.text:
                texts.append(to_printable(reply.text))
            failure = reply.failure or ""
            if not failure:
                try:
                    value = read(reply)
                except VerdictError as error:
                    failure = str(error)
                else:
                    self._silent = 0
                    return Answer(value, texts, seconds)
            if reply.final:
                break
        self._silent = 0 if texts else self._silent + 1
        texts += [""] * bool(texts and not reply.text)
        if self._silent >= _FAILURES_IN_A_ROW:
            raise JudgeError(
                f"The judge left {self._silent} questions in a row without a reply; the last time, {failure}."
            )
        return Answer(None, texts, seconds, to_printable(failure))


async def work_through(
    items: Sequence[Item],
    work: Callable[[Item], Awaitable[Result]],
    *,
    save: Callable[[list[Result]], None],
    concurrency: int,
) -> None:
    """Do work on every item, several at a time, and save the results as they arrive.

    What any of the work raises ends it all; what was done by then is saved, also when the task is cancelled.

    Args:
        items: What to work on, in this order.
        work: Returns the result for an item.
        save: Keeps results, in a thread of its own, never two at once.
        concurrency: Items under way at any moment.
    """
    waiting = iter(items)
    arrived = asyncio.Event()
    unsaved: list[Result] = []

    async def worker() -> None:
        # All workers draw from one iterator, so a slow item holds up nobody else.
        for item in waiting:
            unsaved.append(await work(item))
            arrived.set()

    def save_batch() -> None:
        if batch := unsaved[:]:
            save(batch)
            del unsaved[: len(batch)]

    async def writer() -> None:
        while True:
            await arrived.wait()
            arrived.clear()
            # In a thread: questions are sent while the disk takes its time. Shielded: a cancelled write goes on in its
            # thread, and nothing else may write until it ends.
            saving = asyncio.create_task(asyncio.to_thread(save_batch))
            try:
                await asyncio.shield(saving)
            except asyncio.CancelledError:
                await saving
                raise

    workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, len(items)))]
    try:
        await _wait_for_all(workers, asyncio.create_task(writer()))
    finally:
        save_batch()


async def _wait_for_all(workers: list[asyncio.Task[None]], writer: asyncio.Task[None]) -> None:
    """Return when all workers are done; raise what any of them or the writer raises, once all of them have stopped."""
    left: set[asyncio.Task[None]] = set(workers)
    try:
        while left:
            finished, _ = await asyncio.wait({*left, writer}, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
            left -= finished
    finally:
        for task in (*workers, writer):
            task.cancel()
        await asyncio.gather(*workers, writer, return_exceptions=True)


def to_printable(text: str) -> str:
    """Return a text as rows keep it: its first and last 32,768 characters, without halves of surrogate pairs.

    A reply that was cut may end in such a half, which UTF-8 cannot hold.
    """
    if len(text) > _KEPT_CHARACTERS:
        half = _KEPT_CHARACTERS // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half:,} characters are left out here]\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode("utf-8")
