"""Make the pictures of the pages in docs/images from one finished run: `python docs/screenshots.py runs/demo`.

They are of the demo's run, whose numbers README.md and docs/index.md give; after another run change both. It takes a
minute, Debian's Chromium and what the tests of the pages need.
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from hf_instruct.reporting.page import report

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.append(str(ROOT / "tests"))
from browsing import Server  # noqa: E402  (the tests' way to start a page)

_SETTLE = 700  # milliseconds, for Gradio to lay out what it has got
_SLOW = 120_000  # milliseconds, to load a model and answer


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run with answers of both models, scores and metrics")
    run = parser.parse_args().run.resolve()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with _open(browser, report(run).as_uri(), width=1180) as page:
            metrics = page.locator("section[aria-labelledby=metrics]").bounding_box()
            _keep(page, "report", height=round(metrics["y"] + metrics["height"]) + 20)
        with _serve("ui", run) as url:
            for name, draw in {"ui-chat": _chat, "ui-explore": _explore, "ui-runs": _compare}.items():
                with _open(browser, url) as page:
                    draw(page)
                    _keep(page, name, height=1400)
        # The votes of nobody, beside no run.
        votes = Path(folder) / "votes.jsonl"
        with _serve("vote", run, run / "untuned", "--out", votes) as url, _open(browser, url) as page:
            page.locator("#vote-name").get_by_role("textbox").fill("Ann")
            page.locator("#vote-start").click()
            page.locator("#vote-left-text").wait_for()
            _keep(page, "vote", height=1000)


def _chat(page: Any) -> None:
    page.locator("#hi-examples").get_by_role("button").nth(1).click()
    page.wait_for_function("document.querySelector('#hi-box textarea').value")
    page.locator("#hi-send").click()
    page.locator("#hi-other .bot.message").wait_for(timeout=_SLOW)
    page.locator("#hi-send").wait_for(timeout=_SLOW)


def _explore(page: Any) -> None:
    page.get_by_role("tab", name="Explore").click()
    page.locator("#hi-next-plot svg").wait_for(timeout=_SLOW)


def _compare(page: Any) -> None:
    page.get_by_role("tab", name="Runs").click()
    page.frame_locator("iframe.report").get_by_role("heading").first.wait_for(timeout=_SLOW)


@contextmanager
def _serve(*words: object) -> Iterator[str]:
    server = Server(ROOT, *map(str, words))
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def _open(browser: Any, url: str, width: int = 1100) -> Iterator[Any]:
    """Give a page in a browser window of its own, as wide as the picture in pixels."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.goto(url)
    page.wait_for_timeout(_SETTLE)
    yield page
    context.close()


def _keep(page: Any, name: str, *, height: int) -> None:
    """Write a picture of the page from its top, at most so many pixels high, in 256 colours."""
    page.wait_for_timeout(_SETTLE)
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image = image.crop((0, 0, image.width, min(height, image.height)))
    image.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
