"""The page in a browser, as a user has it: `hf-instruct ui` in a process of its own, Chromium in front."""

import asyncio
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsing
import httpx
import pytest
from browsing import HOSTILE, WAIT, Server
from reporting_run import write_run

from hf_instruct.cli.main import main
from hf_instruct.local_server import open_socket
from hf_instruct.ui.pages import add_headers

WAIT_FOR_LOADING = 180_000  # milliseconds; PyTorch and Transformers are imported by the first question
# Two frames drawn, and then nothing left to do.
_SETTLE = """() => new Promise((done) => {
  requestAnimationFrame(() => requestAnimationFrame(() => requestIdleCallback(() => done())));
})"""


def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "mine")
    assert main(["ui", str(tmp_path / "missing"), "--no-browser"]) == 1
    assert f"`{tmp_path}/missing` does not exist." in capsys.readouterr().err
    with open_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["ui", str(run.path), "--no-browser", "--port", port]) == 1
    assert "has no tuned model yet" in caplog.text
    error = capsys.readouterr().err
    assert "choose another port with `--port`" in error
    assert error.count("\n") == 1


def test_without_gradio_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    assert main(["ui", str(tmp_path)]) == 1
    assert "pip install gradio" in capsys.readouterr().err
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_every_reply_says_that_nothing_is_fetched_from_elsewhere() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(add_headers(app)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self' ")
    assert b"http" not in headers[b"content-security-policy"]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of a tiny model, which writes gibberish, fast and for as long as it may."""
    import tiny_models

    folder = tmp_path_factory.mktemp("ui")
    config = tiny_models.gpt2_config()
    config.n_positions = 8192
    base = tiny_models.save_tiny(folder / "tiny", config, scale=8)
    for name in ("one", "two"):
        run = write_run(folder / name, model={"name": str(base)})
        shutil.copytree(base, run.model)
    responses = folder / "two" / "responses.jsonl"
    responses.write_text(
        responses.read_text().replace(': "Jane Austen.", "category"', ': "Ms <b>Austen</b> ${1+1}.", "category"')
    )
    return folder


@pytest.fixture(scope="module")
def server(runs: Path, browser: Any) -> Iterator[Server]:
    started = Server(runs, "ui", "one", "two")
    first = Person(browser, started.url)
    first.send("Are you there?")
    first.page.locator("#hi-chat .bot.message").wait_for(timeout=WAIT_FOR_LOADING)
    first.wait_until_answered()
    first.check_and_leave()
    yield started
    assert started.stop().strip() == ""


class Person(browsing.Person):
    """Somebody who uses the tabs, and talks to the tuned model alone at first."""

    def __init__(self, browser: Any, url: str) -> None:
        super().__init__(browser, url)
        self.find("box textarea").wait_for()
        assert self.page.get_by_label("Beside it").input_value() == "one, untuned"
        self.choose_beside("no other model")
        self.find("other").wait_for(state="hidden")

    def choose_beside(self, model: str) -> None:
        self.find("other-model input").click()
        self.page.get_by_role("option", name=model, exact=True).click()

    def find(self, name: str) -> Any:
        return self.page.locator(f"#hi-{name}")

    def set_longest(self, tokens: int) -> None:
        field = self.find("longest input")
        if not field.is_visible():
            self.page.get_by_text("Generation settings").click()
            field.wait_for()
            # Gradio writes a field's first value a frame or two after it has drawn it, over what is typed before.
            self.page.evaluate(_SETTLE)
        field.fill(str(tokens))
        field.blur()

    def send(self, text: str) -> None:
        self.find("box textarea").fill(text)
        self.find("send").click()

    def wait_until_answered(self) -> None:
        self.find("stop").wait_for(state="hidden")
        self.find("send").wait_for()

    def ask(self, text: str) -> None:
        self.send(text)
        self.page.locator("#hi-chat .user.message").last.get_by_text(text.splitlines()[0]).wait_for()
        self.wait_until_answered()

    def wait_for_writing(self) -> None:
        """Wait until there is some of the latest answer."""
        last = self.page.locator("#hi-chat .bot.message").last
        deadline = time.monotonic() + WAIT / 1000
        while len(last.inner_text()) < 30:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def said(self, chat: str = "chat") -> list[str]:
        return [str(text) for text in self.find(chat).locator(".message").all_inner_texts()]

    def wait_until_empty(self, chat: str = "chat") -> None:
        self.find(chat).get_by_text("No messages yet.").wait_for()

    def wait_for_text(self, name: str, text: str) -> None:
        """Wait until a part holds a text; Gradio's tables have a second, hidden one for their measure."""
        squeezed = repr("".join(text.split()))
        inner = f"document.querySelector('#hi-{name}')?.innerText"
        self.page.wait_for_function(f"{inner}.replaceAll(/\\s/g, '').includes({squeezed})")

    def notice(self) -> str:
        return str(self.find("chat-notice").inner_text())

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def check_and_leave(self, title: str = "hf-instruct: one, two") -> None:
        assert self.page.locator("b:text-is('Austen')").count() == 0
        super().check_and_leave(title)


@pytest.mark.slow
def test_chat_in_a_browser(server: Server, browser: Any, tmp_path: Path) -> None:
    ann = Person(browser, server.url)
    ann.set_longest(12)
    ann.ask(HOSTILE)
    question, answer = ann.said()
    assert question == HOSTILE
    assert answer
    assert ann.find("box textarea").input_value() == ""
    assert ann.notice() == "The answer was cut off at the maximum length."
    ann.page.screenshot(path=tmp_path / "chat.png")
    assert (tmp_path / "chat.png").stat().st_size > 10_000

    # Another answer to the same question takes the place of the first.
    ann.find("clear").click()
    ann.wait_until_empty()
    ann.set_longest(200)
    ann.ask(HOSTILE)
    longer = ann.said()[1]
    assert longer.startswith(answer)
    ann.set_longest(12)
    ann.find("retry").click()
    ann.page.locator("#hi-chat .bot.message", has_text=re.compile(f"^{re.escape(answer)}$")).wait_for()
    ann.wait_until_answered()
    assert ann.said() == [question, answer]

    ann.set_longest(0)
    ann.send("Too short?")
    ann.page.get_by_text(re.compile("`max_new_tokens` is .*; it must be")).wait_for()
    assert ann.find("box textarea").input_value() == "Too short?"
    ann.set_longest(12)
    ann.send("   ")
    ann.page.get_by_text("The question is empty; enter some text.").wait_for()
    assert ann.said() == [question, answer]

    # What the browser saves are the whole answers; these were all cut.
    ann.find("save").click()
    ann.page.get_by_text("There is nothing to save yet").wait_for()

    # Beside one another: each model answers by itself, and the conversation begins anew.
    ann.choose_beside("two, untuned")
    ann.wait_until_empty("other")
    assert ann.said() == []
    ann.find("examples").get_by_text("Name a cloud.").click()
    ann.page.wait_for_function("document.querySelector('#hi-box textarea').value == 'Name a cloud.'")
    ann.ask("And you?")
    assert ann.said()[0] == ann.said("other")[0] == "And you?"
    assert len(ann.said()) == len(ann.said("other")) == 2
    assert "two, untuned (each question is separate)" in ann.find("other").inner_text()
    ann.find("undo").click()
    ann.wait_until_empty("other")
    assert ann.find("box textarea").input_value() == "And you?"
    ann.ask("Once more")
    ann.find("clear").click()
    ann.wait_until_empty()
    ann.check_and_leave()


@pytest.mark.slow
def test_an_answer_can_be_stopped_and_two_people_do_not_mix(server: Server, browser: Any) -> None:
    ann, ben = Person(browser, server.url), Person(browser, server.url)
    ann.set_longest(6000)
    ben.set_longest(8)
    ann.send("Ann's question")
    ann.wait_for_writing()
    # The same model: it answers one after the other.
    ben.send("Ben's question")
    ben.find("stop").wait_for()
    assert (ben.said(), ann.find("stop").is_visible(), ann.notice()) == (["Ben's question", "…"], True, "")
    ann.find("stop").click()
    ann.wait_until_answered()
    ben.wait_until_answered()
    assert ann.notice() == "Stopped."
    assert ann.said()[0] == "Ann's question"
    assert len(ann.said()) == 2
    stopped = ann.said()[1]
    assert len(stopped) >= 30
    assert ben.said()[0] == "Ben's question"
    assert not any("Ann" in text for text in ben.said())

    # A page that is closed wants no answer any more: 6,000 tokens would take a minute.
    ann.send("Ann's second question")
    ann.find("stop").wait_for()
    ann.page.wait_for_function("document.querySelectorAll('#hi-chat .bot.message')[1]?.innerText.length > 30")
    assert ann.said()[1] == stopped
    ann.check_and_leave()
    started = time.monotonic()
    ben.ask("Ben's second question")
    assert time.monotonic() - started < 25
    assert [text for text in ben.said() if "question" in text] == ["Ben's question", "Ben's second question"]
    ben.page.reload()
    ben.wait_until_empty()
    ben.check_and_leave()


@pytest.mark.slow
def test_a_question_sent_the_moment_an_answer_ends_is_asked(server: Server, browser: Any) -> None:
    gil = Person(browser, server.url)
    gil.set_longest(6000)
    gil.send("First")
    gil.wait_for_writing()
    gil.find("box textarea").fill("Second")
    # Gradio thinks the first question is still being answered for a moment after the page shows it as done.
    gil.page.evaluate(
        """new MutationObserver((_, observer) => {
          const send = document.querySelector("#hi-send");
          if (document.querySelector("#hi-stop")?.offsetParent || !send?.offsetParent) return;
          observer.disconnect();
          send.click();
        }).observe(document.body, {childList: true, subtree: true, attributes: true})"""
    )
    gil.find("stop").click()
    gil.page.locator("#hi-chat .user.message", has_text="Second").wait_for()
    gil.find("stop").click()
    gil.wait_until_answered()
    assert [text for text in gil.said() if text in ("First", "Second")] == ["First", "Second"]
    gil.check_and_leave()


@pytest.mark.slow
def test_explore_in_a_browser(server: Server, browser: Any) -> None:
    eve = Person(browser, server.url)
    # A table draws the rows that are in view.
    eve.page.set_viewport_size({"width": 1200, "height": 2400})
    # It is filled when it is opened.
    eve.open_tab("Explore")
    eve.find("next-plot").locator("svg").wait_for()
    eve.wait_for_text("next-table", "(entropy, bits)")
    assert re.search(
        r"At temperature 1, top-k 10 alone keeps [\d.]+% of the probability; top-p 0\.7",
        eve.find("next-notice").inner_text(),
    )

    eve.open_tab("Beams")
    eve.find("beams-go").click()
    eve.wait_for_text("beams-table", "best")
    assert "number 3" in eve.find("beams-table").inner_text()

    eve.open_tab("Strategies")
    eve.find("prompt textarea").fill(f"{HOSTILE} I enjoy")
    eve.page.get_by_text("treat it as an instruction").click()
    eve.find("strategies-go").click()
    eve.wait_for_text("strategies-table", "top-p")
    assert {"greedy", "beam", "sample", "top-k", "top-p"} <= set(eve.find("strategies-table").inner_text().split())
    eve.open_tab("Next token")
    eve.find("next-go").click()
    eve.wait_for_text("next-prompt", "<img")
    eve.find("prompt textarea").fill(" ")
    eve.find("next-go").click()
    eve.page.get_by_text("The text is empty; enter some text.").wait_for()
    eve.check_and_leave()


@pytest.mark.slow
def test_runs_and_votes_in_a_browser(server: Server, runs: Path, browser: Any, tmp_path: Path) -> None:
    fay = Person(browser, server.url)
    fay.open_tab("Runs")
    fay.wait_for_text("runs-table", "two, untuned")
    fay.find("runs-plot").locator("svg").wait_for()
    assert {"one", "one,", "untuned", "two", "+35.0"} <= set(fay.find("runs-table").inner_text().split())
    report = fay.page.frame_locator("iframe.report")
    report.get_by_role("heading", name="one", exact=True).wait_for()
    fay.find("report input").click()
    fay.page.get_by_role("option", name="two", exact=True).click()
    report.get_by_text("Ms <b>Austen</b> ${1+1}.").first.wait_for(state="attached")
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert "sandbox allow-scripts" in client.get("/report/1").headers["content-security-policy"]
        assert client.get("/report/2").status_code == 404
        assert client.get("/report/1", headers={"Host": "evil.example"}).status_code == 403
    fay.page.screenshot(path=tmp_path / "runs.png", full_page=True)
    assert (tmp_path / "runs.png").stat().st_size > 20_000

    fay.open_tab("Vote")
    fay.page.locator("#vote-name").get_by_role("textbox").fill("Fay")
    fay.page.locator("#vote-start").click()
    fay.page.locator("#vote-progress").get_by_text("1 of 1", exact=True).wait_for()
    fay.page.keyboard.press("t")
    fay.page.get_by_text("All 1 done. Thank you!").wait_for()
    assert (runs / "one" / "votes.two.jsonl").read_text().count('"score": 0.5') == 4
    for second, shown in (("two, untuned", "1 of 4"), ("one", "Choose two different sets of answers")):
        fay.find("vote-second input").click()
        fay.page.get_by_role("listbox").last.get_by_role("option", name=second, exact=True).click()
        fay.page.get_by_text(shown).wait_for()
    fay.find("vote-second input").click()
    fay.page.get_by_role("listbox").last.get_by_role("option", name="two", exact=True).click()
    fay.page.get_by_text("All 1 done. Thank you!").wait_for()
    fay.check_and_leave()
