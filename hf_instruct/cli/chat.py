"""`hf-instruct chat`: talk to a model at a terminal or through a pipe, with commands that begin with a slash."""

import argparse
import contextlib
import io
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.cli.flags import add_trust_flag
from hf_instruct.console import clean_text, format_json, wrap
from hf_instruct.errors import ConfigError, DataError, InstructError, did_you_mean
from hf_instruct.processes import Terminated

if TYPE_CHECKING:
    from rich.console import Console

    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.generation.conversation import Conversation, Turn

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Talk to the tuned model of a run, or to any model, in the words it was trained on. Ctrl-C stops an answer; /help lists
what else can be typed. If the input is not a terminal, each line of it is a question."""

EPILOG = """\
examples:
  hf-instruct chat runs/demo
  hf-instruct chat runs/demo --compare                         the untuned model's answers beside it
  hf-instruct chat runs/demo --message "Name a color."         answer one question and exit
  hf-instruct chat smollm2-135m --temperature 0.7 --seed 1     a model that is not a run
  hf-instruct chat runs/demo < questions.txt > answers.txt
"""

SETTINGS = {
    "temperature": "0 takes the most likely token, higher values sample (default: 0)",
    "top_p": "sample from the most likely tokens with this total probability (default: 1)",
    "top_k": "sample from this many most likely tokens (default: 0, all)",
    "max_new_tokens": "maximum length of an answer, in tokens (default: 256)",
    "repetition_penalty": "above 1, makes repeated tokens less likely (default: 1)",
    "seed": "seed for reproducible sampling (default: none)",
}
HELP = """\
  /retry           answer the last question again
  /undo            remove the last question and its answer
  /clear           remove all questions and answers
  /set NAME VALUE  change a generation setting; alone, list the settings
  /system TEXT     set the system message (`none` removes it); alone, show it
  /compare TEXT    ask the untuned model too; alone, turn this on or off for every question
  /save FILE       append the complete answers to a JSON Lines file of training examples
  /quit            quit; so does Ctrl-D
  Type `//` to begin a question with a slash, and end a line with \\ to continue it on the next."""
COMMANDS = ("/help", *(line.split()[0] for line in HELP.splitlines() if line.startswith("  /")))
_MIN_COLUMNS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, alias, Hub id, or folder of a model")
    parser.add_argument("--message", metavar="TEXT", help="ask one question, print the answer and exit")
    parser.add_argument("--json", action="store_true", help="with `--message`: print question and answer as JSON")
    parser.add_argument("--system", metavar="TEXT", default="", help="system message (prompt format `chat` only)")
    parser.add_argument("--base", action="store_true", help="chat with the untuned model")
    parser.add_argument(
        "--compare", action="store_true", help="show the untuned model's answers next to the tuned one's"
    )
    parser.add_argument(
        "--prompt-format",
        metavar="NAME",
        help="of a model that is not a run: `alpaca`, `alpaca-stanford`, `phi3`, `chat` or a Jinja file "
        "(default: `chat` if the model has a chat template, else `alpaca`)",
    )
    for name, text in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", default=argparse.SUPPRESS, help=text)
    add_trust_flag(parser)
    parser.set_defaults(handler=_chat)


def _chat(options: argparse.Namespace) -> None:
    from hf_instruct.generation.chat_model import ChatModel, ChatSettings, find_run
    from hf_instruct.generation.conversation import Conversation
    from hf_instruct.generation.token_text import check_text

    # Checks that need no model.
    settings = ChatSettings().change(**{name: value for name, value in vars(options).items() if name in SETTINGS})
    if options.json and options.message is None:
        raise ConfigError("`--json` prints one question and its answer; add `--message TEXT`.")
    if options.message is not None:
        check_text(options.message)
    can_compare = find_run(options.model) is not None and not options.base
    if options.compare and not can_compare:
        raise ConfigError("`--compare` needs a run, without `--base`: it shows untuned and tuned answers side by side.")

    def load(*, base: bool) -> "ChatModel":
        logger.info("Loading %s%s ...", "the untuned model of " if base else "", options.model)
        trust, format_name = options.trust_remote_code, None if base else options.prompt_format
        return ChatModel.load(options.model, base=base, prompt_format=format_name, trust_remote_code=trust)

    conversation = Conversation(load(base=options.base), system=options.system, settings=settings)
    is_terminal = options.message is None and sys.stdin.isatty()
    load_base = (lambda: load(base=True)) if can_compare else None
    session = TerminalChat(conversation, load_base=load_base, is_terminal=is_terminal)
    if options.compare:
        session.compare_always()
    if options.message is not None:
        _answer_once(session, options.message, as_json=options.json)
    elif is_terminal:
        _talk(session)
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes that are not text then give a message instead of a traceback.
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        # The first line that cannot be answered ends the program.
        all(map(session.handle, sys.stdin))


def _answer_once(session: "TerminalChat", question: str, *, as_json: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
        turns = session.ask(question)
    if as_json:
        fields = {"question": question.strip(), "answer": turns[-1].assistant, "ended_by": turns[-1].ended_by}
        fields |= {"untuned_answer": turns[0].assistant, "untuned_ended_by": turns[0].ended_by} if turns[1:] else {}
        print(format_json(fields))


def _talk(session: "TerminalChat") -> None:
    """Read and answer questions until the user quits."""
    model = session.conversation.model
    context = "" if model.context is None else f", {model.context:,} tokens"
    turns = "" if model.has_turns else " The model sees each question on its own: this prompt format has no turns."
    logger.info("%s (prompt format %s%s).%s", model.name, model.prompt_format.name, context, turns)
    logger.info("/help lists commands, Ctrl-D quits.")
    with contextlib.suppress(ImportError):
        # Adds arrow keys and a history to the prompt.
        import readline  # noqa: F401
    for line in _read_lines():
        try:
            if not session.handle(line):
                return
        except InstructError as error:
            logger.info("%s", error)
        except Terminated:
            raise
        except KeyboardInterrupt:
            logger.info("\nInterrupted.")


def _read_lines() -> Iterator[str]:
    """Yield what the user types until Ctrl-D, or Ctrl-C twice; a line that ends in a backslash continues."""
    held, was_interrupted = "", False
    while True:
        try:
            prompt = "... " if held else "> "
            line = input(prompt if sys.stdout.isatty() else "")
        except Terminated:
            raise
        except (EOFError, KeyboardInterrupt) as error:
            print()
            if was_interrupted or isinstance(error, EOFError):
                return
            held, was_interrupted = "", True
            logger.info("Press Ctrl-C again, Ctrl-D or type /quit to quit.")
            continue
        was_interrupted = False
        held += line
        if held.endswith("\\"):
            held = held.removesuffix("\\") + "\n"
            continue
        yield held
        held = ""


class TerminalChat:
    """Handles the lines that a user types.

    Args:
        conversation: The conversation with the model.
        load_base: Loads the model to compare with; None if there is none.
        is_terminal: Whether Ctrl-C only stops the answer.
    """

    def __init__(
        self, conversation: "Conversation", *, load_base: "Callable[[], ChatModel] | None", is_terminal: bool = False
    ) -> None:
        self.conversation = conversation
        self._load_base, self._is_terminal = load_base, is_terminal
        self._base: Conversation | None = None
        self._compares = False

    def handle(self, line: str) -> bool:
        """Execute a command or answer a question, and return whether the session continues.

        Raises:
            InstructError: The line cannot be handled; the session can continue.
        """
        line, talk = line.strip(), self.conversation
        if not line.startswith("/") or line.startswith("//"):
            if line:
                self.ask(line.removeprefix("/"))
            return True
        command, _, argument = line.partition(" ")
        match command, argument.strip():
            case (("/quit" | "/exit"), _):
                return False
            case "/help", _:
                print(wrap(HELP))
            case "/retry", _:
                if talk.turns and talk.settings.temperature == 0:
                    logger.info(
                        "At temperature 0 the answer is always the same; `/set temperature 0.7` samples another."
                    )
                self.ask(None)
            case "/undo", _:
                if (turn := talk.undo()) is None:
                    raise DataError("There is no question to remove.")
                logger.info("Removed: %s", turn.user)
            case "/clear", _:
                talk.clear()
                logger.info("Removed all questions and answers.")
            case "/set", "":
                for name, text in SETTINGS.items():
                    print(wrap(f"  {name:<18} {getattr(talk.settings, name)!s:<8} {text}"))
            case "/set", setting:
                self._set(setting)
            case "/system", text:
                if text:
                    talk.system = "" if text == "none" else text
                print(talk.system or "(nothing)")
            case "/compare", "":
                self.compare_always(not self._compares)
                logger.info("The untuned model is %s.", "now asked too" if self._compares else "no longer asked")
            case "/compare", question:
                self.ask(question, compare=True)
            case "/save", "":
                raise ConfigError("`/save` needs a file name, as in `/save examples.jsonl`.")
            case "/save", name:
                logger.info("%s into %s.", append_examples(Path(name).expanduser(), talk.turns), name)
                if talk.system or talk.model.has_turns:
                    logger.info("The examples contain neither earlier turns nor the system message.")
            case _:
                near = did_you_mean(command, COMMANDS)
                raise ConfigError(
                    f"There is no command `{command}`.{near} `/help` lists them; `//` begins a question with a slash."
                )
        return True

    def ask(self, question: str | None, *, compare: bool = False) -> "list[Turn]":
        """Ask a question and print the answer as it is generated, or both models' answers side by side.

        Args:
            question: The question; None to ask the latest one again.
            compare: Also ask the untuned model, even if that is not turned on.

        Returns:
            The tuned model's turn, preceded by the untuned model's if it was asked.

        Raises:
            InstructError: The question cannot be asked, or generation fails.
        """
        talks = [self.conversation]
        if compare or self._compares:
            # Both answer the same prompt.
            base = self._require_base()
            base.turns, base.settings = self.conversation.turns, self.conversation.settings
            base.system = self.conversation.system
            talks.insert(0, base)
        with self._stopped_by_ctrl_c() as stop:
            streams = [
                talk.retry(stop=stop) if question is None else talk.stream(question, stop=stop) for talk in talks
            ]
            if self.conversation.notice:
                logger.info("%s", self.conversation.notice)
            self._show([f"{talk.model.role} ({talk.model.name})" for talk in talks], streams)
        for talk in talks:
            _note_ending(talk, who=f"{talk.model.name}: " if len(talks) > 1 else "")
        return [talk.turns[-1] for talk in talks]

    def compare_always(self, on: bool = True) -> None:
        """Turn comparison with the untuned model on or off.

        Raises:
            InstructError: There is no untuned model, or it cannot be loaded.
        """
        if on:
            self._require_base()
        self._compares = on

    def _show(self, labels: list[str], streams: list[Iterator[str]]) -> None:
        is_wide = self._is_terminal and shutil.get_terminal_size().columns >= _MIN_COLUMNS
        if len(streams) > 1 and is_wide and sys.stdout.isatty():
            from rich.console import Console

            # Not `sys.stdout`, which would remove the codes that move the cursor.
            show_columns(Console(file=sys.__stdout__), labels, streams)
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
    def _stopped_by_ctrl_c(self) -> Iterator[threading.Event]:
        stop = threading.Event()
        before = signal.signal(signal.SIGINT, lambda *_: stop.set()) if self._is_terminal else None
        try:
            yield stop
        finally:
            # Always, so that no thread continues in the background.
            stop.set()
            if self._is_terminal:
                signal.signal(signal.SIGINT, before)

    def _require_base(self) -> "Conversation":
        from hf_instruct.generation.conversation import Conversation

        if self._base is None:
            if self._load_base is None:
                name = self.conversation.model.name
                raise ConfigError(f"`{name}` has no untuned model to compare with: use a run, without `--base`.")
            self._base = Conversation(self._load_base())
        return self._base

    def _set(self, setting: str) -> None:
        name, _, value = setting.replace("=", " ", 1).partition(" ")
        name = name.replace("-", "_")
        settings = self.conversation.settings = self.conversation.settings.change(**{name: value.strip()})
        logger.info("%s is now %s.", name, getattr(settings, name))
        if settings.temperature == 0 and name in ("top_p", "top_k", "seed"):
            logger.info("It has no effect at temperature 0; `/set temperature 0.7` turns on sampling.")


def append_examples(path: Path, turns: "Sequence[Turn]") -> str:
    """Append complete answers to a JSON Lines file for `data check`, unless it contains them; return a summary.

    The file is replaced in one step; if that fails, the old one stays.

    Raises:
        DataError: There is nothing to save, or the file does not contain examples or cannot be written.
    """
    from hf_instruct.data.sources import read_examples
    from hf_instruct.generation.conversation import format_examples
    from hf_instruct.records import build_example_id, write_text

    if path.suffix.lower() != ".jsonl":
        raise DataError(f"`{path}` should end in `.jsonl`: examples are saved as JSON Lines.")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        existing = read_examples(str(path)) if text.strip() else []
        lines, summary = format_examples(
            turns, {build_example_id(row.instruction, row.input, row.output) for row in existing}
        )
        if lines:
            if text and not text.endswith("\n"):
                text += "\n"
            write_text(path.resolve(), text + lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"`{path}` cannot be written: {reason}. Name another file.") from error
    return summary


def show_columns(console: "Console", labels: Sequence[str], streams: Sequence[Iterator[str]]) -> None:
    """Show texts side by side under their labels as they are written, one after the other."""
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    texts = [""] * len(labels)
    with Live(console=console, auto_refresh=False) as live:
        for column, stream in enumerate(streams):
            for piece in stream:
                texts[column] += clean_text(piece)
                table = Table(*(escape(clean_text(label)) for label in labels), expand=True)
                table.add_row(*map(Text, texts))
                live.update(table, refresh=True)


def _note_ending(talk: "Conversation", *, who: str) -> None:
    turn = talk.turns[-1]
    if turn.ended_by == "user":
        logger.info("%s[stopped]", who)
    elif turn.ended_by == "length":
        logger.info("%s[cut off at %s tokens; `/set max_new_tokens N` changes it]", who, f"{talk.longest:,}")
    elif not turn.assistant:
        logger.info("%s[the answer is empty]", who)
