import logging
from pathlib import Path
from typing import Any

import browsing
import httpx
import pytest
from browsing import HOSTILE, Server

from hf_instruct.records import read_rows, write_rows
from hf_instruct.schema import Judgment, Preference, Response

VOTE = ("vote", "secret-tuned", "secret-base")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two runs: seven examples, of which one is answered the same by both."""
    for name in ("secret-tuned", "secret-base"):
        rows = []
        for number in range(7):
            answer = f"{HOSTILE} answer {number}" if name == "secret-tuned" else f"Plain answer {number}."
            text = "The same." if number == 6 else answer
            rows.append(
                Response(
                    id=f"id{number}",
                    instruction=f"Task {number} <i>x</i>?",
                    input="an input" * (number % 2),
                    output="ref",
                    response=text,
                )
            )
        write_rows(tmp_path / name / "responses.jsonl", rows)
    return tmp_path


class Person(browsing.Person):
    """Somebody who votes."""

    def __init__(self, browser: Any, url: str, bodies: list[str] | None = None) -> None:
        super().__init__(browser, url)
        if bodies is not None:
            self.page.on("requestfinished", lambda request: bodies.append(read_body(request)))
            self.page.reload()

    def start(self, name: str) -> None:
        self.page.locator("#vote-name").get_by_role("textbox").fill(name)
        self.page.locator("#vote-start").click()
        self.wait_for(1)

    def wait_for(self, number: int, total: int = 6) -> None:
        self.page.locator("#vote-progress").get_by_text(f"{number} of {total}", exact=True).wait_for(timeout=20_000)

    def text(self, name: str) -> str:
        return str(self.page.locator(f"#vote-{name} textarea").input_value())


@pytest.mark.slow
def test_people_vote_in_a_browser(runs: Path, browser: Any, tmp_path: Path) -> None:
    server = Server(runs, *VOTE)
    votes = runs / "secret-tuned" / "votes.secret-base.jsonl"
    try:
        assert server.said.splitlines()[:2] == [
            "Pairs of answers to vote on: 6 (1 more have equal answers and count as ties)",
            "Votes are stored in secret-tuned/votes.secret-base.jsonl",
        ]
        ann = Person(browser, server.url)
        ann.page.locator("#vote-start").click()
        ann.page.get_by_text("Please enter a name").wait_for()
        ann.start("Ann")
        assert not votes.exists()

        # By button: prefers the tuned run's answer, wherever it is.
        side = "left" if "onerror" in ann.text("left-text") else "right"
        ann.page.locator(f"#vote-{side}").click()
        ann.wait_for(2)
        assert [row.score for row in read_asked(votes)] == [1.0]
        # By key: prefers the other run's answer.
        side = "ArrowRight" if "onerror" in ann.text("left-text") else "ArrowLeft"
        ann.page.keyboard.press(side)
        ann.wait_for(3)
        ann.page.keyboard.press("t")
        ann.wait_for(4)
        ann.page.keyboard.press("s")
        ann.wait_for(5)
        assert [row.score for row in read_asked(votes)] == [1.0, 0.0, 0.5, None]
        ann.page.keyboard.press("u")
        ann.wait_for(4)
        assert len(read_asked(votes)) == 3

        # What the answers say is text: no element of theirs, no code of theirs, no Markdown.
        texts = [ann.text("left-text"), ann.text("right-text")]
        assert any(HOSTILE in text for text in texts)
        ann.page.screenshot(path=tmp_path / "vote.png")
        assert (tmp_path / "vote.png").stat().st_size > 10_000

        # A second person, at the same time, has a count of their own.
        ben = Person(browser, server.url)
        ben.start("<b>Ben</b>")
        ben.page.locator("#vote-tie").click()
        ben.wait_for(2)
        ann.page.keyboard.press("t")
        ann.wait_for(5)
        assert ben.page.locator("#vote-name").get_by_role("textbox").input_value() == "<b>Ben</b>"

        # After a reload the page knows who it was and goes on.
        shown = ann.text("instruction")
        ann.page.reload()
        ann.wait_for(5)
        assert ann.text("instruction") == shown
        counts = {name: sum(row.judge.model == name for row in read_asked(votes)) for name in ("Ann", "<b>Ben</b>")}
        assert counts == {"Ann": 4, "<b>Ben</b>": 1}

        for person in (ann, ben):
            person.check_and_leave("Which answer is better?")
    finally:
        said = server.stop()
    assert said.strip().splitlines()[-3:] == [
        "5 votes by 2 voters stored in secret-tuned/votes.secret-base.jsonl",
        "Continue with:  hf-instruct rate secret-tuned/votes.secret-base.jsonl",
        "                hf-instruct agree secret-tuned/votes.secret-base.jsonl PREFERENCES_OF_A_JUDGE",
    ]


@pytest.mark.slow
def test_people_score_answers_in_a_browser(runs: Path, browser: Any) -> None:
    server = Server(runs, "vote", "secret-tuned", "--limit", "5")
    people = runs / "secret-tuned" / "judgments.people.jsonl"
    try:
        ann = Person(browser, server.url)
        ann.page.locator("#vote-name").get_by_role("textbox").fill("Ann")
        ann.page.locator("#vote-start").click()
        ann.wait_for(1, 5)
        assert ann.text("reference") == "ref"
        assert not ann.page.locator("#vote-left").is_visible()
        field = ann.page.locator("#vote-number").get_by_role("textbox")
        field.fill("101")
        field.press("Enter")
        ann.page.get_by_text("Please give a whole number from 0 to 100.").wait_for()
        assert not people.exists()
        field.fill("85")
        field.press("Enter")
        ann.wait_for(2, 5)
        assert field.input_value() == ""
        field.press("s")
        ann.wait_for(3, 5)
        field.press("u")
        ann.wait_for(2, 5)
        field.fill("0")
        ann.page.locator("#vote-score").click()
        ann.wait_for(3, 5)
        assert [row.score for row in read_rows(people, Judgment)] == [85, 0]
        ann.check_and_leave("How good is the answer?")
    finally:
        assert "2 votes by Ann stored in secret-tuned/judgments.people.jsonl" in server.stop()


@pytest.mark.slow
def test_a_restart_resumes_and_ends_and_names_are_nowhere_in_the_traffic(runs: Path, browser: Any) -> None:
    words = ("--voter", "Cas", "--out", "cas.jsonl", "--limit", "4")
    bodies: list[str] = []
    server = Server(runs, *VOTE, *words)
    total = int(server.said.split()[6])
    person = Person(browser, server.url, bodies)
    try:
        person.wait_for(1, total)
        person.page.keyboard.press("ArrowLeft")
        person.wait_for(2, total)
        # A page that is not up to date: the same ballot in another tab.
        other = person.context.new_page()
        other.goto(server.url)
        other.locator("#vote-progress").get_by_text(f"2 of {total}", exact=True).wait_for()
        person.page.keyboard.press("ArrowLeft")
        person.wait_for(3, total)
        other.locator("#vote-left").click()
        other.locator("#vote-progress").get_by_text(f"3 of {total}", exact=True).wait_for()
        assert len(read_asked(runs / "cas.jsonl")) == 2
    finally:
        assert "2 votes by Cas stored in cas.jsonl" in server.stop()
    server = Server(runs, *VOTE, *words)
    try:
        assert "Votes are stored in cas.jsonl (already stored: 2 by Cas)" in server.said
        person = Person(browser, server.url, bodies)
        for number in range(3, total + 1):
            person.wait_for(number, total)
            person.page.keyboard.press("ArrowRight")
        person.page.get_by_text(f"All {total} done. Thank you! You can close this page.").wait_for()
        assert not person.page.locator("#vote-left").is_visible()
        assert not person.page.locator("#vote-name").is_visible()
    finally:
        server.stop()
    assert sum("Plain answer" in body for body in bodies) >= total
    assert not any("secret-" in body or "cas.jsonl" in body for body in bodies)
    assert {row.judge.model for row in read_rows(runs / "cas.jsonl", Preference)} == {"Cas"}


@pytest.mark.slow
def test_other_sites_neither_read_nor_vote_nor_write_files(runs: Path) -> None:
    server = Server(runs, *VOTE, "--allow-host", "votes.lan")
    try:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
            page = client.get("/")
            assert "Which answer is better?" in page.text
            assert client.get("/", headers={"Host": "votes.lan"}).text.count("Which answer") == page.text.count(
                "Which answer"
            )
            functions = len(client.get("/config").json()["dependencies"])
            assert functions >= 7
            # What the page's own script sends, under a name that was made to mean this machine, and from another page.
            strangers = ({"Host": f"evil.example:{server.url[-6:-1]}"}, {"Origin": "https://evil.example"})
            for headers in strangers:
                for number in range(functions):
                    body = {"data": ["Mallory", None], "fn_index": number, "session_hash": "x"}
                    assert client.post("/gradio_api/run/predict", json=body, headers=headers).status_code == 403
                assert client.get("/config", headers=headers).status_code == 403
            files = {"files": ("x.txt", b"x")}
            assert client.post("/gradio_api/upload", files=files).status_code == 404
            for path in (
                "file=/etc/hostname",
                "proxy=http://127.0.0.1/",
                "stream/a/b/1/playlist-file",
                "upload_progress",
            ):
                assert client.get(f"/gradio_api/{path}").status_code == 404
    finally:
        assert "No votes stored." in server.stop()


def read_asked(path: Path) -> list[Preference]:
    """Return the votes, without the ties of equal answers."""
    return [row for row in read_rows(path, Preference) if "equal_answers" not in row.judge.options]


def read_body(request: Any) -> str:
    from playwright.sync_api import Error

    if request.resource_type not in ("document", "fetch", "xhr"):
        return ""
    try:
        return f"{request.url} {request.response().text()}"
    except Error as error:
        logging.getLogger(__name__).info("no body: %s", error)
        return ""
