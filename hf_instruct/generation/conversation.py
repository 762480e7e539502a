"""A conversation with a model: its turns, prompts with as many turns as fit, and streamed answers."""

import bisect
import dataclasses
import json
import threading
from collections.abc import Collection, Iterator, Sequence

from hf_instruct.errors import DataError
from hf_instruct.generation.chat_model import ChatModel, ChatSettings
from hf_instruct.generation.decoding import Completion
from hf_instruct.generation.token_text import check_text
from hf_instruct.records import build_example_id


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        user: The question.
        assistant: The answer, without surrounding white space.
        ended_by: `model` if the answer is complete, `length` if it reached `max_new_tokens`, `user` if it was stopped
            or is still being generated.
    """

    user: str
    assistant: str
    ended_by: str = "model"


class Conversation:
    """A sequence of questions and answers; each answer is read to its end, or closed, before the next question.

    Attributes:
        model: The model, shared with other conversations.
        settings: Generation settings; can be replaced between questions.
        turns: The turns so far, including an incomplete answer that is being generated.
        notice: Message about the latest prompt, such as turns left out of it; empty for none.
        longest: Maximum number of tokens in the latest answer: as set, or limited by the model's context.
    """

    def __init__(self, model: ChatModel, *, system: str = "", settings: ChatSettings | None = None) -> None:
        """Start a conversation.

        Raises:
            ConfigError: There is a system message, and the prompt format has no place for it.
            DataError: It contains control characters.
        """
        self.model = model
        self.settings = settings or ChatSettings()
        self.clear()
        self.system = system

    @property
    def system(self) -> str:
        """The system message; empty for the default of the model's template."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        text = check_text(text, what="system text").strip() if text.strip() else ""
        # A template that does not support it fails here.
        self.model.encode("Q", system=text)
        self._system = text

    def clear(self) -> None:
        """Remove all turns, but keep the system message and settings."""
        self.turns: list[Turn] = []
        self.notice, self.longest, self._num_answers = "", self.settings.max_new_tokens, 0

    def undo(self) -> Turn | None:
        """Remove the latest turn and return it, or None if there is none."""
        if not self.turns:
            return None
        *self.turns, last = self.turns
        return last

    def stream(self, text: str, *, stop: threading.Event | None = None) -> Iterator[str]:
        """Ask a question, and return an iterator over the pieces of its answer as they are generated.

        Closing the iterator or setting `stop` ends the answer after the current token; the incomplete answer is kept as
        a turn.

        Raises:
            DataError: The question is empty, contains control characters, or is longer than the model's context.
            InstructError: Raised by the iterator if generation fails; the turns are then as before.
        """
        return self._start(check_text(text).strip(), self.turns, stop)

    def retry(self, *, stop: threading.Event | None = None) -> Iterator[str]:
        """Ask the latest question again, like `stream`; the new answer replaces the latest one unless it is empty.

        Raises:
            DataError: There is no question yet.
        """
        if not self.turns:
            raise DataError("There is no question to repeat yet.")
        return self._start(self.turns[-1].user, self.turns[:-1], stop)

    def _start(self, question: str, history: list[Turn], stop: threading.Event | None) -> Iterator[str]:
        prompt, self.longest = self._fit(question, history)
        # The same question should get another answer, while the whole conversation stays reproducible.
        seed = None if self.settings.seed is None else (self.settings.seed + self._num_answers) % 2**32
        self._num_answers += 1
        settings = self.settings.change(max_new_tokens=self.longest, seed=seed)
        before, self.turns = self.turns, [*history, Turn(question, "", "user")]
        return self._read(before, self.model.stream(prompt, settings=settings, stop=stop or threading.Event()))

    def _read(self, before: list[Turn], growing: Iterator[Completion]) -> Iterator[str]:
        """Yield the pieces of an answer and update the latest turn; restores `before` if there are none."""
        *history, turn = initial = self.turns
        try:
            for done in growing:
                piece = done.text[len(turn.assistant) :]
                ended_by = "model" if done.stopped else "length" if done.num_tokens >= self.longest else "user"
                turn = Turn(turn.user, done.text, ended_by)
                self.turns = [*history, turn]
                if piece:
                    yield piece
        except Exception:
            self.turns = before
            raise
        if self.turns == initial and len(before) == len(initial):
            # A retry without any text keeps the latest answer.
            self.turns = before

    def _fit(self, question: str, history: list[Turn]) -> tuple[list[int], int]:
        """Return the prompt with as many earlier turns as fit, and the maximum number of tokens in the answer.

        Raises:
            DataError: The question leaves no space for an answer.
        """
        turns = [(turn.user, turn.assistant) for turn in history] if self.model.has_turns else []
        limit, most = self.model.context, self.settings.max_new_tokens
        self.notice = ""

        def encode(first: int) -> list[int]:
            return self.model.encode(question, history=turns[first:], system=self.system)

        if limit is None:
            return encode(0), most
        # If `max_new_tokens` is the whole context, there must still be room for turns.
        kept_free = min(most, limit // 2)
        first = bisect.bisect_left(range(len(turns)), True, key=lambda first: len(encode(first)) + kept_free <= limit)
        prompt = encode(first)
        room = min(most, limit - len(prompt))
        if room < 1:
            with_system = "and system message " if self.system else ""
            raise DataError(
                f"The question is too long: with the prompt format {with_system}it has "
                f"{len(prompt):,} tokens, and the model's limit is {limit:,}, including the answer. Shorten it."
            )
        if first:
            self.notice = (
                f"The oldest {first:,} of {len(turns):,} turns are left out to fit the model's {limit:,} tokens."
            )
        elif room < kept_free:
            self.notice = f"The question leaves {room:,} of the model's {limit:,} tokens for the answer."
        return prompt, room


def format_examples(turns: Sequence[Turn], known: Collection[str] = ()) -> tuple[str, str]:
    """Return the complete answers of a conversation as separate training examples.

    Args:
        turns: The conversation.
        known: Ids of examples that are already saved.

    Returns:
        JSON Lines that `data check` accepts, without duplicates, and a message with the number of examples.

    Raises:
        DataError: There is no complete answer to save.
    """
    complete = [turn for turn in turns if turn.assistant and turn.ended_by == "model"]
    if not complete:
        raise DataError(
            "There is nothing to save yet: no answer is complete. A larger `max_new_tokens` lets answers finish."
        )
    rows = {build_example_id(turn.user, "", turn.assistant): turn for turn in complete}
    lines = [
        json.dumps({"instruction": turn.user, "input": "", "output": turn.assistant}, ensure_ascii=False) + "\n"
        for id, turn in rows.items()
        if id not in known
    ]
    counts = {"empty or cut": len(turns) - len(complete), "already saved": len(complete) - len(lines)}
    skipped = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return "".join(lines), f"Saved {len(lines)} of {len(turns)} answers" + (f" ({skipped})" if skipped else "")
