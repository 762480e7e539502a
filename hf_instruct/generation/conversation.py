"""A conversation with a model: its turns, as many of them as fit the prompt, and the answer as it is written."""

import bisect
import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

from hf_instruct.errors import DataError
from hf_instruct.generation.chat_model import ChatModel
from hf_instruct.generation.chat_settings import ChatSettings
from hf_instruct.generation.decoding import Completion
from hf_instruct.generation.token_text import check_text
from hf_instruct.records import Example, build_example_id


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
        self._system = ""
        self._stop = threading.Event()
        self._working: Future[None] | None = None
        self._num_answers = 0
        self.system = system

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

        The answer is written in a thread of its own, from this call on; a reader who closes the iterator stops it. An
        answer that is still being written is stopped first.

        Raises:
            DataError: The question is empty, holds control characters, or is longer than the model's context.
            InstructError: From the iterator, where generation fails; the turn is then not added.
        """
        question = check_text(text).strip()
        self._settle()
        return self._start(question, self.turns)

    def retry(self) -> Iterator[str]:
        """Ask the latest question again, and return the pieces of the answer that takes the place of the latest.

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
        prompt, room = self._fit(question, history)
        self.longest = room
        # Another answer to the same question should be another one; the conversation as a whole repeats.
        seed = None if self.settings.seed is None else (self.settings.seed + self._num_answers) % 2**32
        self._num_answers += 1
        settings = dataclasses.replace(self.settings, max_new_tokens=room, seed=seed)
        pieces: SimpleQueue[str | None] = SimpleQueue()
        stop = self._stop = threading.Event()

        def work() -> None:
            try:
                completion = self.model.answer(prompt, settings=settings, on_text=pieces.put, is_stopped=stop.is_set)
                turn = _build_turn(question, completion, room)
                # Stopped before its first word, another answer takes nobody's place.
                self.turns = [*history, turn if turn.assistant or turn.ended_by != "user" else replaced or turn]
            finally:
                pieces.put(None)

        # A pool of one keeps what the work raises for the reader.
        thread = ThreadPoolExecutor(1, thread_name_prefix="answer")
        working = self._working = thread.submit(work)
        thread.shutdown(wait=False)
        return _read_pieces(pieces, working, stop)

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
            what = "the system text and the prompt format" if self.system else "the prompt format"
            raise DataError(
                f"The question is too long: with {what} it takes {len(prompt):,} tokens, and the model reads "
                f"{limit:,}, its answer included. Shorten it by at least {_count_tokens(len(prompt) - limit + 1)}."
            )
        self.notice = _describe_cuts(first, len(turns), room if room < kept_free else None, limit)
        return prompt, room


def build_examples(turns: Sequence[Turn]) -> list[Example]:
    """Return turns as training examples, each standing alone; answers that are empty or not whole are left out."""
    return [
        Example(build_example_id(turn.user, "", turn.assistant), turn.user, "", turn.assistant)
        for turn in turns
        if turn.assistant and turn.ended_by == "model"
    ]


def format_examples(examples: Sequence[Example]) -> str:
    """Return examples as a file of JSON Lines that `data check` accepts, each once."""
    rows = {row.id: {"instruction": row.instruction, "input": row.input, "output": row.output} for row in examples}
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())


def _build_turn(question: str, completion: Completion, room: int) -> Turn:
    ended_by = "model" if completion.stopped else "length" if completion.num_tokens >= room else "user"
    return Turn(question, completion.text, ended_by)


def _describe_cuts(num_cut: int, num_turns: int, room: int | None, limit: int) -> str:
    parts = []
    if num_cut:
        what = "The oldest turn" if num_cut == 1 else f"The {num_cut:,} oldest of {num_turns:,} turns"
        parts.append(f"{what} no longer {'fits' if num_cut == 1 else 'fit'} the model's {limit:,} tokens: left out.")
    if room is not None:
        parts.append(
            f"The question leaves room for {_count_tokens(room)} of the model's {limit:,}: the answer may be cut."
        )
    return " ".join(parts)


def _count_tokens(count: int) -> str:
    return f"{count:,} {'token' if count == 1 else 'tokens'}"


def _read_pieces(pieces: "SimpleQueue[str | None]", working: "Future[None]", stop: threading.Event) -> Iterator[str]:
    try:
        while (piece := pieces.get()) is not None:
            yield piece
        working.result()
    finally:
        stop.set()
        wait([working])
