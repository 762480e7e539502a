"""The `hf-instruct` command line: its commands, and error handling."""

import argparse
import functools
import importlib
import os
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_instruct import __version__
from hf_instruct.cli.flags import FieldFlag, parse_overrides, split_settings, suggest_flag
from hf_instruct.console import clean_message, clean_output, wrap
from hf_instruct.errors import DISK_ERRORS, InstructError, did_you_mean, disk_remedy, is_bug, quote_names
from hf_instruct.processes import Terminated, configure_process, is_main_process, sigterm_interrupts

# Each is a module in this package: `DESCRIPTION` and `EPILOG` for its help, by verb if it has several, and
# `add_arguments(parser)`, which also sets the default `handler`. It is imported when its verb is used.
VERBS = {
    "run": "run an experiment from end to end: prepare, train, answer, judge, report",
    "recipes": "list the experiments that come with the package, or copy one to edit",
    "data": "check, show and describe a source of examples",
    "train": "prepare the data and fine-tune",
    "dpo": "train a fine-tuned model on pairs of answers, one preferred",
    "grpo": "train a fine-tuned model on rewards for its own answers",
    "sweep": "train with several settings and choose by validation loss",
    "generate": "answer the held-out test split",
    "judge": "score responses from 0 to 100, with Ollama, a local model or any OpenAI-compatible server",
    "prefer": "write pairs of a better and a worse answer to train on with DPO",
    "compare": "compare judged runs: paired differences with intervals, a table, a plot",
    "rate": "rate several runs on one scale from the preferences of a judge or of people",
    "agree": "measure how well two judges, or a judge and people, agree",
    "vote": "serve a web page where people vote on which of two answers is better",
    "benchmark": "evaluate a model on public benchmarks (lm-eval)",
    "report": "write report.html: scores, losses and all answers, untuned and tuned",
    "chat": "chat with a model",
    "explore": "show how a model chooses the next token",
    "ui": "serve a web page to chat with models and compare runs",
    "push": "publish the tuned model on the Hugging Face Hub, with a model card",
    "export": "export the tuned model as merged weights, as GGUF or for Ollama",
    "serve": "serve the tuned model with an OpenAI-compatible API",
}
_MODULES = dict.fromkeys(("train", "dpo", "grpo"), "run")  # by verb, if the names differ

_SECONDS_FOR_THE_FIRST = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Returns:
        0 for success, 1 for an error the user can fix, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(arguments)
    words, settings = split_settings(arguments, parser)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        near = suggest_flag(unknown[0], options, parser)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{f'.{near}' if near else ''}")
    try:
        if settings:
            options.overrides = {**options.overrides, **parse_overrides(settings, options, parser)}
        configure_process()
        with sigterm_interrupts(), clean_output():
            options.handler(options)
        # Flush here, so that a closed pipe is handled below.
        sys.stdout.flush()
    except InstructError as error:
        if not is_main_process():
            # The first process most likely stops for the same reason; the launcher then ends this one, so that the
            # reason is printed once and not once per GPU.
            time.sleep(_SECONDS_FOR_THE_FIRST)
        _print_error(str(error), options)
        return 1
    except KeyboardInterrupt as stop:
        _print_error(f"interrupted. {getattr(options, 'resume_hint', '')}".rstrip(), options, before="\n")
        return 143 if _is_termination(stop) else 130
    except BrokenPipeError:
        # The reader (such as `head`) has closed the pipe; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS or is_bug(error):
            raise
        where = f"`{error.filename}`" if error.filename else "A file or the output"
        remedy = f"{disk_remedy(error)}, or choose another path."
        _print_error(f"{where} cannot be read or written: {error.strerror}. {remedy}", options)
        return 1
    return 0


def _print_error(text: str, options: argparse.Namespace, *, before: str = "") -> None:
    """Print the message of the error being handled, with `--debug` after its traceback."""
    trace = traceback.format_exc() if getattr(options, "debug", False) else ""
    print(wrap(clean_message(f"{trace}{before}hf-instruct: {text}"), sys.stderr), file=sys.stderr)


def _is_termination(stop: BaseException | None) -> bool:
    """Return whether SIGTERM is the cause of an interruption, which may have been raised again with a text."""
    return stop is not None and (isinstance(stop, Terminated) or _is_termination(stop.__cause__))


class _HelpText(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal's width; in those with indented lines, the examples, only comments move."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = functools.partial(textwrap.fill, width=width - len(indent), break_on_hyphens=False)
        parts = [
            "\n".join(self._fit_example(line, width) for line in part.splitlines()) if "\n " in part else fill(part)
            for part in text.strip().split("\n\n")
        ]
        return textwrap.indent("\n\n".join(parts), indent)

    def _fit_example(self, line: str, width: int) -> str:
        """Return an example that is too wide with its comment on a line above."""
        example = re.fullmatch(r"( +)(\S.*?) {2,}(\S.*)", line)
        if example is None or len(line) <= width:
            return line
        return "\n".join(f"{example[1]}{text}" for text in (f"# {example[3]}", example[2]))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.describe() if isinstance(action, FieldFlag) else action.help


class _Parser(argparse.ArgumentParser):
    """The parser of a verb, and of its actions."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": _HelpText, "allow_abbrev": False, **given})
        if self.add_help:
            # Suppressed, because the parser of an action would otherwise reset the verb's `--debug`.
            text = "show the traceback of an error"
            self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; a verb's first action may be left out, as in `judge RUN` for `judge score RUN`."""
        actions = self.get_default("actions")
        if actions and args is not None and (not args or args[0] not in (*actions, "-h", "--help")):
            near = args and not Path(args[0]).exists() and did_you_mean(args[0], actions, cutoff=0.75)
            if near:
                self.error(f"`{args[0]}` is neither an action nor a file.{near}")
            args = [actions[0], *args]
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:
            names = [str(choice) for choice in choices]
            near = did_you_mean(str(value), names) or f" Choose from {quote_names(names)}."
            raise argparse.ArgumentError(action, f"`{value}` is unknown.{near}")

    def _print_message(self, message: str, file: Any = None) -> None:
        # The refused text may be pasted from somewhere else.
        super()._print_message(wrap(clean_message(message), file), file)


def build_parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command.

    Args:
        arguments: The arguments to parse; modules of verbs that are not among them are not imported. None for all.
    """
    parser = _Parser(
        prog="hf-instruct",
        description="Fine-tune a language model to follow instructions, and measure how good it is.",
        epilog="Run `hf-instruct COMMAND --help` for details. Start with\n  hf-instruct run demo",
    )
    parser.add_argument("--version", action="version", version=f"hf-instruct {__version__}")
    parser.set_defaults(handler=lambda options: parser.print_help(), overrides={})
    # The metavar is longer than any command, because argparse aligns the column of help texts by it.
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND [OPTION]")
    for verb, text in VERBS.items():
        if arguments is not None and verb not in arguments:
            subparsers.add_parser(verb, help=text)
            continue
        module = importlib.import_module(f"hf_instruct.cli.{_MODULES.get(verb, verb)}")
        texts = (module.DESCRIPTION, module.EPILOG)
        description, epilog = (about[verb] if isinstance(about, dict) else about for about in texts)
        below = subparsers.add_parser(verb, help=text, description=description, epilog=epilog)
        below.set_defaults(verb=verb)
        module.add_arguments(below)
    return parser
