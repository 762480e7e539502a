"""The `hf-instruct` command: its verbs, and what happens to errors."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from hf_instruct import __version__
from hf_instruct.errors import InstructError

# Each names a module in this package with `add_parser(subparsers)`, which sets the default `handler`.
VERBS = ("run", "data", "train", "generate", "judge", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 an error the user can mend, 2 usage, 130 interrupted."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        if rest:
            options.overrides = {**getattr(options, "overrides", {}), **_parse_overrides(rest, options, parser)}
        _configure(options)
        options.handler(options)
    except InstructError as error:
        print(f"hf-instruct: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = getattr(options, "resume_hint", "")
        print(f"\nhf-instruct: interrupted.{' ' + hint if hint else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`head`, say) has all it wanted; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; importing it loads neither torch nor transformers."""
    parser = argparse.ArgumentParser(
        prog="hf-instruct",
        description="Teach a language model to follow instructions, and get scores you can defend.",
        epilog="`hf-instruct VERB --help` says more. Start with: hf-instruct run recipes/smollm2-135m/demo.yaml",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-instruct {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        importlib.import_module(f"hf_instruct.cli.{verb}").add_parser(subparsers)
    return parser


def _parse_overrides(
    rest: list[str], options: argparse.Namespace, parser: argparse.ArgumentParser
) -> dict[str, object]:
    """Return `--section.field VALUE` flags as dotted names and values; anything else is a usage error."""
    from hf_instruct.config import Experiment, parse_flag_value

    overrides: dict[str, object] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        section = name.partition(".")[0]
        if not word.startswith("--") or "." not in name or not getattr(options, "takes_overrides", False):
            parser.error(f"unrecognized argument: {word}")
        if section not in Experiment.model_fields:
            parser.error(f"unknown section in {word}; allowed are {', '.join(Experiment.model_fields)}")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                parser.error(f"{word} needs a value")
        overrides[name] = parse_flag_value(value)
    return overrides


def _configure(options: argparse.Namespace) -> None:
    """Set up logging and keep the libraries below from calling home; nothing of this happens at import."""
    level = logging.DEBUG if getattr(options, "verbose", False) else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hf_instruct").setLevel(level)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
