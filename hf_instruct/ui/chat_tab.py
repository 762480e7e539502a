"""The chat tab: questions, and answers as they are written; of one model, or of two side by side."""

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from hf_instruct.errors import InstructError
from hf_instruct.ui.look import format_chat, format_notice
from hf_instruct.ui.shelf import ModelShelf

if TYPE_CHECKING:
    from hf_instruct.generation.chatting import ChatSettings, Conversation, Turn

_NOBODY = "nobody"
# A fast model writes more often than a browser needs to draw.
_SECONDS_BETWEEN_UPDATES = 0.05
_PENDING = "…"


@dataclasses.dataclass
class Column:
    """One model's side of a session.

    Attributes:
        label: What the model is called.
        conversation: None until the model is loaded.
        asked: The question that is being answered; None where none is.
        before: The turns before that question.
        answer: What is there of the answer.
    """

    label: str
    conversation: "Conversation | None" = None
    asked: str | None = None
    before: "Sequence[Turn]" = ()
    answer: str = ""

    def list_turns(self) -> list[tuple[str, str]]:
        """Return the questions and answers to show."""
        # A turn is added a moment before its last piece is read: until then, what was there before counts.
        said = self.before if self.asked is not None else self.conversation.turns if self.conversation else []
        turns = [(turn.user, turn.assistant) for turn in said]
        return turns if self.asked is None else [*turns, (self.asked, self.answer or _PENDING)]


class ChatSession:
    """One browser tab: nothing in it is shared with another but the models."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self._is_stopped = False

    def take(self, labels: list[str]) -> None:
        """Talk to these models; a change of any begins anew, because an answer belongs to what was said before."""
        if [column.label for column in self.columns] != labels:
            self.stop()
            self.columns = [Column(label) for label in labels]

    def stop(self) -> None:
        """End what is being written soon; what there is of it stays."""
        self._is_stopped = True
        for column in self.columns:
            if column.conversation:
                column.conversation.stop()

    def clear(self) -> None:
        """Forget what was said."""
        self.stop()
        self.columns = [Column(column.label) for column in self.columns]

    def undo(self) -> str | None:
        """Take back the last turn and return its question; None where there is none."""
        taken = [turn for column in self.columns if column.conversation and (turn := column.conversation.undo())]
        return taken[0].user if taken else None

    def answer(self, question: str, *, again: bool = False) -> Iterator[None]:
        """Have each model answer, one after the other, and yield when there is something new to show.

        On a processor two models at once would each take more than twice as long.

        Args:
            question: What is asked.
            again: Whether it is the latest question once more, for an answer in the place of the latest.

        Raises:
            InstructError: The question cannot be asked, or generation failed.
        """
        self._is_stopped = False
        columns = self.columns
        for column in columns:
            talk = column.conversation
            if talk is None or self._is_stopped or self.columns is not columns:
                continue
            before = talk.turns[:-1] if again else talk.turns
            pieces = cast("Generator[str]", talk.retry() if again else talk.stream(question))
            column.asked, column.before, column.answer = question, before, ""
            try:
                # Another conversation may have the model: the question is there while it waits.
                yield
                with contextlib.closing(pieces):
                    yield from _follow(column, pieces)
            except GeneratorExit:
                # The browser is gone, and nobody reads the answer.
                talk.stop()
                raise
            finally:
                column.asked = None
            yield


def _follow(column: Column, pieces: Iterator[str]) -> Iterator[None]:
    """Yield while an answer is written into its column."""
    shown_at = 0.0
    for piece in pieces:
        column.answer += piece
        if time.monotonic() - shown_at >= _SECONDS_BETWEEN_UPDATES:
            shown_at = time.monotonic()
            yield


class ChatTab:
    """The parts of the tab, and what its buttons do.

    Args:
        gradio: The module.
        shelf: The models.
    """

    def __init__(self, gradio: Any, shelf: ModelShelf) -> None:
        self._gradio = gradio
        self._shelf = shelf
        # Stays on the server, one for each tab of each browser.
        self._session = gradio.State(None)
        labels = shelf.labels
        with gradio.Row():
            self._model = gradio.Dropdown(labels, value=labels[0], label="Talk to", min_width=240, elem_id="hi-model")
            self._other_model = gradio.Dropdown(
                [_NOBODY, *labels],
                value=_NOBODY,
                label="and, side by side, to",
                min_width=240,
                elem_id="hi-other-model",
            )
        with gradio.Row():
            # Each in a column of its own: beside one another on a wide screen, below on a narrow one.
            with gradio.Column(min_width=320):
                first = self._build_chat(labels[0], "hi-chat")
            with gradio.Column(min_width=320, visible=False) as self._second:
                second = self._build_chat("", "hi-other")
        self._chats = [first, second]
        self._notice = gradio.HTML(format_notice(""), elem_id="hi-chat-notice")
        with gradio.Row(elem_id="chat-box"):
            self._box = gradio.Textbox(
                show_label=False,
                placeholder="Ask something. Enter sends, Shift + Enter starts a new line.",
                lines=1,
                max_lines=8,
                scale=8,
                min_width=200,
                autofocus=True,
                elem_id="hi-box",
            )
            self._send = gradio.Button("Send", variant="primary", scale=1, min_width=84, elem_id="hi-send")
            self._stop = gradio.Button("Stop", variant="stop", scale=1, min_width=84, visible=False, elem_id="hi-stop")
        with gradio.Row():
            retry = gradio.Button("Retry", size="sm", min_width=80, elem_id="hi-retry")
            undo = gradio.Button("Undo", size="sm", min_width=80, elem_id="hi-undo")
            clear = gradio.Button("Clear", size="sm", min_width=80, elem_id="hi-clear")
        with gradio.Accordion("How answers are written", open=False, elem_id="hi-settings"):
            self._settings = self._build_settings()
        self._connect(retry, undo, clear)

    def _build_chat(self, label: str, name: str) -> Any:
        # Not a `gradio.Chatbot`: it shows HTML in what models and people write, Markdown or not.
        return self._gradio.HTML(format_chat(label, []), elem_id=name, elem_classes="hi-chat", apply_default_css=False)

    def _build_settings(self) -> dict[str, Any]:
        """Add the settings, with those of `ChatSettings` under their own names."""
        gradio = self._gradio
        with gradio.Row():
            found = {
                "temperature": gradio.Slider(
                    0,
                    2,
                    0,
                    step=0.05,
                    label="temperature",
                    info="0: always the likeliest token",
                    elem_id="hi-temperature",
                ),
                "top_p": gradio.Slider(0.05, 1, 1, step=0.05, label="top-p", info="1: all tokens"),
                "top_k": gradio.Number(0, precision=0, label="top-k", info="0: all tokens", min_width=110),
            }
        with gradio.Row():
            found["max_new_tokens"] = gradio.Number(
                256, precision=0, label="longest answer", info="in tokens", min_width=110, elem_id="hi-longest"
            )
            found["repetition_penalty"] = gradio.Number(1.0, label="repetition penalty", info="1: none", min_width=110)
            # Not a number field: Gradio turns an empty one into 0, which is a seed like any other.
            found["seed"] = gradio.Textbox(
                label="seed", info="repeats what is drawn; empty: anew each time", max_lines=1, min_width=110
            )
        found["system"] = gradio.Textbox(
            label="System text", info="Only for models asked by a chat template.", lines=1, max_lines=6
        )
        return found

    def _connect(self, retry: Any, undo: Any, clear: Any) -> None:
        outputs = [self._session, *self._chats, self._second, self._box, self._notice, self._send, self._stop]
        choice = [self._session, self._model, self._other_model]
        settings = list(self._settings.values())
        # Not in the API that Gradio offers to programs.
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # Many may wait at once: each model answers one question at a time anyway.
        slow: dict[str, Any] = {**quick, "queue": True, "concurrency_limit": None}
        for event in (self._send.click, self._box.submit):
            event(self._ask, [*choice, self._box, *settings], outputs, **slow)
        retry.click(self._retry, [*choice, *settings], outputs, **slow)
        self._stop.click(self._end, [self._session], None, **quick)
        undo.click(self._undo, choice, outputs, **quick)
        clear.click(self._clear, choice, outputs, **quick)
        for dropdown in (self._model, self._other_model):
            dropdown.input(self._choose, choice, outputs, **quick)

    def _ask(self, session: ChatSession | None, model: str, other: str, text: str, *values: Any) -> Iterator[Any]:
        session = session or ChatSession()
        session.take(_list_labels(model, other))
        yield from self._answer(session, values, text, box="")

    def _retry(self, session: ChatSession | None, model: str, other: str, *values: Any) -> Iterator[Any]:
        session = session or ChatSession()
        session.take(_list_labels(model, other))
        talks = [column.conversation for column in session.columns if column.conversation]
        question = next((talk.turns[-1].user for talk in talks if talk.turns), "")
        yield from self._answer(session, values, question, again=True)

    def _answer(
        self,
        session: ChatSession,
        values: tuple[Any, ...],
        question: str,
        *,
        again: bool = False,
        box: str | None = None,
    ) -> Iterator[dict[Any, Any]]:
        """Yield what to show while the models answer."""
        try:
            for column in session.columns:
                if not self._shelf.is_loaded(column.label):
                    yield self._show(session, f"Loading {column.label} …", busy=True)
                self._prepare(column, dict(zip(self._settings, values, strict=True)))
            shown = {} if box is None else {self._box: box}
            for _ in session.answer(question, again=again):
                yield {**self._show(session, busy=True), **shown}
                # Cleared once: what is typed meanwhile stays.
                shown = {}
        except InstructError as error:
            yield self._show(session, str(error), error=True)
        else:
            yield self._show(session, _describe_end(session))

    def _prepare(self, column: Column, values: dict[str, Any]) -> None:
        """Load a column's model, and set how it answers.

        Raises:
            InstructError: It cannot be loaded, or a setting is none of those allowed.
        """
        from hf_instruct.generation.chatting import Conversation

        system = values.pop("system") or ""
        settings = _build_settings(values)
        if column.conversation is None:
            column.conversation = Conversation(self._shelf.load(column.label))
        column.conversation.settings = settings
        if column.conversation.system != system.strip():
            column.conversation.system = system

    def _end(self, session: ChatSession | None) -> None:
        if session is not None:
            session.stop()

    def _undo(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = session or ChatSession()
        session.take(_list_labels(model, other))
        question = session.undo()
        shown = {} if question is None else {self._box: question}
        return {**self._show(session), **shown}

    def _clear(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = session or ChatSession()
        session.take(_list_labels(model, other))
        session.clear()
        return self._show(session)

    def _choose(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        """Begin anew with other models."""
        session = session or ChatSession()
        session.take(_list_labels(model, other))
        return self._show(session)

    def _show(
        self, session: ChatSession, notice: str = "", *, busy: bool = False, error: bool = False
    ) -> dict[Any, Any]:
        update = self._gradio.update
        shown: dict[Any, Any] = {
            self._session: session,
            self._notice: format_notice(notice, error=error),
            self._send: update(visible=not busy),
            self._stop: update(visible=busy),
            self._second: update(visible=len(session.columns) > 1),
        }
        for chat, column in zip(self._chats, session.columns, strict=False):
            shown[chat] = format_chat(column.label, column.list_turns(), aside=_describe_memory(column))
        return shown


def _list_labels(model: str, other: str) -> list[str]:
    return [model] if other in (_NOBODY, model) else [model, other]


def _describe_memory(column: Column) -> str:
    """Return whether the model is told what was said before, where that is not to be expected."""
    alone = column.conversation is not None and not column.conversation.model.has_turns
    return "each question stands alone" if alone else ""


def _build_settings(values: dict[str, Any]) -> "ChatSettings":
    """Return the settings in the tab's fields.

    Raises:
        ConfigError: One is none of those allowed.
    """
    from hf_instruct.generation.chatting import ChatSettings

    seed = ChatSettings.parse("seed", str(values["seed"] or "").strip() or "none")
    return ChatSettings(**{**values, "seed": seed})


def _describe_end(session: ChatSession) -> str:
    """Return what a reader should know of the latest answers."""
    said = []
    for column in session.columns:
        if column.conversation is None or not column.conversation.turns:
            continue
        last = column.conversation.turns[-1]
        ended = {"length": "The answer was cut off at the longest allowed.", "user": "Stopped."}.get(last.ended_by, "")
        if text := " ".join(filter(None, (column.conversation.notice, ended))):
            said.append(f"{column.label}: {text}" if len(session.columns) > 1 else text)
    return "\n".join(said)
