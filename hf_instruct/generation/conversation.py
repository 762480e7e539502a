"""A conversation with a model: its turns, the prompt with as many turns as fit, and the streamed answer."""

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
        assistant: The answer, no white space around it.
        ended_by: `model` if the answer is complete, `length` where it reached `max_new_tokens`, `user` where it was
            stopped or is still being written.
    """

    user: str
    assistant: str
    ended_by: str = "model"


class Conversation:
    """A sequence of questions and answers; each answer is read to its end, or closed, before the next question.

    Attributes:
        model: Shared with other conversations.
        settings: How answers are generated; may be replaced between questions.
        turns: What was said so far, with what there is of an answer that is being written.
        notice: What a reader should know about the latest prompt, such as turns left out of it; empty for nothing.
        longest: Most tokens of the latest answer: as set, or what its prompt left of the model's context.
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
        """Forget all turns; system text and settings stay."""
        self.turns: list[Turn] = []
        self.notice, self.longest, self._num_answers = "", self.settings.max_new_tokens, 0

    def undo(self) -> Turn | None:
        """Remove the latest turn and return it, or None if there is none."""
        if not self.turns:
            return None
        *self.turns, last = self.turns
        return last

    def stream(self, text: str, *, stop: threading.Event | None = None) -> Iterator[str]:
        """Ask a question, and return the pieces of its answer as they come.

        Closing the iterator ends the answer, and so does setting `stop`, after the current token; what there is of it
        stays as a turn.

        Raises:
            DataError: The question is empty, contains control characters, or is longer than the model's context.
            InstructError: From the iterator, where generation fails; the turns are then as before.
        """
        return self._start(check_text(text).strip(), self.turns, stop)

    def retry(self, *, stop: threading.Event | None = None) -> Iterator[str]:
        """Ask the latest question again, as `stream`; its answer replaces the latest unless stopped before a word.

        Raises:
            DataError: Nothing was asked yet.
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
        """Yield the pieces of an answer as the latest turn grows; `before` is restored where none comes."""
        *history, turn = asked = self.turns
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
        if self.turns == asked and len(before) == len(asked):
            # Nothing came to replace the latest answer.
            self.turns = before

    def _fit(self, question: str, history: list[Turn]) -> tuple[list[int], int]:
        """Return the prompt with as many turns before it as fit, and how many tokens the answer may have.

        Raises:
            DataError: The question leaves no room for an answer.
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
            raise DataError(
                f"The question is too long: with the prompt format {'and system message ' * bool(self.system)}it has "
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
        known: Ids of examples that are saved already.

    Returns:
        JSON Lines that `data check` accepts, each example once; and in words how many there are.

    Raises:
        DataError: There is nothing to save: no turn, or no answer that is whole.
    """
    whole = [turn for turn in turns if turn.assistant and turn.ended_by == "model"]
    if not whole:
        raise DataError(
            "There is nothing to save yet: no answer is complete. A larger `max_new_tokens` lets answers finish."
        )
    rows = {build_example_id(turn.user, "", turn.assistant): turn for turn in whole}
    lines = [
        json.dumps({"instruction": turn.user, "input": "", "output": turn.assistant}, ensure_ascii=False) + "\n"
        for id, turn in rows.items()
        if id not in known
    ]
    cut, again = len(turns) - len(whole), len(whole) - len(lines)
    reasons = [f"{cut} empty or cut"] * bool(cut) + [f"{again} already saved"] * bool(again)
    return "".join(lines), f"Saved {len(lines)} of {len(turns)} answers" + f" ({', '.join(reasons)})" * bool(reasons)
