"""`hf-instruct recipes`: list the experiments that come with the package, or copy one."""

import argparse
import shlex
from pathlib import Path

from hf_instruct.console import wrap

DESCRIPTION = "List the recipes (the experiments that come with the package), what they need and how long they took."
EPILOG = """\
examples:
  hf-instruct recipes
  hf-instruct recipes copy gpt2-medium/lora mine.yaml        to edit it, and to run it: hf-instruct run mine.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(handler=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    copy = actions.add_parser("copy", help="copy a recipe to a file")
    copy.add_argument("recipe", metavar="NAME", help="name of the recipe, as `hf-instruct recipes` lists it")
    copy.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="destination (default: the recipe's name, in the current folder)",
    )
    copy.set_defaults(handler=_copy)


def _list(options: argparse.Namespace) -> None:
    from hf_instruct.recipes import list_recipes

    for recipe in list_recipes():
        about = recipe.about
        words = ["model", "hardware"]
        if not about["took"].startswith("not measured"):
            words.append("took")
        print(wrap("\n".join([recipe.name, *(f"  {word:9} {about[word]}" for word in words)])))
    last = "The last part of a name is enough if it is unique, as in `hf-instruct run demo`."
    print(
        wrap(f"Run one with `hf-instruct run NAME`; `hf-instruct recipes copy NAME FILE` writes it to a file. {last}")
    )


def _copy(options: argparse.Namespace) -> None:
    from hf_instruct.errors import ConfigError
    from hf_instruct.recipes import find_experiment

    source = find_experiment(options.recipe)
    target = options.file or Path(f"{source.parent.name}-{source.name}")
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise ConfigError(f"`{target}` already exists. Name another file: `hf-instruct recipes copy NAME FILE`.")
    target.write_bytes(source.read_bytes())
    print(f"{target}\nRun it with: hf-instruct run {shlex.quote(str(target))}")
