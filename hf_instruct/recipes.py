"""The experiments that come with the package: `recipes/` of the repository, included in the wheel."""

import re
from pathlib import Path
from typing import NamedTuple

from hf_instruct.errors import ConfigError, did_you_mean, did_you_mean_path, quote_names

# A header comment with its name and value, as in `# model:    GPT-2 medium (355M)`.
_COMMENT = re.compile(r"# (\w+): +(.+)")


class Recipe(NamedTuple):
    """An experiment that comes with the package."""

    name: str  # such as `gpt2-medium/full`
    path: Path

    @property
    def about(self) -> dict[str, str]:
        """The fields in the header of its file: `model`, `method`, `hardware`, `took` and `launch`."""
        return dict(_COMMENT.findall(self.path.read_text(encoding="utf-8")))


def list_recipes() -> list[Recipe]:
    """Return the recipes by name."""
    packaged = Path(__file__).with_name("recipe_files")
    folder = packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"
    return [Recipe(f"{path.parent.name}/{path.stem}", path) for path in sorted(folder.glob("*/*.yaml"))]


def find_experiment(given: str | Path) -> Path:
    """Return the file of an experiment: the path given, or the recipe of that name.

    A recipe is named as `gpt2-medium/full`, as `demo` if only one folder has it, or by its path in the repository.

    Raises:
        ConfigError: There is no such file, and not exactly one recipe of that name.
    """
    path = Path(given)
    if path.is_file():
        return path
    known: dict[str, list[Recipe]] = {}
    for recipe in list_recipes():
        known.setdefault(recipe.name, []).append(recipe)
        known.setdefault(recipe.path.stem, []).append(recipe)
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    found = known.get(name, [])
    if len(found) > 1:
        raise ConfigError(f"`{given}` matches several recipes: {quote_names(recipe.name for recipe in found)}.")
    if not found:
        near = did_you_mean_path(path, path.parent.glob("*.yaml")) or did_you_mean(name, known)
        raise ConfigError(
            f"`{given}` is neither a file nor the name of a recipe.{near} `hf-instruct recipes` lists the recipes."
        )
    return found[0].path
