"""What one browser tab has said to whom: a conversation for each model it talks to."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from hf_instruct.generation.conversation import Conversation, Turn

# A fast model writes more often than a browser needs to draw.
_SECONDS_BETWEEN_UPDATES = 0.05
_PENDING = "…"
# A large model on a slow machine may read its prompt for so long before it can stop.
_SECONDS_TO_STOP = 60.0


@dataclasses.dataclass(eq=False)
class Column:
    """One model's side of a session.

    Attributes:
        label: What the model is called.
        conversation: None until the model is loaded.
        asked: The question that is being answered; None where none is.
        before: The turns before that question.
        answer: What is there of the answer.
    """

    label: str
    conversation: "Conversation | None" = None
    asked: str | None = None
    before: "Sequence[Turn]" = ()
    answer: str = ""

    @property
    def turns(self) -> "list[Turn]":
        """What was said so far."""
        return self.conversation.turns if self.conversation else []

    def was_asked(self, question: str) -> bool:
        """Return whether that is its latest question."""
        return bool(self.turns) and self.turns[-1].user == question

    def list_turns(self) -> list[tuple[str, str]]:
        """Return the questions and answers to show."""
        # A turn is added a moment before its last piece is read: until then, what was there before counts.
        said = self.before if self.asked is not None else self.turns
        turns = [(turn.user, turn.assistant) for turn in said]
        return turns if self.asked is None else [*turns, (self.asked, self.answer or _PENDING)]


class ChatSession:
    """One browser tab: nothing in it is shared with another but the models.

    Attributes:
        columns: One for each model it talks to.
    """

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self._is_stopped = False
        # Held while a question is answered, by whichever thread does so at the time.
        self._answering = threading.Lock()

    def begin(self, *, instead: bool = False) -> bool:
        """Keep others from asking until `end`, and return whether that could be had.

        Args:
            instead: Whether to stop what is being written; else, unless it is about to end, there is no beginning.
        """
        if instead:
            self.stop()
        # What was stopped ends with its current token, and what has ended as soon as the page is told.
        if not self._answering.acquire(timeout=_SECONDS_TO_STOP if self._is_stopped else 0):
            return False
        self._is_stopped = False
        return True

    def end(self) -> None:
        """Let the next question be asked."""
        self._answering.release()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Stop what is being written, and change what was said once the page has shown it."""
        has_begun = self.begin(instead=True)
        try:
            yield
        finally:
            if has_begun:
                self.end()

    def take(self, labels: list[str]) -> None:
        """Talk to these models; a change of any begins anew, because an answer belongs to what was said before."""
        if [column.label for column in self.columns] != labels:
            with self._alone():
                self.columns = [Column(label) for label in labels]

    def stop(self) -> None:
        """End what is being written soon; what there is of it stays."""
        self._is_stopped = True
        for column in self.columns:
            if column.conversation:
                column.conversation.stop()

    def clear(self) -> None:
        """Forget what was said."""
        with self._alone():
            self.columns = [Column(column.label) for column in self.columns]

    def latest_question(self) -> str:
        """Return what was asked last; empty where nothing was."""
        return next((column.turns[-1].user for column in self.columns if column.turns), "")

    def undo(self) -> str:
        """Take back the latest question and return it; empty where there is none."""
        with self._alone():
            question = self.latest_question()
            for column in self.columns:
                # One that was stopped before its turn came was not asked.
                if column.conversation and column.was_asked(question):
                    column.conversation.undo()
            return question

    def answer(self, column: Column, question: str, *, again: bool = False) -> Iterator[None]:
        """Have a model answer, and yield when there is something new to show.

        Args:
            column: One of this session's, with a conversation.
            question: What is asked.
            again: Whether it is the latest question once more, for an answer in the place of the latest.

        Raises:
            InstructError: The question cannot be asked, or generation failed.
        """
        talk = column.conversation
        if talk is None or self._is_stopped or column not in self.columns:
            return
        again = again and (column.was_asked(question) or not question)
        before = talk.turns[:-1] if again else talk.turns
        pieces = cast("Generator[str]", talk.retry() if again else talk.stream(question))
        if self._is_stopped:
            # Between the look above and the start, when there was nothing to stop yet.
            talk.stop()
        column.asked, column.before, column.answer = question, before, ""
        try:
            # Another conversation may have the model: the question is there while it waits.
            yield
            yield from _follow(column, pieces)
        except GeneratorExit:
            # The browser is gone, and nobody reads the answer. Closing waits for the current token, but in another
            # thread: this may be the one that serves everybody.
            talk.stop()
            threading.Thread(target=pieces.close, daemon=True).start()
            raise
        finally:
            column.asked = None
        yield


def _follow(column: Column, pieces: Iterator[str]) -> Iterator[None]:
    """Yield while an answer is written into its column."""
    shown_at = 0.0
    for piece in pieces:
        column.answer += piece
        if time.monotonic() - shown_at >= _SECONDS_BETWEEN_UPDATES:
            shown_at = time.monotonic()
            yield
