"""Talk with a model: the conversation, its prompt, and the answer as it is written."""

import bisect
import dataclasses
import json
import logging
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from hf_instruct.decoding import Completion
from hf_instruct.errors import ConfigError, DataError, RunError
from hf_instruct.generation.chat_settings import ChatSettings
from hf_instruct.generation.streaming import stream_completion
from hf_instruct.models import best_device, context_length, load_model
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.records import Example, build_example_id
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ChatModel", "ChatSettings", "Conversation", "Turn", "build_examples", "check_text", "format_examples"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.05


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


class ChatModel:
    """A model that any number of conversations share; it answers one at a time.

    Attributes:
        name: What it was loaded by, and for a run's base model that one's name.
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        prompt_format: The one it was trained on.
        context: Most tokens of prompt and answer together; None where the model does not say.
    """

    def __init__(
        self, name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, prompt_format: PromptFormat
    ) -> None:
        """Take a model that is loaded.

        Raises:
            ConfigError: The prompt format is `chat` and the tokenizer has no chat template.
        """
        self.name, self.model, self.tokenizer, self.prompt_format = name, model, tokenizer, prompt_format
        self.context = context_length(model)
        self._end_id = prompt_format.end_token_id(tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, name_or_run: str, *, base: bool = False, prompt_format: str | None = None, dtype: str | None = None
    ) -> "ChatModel":
        """Return the tuned model of a run, or a model by its name, on the fastest device there is.

        Args:
            name_or_run: A run folder, an alias, a Hub id, or the folder of a model or adapter.
            base: Whether to take the model that the run began with.
            prompt_format: Of a model that is no run's; by default `chat` where its tokenizer has a chat template, else
                `alpaca`. A run has its own.
            dtype: `float32`, `bfloat16` or `float16`; by default a run's `generate.dtype`, else `float32`.

        Raises:
            RunError: There is no such run, or it has no tuned model yet.
            ConfigError: `base` or `prompt_format` does not go with what is named, or the prompt format with the model.
            ModelLoadError: There is no such model, or it cannot be loaded.
        """
        run = find_run(name_or_run)
        if run is not None:
            return cls._load_run(run, base=base, prompt_format=prompt_format, dtype=dtype)
        if base:
            raise ConfigError(f"`{name_or_run}` is no run, so there is no base model to compare it with. Name a run.")
        chosen = None if prompt_format is None else PromptFormat.named(prompt_format)
        model, tokenizer = load_model(name_or_run, dtype=dtype or "float32")
        chosen = chosen or PromptFormat.named(CHAT if tokenizer.chat_template else "alpaca")
        return cls(name_or_run, _place(model), tokenizer, prompt_format=chosen)

    @classmethod
    def _load_run(cls, run: RunFolder, *, base: bool, prompt_format: str | None, dtype: str | None) -> "ChatModel":
        experiment = run.load_experiment()
        trained_on = experiment.data.prompt_format
        if prompt_format not in (None, trained_on):
            raise ConfigError(
                f"`{run.path}` was trained on the prompt format `{trained_on}`, so it is not asked in "
                f"`{prompt_format}`. Leave out `--prompt-format`."
            )
        if not base and not run.model.is_dir():
            raise RunError(
                f"`{run.path}` has no tuned model yet. Finish it with `hf-instruct run`, or talk to its base model, "
                f"`{experiment.model.name}`."
            )
        name = experiment.model.name if base else str(run.model)
        model, tokenizer = load_model(
            name,
            revision=experiment.model.revision if base else None,
            trust_remote_code=experiment.model.trust_remote_code,
            dtype=dtype or experiment.generate.dtype,
        )
        shown = name if base else str(run.path)
        return cls(shown, _place(model), tokenizer, prompt_format=PromptFormat.named(trained_on))

    @property
    def has_turns(self) -> bool:
        """Whether a question is asked together with the turns before it."""
        return self.prompt_format.has_turns

    def encode(self, question: str, *, history: Sequence[Turn] = (), system: str = "") -> list[int]:
        """Return the token ids of a question's prompt, as `PromptFormat.encode_turns`."""
        turns = [(turn.user, turn.assistant) for turn in history]
        return self.prompt_format.encode_turns(self.tokenizer, question, history=turns, system=system)

    def answer(
        self,
        prompt: Sequence[int],
        *,
        settings: ChatSettings,
        on_text: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> Completion:
        """Return the completion of a prompt, once no other is being written; see `stream_completion`."""
        while not self._lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
            if is_stopped():
                break
        else:
            try:
                if not is_stopped():
                    return stream_completion(
                        self.model,
                        self.tokenizer,
                        prompt,
                        end_id=self._end_id,
                        settings=settings,
                        on_text=on_text,
                        is_stopped=is_stopped,
                    )
            finally:
                self._lock.release()
        return Completion("", stopped=False, num_tokens=0)


class Conversation:
    """Questions to a model and its answers, one after the other.

    Not to be asked by two threads at once; `stop` may be called from any.

    Attributes:
        model: Shared with other conversations.
        settings: How answers are generated; may be exchanged between questions.
        turns: What was said so far; a turn is added when its answer ends, however it ends.
        notice: What a reader should know about the latest prompt, such as turns left out of it; empty for nothing.
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
        text = check_text(text, what="system text") if text.strip() else ""
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
        question = check_text(text)
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
        turns = history if self.model.has_turns else []
        limit, most = self.model.context, self.settings.max_new_tokens
        self.notice = ""
        if limit is None:
            return self.model.encode(question, history=turns, system=self.system), most
        # A longest answer of the whole context would leave no turn in it.
        kept_free = min(most, limit // 2)

        def fits(first: int) -> bool:
            prompt = self.model.encode(question, history=turns[first:], system=self.system)
            return len(prompt) + kept_free <= limit

        first = bisect.bisect_left(range(len(turns)), True, key=fits)
        prompt = self.model.encode(question, history=turns[first:], system=self.system)
        room = min(most, limit - len(prompt))
        if room < 1:
            what = "the system text and the prompt format" if self.system else "the prompt format"
            raise DataError(
                f"The question is too long: with {what} it takes {len(prompt):,} tokens, and the model reads "
                f"{limit:,}, its answer included. Shorten it by at least {len(prompt) - limit + 1:,} tokens."
            )
        self.notice = _describe_cuts(first, len(turns), room if room < kept_free else None, limit)
        return prompt, room


def find_run(name: str) -> RunFolder | None:
    """Return the run that a name stands for: its folder, or the `model` folder in it; None where it names a model.

    Raises:
        RunError: It is a path to nothing, to a file, or to a folder that holds neither a run nor a model.
    """
    path = Path(name).expanduser()
    for folder in (path, path.parent if path.name == "model" else path):
        if RunFolder(folder).config.is_file():
            return RunFolder(folder)
    if path.is_file():
        raise RunError(f"`{name}` is a file; name a run folder, the folder of a model, an alias or a Hub id.")
    is_model = any((path / file).is_file() for file in ("config.json", "adapter_config.json"))
    # `name/name` with no such folder may stand on the Hub; under a folder that is here, it is a slip.
    is_path = path.exists() or name.startswith((".", "/", "~")) or (len(path.parts) > 1 and path.parent.is_dir())
    if is_path and not is_model:
        RunFolder(path).load_experiment()
    return None


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


def check_text(text: str, *, what: str = "question") -> str:
    """Return what a user typed with plain line ends and no white space around it.

    Raises:
        DataError: It is empty, holds control characters, or was no UTF-8 text.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise DataError(f"The {what} is empty; type some words.")
    for place, char in enumerate(text, start=1):
        category = unicodedata.category(char)
        if category == "Cs":
            raise DataError(f"The {what} is not UTF-8 text (character {place:,}). Type or save it as UTF-8.")
        if category == "Cc" and char not in "\n\t":
            raise DataError(
                f"The {what} holds the control character U+{ord(char):04X} (character {place:,}); line breaks and tabs "
                "are allowed. Remove it."
            )
    return text


def _place(model: "PreTrainedModel") -> "PreTrainedModel":
    # Typed as a wrapper that hides the argument.
    model.to(best_device())  # type: ignore[arg-type]
    return model


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
            f"The question leaves room for {room:,} {'token' if room == 1 else 'tokens'} of the model's {limit:,}: the "
            "answer may be cut."
        )
    return " ".join(parts)


def _read_pieces(pieces: "SimpleQueue[str | None]", working: "Future[None]", stop: threading.Event) -> Iterator[str]:
    try:
        while (piece := pieces.get()) is not None:
            yield piece
        working.result()
    finally:
        stop.set()
        wait([working])
