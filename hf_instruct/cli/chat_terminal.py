"""A conversation at a terminal or through a pipe: questions, and commands that begin with a slash."""

import contextlib
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.chat import SETTINGS
from hf_instruct.console import clean_text
from hf_instruct.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.conversation import Conversation, Turn

logger = logging.getLogger(__name__)

_LEAST_COLUMNS = 60
_BORDER = " | "
COMMANDS = {
    "/help": "this list",
    "/retry": "answer the latest question again",
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

    def handle(self, line: str) -> bool:
        """Do what a line asks for, and return whether the session continues.

        Raises:
            InstructError: It cannot be done; the session can continue.
        """
        line = line.strip()
        command, _, argument = line.partition(" ")
        if not line:
            return True
        if not line.startswith("/") or line.startswith("//"):
            self.ask(line.removeprefix("/") if line.startswith("//") else line)
        elif command in ("/quit", "/exit"):
            return False
        elif command in COMMANDS:
            getattr(self, f"_{command[1:]}")(argument.strip())
        else:
            near = did_you_mean(command, COMMANDS)
            raise ConfigError(
                f"There is no command `{command}`.{near} `/help` lists them; `//` begins a question with a slash."
            )
        return True

    def ask(self, question: str, *, compare: bool = False) -> "list[Turn]":
        """Ask a question and print the answer as it comes, or both models' answers side by side.

        Returns:
            The tuned model's turn, and before it the untuned model's where it was asked.

        Raises:
            InstructError: The question cannot be asked, or generation fails.
        """
        return self._answer(lambda conversation: conversation.stream(question), compare=compare or self._compares)

    def stop(self) -> None:
        """End every answer that is being written."""
        for conversation in filter(None, (self.conversation, self._base)):
            conversation.stop()

    def turn_on_comparing(self) -> None:
        """Ask the untuned model too, every time; loads it.

        Raises:
            InstructError: There is none, or it cannot be loaded.
        """
        self._require_base()
        self._compares = True

    def _answer(self, start: "Callable[[Conversation], Iterator[str]]", *, compare: bool) -> "list[Turn]":
        conversations = [self.conversation]
        if compare:
            # Both answer the same prompt.
            base = self._require_base()
            base.turns, base.settings = list(self.conversation.turns), self.conversation.settings
            base.system = self.conversation.system
            conversations.insert(0, base)
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
                # Whatever came between: no thread continues unseen.
                self.stop()
        for conversation in conversations:
            _note_ending(conversation, named=compare)
        return [conversation.turns[-1] for conversation in conversations]

    def _show(self, streams: list[Iterator[str]], conversations: "list[Conversation]") -> None:
        width = shutil.get_terminal_size().columns
        labels = [f"{who} ({talk.model.name})" for who, talk in zip(("untuned", "tuned"), conversations, strict=False)]
        if len(streams) > 1 and self._is_terminal and sys.stdout.isatty() and width >= _LEAST_COLUMNS:
            for line in iterate_columns(labels, streams, width - 1):
                print(line, flush=True)
        else:
            for label, stream in zip(labels, streams, strict=True):
                if len(streams) > 1:
                    print(f"{label}:")
                for piece in stream:
                    print(piece, end="", flush=True)
                print(flush=True)
        if self._is_terminal:
            print(flush=True)

    @contextlib.contextmanager
    def _ctrl_c_stops(self) -> Iterator[threading.Event]:
        pressed = threading.Event()
        if not self._is_terminal:
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
        for command, text in COMMANDS.items():
            print(f"  {command:<10}{text}")
        print("  A question that begins with a slash is typed with two; a line that ends in \\ continues in the next.")

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
        if not argument:
            for known, text in SETTINGS.items():
                print(f"  {known:<18} {getattr(self.conversation.settings, known)!s:<8} {text}")
            return
        name, _, value = argument.replace("=", " ", 1).partition(" ")
        name = name.replace("-", "_")
        settings = self.conversation.settings = self.conversation.settings.change(**{name: value.strip()})
        logger.info("%s is now %s.", name, getattr(settings, name))
        if settings.temperature == 0 and name in ("top_p", "top_k", "seed"):
            logger.info("It has no effect at temperature 0; `/set temperature 0.7` draws tokens.")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = "" if argument == "none" else argument
        print(self.conversation.system or "(nothing)")

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
        if not argument:
            raise ConfigError("`/save` needs the name of a file, as in `/save examples.jsonl`.")
        path = Path(argument).expanduser()
        logger.info("%s into %s.", append_examples(path, self.conversation.turns), path)
        if self.conversation.system or self.conversation.model.has_turns:
            logger.info("Each example stands alone: earlier turns and the system text are not in it.")


def append_examples(path: Path, turns: "Sequence[Turn]") -> str:
    """Add whole answers to a JSON Lines file that `data check` accepts, unless they are in it; return what was done.

    The file is written whole: the old one stays where that fails.

    Raises:
        DataError: There is nothing to save, or the file is no file of examples or cannot be written.
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
        lines, said = format_examples(turns, known)
        if lines:
            write_text(path.resolve(), text + "\n" * (text != "" and not text.endswith("\n")) + lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"`{path}` cannot be written: {reason}. Name another file.") from error
    return said


def iterate_columns(labels: Sequence[str], columns: Sequence[Iterator[str]], width: int) -> Iterator[str]:
    """Yield lines that show growing texts under their labels side by side, each as soon as all columns are that far.

    Args:
        labels: Heads of the columns.
        columns: The pieces of each text.
        width: Longest line, in terminal cells.
    """
    from rich.cells import set_cell_size
    from rich.console import Console
    from rich.text import Text

    console = Console()
    inner = (width - len(_BORDER) * (len(columns) - 1)) // len(columns)
    texts, growing = [f"{label}\n\n" for label in labels], [True] * len(columns)
    shown = 0
    while any(growing):
        for index, pieces in enumerate(columns):
            piece = next(pieces, None) if growing[index] else None
            growing[index] = piece is not None
            texts[index] += clean_text(piece or "")
        wrapped = [[line.plain for line in Text(text).wrap(console, inner)] for text in texts]
        # The last line of a text that grows may still change.
        whole = [len(lines) - 1 for lines, grows in zip(wrapped, growing, strict=True) if grows]
        ready = min(whole) if whole else max(map(len, wrapped))
        for number in range(shown, ready):
            cells = [lines[number] if number < len(lines) else "" for lines in wrapped]
            yield _BORDER.join(set_cell_size(cell, inner) for cell in cells).rstrip()
        shown = max(shown, ready)


def _note_ending(conversation: "Conversation", *, named: bool) -> None:
    turn = conversation.turns[-1]
    who = f"{conversation.model.name}: " if named else ""
    if turn.ended_by == "user":
        logger.info("%s[stopped]", who)
    elif turn.ended_by == "length":
        logger.info("%s[cut at %s tokens; `/set max_new_tokens N` changes it]", who, f"{conversation.longest:,}")
    elif not turn.assistant:
        logger.info("%s[the model ended immediately, without a word]", who)
