"""What the README and the docs tell a user to type exists."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import hf_instruct
from hf_instruct.cli.flags import split_settings
from hf_instruct.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?:^|\s|`)(?:\.venv/bin/)?(hf-instruct [^`#\n\\]*(?:\\\n[^`#\n\\]*)*)")


def find_commands() -> list[str]:
    found = {match.strip() for page in PAGES for match in COMMAND.findall(page.read_text(encoding="utf-8"))}
    joined = (" ".join(command.replace("\\\n", " ").split()) for command in found)
    # What the shell takes for itself.
    return sorted({re.sub(r" [<>|] .*", "", command) for command in joined})


@pytest.mark.parametrize("command", find_commands())
def test_commands_parse(command: str):
    parser = build_parser()
    words, _ = split_settings(shlex.split(command)[1:], parser)
    assert parser.parse_args(words).handler


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_are_there(page: Path):
    text = page.read_text(encoding="utf-8")
    folders = "recipes|accelerate_configs|docs|hf_instruct|tests|benchmarks|notebooks"
    named = set(re.findall(rf"\b(?:{folders})/[\w./-]+\.(?:py|yaml|md|png|ipynb)\b", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_in_a_clone(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    own = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    targets = [(page.parent / path if path else page, anchor) for path, _, anchor in own]
    assert [str(path) for path, _ in targets if not path.exists()] == []
    assert [f"{path}#{anchor}" for path, anchor in targets if anchor and anchor not in list_anchors(path)] == []


def list_anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs call them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]


def test_python_of_the_readme_uses_the_public_names():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    imported = {
        alias.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "hf_instruct"
        for alias in node.names
    }
    assert imported <= set(hf_instruct.__all__)
    assert "train" in imported


def test_what_is_to_be_installed_is_there_to_be_installed():
    """The package itself is not on PyPI; what it needs besides is what `pyproject.toml` says."""
    texts = {path: path.read_text(encoding="utf-8") for path in [*PAGES, *ROOT.glob("hf_instruct/**/*.py")]}
    texts |= {path: path.read_text(encoding="utf-8") for path in ROOT.glob("recipes/*/*.yaml")}
    assert [path for path, text in texts.items() if re.search(r"pip install '?hf.instruct", text)] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = {requirement.partition(">=")[0] for requirements in extras.values() for requirement in requirements}
    named = [name for text in texts.values() for name in re.findall(r'needs_package\([^()]*"([^"]+)"\)', text)]
    assert set(named) == {"bitsandbytes", "gguf", "gradio", "lm-eval", "optuna", "transformers[serving]"}
    assert set(named) <= known


def test_version_is_in_the_changelog_or_unreleased():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## Unreleased" in text or f"## {hf_instruct.__version__}" in text
