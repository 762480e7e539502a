"""Fields of an experiment given as flags: `--train.learning_rate 1e-5`, or `--learning_rate 1e-5` for short."""

import argparse
import contextlib
import functools
import re
from collections.abc import Sequence

from hf_instruct.errors import FIELD_SYNONYMS, ConfigError, find_nearest

# `train.learning_rate`, and any other field of a section.
_DOTTED = re.compile(r"\w+(\.\w+)+")
# What is meant by a section's name alone.
_MAIN_FIELDS = {"data": "data.source", "model": "model.name", "judge": "judge.backend"}


def split_settings(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the words that argparse knows, and the flags that stand for fields as pairs of a name and a text.

    They are taken out first: argparse would take the value of a flag that it does not know for the verb's own argument.
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
    """Return the flags of a parser and of those below it."""
    below = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return set(parser._option_string_actions).union(*(find_flags(child) for children in below for child in children))


def parse_overrides(
    settings: Sequence[tuple[str, str]], options: argparse.Namespace, parser: argparse.ArgumentParser
) -> dict[str, object]:
    """Return settings by their dotted names; what the verb does not take, or not for one section, is a usage error."""
    from hf_instruct.config import Experiment, parse_setting

    overrides: dict[str, object] = {}
    for given, text in settings:
        if not getattr(options, "sections", ()):
            parser.error(f"unrecognized argument: --{given}")
        section, dot, _ = given.partition(".")
        if dot and section not in Experiment.model_fields:
            parser.error(f"unknown section in --{given}; allowed are {', '.join(Experiment.model_fields)}")
        fields = [given] if dot else _find_fields(given, options)
        if not fields or given in _MAIN_FIELDS:
            near = suggest_flag(given, options, parser)
            parser.error(f"unrecognized argument: --{given}{f'.{near}' if near else ''}")
        if len(fields) > 1:
            parser.error(f"--{given} is ambiguous: {' or '.join(f'--{field}' for field in fields)}; name one of them")
        overrides[fields[0]] = parse_setting(fields[0], text)
    return overrides


def collect_section(options: argparse.Namespace, section: str) -> dict[str, object]:
    """Return the fields of one section that flags set.

    Raises:
        ConfigError: Fields of another section are set too.
    """
    given = {tuple(name.split(".", 1)): value for name, value in getattr(options, "overrides", {}).items()}
    if others := [f"`--{of}.{name}` is not a setting of `{section}`" for of, name in given if of != section]:
        raise ConfigError.listing(others, "in the flags")
    return {name: value for (_, name), value in given.items()}


def suggest_flag(wrong: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return a question that names the verb's flag most like a wrong one; empty for none."""
    name = wrong.removeprefix("--").replace("-", "_")
    sections = _used_sections(options)
    if name in _MAIN_FIELDS and name in sections:
        near = [_MAIN_FIELDS[name]]
    elif flag := find_nearest(name, (flag.removeprefix("--") for flag in find_flags(parser))):
        near = [flag]
    else:
        field = find_nearest(name, set().union(*map(_fields_of, sections)))
        near = _find_fields(field, options) if field else []
    return f" Did you mean {' or '.join(f'`--{found}`' for found in near)}?" if near else ""


def _find_fields(name: str, options: argparse.Namespace) -> list[str]:
    """Return the fields, by dotted name, that a verb uses and that are called so here or in other programs."""
    names = {name, FIELD_SYNONYMS.get(name)}
    return [f"{section}.{own}" for section in _used_sections(options) for own in _fields_of(section) & names]


def _used_sections(options: argparse.Namespace) -> list[str]:
    """Return the sections of an experiment that a verb uses: of those that train the one that the file has."""
    from hf_instruct.library_fields import SECTIONS
    from hf_instruct.recipes import find_experiment
    from hf_instruct.yaml_text import read_yaml

    sections: tuple[str, ...] = getattr(options, "sections", ())
    if "train" not in sections:
        return list(sections)
    given: dict[str, object] = {}
    # A file that cannot be read is refused by the command itself.
    with contextlib.suppress(ConfigError):
        given = read_yaml(find_experiment(options.experiment)) if options.experiment else {}
    chosen = next((section for section in SECTIONS.values() if section in given), "train")
    used = {chosen, {"dpo": "preferences", "grpo": "rewards"}.get(chosen)}
    unused = {*SECTIONS.values(), "preferences", "rewards"} - used
    return [section for section in sections if section not in unused]


@functools.cache
def _field_names() -> frozenset[str]:
    from hf_instruct.config import Experiment

    return frozenset().union(*map(_fields_of, Experiment.model_fields))


def _fields_of(section: str) -> set[str]:
    """Return the names of the fields that a section takes."""
    from hf_instruct.config import Experiment
    from hf_instruct.library_fields import NOT_TO_GENERATE, OWN_TRAINING, REFUSED_TRAINING, SECTIONS, read_fields

    kinds = {"lora": "LoraConfig", "generate": "GenerationConfig", **{name: kind for kind, name in SECTIONS.items()}}
    fields = set(getattr(Experiment.model_fields[section].annotation, "model_fields", {}))
    if section in kinds:
        refused = NOT_TO_GENERATE if section == "generate" else REFUSED_TRAINING
        fields |= read_fields(kinds[section]).keys() - refused.keys()
    return fields.union(OWN_TRAINING) if section in SECTIONS.values() else fields
