"""The page in a browser, as a user has it: `hf-instruct ui` in a process of its own, Chromium in front."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reporting_run import write_run

from hf_instruct.addresses import open_socket
from hf_instruct.cli.main import main

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> **bold** <b>fat</b> $$x$$ ${1+1} {{7*7}} @children\n\n# head"
WAIT = 30_000  # milliseconds; the machine may be busy
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
    assert capsys.readouterr().err.startswith(f"hf-instruct: `{tmp_path}/missing` does not exist.")
    with open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", str(run.path), "--no-browser", "--port", str(port)]) == 1
    assert caplog.messages == [f"`{run.path}` has no tuned model yet; only its untuned one can be asked."]
    assert capsys.readouterr().err == (
        f"hf-instruct: The page cannot be served at 127.0.0.1:{port} (Address already in use). Stop what runs there, "
        "or name another port with `--port`; `--port 0` takes any free one.\n"
    )
    for words in (["ui"], ["ui", "x", "--port", "70000"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


def test_without_gradio_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ui", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "hf-instruct: The page needs Gradio, which is not installed; install it with `pip install 'hf-instruct[ui]'`.\n"
    )


class Server:
    """`hf-instruct ui` as a user starts it."""

    def __init__(self, folder: Path, *names: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_instruct", "ui", *names, "--no-browser", "--port", str(port)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As if somebody had a proxy and wanted it for everything.
            env={**os.environ, "http_proxy": "http://127.0.0.1:9", "GRADIO_SHARE": "True"},
        )
        self.url = f"http://127.0.0.1:{port}/"
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"Open {self.url}   (Ctrl-C ends)\n"

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        said, _ = self.process.communicate(timeout=30)
        return str(said)


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
    responses.write_text(responses.read_text().replace("Jane Austen.", "Ms <b>Austen</b> ${1+1}."))
    return folder


@pytest.fixture(scope="module")
def server(runs: Path, browser: Any) -> Iterator[Server]:
    started = Server(runs, "one", "two")
    first = Person(browser, started.url)
    first.send("Are you there?")
    first.page.locator("#hi-chat .hi-model").wait_for(timeout=WAIT_FOR_LOADING)
    first.wait_until_answered()
    first.check_and_leave()
    yield started
    assert started.stop().strip() == ""
    assert started.process.returncode == 0


class Person:
    """Somebody with a browser of their own; notes what the page asks for."""

    def __init__(self, browser: Any, url: str) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 860})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.url = url
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.goto(url)
        self.find("box textarea").wait_for()

    def find(self, name: str) -> Any:
        return self.page.locator(f"#hi-{name}")

    def set_longest(self, tokens: int) -> None:
        field = self.find("longest input")
        if not field.is_visible():
            self.page.get_by_text("How answers are written").click()
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
        self.page.locator("#hi-chat .hi-user").last.get_by_text(text.splitlines()[0]).wait_for()
        self.wait_until_answered()

    def wait_for_writing(self) -> None:
        """Wait until there is some of the latest answer."""
        last = self.page.locator("#hi-chat .hi-model").last
        deadline = time.monotonic() + WAIT / 1000
        while len(last.inner_text()) < 30:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def said(self, chat: str = "chat") -> list[str]:
        return [str(text) for text in self.find(chat).locator(".hi-said").all_inner_texts()]

    def notice(self) -> str:
        return str(self.find("chat-notice").inner_text())

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def check_and_leave(self) -> None:
        """See that nothing failed in the browser, that nothing was asked of others and that no text became HTML."""
        assert self.faults == []
        assert [url for url in self.asked if not url.startswith((self.url, "data:", "blob:"))] == []
        assert self.page.title() == "hf-instruct: one, two"
        made = "img[src=x], b:text-is('fat'), strong:text-is('bold'), h1:text-is('head'), b:text-is('Austen')"
        assert self.page.locator(made).count() == 0
        self.context.close()


@pytest.mark.slow
def test_chat_in_a_browser(server: Server, browser: Any, tmp_path: Path) -> None:
    ann = Person(browser, server.url)
    ann.set_longest(12)
    ann.ask(HOSTILE)
    question, answer = ann.said()
    assert question == HOSTILE
    assert answer
    assert ann.find("box textarea").input_value() == ""
    assert ann.notice() == "The answer was cut off at the longest allowed."
    ann.page.screenshot(path=tmp_path / "chat.png")
    assert (tmp_path / "chat.png").stat().st_size > 10_000

    # Another answer to the same question takes the place of the first.
    ann.find("clear").click()
    ann.page.locator("#hi-chat .hi-empty").wait_for()
    ann.set_longest(200)
    ann.ask(HOSTILE)
    longer = ann.said()[1]
    assert longer.startswith(answer)
    ann.set_longest(12)
    ann.find("retry").click()
    ann.page.locator("#hi-chat .hi-model", has_text=re.compile(f"^{re.escape(answer)}$")).wait_for()
    ann.wait_until_answered()
    assert ann.said() == [question, answer]

    ann.set_longest(0)
    ann.send("Too short?")
    ann.page.get_by_text("`max_new_tokens` cannot be `0`; allowed is a whole number from 1 to 1,000,000.").wait_for()
    assert ann.find("box textarea").input_value() == "Too short?"
    ann.set_longest(12)
    ann.send("   ")
    ann.page.get_by_text("The question is empty; type some words.").wait_for()
    assert ann.said() == [question, answer]

    # What the browser saves are the whole answers; these were all cut.
    ann.find("save-first").click()
    ann.page.get_by_text("There is nothing to save: no answer is whole.").wait_for()

    # Beside one another: each model answers by itself, and the conversation begins anew.
    ann.find("other-model input").click()
    ann.page.get_by_role("option", name="two, untuned").click()
    ann.page.locator("#hi-other .hi-empty").wait_for()
    assert ann.said() == []
    ann.ask("And you?")
    assert ann.said()[0] == ann.said("other")[0] == "And you?"
    assert len(ann.said()) == len(ann.said("other")) == 2
    assert ann.page.locator("#hi-other .hi-chat-head").inner_text() == "two, untuned\neach question stands alone"
    ann.find("undo").click()
    ann.page.locator("#hi-other .hi-empty").wait_for()
    assert ann.find("box textarea").input_value() == "And you?"
    ann.ask("Once more")
    ann.find("clear").click()
    ann.page.locator("#hi-chat .hi-empty").wait_for()
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
    ann.page.wait_for_function("document.querySelectorAll('#hi-chat .hi-model')[1]?.innerText.length > 30")
    assert ann.said()[1] == stopped
    ann.check_and_leave()
    started = time.monotonic()
    ben.ask("Ben's second question")
    assert time.monotonic() - started < 25
    assert [text for text in ben.said() if "question" in text] == ["Ben's question", "Ben's second question"]
    ben.page.reload()
    ben.page.locator("#hi-chat .hi-empty").wait_for()
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
    gil.page.locator("#hi-chat .hi-user", has_text="Second").wait_for()
    gil.find("stop").click()
    gil.wait_until_answered()
    assert [text for text in gil.said() if text in ("First", "Second")] == ["First", "Second"]
    gil.check_and_leave()


@pytest.mark.slow
def test_explore_in_a_browser(server: Server, browser: Any) -> None:
    eve = Person(browser, server.url)
    eve.open_tab("Explore")
    eve.find("next-go").click()
    eve.page.locator("#hi-next-result .hi-table").wait_for()
    # A head, 15 tokens, the uncertainty.
    assert eve.page.locator("#hi-next-result tr").count() == 17
    shown = eve.find("next-result").inner_text()
    assert "The prompt in 9 tokens" in shown
    assert re.search(r"Top-k 10 keeps [\d.]+% of the probability\. Top-p 0\.9 keeps [\d,]+ tokens?\.", shown)

    eve.open_tab("Beams")
    eve.find("beams-go").click()
    eve.page.locator("#hi-beams-result .hi-table").wait_for()
    assert sorted(eve.page.locator("#hi-beams-result .hi-rank").all_inner_texts()) == ["1", "2", "3"]

    eve.open_tab("Strategies")
    eve.find("prompt textarea").fill(f"{HOSTILE} I enjoy")
    eve.page.get_by_text("ask it as an instruction").click()
    eve.find("strategies-go").click()
    eve.page.locator("#hi-strategies-result .hi-card").first.wait_for()
    heads = eve.page.locator("#hi-strategies-result h4 span:first-child").all_inner_texts()
    assert heads == ["greedy", "beam", "sample", "top-k", "top-p"]
    eve.open_tab("Next token")
    eve.find("next-go").click()
    eve.page.locator("#hi-next-result").get_by_text("The prompt in 9 tokens").wait_for(state="detached")
    eve.page.locator("#hi-next-result summary").click()
    assert "<img" in "".join(eve.page.locator("#hi-next-result .hi-tokens span").all_inner_texts())
    eve.find("prompt textarea").fill(" ")
    eve.find("next-go").click()
    eve.page.get_by_text("The text is empty; type some words.").wait_for()
    eve.check_and_leave()


@pytest.mark.slow
def test_runs_and_votes_in_a_browser(server: Server, runs: Path, browser: Any, tmp_path: Path) -> None:
    fay = Person(browser, server.url)
    fay.open_tab("Runs")
    fay.page.locator("#hi-runs-table .hi-table").wait_for()
    labels = fay.page.locator("#hi-runs-table td:first-child").all_inner_texts()
    assert labels == ["one, untuned", "one", "two, untuned", "two"]
    assert fay.page.locator("#hi-losses svg").count() == 1
    assert "one, validation" in fay.find("losses").inner_text()
    fay.page.locator("#hi-answers .hi-card").first.wait_for()
    assert "Use a simile." in fay.find("answers").inner_text()
    fay.find("after").click()
    fay.page.locator("#hi-answers").get_by_text("Name the author.").wait_for()
    assert "Ms <b>Austen</b> ${1+1}." in fay.find("answers").inner_text()
    assert fay.find("example input").input_value() == "2. Name the author."
    fay.find("before").click()
    fay.page.locator("#hi-answers").get_by_text("Use a simile.").wait_for()
    fay.find("category input").click()
    fay.page.get_by_role("option", name="spelling").click()
    fay.page.locator("#hi-answers").get_by_text("Spell it.").wait_for()
    fay.page.screenshot(path=tmp_path / "runs.png", full_page=True)
    assert (tmp_path / "runs.png").stat().st_size > 20_000

    # Written meanwhile, seen when the tab is opened again.
    log = runs / "one" / "training.jsonl"
    kept = log.read_text()
    log.write_text(kept + '{"step": 9, "epoch": 2, "tokens_seen": 9, "kind": "evaluation", "validation_loss": 0.321}\n')
    fay.open_tab("Vote")
    fay.open_tab("Runs")
    fay.page.locator("#hi-runs-table").get_by_text("0.321").wait_for()
    log.write_text(kept)

    fay.open_tab("Vote")
    fay.page.locator("#vote-name").get_by_role("textbox").fill("Fay")
    fay.page.locator("#vote-start").click()
    fay.page.locator("#vote-progress").get_by_text("1 of 1", exact=True).wait_for()
    fay.page.keyboard.press("t")
    fay.page.get_by_text("All 1 done. Thank you!").wait_for()
    assert (runs / "one" / "votes.two.jsonl").read_text().count('"score": 0.5') == 4
    for second, shown in (("two, untuned", "1 of 4"), ("one", "Choose two different ones to compare.")):
        fay.find("vote-second input").click()
        fay.page.get_by_role("listbox").last.get_by_role("option", name=second, exact=True).click()
        fay.page.get_by_text(shown).wait_for()
    fay.find("vote-second input").click()
    fay.page.get_by_role("listbox").last.get_by_role("option", name="two", exact=True).click()
    fay.page.get_by_text("All 1 done. Thank you!").wait_for()
    fay.check_and_leave()
