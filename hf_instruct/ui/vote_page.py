"""The page where people vote: a Gradio app on loopback that fetches nothing from elsewhere.

The browser gets the texts of one ballot and its number, and nothing else: which set an answer is from, who else votes
and where the votes go stay on the server. Texts are shown in text boxes, which render neither HTML nor Markdown.
"""

import dataclasses
import functools
import html
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_instruct.errors import DataError, InstructError
from hf_instruct.evaluation.votes import LEFT, RIGHT, SKIP, TIE, Ballot, VoteBook, check_voter
from hf_instruct.ui.pages import build_app, serve_app

STYLE = """
.vote-text textarea {font-size: 1.05rem; line-height: 1.55; opacity: 1 !important; cursor: text;
  -webkit-text-fill-color: var(--body-text-color) !important; color: var(--body-text-color) !important;}
.vote-head {align-items: center;}
.vote-bar {height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden;}
.vote-bar div {height: 100%; background: var(--button-primary-background-fill);}
.vote-count {margin-bottom: 6px; color: var(--body-text-color);}
button.vote-big {min-height: 64px; font-size: 1.1rem;}
#vote-number {display: none !important;}
"""
# A text box that grows with its text at any width: Gradio measures only when the text changes. In the head, because
# Gradio drops such rules from its `css`.
HEAD = """
<style>
@supports (field-sizing: content) {
  .vote-text textarea {field-sizing: content; height: auto !important; max-height: 70vh; overflow-y: auto !important;}
}
</style>
"""
_WELCOME = """\
## Which answer is better?
You will see an instruction and two answers to it, and say which one you prefer. Which is on the left is drawn by lot.
Each vote is kept at once: stop whenever you like, and go on later under the same name."""
# The buttons do the work; keys only press them.
KEYS = """
() => {
  const names = {arrowleft: "left", arrowright: "right", t: "tie", s: "skip", u: "undo"};
  document.addEventListener("keydown", (event) => {
    const field = event.target;
    const typing = ["INPUT", "TEXTAREA"].includes(field.tagName) && !field.disabled && !field.readOnly;
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = document.getElementById("vote-" + names[event.key.toLowerCase()]);
    if (button && button.offsetParent && !button.disabled) {
      event.preventDefault();
      button.click();
    }
  });
}
"""


@dataclasses.dataclass
class Session:
    """One browser tab.

    Attributes:
        voter: Whose votes it sends.
        book: What it votes on.
        shown_at: When its ballot was shown, in seconds of a clock that never goes back.
    """

    voter: str
    book: VoteBook
    shown_at: float = dataclasses.field(default_factory=time.monotonic)


def serve_page(book: VoteBook, server: socket.socket, *, hosts: Iterable[str], voter: str | None = None) -> None:
    """Serve the page on a bound socket until interrupted.

    Args:
        book: The ballots and their votes.
        server: From `hf_instruct.addresses.open_socket`.
        hosts: From `hf_instruct.guard.list_hosts`.
        voter: Whose votes these are; None asks on the page.

    Raises:
        KeyboardInterrupt: Somebody ended it.
    """
    import gradio

    with gradio.Blocks(title="Which answer is better?", analytics_enabled=False) as blocks:
        VotePanel(gradio, blocks, lambda: book, voter=voter)
    serve_app(build_app(blocks, hosts=hosts, style=STYLE, keys=KEYS, head=HEAD), server)


class VotePanel:
    """The parts of the page, and what its buttons do; made inside the page or the tab that is to hold it.

    Args:
        gradio: The module.
        blocks: The whole page.
        pick: Gives the ballots to vote on, from the values of `choice`.
        choice: The components that say which; none where there is no choice.
        voter: Whose votes these are; None asks on the page.
    """

    def __init__(
        self,
        gradio: Any,
        blocks: Any,
        pick: Callable[..., VoteBook],
        *,
        choice: Sequence[Any] = (),
        voter: str | None = None,
    ) -> None:
        self._gradio = gradio
        self._blocks = blocks
        self._pick = pick
        self._choice = list(choice)
        self._voter = voter
        # Stays on the server, one for each tab, so that several people do not mix.
        self._session = gradio.State(None)
        # Stays in the browser, so that a reload need not ask again. Only a name, so the secret need not be one.
        self._remembered = gradio.BrowserState("", storage_key="hf-instruct-voter", secret="a name, no secret")
        self._fault = gradio.HTML(visible=False, elem_id="vote-fault")
        with gradio.Column(visible=False) as self._welcome:
            gradio.Markdown(_WELCOME)
            self._name = gradio.Textbox(label="Your name", info=" ", max_lines=1, elem_id="vote-name")
            start = gradio.Button("Start", variant="primary", elem_id="vote-start", elem_classes="vote-big")
        with gradio.Column(visible=False) as self._main:
            with gradio.Row(elem_classes="vote-head"):
                self._progress = gradio.HTML(elem_id="vote-progress")
                self._change = gradio.Button("", size="sm", scale=0, min_width=140, elem_id="vote-change")
            with gradio.Column() as self._ballot:
                choices = self._build_ballot()
            with gradio.Row():
                with gradio.Column(min_width=120) as self._skip:
                    choices[SKIP] = gradio.Button("Skip (S)", size="sm", elem_id="vote-skip")
                undo = gradio.Button("Undo my last vote (U)", size="sm", min_width=120, elem_id="vote-undo")
            with gradio.Column(elem_id="vote-number"):
                # Says which ballot a click was on, as the browser saw it.
                self._number = gradio.Textbox(show_label=False)
        self._connect(start, undo, choices)

    def _build_ballot(self) -> dict[str, Any]:
        """Add the texts of a ballot and the buttons under them, and return the buttons by choice."""
        gradio = self._gradio
        text = {"interactive": False, "max_lines": 40, "autoscroll": False, "elem_classes": "vote-text"}
        self._instruction = gradio.Textbox(label="Instruction", elem_id="vote-instruction", **text)
        self._input = gradio.Textbox(label="Input", elem_id="vote-input", **text)
        with gradio.Row():
            # Each in a column of its own: beside one another on a wide screen, below on a narrow one.
            with gradio.Column(min_width=340):
                self._left = gradio.Textbox(label="Left answer", elem_id="vote-left-text", **text)
            with gradio.Column(min_width=340):
                self._right = gradio.Textbox(label="Right answer", elem_id="vote-right-text", **text)
        choices = {}
        with gradio.Row():
            for choice, label in (
                (LEFT, "← Left is better"),
                (TIE, "About equal (T)"),
                (RIGHT, "Right is better →"),
            ):
                variant = "secondary" if choice == TIE else "primary"
                choices[choice] = gradio.Button(
                    label, variant=variant, min_width=200, elem_id=f"vote-{choice}", elem_classes="vote-big"
                )
        return choices

    def _connect(self, start: Any, undo: Any, choices: dict[str, Any]) -> None:
        outputs = [
            self._session,
            self._remembered,
            self._fault,
            self._welcome,
            self._name,
            self._main,
            self._ballot,
            self._skip,
        ]
        outputs += [self._instruction, self._input, self._left, self._right]
        outputs += [self._progress, self._change, self._number]
        # Not queued: each takes milliseconds. Not in the API that Gradio offers to programs.
        settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        known = [self._remembered, *self._choice]
        for event in (self._blocks.load, *(part.input for part in self._choice)):
            event(self._load, known, outputs, **settings)
        for event in (start.click, self._name.submit):
            event(self._begin, [self._name, *self._choice], outputs, **settings)
        for choice, button in choices.items():
            answer = functools.partial(self._answer, choice)
            button.click(answer, [self._session, self._number, *known], outputs, **settings)
        undo.click(self._undo, [self._session, *known], outputs, **settings)
        self._change.click(self._show_welcome, None, outputs, **settings)

    def _load(self, remembered: Any, *chosen: Any) -> dict[Any, Any]:
        try:
            book = self._pick(*chosen)
        except InstructError as error:
            return self._show_fault(error)
        voter = self._find_voter(remembered)
        return self._show(voter, book) if voter else self._show_welcome()

    def _begin(self, name: str, *chosen: Any) -> dict[Any, Any]:
        try:
            voter = check_voter(name)
        except DataError as error:
            return {self._name: self._gradio.update(info=str(error))}
        return self._load(voter, *chosen)

    def _answer(self, choice: str, session: Session | None, number: str, *known: Any) -> dict[Any, Any]:
        if session is None:
            # The server was started anew under an open page: show what comes next rather than guess what was seen.
            return self._load(*known)
        seconds = time.monotonic() - session.shown_at
        session.book.vote(session.voter, int(number) if number.isdecimal() else 0, choice, seconds=seconds)
        return self._show(session.voter, session.book)

    def _undo(self, session: Session | None, *known: Any) -> dict[Any, Any]:
        if session is None:
            return self._load(*known)
        session.book.undo(session.voter)
        return self._show(session.voter, session.book)

    def _find_voter(self, remembered: Any) -> str | None:
        if self._voter:
            return self._voter
        try:
            return check_voter(str(remembered or ""))
        except DataError:
            return None

    def _show_welcome(self) -> dict[Any, Any]:
        update = self._gradio.update
        return {
            self._session: None,
            self._remembered: "",
            self._fault: update(visible=False),
            self._welcome: update(visible=True),
            self._name: update(value="", info=" "),
            self._main: update(visible=False),
        }

    def _show_fault(self, error: InstructError) -> dict[Any, Any]:
        update = self._gradio.update
        text = html.escape(f"There is nothing to vote on: {error}")
        return {
            self._session: None,
            self._fault: update(value=f'<div class="vote-count" role="status">{text}</div>', visible=True),
            self._welcome: update(visible=False),
            self._main: update(visible=False),
        }

    def _show(self, voter: str, book: VoteBook) -> dict[Any, Any]:
        """Return what a voter sees next."""
        update = self._gradio.update
        ballot = book.next_ballot(voter)
        texts = ballot or Ballot(0, book.num_different, "", "", "", "")
        return {
            self._session: Session(voter, book),
            self._remembered: "" if self._voter else voter,
            self._fault: update(visible=False),
            self._welcome: update(visible=False),
            self._main: update(visible=True),
            self._ballot: update(visible=ballot is not None),
            self._skip: update(visible=ballot is not None),
            self._instruction: texts.instruction,
            self._input: update(value=texts.input, visible=bool(texts.input)),
            self._left: texts.left,
            self._right: texts.right,
            self._progress: _format_progress(ballot, texts.total),
            self._change: update(value=f"{voter} (change)", visible=self._voter is None),
            self._number: str(texts.number),
        }


def _format_progress(ballot: Ballot | None, total: int) -> str:
    """Return the line over the ballot as HTML; it holds numbers only."""
    done = ballot.number - 1 if ballot else total
    text = f"{ballot.number} of {total}" if ballot else f"All {total} done. Thank you! You can close this page."
    return (
        f'<div class="vote-count">Which answer is better? &nbsp;<b>{text}</b></div>'
        f'<div class="vote-bar"><div style="width: {100 * done / total:.1f}%"></div></div>'
    )
