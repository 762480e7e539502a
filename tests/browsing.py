"""The local pages as a user has them: a verb in a process of its own, and people with a browser each."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from judge_servers import find_free_port

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> **bold** <b>fat</b> $$x$$ ${1+1} {{7*7}} @children\n\n# head"
# What the text would become in a page that took it for HTML or Markdown.
MADE = "img[src=x], b:text-is('fat'), strong:text-is('bold'), h1:text-is('head')"
WAIT = 30_000  # milliseconds; the machine may be busy


class Server:
    """A page's verb as a user starts it; `said` is what it printed before it was ready."""

    def __init__(self, folder: Path, *words: str) -> None:
        port = find_free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_instruct", *words, "--no-browser", "--port", str(port)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As if somebody had a proxy and wanted it for everything.
            env={**os.environ, "http_proxy": "http://127.0.0.1:9", "GRADIO_SHARE": "True"},
        )
        self.url = f"http://127.0.0.1:{port}/"
        self.said = ""
        assert self.process.stdout is not None
        while self.url not in self.said:
            line = self.process.stdout.readline()
            assert line, self.said
            self.said += line

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return str(said)


class Person:
    """Somebody with a browser of their own; notes what the page asks for."""

    def __init__(self, browser: Any, url: str) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 860})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.url = url
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.goto(url)

    def check_and_leave(self, title: str) -> None:
        """See that nothing failed in the browser, that nothing was asked of others and that no text became HTML."""
        assert self.problems == []
        assert [url for url in self.asked if not url.startswith((self.url, "data:", "blob:"))] == []
        assert self.page.title() == title
        assert self.page.locator(MADE).count() == 0
        self.context.close()
