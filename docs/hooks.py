"""Write the reference while the site is built, from the code itself: nothing of it is kept by hand."""

import argparse
import importlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import hf_instruct
from hf_instruct import config as settings
from hf_instruct import errors, records, schema
from hf_instruct.library_fields import describe_libraries

# Of the help texts; argparse asks the terminal otherwise, and a page should not depend on where it was built.
_COLUMNS = 100
# What the first part of a module's path is called on the page, in the order of the work.
_STAGES = {
    "data": "Data",
    "prompts": "Prompts",
    "models": "Models",
    "training": "Fine-tuning",
    "generation": "Answers",
    "evaluation": "Judging, metrics and comparison",
    "reporting": "The report",
    "hub": "Publishing",
    "pipeline": "All stages at once",
    "run_folder": "The run folder",
}
# What it means that an experiment has a section of a library's fields.
_EFFECTS = {
    "train": "These train on the examples themselves.",
    "lora": "With this section an adapter is trained instead of all weights; an empty one, `lora:`, is enough.",
    "dpo": "With this section the run trains on preferences; an empty one, `dpo:`, is enough.",
    "grpo": "With this section the run trains on rewards.",
}
# Shown on the page of rows and errors.
_ELSEWHERE = ("records", "errors")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    pages = {
        "commands": write_commands(),
        "settings": write_settings(),
        "python": write_python(),
        "records": write_records(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def write_commands() -> str:
    """Return the page of all verbs: what `--help` prints."""
    parser = importlib.import_module("hf_instruct.cli.main").build_parser()
    lines = [
        "# Commands",
        "",
        f"What `{parser.prog} COMMAND --help` prints. An error that you can fix is one message and exit status 1 "
        "(`--debug` adds its traceback); wrong usage is 2. Ctrl-C is 130 and SIGTERM 143: both leave complete rows and "
        "files, and print how to continue.",
    ]
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=str(_COLUMNS), NO_COLOR="1")
    try:
        for level, verb in _walk(parser, 1):
            name = verb.prog.removeprefix(f"{parser.prog} ")
            title = name if level > 1 else "Overview"
            lines += ["", f"{'#' * max(2, level)} {title}", "", "```text", verb.format_help().rstrip(), "```"]
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return "\n".join(lines) + "\n"


def _walk(parser: argparse.ArgumentParser, level: int) -> Iterator[tuple[int, argparse.ArgumentParser]]:
    yield level, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _walk(child, level + 1)


def write_settings() -> str:
    """Return the page of all fields of an experiment."""
    sections: dict[str, list[tuple[str, Any, str]]] = {}
    for name, default, text in settings.describe_fields():
        sections.setdefault(name.partition(".")[0], []).append((name, default, text))
    lines = [
        "# Settings",
        "",
        "Fields of an experiment file, section by section. On the command line each is `--SECTION.FIELD VALUE`; a flag "
        "beats the file, the file beats the default. A key that is not known is an error that names the nearest one.",
    ]
    libraries = {section: (owner, defaults) for section, owner, defaults in describe_libraries()}
    for section, model in settings.Experiment.model_fields.items():
        lines += ["", f"## {section}", ""]
        if section in libraries:
            owner, defaults = libraries[section]
            lines += [f"Any field of {owner}. {_EFFECTS[section]} These defaults are not the library's:", ""]
            lines += ["| field | default |", "|---|---|"]
            lines += [f"| `{section}.{name}` | {_format_default(value)} |" for name, value in defaults.items()]
            lines += ["", "And fields of our own, also for `dpo` and `grpo`:", ""] if section == "train" else []
        if section in sections:
            if inspect.isclass(model.annotation) and model.annotation is not dict:
                lines += [_unwrap(model.annotation.__doc__ or ""), ""]
            lines += ["| field | default | what it says |", "|---|---|---|"]
            lines += [f"| `{name}` | {_format_default(value)} | {text} |" for name, value, text in sections[section]]
    return "\n".join(lines) + "\n"


def _format_default(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _unwrap(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())


def write_python() -> str:
    """Return the page of the public names, each from the module that it lives in."""
    by_stage: dict[str, list[str]] = {}
    for name in sorted(hf_instruct.__all__):
        home = hf_instruct._HOMES[name]
        by_stage.setdefault(home.partition(".")[0], []).append(f"hf_instruct.{home}.{name}")
    order = [*_STAGES, *(stage for stage in by_stage if stage not in _STAGES)]
    lines = [
        "# Python",
        "",
        "What `from hf_instruct import …` offers. Importing the package loads neither torch nor TRL: a name is looked "
        "up when it is first used. `InstructError`, and what the files of a run folder hold, are on the page "
        "[Files and errors](records.md).",
    ]
    for stage in order:
        if stage in by_stage and stage not in _ELSEWHERE:
            lines += ["", f"## {_STAGES.get(stage, stage.capitalize())}"]
            lines += [line for path in by_stage[stage] for line in ("", f"::: {path}")]
    return "\n".join(lines) + "\n"


def write_records() -> str:
    """Return the page of what our files hold, and of the errors."""
    rows = [
        value
        for value in vars(schema).values()
        if inspect.isclass(value) and issubclass(value, schema.Record) and value is not schema.Record
    ]
    tree = inspect.cleandoc(errors.__doc__ or "").partition("\n\n")[2]
    lines = [
        "# Files and errors",
        "",
        "## Files",
        "",
        "What the files of a run folder hold. The lines of `data/*.jsonl` are an `Example` each; the other classes "
        "name their file, or are part of one.",
    ]
    for row in (records.Example, *rows):
        # The comments beside the fields are their description.
        lines += ["", f"::: {row.__module__}.{row.__name__}", "    options: {show_source: true}"]
    lines += ["", "## Errors", "", "What a user can cause, in one tree; `except InstructError` catches all of it.", ""]
    lines += ["```text", tree, "```", "", f"::: {errors.__name__}.InstructError"]
    return "\n".join(lines) + "\n"
