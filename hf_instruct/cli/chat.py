"""`hf-instruct chat`: talk to a model."""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_instruct.cli.chat_terminal import SETTINGS, TerminalChat
from hf_instruct.cli.flags import add_trust_flag
from hf_instruct.console import format_json
from hf_instruct.processes import Terminated

if TYPE_CHECKING:
    from hf_instruct.generation.chat_model import ChatModel

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
    from hf_instruct.errors import ConfigError
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
            # Bytes that are not text get a message instead of a traceback.
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        # The first line that cannot be answered ends the program.
        all(map(session.handle, sys.stdin))


def _answer_once(session: TerminalChat, question: str, *, as_json: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()) if as_json else contextlib.nullcontext():
        turns = session.ask(question)
    if as_json:
        fields = {"question": question.strip(), "answer": turns[-1].assistant, "ended_by": turns[-1].ended_by}
        fields |= {"untuned_answer": turns[0].assistant, "untuned_ended_by": turns[0].ended_by} if turns[1:] else {}
        print(format_json(fields))


def _talk(session: TerminalChat) -> None:
    """Read and answer questions until the user quits."""
    from hf_instruct.errors import InstructError

    model = session.conversation.model
    context = "" if model.context is None else f", {model.context:,} tokens"
    turns = "" if model.has_turns else " The model sees each question on its own: this prompt format has no turns."
    logger.info("%s (prompt format %s%s).%s", model.name, model.prompt_format.name, context, turns)
    logger.info("/help lists commands, Ctrl-D quits.")
    with contextlib.suppress(ImportError):
        # Gives the prompt arrow keys and a history.
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
            line = input(("... " if held else "> ") * sys.stdout.isatty())
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
