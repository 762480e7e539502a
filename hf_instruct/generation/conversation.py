"""A conversation with a model: its turns, as many of them as fit the prompt, and the answer as it is written."""

import bisect
import dataclasses
import json
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from hf_instruct.errors import DataError
from hf_instruct.generation.chat_model import ChatModel, ChatSettings
from hf_instruct.generation.token_text import check_text
from hf_instruct.records import build_example_id


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        user: The question.
        assistant: The answer, no white space around it.
        ended_by: `model` where the answer is whole, `length` where it ran into the most tokens it may have, `user`
            where it was stopped.
    """

    user: str
    assistant: str
    ended_by: str = "model"


class Conversation:
    """Questions to a model and its answers, one after the other.

    Not to be asked by two threads at once; `stop` may be called from any.

    Attributes:
        model: Shared with other conversations.
        settings: How answers are generated; may be exchanged between questions.
        turns: What was said so far; a turn is added when its answer ends, however it ends.
        notice: What a reader should know about the latest prompt, such as turns left out of it; empty for nothing.
        longest: Most tokens that the latest answer could have: as set, or what its prompt left of the model's context.
    """

    def __init__(self, model: ChatModel, *, system: str = "", settings: ChatSettings | None = None) -> None:
        """Begin.

        Raises:
            ConfigError: There is a system text, and the prompt format has no place for it.
            DataError: It holds control characters.
        """
        self.model = model
        self.settings = settings or ChatSettings()
        self.turns: list[Turn] = []
        self.notice = ""
        self.longest = self.settings.max_new_tokens
        self._stop = threading.Event()
        self._working: Future[None] | None = None
        self._num_answers = 0
        # Before the answer that is being written, and the question with what there is of the answer.
        self._writing: tuple[list[Turn], Turn] | None = None
        self.system = system

    @property
    def said(self) -> list[Turn]:
        """What was said so far, with the question that is being answered and what there is of its answer."""
        writing = self._writing
        return [*writing[0], writing[1]] if writing else self.turns

    @property
    def system(self) -> str:
        """What the model is told before the first question; empty for what its template says by itself."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        text = check_text(text, what="system text").strip() if text.strip() else ""
        # A template that refuses it does so now.
        self.model.encode("Q", system=text)
        self._system = text

    def stream(self, text: str) -> Iterator[str]:
        """Ask a question, and return the pieces of its answer as they come.

        The answer is written in a thread of its own, starting with this call; a reader who closes the iterator stops
        it. An answer that is still being written is stopped first.

        Raises:
            DataError: The question is empty, holds control characters, or is longer than the model's context.
            InstructError: From the iterator, where generation fails; the turn is then not added.
        """
        question = check_text(text).strip()
        self._settle()
        return self._start(question, self.turns)

    def retry(self) -> Iterator[str]:
        """Ask the latest question again, and return the pieces of the answer that replaces the latest.

        Raises:
            DataError: Nothing was asked yet.
        """
        self._settle()
        if not self.turns:
            raise DataError("There is no question to ask again yet.")
        return self._start(self.turns[-1].user, self.turns[:-1], replaced=self.turns[-1])

    def stop(self) -> None:
        """End the answer that is being written after its current token; what there is of it becomes the turn."""
        self._stop.set()

    def undo(self) -> Turn | None:
        """Take back the latest turn and return it; None where there is none."""
        self._settle()
        if not self.turns:
            return None
        *self.turns, last = self.turns
        return last

    def clear(self) -> None:
        """Forget all turns; system text and settings stay."""
        self._settle()
        self.turns, self.notice, self._num_answers = [], "", 0

    def _settle(self) -> None:
        """Wait until no answer is being written."""
        if self._working is not None:
            self._stop.set()
            wait([self._working])

    def _start(self, question: str, history: list[Turn], *, replaced: Turn | None = None) -> Iterator[str]:
        prompt, self.longest = self._fit(question, history)
        # Another answer to the same question should be another one; the conversation as a whole repeats.
        seed = None if self.settings.seed is None else (self.settings.seed + self._num_answers) % 2**32
        self._num_answers += 1
        settings = self.settings.change(max_new_tokens=self.longest, seed=seed)
        pieces: SimpleQueue[str | None] = SimpleQueue()
        stop = self._stop = threading.Event()
        self._writing = (history, Turn(question, ""))

        def take(piece: str) -> None:
            self._writing = (history, Turn(question, self.said[-1].assistant + piece))
            pieces.put(piece)

        def work() -> None:
            try:
                done = self.model.answer(prompt, settings=settings, on_text=take, stop=stop)
                ended_by = "model" if done.stopped else "length" if done.num_tokens >= self.longest else "user"
                turn = Turn(question, done.text, ended_by)
                # Stopped before its first word, another answer replaces nothing.
                self.turns = [*history, turn if turn.assistant or ended_by != "user" else replaced or turn]
            finally:
                self._writing = None
                pieces.put(None)

        # A pool of one keeps what the work raises for the reader.
        thread = ThreadPoolExecutor(1, thread_name_prefix="answer")
        self._working = thread.submit(work)
        thread.shutdown(wait=False)
        return _read_pieces(pieces, self._working, stop)

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
        # A longest answer of the whole context would leave no turn in it.
        kept_free = min(most, limit // 2)
        first = bisect.bisect_left(range(len(turns)), True, key=lambda first: len(encode(first)) + kept_free <= limit)
        prompt = encode(first)
        room = min(most, limit - len(prompt))
        if room < 1:
            raise DataError(
                f"The question is too long: with the prompt format {'and system text ' * bool(self.system)}it takes "
                f"{len(prompt):,} tokens, and the model reads {limit:,}, its answer included. Shorten it."
            )
        if first:
            self.notice = f"Left out of the model's {limit:,} tokens: the oldest {first:,} of {len(turns):,} turns."
        elif room < kept_free:
            self.notice = f"The question leaves room for {room:,} of the model's {limit:,} tokens."
        return prompt, room


def format_examples(turns: Sequence[Turn], known: Collection[str] = ()) -> tuple[str, str]:
    """Return the whole answers of a conversation as training examples, each standing alone.

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
        raise DataError("There is nothing to save yet: no answer is whole (a larger `max_new_tokens` lets them end).")
    rows = {build_example_id(turn.user, "", turn.assistant): turn for turn in whole}
    lines = [
        json.dumps({"instruction": turn.user, "input": "", "output": turn.assistant}, ensure_ascii=False) + "\n"
        for id, turn in rows.items()
        if id not in known
    ]
    said = f"Saved {len(lines)} of {len(turns)} answers"
    cut, again = len(turns) - len(whole), len(whole) - len(lines)
    reasons = [f"{cut} empty or cut"] * bool(cut) + [f"{again} saved already"] * bool(again)
    return "".join(lines), said + (f" ({', '.join(reasons)})" if reasons else "")


def _read_pieces(pieces: "SimpleQueue[str | None]", working: "Future[None]", stop: threading.Event) -> Iterator[str]:
    try:
        while (piece := pieces.get()) is not None:
            yield piece
        working.result()
    finally:
        stop.set()
