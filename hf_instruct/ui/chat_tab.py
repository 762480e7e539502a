"""The chat tab: questions, and answers as they are written; of one model, or of two side by side."""

import contextlib
import dataclasses
import functools
import html
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.ui.model_pool import ModelPool
from hf_instruct.ui.pages import QUICK, format_notice

if TYPE_CHECKING:
    from hf_instruct.generation.conversation import Conversation, Turn

# A fast model writes more often than a browser needs to draw.
_SECONDS_BETWEEN_UPDATES = 0.05
# A large model on a slow machine may read its prompt for so long before it can stop.
_SECONDS_TO_STOP = 60.0
_NOBODY = "nobody"
_SAVE = "Save as examples"
_ENDINGS = {"length": "The answer was cut off at the longest allowed.", "user": "Stopped."}
# The browser makes the file: the server writes none.
_DOWNLOAD = """
(name, text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/jsonl"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
"""


@dataclasses.dataclass(eq=False)
class Column:
    """One model's side of a session.

    Attributes:
        label: What the model is called.
        conversation: None until the model is loaded.
    """

    label: str
    conversation: "Conversation | None" = None

    @property
    def turns(self) -> "list[Turn]":
        """What was said so far."""
        return self.conversation.turns if self.conversation else []

    def was_asked(self, question: str) -> bool:
        """Return whether that is its latest question."""
        return bool(self.turns) and self.turns[-1].user == question

    def list_messages(self) -> list[dict[str, str]]:
        """Return what `gradio.Chatbot` shows."""
        messages = []
        for turn in self.conversation.said if self.conversation else []:
            for role, text in (("user", turn.user), ("assistant", turn.assistant or "…")):
                # Gradio reads HTML in messages, with Markdown turned off too.
                messages.append({"role": role, "content": html.escape(text, quote=False)})
        return messages


class ChatSession:
    """One browser tab: nothing in it is shared with another but the models.

    Attributes:
        columns: One for each model it talks to.
    """

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self._is_stopped = False
        # Held while a question is answered, by whichever thread does so at the time.
        self._answering = threading.Lock()

    @contextlib.contextmanager
    def alone(self, *, stop_first: bool = True) -> Iterator[bool]:
        """Keep others from asking meanwhile; gives whether that was possible.

        Args:
            stop_first: Whether to stop what is being written; otherwise that is in the way, unless it is about to end.
        """
        if stop_first:
            self.stop()
        # What was stopped ends with its current token, and what has ended as soon as the page is told.
        has_begun = self._answering.acquire(timeout=_SECONDS_TO_STOP if self._is_stopped else 0)
        try:
            if has_begun:
                self._is_stopped = False
            yield has_begun
        finally:
            if has_begun:
                self._answering.release()

    def choose(self, labels: list[str]) -> None:
        """Talk to these models; another choice starts new conversations, as answers belong to what was said before."""
        if [column.label for column in self.columns] != labels:
            with self.alone():
                self.columns = [Column(label) for label in labels]

    def stop(self) -> None:
        """End what is being written soon; what there is of it stays."""
        self._is_stopped = True
        for column in self.columns:
            if column.conversation:
                column.conversation.stop()

    def latest_question(self) -> str:
        """Return what was asked last; empty where nothing was."""
        return next((column.turns[-1].user for column in self.columns if column.turns), "")

    def undo(self) -> str:
        """Take back the latest question and return it; empty where there is none."""
        with self.alone():
            question = self.latest_question()
            for column in self.columns:
                # One that was stopped before its turn came was not asked.
                if column.conversation and column.was_asked(question):
                    column.conversation.undo()
            return question

    def answer(self, column: Column, question: str, *, again: bool = False) -> Iterator[None]:
        """Have a model answer, and yield when there is something new to show.

        Args:
            column: One of this session's, with a conversation.
            question: What is asked.
            again: Whether it is the latest question once more, for an answer that replaces the latest.

        Raises:
            InstructError: The question cannot be asked, or generation failed.
        """
        talk = column.conversation
        if talk is None or self._is_stopped or column not in self.columns:
            return
        pieces = talk.retry() if again and (column.was_asked(question) or not question) else talk.stream(question)
        if self._is_stopped:
            # Between the look above and the start, when there was nothing to stop yet.
            talk.stop()
        try:
            # Another conversation may have the model: the question is there while it waits.
            yield
            shown_at = 0.0
            for _ in pieces:
                if time.monotonic() - shown_at >= _SECONDS_BETWEEN_UPDATES:
                    shown_at = time.monotonic()
                    yield
        finally:
            # Also where the browser is gone, and nobody reads the answer.
            talk.stop()


class ChatTab:
    """The parts of the tab, and what its buttons do.

    Args:
        gradio: The module.
        pool: The models.
    """

    def __init__(self, gradio: Any, pool: ModelPool) -> None:
        self._gradio, self._pool = gradio, pool
        # Stays on the server, one for each tab of each browser.
        self._session = gradio.State(None)
        labels = pool.labels
        with gradio.Row():
            models = [
                gradio.Dropdown(choices, value=choices[0], label=label, min_width=240, elem_id=f"hi-{name}")
                for choices, label, name in (
                    (labels, "Talk to", "model"),
                    ([_NOBODY, *labels], "and, side by side, to", "other-model"),
                )
            ]
        with gradio.Row():
            # Each in a column of its own: beside one another on a wide screen, below on a narrow one.
            with gradio.Column(min_width=320):
                first = self._build_chat(labels[0], "hi-chat")
            with gradio.Column(min_width=320, visible=False) as self._second:
                second = self._build_chat("", "hi-other")
        self._chats = [first, second]
        self._notice = gradio.HTML(format_notice(""), elem_id="hi-chat-notice")
        with gradio.Row():
            self._box = gradio.Textbox(
                show_label=False,
                placeholder="Ask something. Enter sends, Shift + Enter starts a new line.",
                max_lines=8,
                scale=8,
                min_width=200,
                autofocus=True,
                elem_id="hi-box",
            )
            size = {"scale": 1, "min_width": 84}
            self._send = gradio.Button("Send", variant="primary", elem_id="hi-send", **size)
            self._stop = gradio.Button("Stop", variant="stop", visible=False, elem_id="hi-stop", **size)
        with gradio.Row():
            small = {"size": "sm", "min_width": 80}
            actions = [
                gradio.Button(name, elem_id=f"hi-{name.lower()}", **small) for name in ("Retry", "Undo", "Clear")
            ]
            self._saves = [
                gradio.Button(_SAVE, visible=name == "first", elem_id=f"hi-save-{name}", **small)
                for name in ("first", "second")
            ]
        # What the browser is to keep, and under which name.
        self._file = [gradio.Textbox(visible="hidden") for _ in range(2)]
        with gradio.Accordion("How answers are written", open=False, elem_id="hi-settings"):
            self._settings = _build_settings(gradio)
        self._connect([self._session, *models], *actions)

    def _build_chat(self, label: str, name: str) -> Any:
        return self._gradio.Chatbot(
            label=label,
            elem_id=name,
            height="min(52vh, 460px)",
            placeholder="Nothing said yet.",
            render_markdown=False,
            latex_delimiters=[],
            buttons=[],
            feedback_options=None,
            group_consecutive_messages=False,
        )

    def _connect(self, choice: list[Any], retry: Any, undo: Any, clear: Any) -> None:
        outputs = [self._session, *self._chats, self._second, self._box, self._notice, self._send, self._stop]
        outputs += self._saves
        settings = list(self._settings.values())
        # Many may wait together: each model answers one question at a time anyway. By itself Gradio would drop a click
        # that comes between the end of an answer and its own taking note of it; the session sees to what is too much.
        slow: dict[str, Any] = {**QUICK, "queue": True, "concurrency_limit": None, "trigger_mode": "multiple"}
        for event in (self._send.click, self._box.submit):
            event(self._ask, [*choice, self._box, *settings], outputs, **slow)
        retry.click(self._retry, [*choice, *settings], outputs, **slow)
        self._stop.click(lambda session: session and session.stop(), [self._session], None, **QUICK)
        undo.click(self._undo, choice, outputs, **QUICK)
        clear.click(self._clear, choice, outputs, **QUICK)
        for index, save in enumerate(self._saves):
            made = save.click(
                functools.partial(self._save, index), [self._session], [*self._file, self._notice], **QUICK
            )
            made.success(None, self._file, None, js=_DOWNLOAD, **QUICK)
        for dropdown in choice[1:]:
            dropdown.input(lambda *chosen: self._show(_open(*chosen)), choice, outputs, **QUICK)

    def _ask(self, session: ChatSession | None, model: str, other: str, text: str, *values: Any) -> Iterator[Any]:
        session = _open(session, model, other)
        with session.alone(stop_first=False) as is_free:
            if is_free:
                yield from self._answer(session, values, text, again=False)

    def _retry(self, session: ChatSession | None, model: str, other: str, *values: Any) -> Iterator[Any]:
        session = _open(session, model, other)
        with session.alone() as is_free:
            if is_free:
                yield from self._answer(session, values, session.latest_question(), again=True)

    def _answer(self, session: ChatSession, values: tuple[Any, ...], question: str, *, again: bool) -> Iterator[Any]:
        """Yield what to show while the models answer, one after the other.

        On a processor two models together would each take more than twice as long, and the memory may do for one only.
        """
        try:
            yield from self._write_answers(session, values, question, again=again)
            notice = _describe_end(session)
        except InstructError as error:
            notice = str(error)
        # Who asks once the page shows the end waits for it here, rather than being turned away.
        session.stop()
        yield self._show(session, notice)

    def _write_answers(
        self, session: ChatSession, values: tuple[Any, ...], question: str, *, again: bool
    ) -> Iterator[dict[Any, Any]]:
        # Cleared once: what is typed meanwhile stays.
        shown: dict[Any, Any] = {} if again else {self._box: ""}
        columns = session.columns
        for column in columns:
            if column.conversation is None:
                yield self._show(session, f"Loading {column.label} …", busy=True)
            self._prepare(column, dict(zip(self._settings, values, strict=True)))
        for column in columns:
            if not self._pool.is_loaded(column.label):
                yield self._show(session, f"Loading {column.label} …", busy=True)
            with self._pool.acquire(column.label):
                for _ in session.answer(column, question, again=again):
                    yield {**self._show(session, busy=True), **shown}
                    shown = {}

    def _prepare(self, column: Column, values: dict[str, Any]) -> None:
        """Load a column's model, and set how it answers.

        Raises:
            InstructError: It cannot be loaded, or a setting is not allowed.
        """
        from hf_instruct.generation.chat_model import ChatSettings
        from hf_instruct.generation.conversation import Conversation

        system = values.pop("system") or ""
        settings = ChatSettings().change(**values)
        if column.conversation is None:
            with self._pool.acquire(column.label) as model:
                column.conversation = Conversation(model)
        column.conversation.settings = settings
        if column.conversation.system != system.strip():
            column.conversation.system = system

    def _undo(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = _open(session, model, other)
        question = session.undo()
        return {**self._show(session), **({self._box: question} if question else {})}

    def _clear(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = _open(session, model, other)
        with session.alone():
            session.columns = [Column(column.label) for column in session.columns]
        return self._show(session)

    def _save(self, index: int, session: ChatSession | None) -> tuple[str, str, str]:
        """Return a file's name, its text, and a notice; no text where there is nothing to save."""
        from hf_instruct.generation.conversation import format_examples

        column = session.columns[index] if session and session.columns else Column("chat")
        name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', column.label).strip('-.') or 'chat'}.jsonl"
        try:
            text, said = format_examples(column.turns)
        except InstructError as error:
            return "", "", format_notice(str(error))
        return name, text, format_notice(f"{said} into {name}. Each example stands alone, without earlier turns.")

    def _show(self, session: ChatSession, notice: str = "", *, busy: bool = False) -> dict[Any, Any]:
        update = self._gradio.update
        several = len(session.columns) > 1
        shown: dict[Any, Any] = {
            self._session: session,
            self._notice: format_notice(notice),
            self._send: update(visible=not busy),
            self._stop: update(visible=busy),
            self._second: update(visible=several),
            self._saves[1]: update(visible=several),
        }
        for chat, save, column in zip(self._chats, self._saves, session.columns, strict=False):
            alone = column.conversation is not None and not column.conversation.model.has_turns
            label = f"{column.label} (each question stands alone)" if alone else column.label
            shown[chat] = update(value=column.list_messages(), label=label)
            shown[save] = update(value=f"Save {column.label}" if several else _SAVE, visible=True)
        return shown


def _build_settings(gradio: Any) -> dict[str, Any]:
    """Add the settings, with those of `ChatSettings` under their own names."""
    wide, narrow = {"step": 0.05, "min_width": 220}, {"min_width": 110}
    with gradio.Row():
        info = "0: always the likeliest token"
        found = {
            "temperature": gradio.Slider(0, 2, 0, label="temperature", info=info, elem_id="hi-temperature", **wide),
            "top_p": gradio.Slider(0.05, 1, 1, label="top-p", info="1: all tokens", **wide),
            "top_k": gradio.Number(0, precision=0, label="top-k", info="0: all tokens", **narrow),
        }
    with gradio.Row():
        found["max_new_tokens"] = gradio.Number(
            256, precision=0, label="longest answer", info="in tokens", elem_id="hi-longest", **narrow
        )
        found["repetition_penalty"] = gradio.Number(1.0, label="repetition penalty", info="1: none", **narrow)
        # Not a number field: Gradio turns an empty one into 0, which is a seed like any other.
        found["seed"] = gradio.Textbox(label="seed", info="repeats what is drawn", max_lines=1, **narrow)
    found["system"] = gradio.Textbox(label="System text", info="Only for models asked by a chat template.", max_lines=6)
    return found


def _open(session: ChatSession | None, model: str, other: str) -> ChatSession:
    """Return the browser tab's session, with the models chosen."""
    session = session or ChatSession()
    session.choose([model] if other in (_NOBODY, model) else [model, other])
    return session


def _describe_end(session: ChatSession) -> str:
    """Return what a reader should know of the latest answers."""
    said = []
    for column in session.columns:
        if column.conversation is not None and column.turns:
            parts = filter(None, (column.conversation.notice, _ENDINGS.get(column.turns[-1].ended_by)))
            if text := " ".join(parts):
                said.append(f"{column.label}: {text}" if len(session.columns) > 1 else text)
    return "\n".join(said)
