"""A conversation at a terminal or through a pipe: questions, and commands that begin with a slash."""

import contextlib
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.terminal_text import iterate_columns
from hf_instruct.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.conversation import Conversation, Turn
    from hf_instruct.records import Example

logger = logging.getLogger(__name__)

_LEAST_COLUMNS = 60
COMMANDS = {
    "/help": "this list",
    "/retry": "answer the latest question anew",
    "/undo": "take back the latest question and its answer",
    "/clear": "forget all questions and answers",
    "/set": "/set NAME VALUE changes how answers are generated; alone, lists the settings",
    "/system": "/system TEXT tells the model something beforehand (`none`: nothing); alone, shows it",
    "/compare": "/compare QUESTION asks the untuned model too; alone, turns that on or off for every question",
    "/save": "/save FILE.jsonl appends the whole answers to a file of training examples",
    "/quit": "end; so does Ctrl-D",
}


class TerminalChat:
    """What the lines that a user types do.

    Attributes:
        conversation: With the model that was named.
    """

    def __init__(
        self, conversation: "Conversation", *, load_base: "Callable[[], ChatModel] | None", is_terminal: bool = False
    ) -> None:
        """Begin.

        Args:
            conversation: With the model to talk to.
            load_base: Loads the model to compare with; None where there is none.
            is_terminal: Whether Ctrl-C stops an answer instead of the program.
        """
        self.conversation = conversation
        self._load_base, self._is_terminal = load_base, is_terminal
        self._base: Conversation | None = None
        self._compares = False
        self._actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/set": self._set,
            "/system": self._tell,
            "/compare": self._compare,
            "/save": self._save,
        }

    def handle(self, line: str) -> bool:
        """Do what a line asks for, and return whether the session goes on.

        Raises:
            InstructError: It cannot be done; the session can go on.
        """
        line = line.strip()
        if not line:
            if self._is_terminal:
                logger.info("Type a question, or /help.")
            return True
        if not line.startswith("/") or line.startswith("//"):
            self.ask(line.removeprefix("/") if line.startswith("//") else line)
            return True
        command, _, argument = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command not in self._actions:
            raise ConfigError(_explain_unknown(command))
        self._actions[command](argument.strip())
        return True

    def ask(self, question: str, *, compare: bool = False) -> None:
        """Ask a question and print the answer as it comes, or both models' answers side by side.

        Raises:
            InstructError: The question cannot be asked, or generation fails.
        """
        self._answer(lambda conversation: conversation.stream(question), compare=compare or self._compares)

    def stop(self) -> None:
        """End every answer that is being written."""
        self.conversation.stop()
        if self._base is not None:
            self._base.stop()

    def turn_on_comparing(self) -> None:
        """Ask the untuned model too from now on; loads it.

        Raises:
            InstructError: There is none, or it cannot be loaded.
        """
        self._require_base()
        self._compares = True

    def compared_turn(self) -> "Turn | None":
        """Return the untuned model's latest turn, where it was asked."""
        return self._base.turns[-1] if self._base is not None and self._base.turns else None

    def _answer(self, start: "Callable[[Conversation], Iterator[str]]", *, compare: bool) -> None:
        conversations = [self._require_base(), self.conversation] if compare else [self.conversation]
        if compare:
            # Both answer the same prompt.
            base = conversations[0]
            base.turns, base.settings = list(self.conversation.turns), self.conversation.settings
            base.system = self.conversation.system
        with self._ctrl_c_stops() as pressed:
            try:
                streams = [start(conversation) for conversation in conversations]
                if pressed.is_set():
                    # Before there was anything to stop.
                    self.stop()
                if self.conversation.notice:
                    logger.info("%s", self.conversation.notice)
                self._show(streams, conversations)
            finally:
                # Whatever came between: no thread writes on unseen.
                self.stop()
        for conversation in conversations:
            _note_ending(conversation, named=compare)

    def _show(self, streams: list[Iterator[str]], conversations: "list[Conversation]") -> None:
        width = shutil.get_terminal_size().columns
        labels = [f"{who} ({talk.model.name})" for who, talk in zip(("untuned", "tuned"), conversations, strict=False)]
        if len(streams) == 1:
            _print_pieces(streams[0])
        elif self._is_terminal and sys.stdout.isatty() and width >= _LEAST_COLUMNS:
            headed = [_with_head(label, stream) for label, stream in zip(labels, streams, strict=True)]
            for line in iterate_columns(headed, width - 1):
                print(line, flush=True)
        else:
            for label, stream in zip(labels, streams, strict=True):
                print(f"{label}:")
                _print_pieces(stream)
        if self._is_terminal:
            print(flush=True)

    @contextlib.contextmanager
    def _ctrl_c_stops(self) -> Iterator[threading.Event]:
        pressed = threading.Event()
        if not self._is_terminal or threading.current_thread() is not threading.main_thread():
            yield pressed
            return

        def stop(number: int, frame: object) -> None:
            pressed.set()
            self.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield pressed
        finally:
            signal.signal(signal.SIGINT, before)

    def _require_base(self) -> "Conversation":
        from hf_instruct.generation.conversation import Conversation

        if self._base is None:
            if self._load_base is None:
                raise ConfigError(
                    f"`{self.conversation.model.name}` has no untuned model to compare with: name a run, without "
                    "`--base`."
                )
            self._base = Conversation(self._load_base())
        return self._base

    def _help(self, argument: str) -> None:
        width = max(map(len, COMMANDS))
        for command, text in COMMANDS.items():
            print(f"  {command:<{width}}  {text}")
        print("  A question that begins with a slash is typed with two; a line that ends in \\ goes on in the next.")

    def _retry(self, argument: str) -> None:
        if self.conversation.turns and self.conversation.settings.temperature == 0:
            logger.info("At temperature 0 the answer is always the same; `/set temperature 0.7` draws another.")
        self._answer(lambda conversation: conversation.retry(), compare=self._compares)

    def _undo(self, argument: str) -> None:
        turn = self.conversation.undo()
        if turn is None:
            raise DataError("There is nothing to take back.")
        logger.info("Taken back: %s", turn.user)

    def _clear(self, argument: str) -> None:
        self.conversation.clear()
        logger.info("Forgotten: all questions and answers.")

    def _set(self, argument: str) -> None:
        from hf_instruct.generation.chat_settings import describe_settings

        name, _, value = argument.replace("=", " ", 1).partition(" ")
        if not argument:
            for known, allowed in describe_settings().items():
                now = getattr(self.conversation.settings, known)
                print(f"  {known:<18} {'none' if now is None else now!s:<8} {allowed}")
            return
        name = name.replace("-", "_")
        settings = self.conversation.settings = self.conversation.settings.with_text(name, value.strip())
        logger.info("%s is now %s.", name, "none" if getattr(settings, name) is None else getattr(settings, name))
        if settings.temperature == 0 and name in ("top_p", "top_k", "seed"):
            logger.info("It has no effect at temperature 0; `/set temperature 0.7` draws tokens.")

    def _tell(self, argument: str) -> None:
        if not argument:
            print(self.conversation.system or "(nothing)")
            return
        self.conversation.system = "" if argument == "none" else argument
        logger.info("The model is told %s.", "this beforehand" if self.conversation.system else "nothing beforehand")

    def _compare(self, argument: str) -> None:
        if argument:
            self.ask(argument, compare=True)
        elif self._compares:
            self._compares = False
            logger.info("The untuned model is no longer asked.")
        else:
            self.turn_on_comparing()
            logger.info("Every question is now answered by the untuned model too.")

    def _save(self, argument: str) -> None:
        from hf_instruct.generation.conversation import build_examples

        if not argument:
            raise ConfigError("`/save` needs the name of a file, as in `/save examples.jsonl`.")
        turns = self.conversation.turns
        if not turns:
            raise DataError("There is nothing to save yet.")
        examples = build_examples(turns)
        path = Path(argument).expanduser()
        num_new = append_examples(path, examples)
        parts = [f"{len(turns) - len(examples):,} left out (empty or cut)"] * (len(examples) < len(turns))
        parts += [f"{len(examples) - num_new:,} there already"] * (num_new < len(examples))
        logger.info("Saved %d into %s%s.", num_new, path, f": {', '.join(parts)}" if parts else "")
        if self.conversation.system or (self.conversation.model.has_turns and len(examples) > 1):
            logger.info("Each example stands alone: earlier turns and the system text are not in it.")


def append_examples(path: Path, examples: "list[Example]") -> int:
    """Add examples to a JSON Lines file that `data check` accepts, unless they are in it; return how many were new.

    The file is written whole: the old one stays where that fails.

    Raises:
        DataError: The file is no file of examples, or cannot be written.
    """
    from hf_instruct.data.sources import read_examples
    from hf_instruct.generation.conversation import format_examples
    from hf_instruct.records import build_example_id, write_text

    if path.suffix.lower() != ".jsonl":
        raise DataError(f"`{path}` should end in `.jsonl`: examples are saved as JSON Lines.")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        there = read_examples(str(path)) if text.strip() else []
        known = {build_example_id(row.instruction, row.input, row.output) for row in there}
        lines = format_examples([row for row in examples if row.id not in known])
        if lines:
            write_text(path.resolve(), text + ("\n" if text and not text.endswith("\n") else "") + lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise DataError(f"`{path}` cannot be written: {reason}. Name another file.") from error
    return lines.count("\n")


def _explain_unknown(command: str) -> str:
    near = did_you_mean(command, COMMANDS)
    return f"There is no command `{command}`.{near} `/help` lists them; `//` begins a question with a slash."


def _with_head(label: str, pieces: Iterator[str]) -> Iterator[str]:
    yield f"{label}\n\n"
    yield from pieces


def _print_pieces(pieces: Iterator[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print(flush=True)


def _note_ending(conversation: "Conversation", *, named: bool) -> None:
    turn = conversation.turns[-1]
    who = f"{conversation.model.name}: " if named else ""
    if turn.ended_by == "user":
        logger.info("%s[stopped]", who)
    elif turn.ended_by == "length":
        longest = f"{conversation.longest:,}"
        if conversation.longest < conversation.settings.max_new_tokens:
            logger.info("%s[cut: after the prompt, the model had room for %s tokens]", who, longest)
        else:
            how = "`--max-new-tokens N` or `/set max_new_tokens N` changes it"
            logger.info("%s[cut: an answer has at most %s tokens; %s]", who, longest, how)
    elif not turn.assistant:
        logger.info("%s[the model ended at once, without a word]", who)
