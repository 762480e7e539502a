"""The site is built from what is there, is whole, and asks nothing of the network."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import hf_instruct
from hf_instruct.cli.main import VERBS
from hf_instruct.config import describe_fields
from hf_instruct.library_fields import describe_libraries

ROOT = Path(__file__).resolve().parents[1]
# What a browser fetches by itself; a link is only followed when somebody clicks on it.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("object", "data"),
}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "manifest", "modulepreload"}

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page fetches, where it links to, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.fetched += [value for name, value in values.items() if (tag, name) in FETCHED]
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and FETCHED_LINKS & set(values.get("rel", "").split()):
            self.fetched.append(values.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `mkdocs build --strict` builds it: a link or a name that is not found ends it."""
    from click.testing import CliRunner
    from mkdocs.__main__ import cli

    folder = tmp_path_factory.mktemp("site")
    # mkdocs sets up logging for its own process; what is left of it would speak up in later tests.
    handlers, level = list(logging.getLogger("mkdocs").handlers), logging.getLogger("mkdocs").level
    command = ["build", "--strict", "--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(folder)]
    done = CliRunner().invoke(cli, command)
    logging.getLogger("mkdocs").handlers[:] = handlers
    logging.getLogger("mkdocs").setLevel(level)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_the_course_is_there(site: Path) -> None:
    assert [path.name[0] for path in sorted((site / "course").glob("*.html"))] == list("12345678")
    assert len(list((site / "howto").glob("*.html"))) == len(list((ROOT / "docs" / "howto").glob("*.md")))


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    outside = [(path.name, url) for path, page in pages.items() for url in page.fetched if urlsplit(url).netloc]
    assert outside == []
    sheets = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert sheets
    assert [
        url for sheet in sheets for url in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", sheet)
    ] == []
    assert not list(site.rglob("hooks.py"))


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    dead: list[tuple[str, str]] = []
    for path, page in pages.items():
        # The page for what is not found is served at any address, so its links begin at the root.
        for link in [*page.links, *page.fetched] if path.name != "404.html" else []:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in pages[target].anchors):
                dead.append((str(path.relative_to(site)), link))
    assert dead == []


def test_the_reference_has_every_public_name_verb_and_field(site: Path, pages: dict[Path, Page]) -> None:
    anchors = set().union(*(pages[site / "reference" / f"{name}.html"].anchors for name in ("python", "records")))
    homes = {f"hf_instruct.{hf_instruct._HOMES[name]}.{name}" for name in hf_instruct.__all__}
    assert homes <= anchors
    assert {*VERBS, "data-check"} <= pages[site / "reference" / "commands.html"].anchors
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    names = [name for name, _, _ in describe_fields()]
    names += [f"{section}.{name}" for section, _, defaults in describe_libraries() for name in defaults]
    assert [name for name in names if f"<code>{name}</code>" not in settings] == []


@pytest.mark.parametrize("name", ["index.html", "course/4-fine-tuning.html", "reference/commands.html"])
def test_pages_open_from_the_disk(site: Path, browser: Any, name: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    broken: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: broken.append(request.url))
    page.goto((site / name).as_uri())
    page.wait_for_load_state("load")
    assert page.locator("h1").count() == 1
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    # Nothing sticks out of the window: tables and code scroll by themselves.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
    assert [url for url in asked if urlsplit(url).scheme not in ("file", "data", "blob")] == []
    assert broken == []
