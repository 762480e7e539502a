"""Voting and scoring: the page of `hf-instruct vote`, and a tab to choose what to vote on.

The browser only gets the texts and the number of one ballot. The sets that the answers are from, the other voters and
the file of the votes stay on the server. Texts are shown in text boxes, which render neither HTML nor Markdown.
"""

import contextlib
import dataclasses
import functools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_instruct.errors import DataError, InstructError
from hf_instruct.evaluation import votes
from hf_instruct.evaluation.votes import Ballot, Book, ScoreBook
from hf_instruct.schema import MODELS, TUNED
from hf_instruct.ui.model_pool import Source
from hf_instruct.ui.pages import QUICK, format_notice, serve_page

_SAVED = "Each vote is saved immediately. You can stop at any time and continue later under the same name."
_WELCOME = f"""\
## Which answer is better?
Two answers to the same instruction, in random order: which one do you prefer? {_SAVED}"""
_WELCOME_TO_SCORES = f"""\
## How good is the answer?
Give each answer a whole number from 0 (wrong) to 100 (as good as the reference, in whatever words). {_SAVED}"""
_ALONE = "nothing: score each answer"
_UNDO, _SCORE = "undo", "score"


@dataclasses.dataclass
class Session:
    """One browser tab."""

    voter: str  # name of the voter
    book: Book  # the ballots
    # When the current ballot was shown, in seconds of a monotonic clock.
    shown_at: float = dataclasses.field(default_factory=time.monotonic)


def serve_votes(book: Book, server: socket.socket, *, hosts: Iterable[str], voter: str | None = None) -> None:
    """Serve a page to vote on one pair of sets of answers, or to score answers, until interrupted.

    Args:
        book: The ballots and their votes.
        server: From `hf_instruct.local_server.open_socket`.
        hosts: From `hf_instruct.local_server.list_hosts`.
        voter: Name of the voter; None to ask on the page.

    Raises:
        KeyboardInterrupt: The server was interrupted.
    """

    def build(gradio: Any, blocks: Any) -> None:
        VotePanel(gradio, blocks, lambda: book, voter=voter)

    title = "How good is the answer?" if isinstance(book, ScoreBook) else "Which answer is better?"
    serve_page(title, build, server, hosts=hosts)


class VotePanel:
    """The components of the page and their event handlers; to be created inside the page or tab that contains it.

    Args:
        gradio: The module.
        blocks: The whole page.
        pick: Returns the ballots to vote on, given the values of `choice`.
        choice: The components with which the user chooses the ballots; empty if there is no choice.
        voter: Name of the voter; None to ask on the page.
    """

    def __init__(
        self,
        gradio: Any,
        blocks: Any,
        pick: Callable[..., Book],
        *,
        choice: Sequence[Any] = (),
        voter: str | None = None,
    ) -> None:
        self._gradio, self._pick, self._choice, self._voter = gradio, pick, list(choice), voter
        # Stored on the server, one for each browser tab, so that several people can vote.
        self._session = gradio.State(None)
        # Stored in the browser, so that a reload does not ask again. It is only a name, so the key need not be secret.
        self._remembered = gradio.BrowserState("", storage_key="hf-instruct-voter", secret="a name, no secret")
        self._welcome = gradio.Markdown("" if choice else _greet(pick()))
        with gradio.Row(visible=voter is None, equal_height=True):
            self._name = gradio.Textbox(label="Your name", info=" ", max_lines=1, scale=4, elem_id="vote-name")
            start = gradio.Button("Start", variant="primary", elem_id="vote-start")
        self._progress = gradio.HTML(elem_id="vote-progress")
        with gradio.Column(visible=False) as self._ballot:
            buttons = self._build_ballot()
        with gradio.Row(visible=False) as self._more:
            small = {"size": "sm", "min_width": 120}
            buttons[votes.SKIP] = gradio.Button("Skip (S)", elem_id="vote-skip", **small)
            buttons[_UNDO] = gradio.Button("Undo my last vote (U)", elem_id="vote-undo", **small)
        # The number of the ballot that the browser shows, sent with each click.
        self._number = gradio.Textbox(visible="hidden")
        self._connect(blocks, start, buttons)

    def _build_ballot(self) -> dict[str, Any]:
        """Add the texts of a ballot and the buttons under them, and return the buttons by choice."""
        gradio = self._gradio
        text = {"interactive": False, "max_lines": 40, "autoscroll": False, "elem_classes": "vote-text"}
        self._instruction = gradio.Textbox(label="Instruction", elem_id="vote-instruction", **text)
        self._input = gradio.Textbox(label="Input", elem_id="vote-input", **text)
        with gradio.Row():
            # One column each: next to each other on a wide screen, stacked on a narrow one.
            with gradio.Column(min_width=340):
                self._left = gradio.Textbox(label="Left answer", elem_id="vote-left-text", **text)
            with gradio.Column(min_width=340) as self._other:
                self._right = gradio.Textbox(label="Right answer", elem_id="vote-right-text", **text)
            with gradio.Column(min_width=340) as self._beside:
                self._reference = gradio.Textbox(label="Reference", elem_id="vote-reference", **text)
        with gradio.Row(visible=False, equal_height=True) as self._scoring:
            label = "Score from 0 to 100 (Enter saves it)"
            self._score = gradio.Textbox(
                label=label, info=" ", max_lines=1, scale=4, autofocus=True, elem_id="vote-number"
            )
            score = gradio.Button("Save", variant="primary", elem_id="vote-score")
        big = {"min_width": 200, "elem_classes": "vote-big"}
        labels = {votes.LEFT: "← Left is better", votes.TIE: "About equal (T)", votes.RIGHT: "Right is better →"}
        with gradio.Row() as self._preferring:
            buttons = {
                choice: gradio.Button(
                    label, variant="secondary" if choice == votes.TIE else "primary", elem_id=f"vote-{choice}", **big
                )
                for choice, label in labels.items()
            }
        return {**buttons, _SCORE: score}

    def _connect(self, blocks: Any, start: Any, buttons: dict[str, Any]) -> None:
        outputs = [self._session, self._remembered, self._name, self._progress, self._ballot, self._more]
        outputs += [self._instruction, self._input, self._left, self._right, self._number, self._welcome, self._other]
        outputs += [self._reference, self._beside, self._score, self._scoring, self._preferring]
        inputs = [self._remembered, *self._choice]
        for event in (blocks.load, *(part.input for part in self._choice)):
            event(self._load, inputs, outputs, **QUICK)
        for event in (start.click, self._name.submit):
            event(self._begin, [self._name, *self._choice], outputs, **QUICK)
        events = [(choice, button.click) for choice, button in buttons.items()] + [(_SCORE, self._score.submit)]
        for choice, event in events:
            answer = functools.partial(self._answer, choice)
            event(answer, [self._session, self._number, self._score, *inputs], outputs, **QUICK)

    def _load(self, remembered: Any, *chosen: Any) -> dict[Any, Any]:
        name = self._voter or str(remembered or "")
        return self._begin(name, *chosen) if name else self._hide()

    def _begin(self, name: str, *chosen: Any) -> dict[Any, Any]:
        try:
            voter = votes.check_voter(name)
        except DataError as error:
            return {self._name: self._gradio.update(info=str(error))}
        try:
            return self._show(voter, self._pick(*chosen))
        except InstructError as error:
            return {**self._hide(), self._progress: format_notice(f"There is nothing to vote on: {error}")}

    def _hide(self) -> dict[Any, Any]:
        hidden = self._gradio.update(visible=False)
        return {self._session: None, self._progress: "", self._ballot: hidden, self._more: hidden}

    def _answer(self, choice: str, session: Session | None, number: str, score: str, *inputs: Any) -> dict[Any, Any]:
        if session is None:
            # The server was restarted while the page was open: show the next ballot, and do not guess the last one.
            return self._load(*inputs)
        choice = (score or "").strip() if choice == _SCORE else choice
        if choice == _UNDO:
            session.book.undo(session.voter)
        elif not session.book.is_choice(choice):
            return {self._score: self._gradio.update(info="Please give a whole number from 0 to 100.")}
        else:
            seconds = time.monotonic() - session.shown_at
            session.book.vote(session.voter, int(number) if number.isdecimal() else 0, choice, seconds=seconds)
        return self._show(session.voter, session.book)

    def _show(self, voter: str, book: Book) -> dict[Any, Any]:
        """Return the updates that show a voter's next ballot."""
        update = self._gradio.update
        ballot = book.next_ballot(voter)
        texts = ballot or Ballot(0, book.total, "", "", "", "")
        is_pair = texts.right is not None
        state = f"{texts.number} of {texts.total}"
        if ballot is None:
            state = f"All {texts.total} done. Thank you! You can close this page."
        return {
            self._session: Session(voter, book),
            self._remembered: "" if self._voter else voter,
            self._name: update(value=voter, info=" "),
            self._progress: format_notice(state),
            self._ballot: update(visible=ballot is not None),
            self._more: update(visible=True),
            self._instruction: texts.instruction,
            self._input: update(value=texts.input, visible=bool(texts.input)),
            self._left: update(value=texts.left, label="Left answer" if is_pair else "Answer"),
            self._right: texts.right or "",
            self._other: update(visible=is_pair),
            self._reference: texts.reference,
            self._beside: update(visible=not is_pair),
            self._score: update(value="", info=" "),
            self._scoring: update(visible=not is_pair),
            self._preferring: update(visible=is_pair),
            self._number: str(texts.number),
            self._welcome: _greet(book),
        }


def _greet(book: Book) -> str:
    return _WELCOME_TO_SCORES if isinstance(book, ScoreBook) else _WELCOME


class VoteTab:
    """The ballots of two sets of answers, or of one: created on the first choice, then shared by all voters.

    Safe to use from several threads. The files of votes stay locked for this process until the stack is closed.

    Attributes:
        sides: The path of each set of answers, as `hf-instruct vote` accepts it, by label.

    Args:
        sources: Runs and models, as returned by `find_sources`.
        stack: Releases the files of votes at the end.
    """

    def __init__(self, sources: Sequence[Source], stack: contextlib.ExitStack) -> None:
        runs = [(source.label, source.run) for source in sources if source.run]
        self.sides = {label: run.path for label, run in runs if run.read_responses()}
        self.sides |= {
            f"{label}, {run.read_provenance().label(model)}": run.path / model
            for model in MODELS
            for label, run in runs
            if model != TUNED and run.read_responses(model)
        }
        self._stack = stack
        self._books: dict[tuple[str, str], Book] = {}
        self._lock = threading.Lock()

    def build(self, gradio: Any, blocks: Any) -> None:
        """Add the components of the tab; there must be at least one set of answers."""
        labels = list(self.sides)
        others = [*labels[1:], labels[0], _ALONE] if len(labels) > 1 else [_ALONE]
        fields = (("Vote on the answers of", "first", labels), ("and of", "second", others))
        with gradio.Row():
            choice = [
                gradio.Dropdown(names, value=names[0], label=label, min_width=240, elem_id=f"hi-vote-{name}")
                for label, name, names in fields
            ]
        VotePanel(gradio, blocks, self.open, choice=choice)

    def open(self, first: str, second: str) -> Book:
        """Return the ballots of two sets of answers, by their labels.

        Raises:
            InstructError: There is nothing to vote on, or the file of the votes is in use.
        """
        if first == second:
            raise DataError("Choose two different sets of answers.")
        with self._lock:
            if (first, second) in self._books:
                return self._books[first, second]
            first_path, second_path = self.sides[first], self.sides.get(second)
            out = votes.choose_vote_file(first_path, second_path)
            if any(book.path.resolve() == out.resolve() for book in self._books.values()):
                # Two books with one file would overwrite each other's votes.
                raise DataError(
                    f"The votes would be saved to `{out}`, which is in use for another pair. Restart the page for "
                    f"this pair, or use `hf-instruct vote {first_path} {second_path or ''} --out FILE`."
                )
            self._books[first, second] = self._stack.enter_context(votes.open_votes(first_path, second_path))
            return self._books[first, second]
