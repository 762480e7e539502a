"""Flags: those of several commands, and fields of an experiment, as in `--train.learning_rate 1e-5`."""

import argparse
import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import FIELD_SYNONYMS, ConfigError, find_nearest
from hf_instruct.local_server import LOOPBACK, format_url, list_hosts, open_socket

logger = logging.getLogger(__name__)

# `train.learning_rate`, and any other field of a section.
_DOTTED = re.compile(r"\w+(\.\w+)+")
# The fields that flags with the name of a section set.
_MAIN_FIELDS = {"data": "data.source", "model": "model.name", "judge": "judge.backend"}


def whole(text: str, least: int = 0, most: int | None = None) -> int:
    """Return a whole number, for argparse's `type`.

    Raises:
        ArgumentTypeError: The text is not a whole number, or the number is out of range.
    """
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number {limits}")
    return int(text)


def natural(text: str) -> int:
    """Return a `whole` number of at least 1."""
    return whole(text, 1)


def add_plot_flag(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--plot FILE.png`, with a help text."""
    parser.add_argument("--plot", metavar="FILE.png", type=_figure_file, help=text)


def _figure_file(text: str) -> Path:
    if not text.lower().endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"`{text}` should end in .png or .svg")
    return Path(text)


class FieldFlag(argparse.Action):
    """A flag that sets a field of the experiment in `options.overrides`, exactly like `--SECTION.FIELD VALUE`.

    The field's section checks the value, and contains the help text if none is passed. The section is only imported
    when needed, because that takes longer than everything else that `--help` does.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, *, field: str, **given: Any) -> None:
        super().__init__(option_strings, "overrides", default=argparse.SUPPRESS, **{"help": field, **given})
        self.field = field

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Set the field to the value, parsed as YAML unless the flag has a type; or to true without a value."""
        from hf_instruct.config import parse_setting

        if self.nargs == 0:
            values = True
        elif self.type is None:
            values = parse_setting(self.field, values)
        namespace.overrides = {**getattr(namespace, "overrides", {}), self.field: values}

    def describe(self) -> str:
        """Return the help text that was passed, or the field's description and default."""
        from hf_instruct.config import describe_fields

        if self.help != self.field:
            return str(self.help)
        help_text = next(format_help(default, text) for name, default, text in describe_fields() if name == self.field)
        return help_text.replace("%", "%%")


def format_help(default: Any, text: str) -> str:
    """Return the help text of a field: its description and its default."""
    return text if default is None else f"{text} (default: {default})"


def add_field_flags(parser: argparse.ArgumentParser, section: str, *names: str, switches: Sequence[str] = ()) -> None:
    """Add flags for fields of one section of an experiment: `--base-url URL` for `--judge.base_url URL`.

    Values are stored in `options.overrides` by dotted name, for those flags that are used. The flag of the section's
    main field has the name of the section: `--judge` for `--judge.backend`.

    Args:
        parser: The parser.
        section: The section of the experiment.
        names: Fields that take a value.
        switches: Fields that a flag without a value turns on.
    """
    for name in (*names, *switches):
        field = f"{section}.{name}"
        flag = section if field == _MAIN_FIELDS.get(section) else name
        kind: dict[str, Any] = {"nargs": 0} if name in switches else {"metavar": flag.upper()}
        parser.add_argument(f"--{flag.replace('_', '-')}", action=FieldFlag, field=field, **kind)


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`. A run folder cannot give this consent, because it may be from somebody else."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def add_page_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the address of a page, and whether to open a browser."""
    add_address_flags(parser, default_port=7860)
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


@contextlib.contextmanager
def open_page(options: argparse.Namespace, *, risk: str) -> Iterator[dict[str, Any]]:
    """Bind the address of a page and print it; yields `server` and `hosts` for `serve_page`, which Ctrl-C stops.

    Args:
        options: Options with the flags of `add_page_flags`.
        risk: Actions that the page allows, for a warning if it is also served to other machines.

    Raises:
        RunError: The page cannot be served there.
    """
    from hf_instruct.ui.pages import open_browser

    if options.host not in LOOPBACK:
        logger.warning("`--host %s`: everybody who can reach this machine can %s.", options.host, risk)
    with open_socket(options.host, options.port) as server, contextlib.suppress(KeyboardInterrupt):
        url = format_url(options.host, server.getsockname()[1])
        print(f"Open {url}   (press Ctrl-C to stop)", flush=True)
        if not options.no_browser:
            open_browser(url)
        yield {"server": server, "hosts": list_hosts(options.host, options.allow_host)}
    print()


def add_address_flags(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """Add the flags for the address and the host names of a server."""
    parser.add_argument("--host", default=LOOPBACK[0], metavar="H", help="address to serve at (default: 127.0.0.1)")
    port = functools.partial(whole, most=65535)
    parser.add_argument(
        "--port",
        metavar="N",
        type=port,
        default=default_port,
        help=f"port (default: {default_port}; 0 picks a free one)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="additional host name to accept, such as that of a proxy; can be repeated",
    )


def split_settings(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the arguments for argparse, and the flags that set fields as pairs of a name and a text.

    They are separated first, because argparse would treat the value of an unknown flag as an argument of the verb.
    """
    flags = find_flags(parser)
    rest: list[str] = []
    settings: list[tuple[str, str]] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if "." not in name:
            name = name.replace("-", "_")
        is_field = flag.startswith("--") and flag not in flags and (_DOTTED.fullmatch(name) or name in _field_names())
        if not is_field:
            rest.append(word)
            continue
        if not equals and ((value := next(words, "")) == "" or value.startswith("--")):
            parser.error(f"{word} needs a value")
        settings.append((name, value))
    return rest, settings


def find_flags(parser: argparse.ArgumentParser) -> set[str]:
    """Return the flags of a parser and of its subparsers."""
    below = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return set(parser._option_string_actions).union(*(find_flags(child) for children in below for child in children))


def parse_overrides(
    settings: Sequence[tuple[str, str]], options: argparse.Namespace, parser: argparse.ArgumentParser
) -> dict[str, object]:
    """Return settings by dotted name; a setting that the verb does not have, or that is ambiguous, is a usage error."""
    from hf_instruct.config import Experiment, parse_setting

    overrides: dict[str, object] = {}
    for name, text in settings:
        if not getattr(options, "sections", ()):
            parser.error(f"unrecognized argument: --{name}")
        section, dot, _ = name.partition(".")
        if dot and section not in Experiment.model_fields:
            parser.error(f"unknown section in --{name}; allowed are {', '.join(Experiment.model_fields)}")
        fields = [name] if dot else _find_fields(name, options)
        if not fields or name in _MAIN_FIELDS:
            near = suggest_flag(name, options, parser)
            parser.error(f"unrecognized argument: --{name}{f'.{near}' if near else ''}")
        if len(fields) > 1:
            parser.error(f"--{name} is ambiguous: {' or '.join(f'--{field}' for field in fields)}; name one of them")
        overrides[fields[0]] = parse_setting(fields[0], text)
    return overrides


def collect_fields(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Return the fields that flags set, by section, with an entry for each section that the verb uses.

    Raises:
        ConfigError: Fields of other sections are set too.
    """
    fields: dict[str, dict[str, object]] = {section: {} for section in options.sections}
    others = []
    for dotted, value in options.overrides.items():
        section, _, name = dotted.partition(".")
        if section in fields:
            fields[section][name] = value
        else:
            others.append(f"`--{dotted}` is not a setting of {' or '.join(f'`{used}`' for used in fields)}")
    if others:
        raise ConfigError.listing(others, "in the flags")
    return fields


def suggest_flag(wrong: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return a question that suggests the flag of the verb that is most similar to a wrong one; empty for none."""
    name = wrong.removeprefix("--").replace("-", "_")
    sections = _used_sections(options)
    if name in _MAIN_FIELDS and name in sections:
        near = [_MAIN_FIELDS[name]]
    elif flag := find_nearest(name, (flag.removeprefix("--") for flag in find_flags(parser))):
        near = [flag]
    else:
        field = find_nearest(name, set().union(*map(_fields_of, sections)))
        near = _find_fields(field, options) if field else []
    return f" Did you mean {' or '.join(f'`--{flag}`' for flag in near)}?" if near else ""


def _find_fields(name: str, options: argparse.Namespace) -> list[str]:
    """Return the fields, by dotted name, that a verb uses and that have this name here or in other programs."""
    names = {name, FIELD_SYNONYMS.get(name)}
    return [f"{section}.{field}" for section in _used_sections(options) for field in _fields_of(section) & names]


def _used_sections(options: argparse.Namespace) -> list[str]:
    """Return the sections of an experiment that a verb uses; of the training sections, only the one in the file."""
    from hf_instruct.library_fields import SECTIONS
    from hf_instruct.recipes import find_experiment
    from hf_instruct.yaml_text import read_yaml

    sections: tuple[str, ...] = getattr(options, "sections", ())
    if "train" not in sections:
        return list(sections)
    content: dict[str, object] = {}
    # The command itself reports a file that cannot be read.
    with contextlib.suppress(ConfigError):
        content = read_yaml(find_experiment(options.experiment)) if options.experiment else {}
    chosen = next((section for section in SECTIONS.values() if section in content), "train")
    used = {chosen, {"dpo": "preferences", "grpo": "rewards"}.get(chosen)}
    unused = {*SECTIONS.values(), "preferences", "rewards"} - used
    return [section for section in sections if section not in unused]


@functools.cache
def _field_names() -> frozenset[str]:
    from hf_instruct.config import Experiment

    return frozenset().union(*map(_fields_of, Experiment.model_fields))


def _fields_of(section: str) -> set[str]:
    """Return the names of the fields that a section accepts."""
    from hf_instruct.config import Experiment
    from hf_instruct.library_fields import NOT_TO_GENERATE, OWN_TRAINING, REFUSED_TRAINING, SECTIONS, read_fields

    kinds = {"lora": "LoraConfig", "generate": "GenerationConfig", **{name: kind for kind, name in SECTIONS.items()}}
    fields = set(getattr(Experiment.model_fields[section].annotation, "model_fields", {}))
    if section in kinds:
        refused = NOT_TO_GENERATE if section == "generate" else REFUSED_TRAINING
        fields |= read_fields(kinds[section]).keys() - refused.keys()
    return fields.union(OWN_TRAINING) if section in SECTIONS.values() else fields
