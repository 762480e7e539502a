"""The chat tab: questions, and answers as they are written; of one model, or of two side by side."""

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import DataError, InstructError
from hf_instruct.ui.chat_session import ChatSession, Column
from hf_instruct.ui.html import format_chat, format_notice
from hf_instruct.ui.model_pool import ModelShelf

if TYPE_CHECKING:
    from hf_instruct.generation.chat_settings import ChatSettings

_NOBODY = "nobody"
_SAVE = "Save as examples"
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
            self._saves = [
                gradio.Button(_SAVE, size="sm", min_width=80, visible=not place, elem_id=f"hi-save-{name}")
                for place, name in enumerate(("first", "second"))
            ]
        # What the browser is to keep, and under which name.
        self._file = [gradio.Textbox(visible="hidden") for _ in range(2)]
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
                    min_width=220,
                    info="0: always the likeliest token",
                    elem_id="hi-temperature",
                ),
                "top_p": gradio.Slider(0.05, 1, 1, step=0.05, label="top-p", info="1: all tokens", min_width=220),
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
        outputs += self._saves
        choice = [self._session, self._model, self._other_model]
        settings = list(self._settings.values())
        # Not in the API that Gradio offers to programs.
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # Many may wait at once: each model answers one question at a time anyway. By itself Gradio would drop a click
        # that comes between the end of an answer and its own taking note of it; the session sees to what is too much.
        slow: dict[str, Any] = {**quick, "queue": True, "concurrency_limit": None, "trigger_mode": "multiple"}
        for event in (self._send.click, self._box.submit):
            event(self._ask, [*choice, self._box, *settings], outputs, **slow)
        retry.click(self._retry, [*choice, *settings], outputs, **slow)
        self._stop.click(self._end, [self._session], None, **quick)
        undo.click(self._undo, choice, outputs, **quick)
        clear.click(self._clear, choice, outputs, **quick)
        for place, save in enumerate(self._saves):
            write = functools.partial(self._save, place)
            made = save.click(write, [self._session], [*self._file, self._notice], **quick)
            made.success(None, self._file, None, js=_DOWNLOAD, **quick)
        for dropdown in (self._model, self._other_model):
            dropdown.input(self._choose, choice, outputs, **quick)

    def _ask(self, session: ChatSession | None, model: str, other: str, text: str, *values: Any) -> Iterator[Any]:
        session = _open(session, model, other)
        if session.begin():
            yield from self._answer(session, values, text, box="")

    def _retry(self, session: ChatSession | None, model: str, other: str, *values: Any) -> Iterator[Any]:
        session = _open(session, model, other)
        if session.begin(instead=True):
            yield from self._answer(session, values, session.latest_question(), again=True)

    def _answer(
        self,
        session: ChatSession,
        values: tuple[Any, ...],
        question: str,
        *,
        again: bool = False,
        box: str | None = None,
    ) -> Iterator[dict[Any, Any]]:
        """Yield what to show while the models answer, one after the other; to be called between `begin` and `end`.

        On a processor two models at once would each take more than twice as long, and the memory may do for one only.
        """
        try:
            try:
                yield from self._write_answers(session, values, question, again=again, box=box)
            except InstructError as error:
                end = self._show(session, str(error), error=True)
            else:
                end = self._show(session, _describe_end(session))
            # Who asks once the page shows the end waits for it here, rather than being turned away.
            session.stop()
            yield end
        finally:
            session.end()

    def _write_answers(
        self, session: ChatSession, values: tuple[Any, ...], question: str, *, again: bool, box: str | None
    ) -> Iterator[dict[Any, Any]]:
        shown = {} if box is None else {self._box: box}
        columns = session.columns
        for column in columns:
            if column.conversation is None:
                yield self._show_loading(session, column)
            self._prepare(column, dict(zip(self._settings, values, strict=True)))
        for column in columns:
            if not self._shelf.is_loaded(column.label):
                yield self._show_loading(session, column)
            with self._shelf.lend(column.label):
                for _ in session.answer(column, question, again=again):
                    yield {**self._show(session, busy=True), **shown}
                    # Cleared once: what is typed meanwhile stays.
                    shown = {}

    def _show_loading(self, session: ChatSession, column: Column) -> dict[Any, Any]:
        return self._show(session, f"Loading {column.label} …", busy=True)

    def _prepare(self, column: Column, values: dict[str, Any]) -> None:
        """Load a column's model, and set how it answers.

        Raises:
            InstructError: It cannot be loaded, or a setting is none of those allowed.
        """
        from hf_instruct.generation.conversation import Conversation

        system = values.pop("system") or ""
        settings = _build_settings(values)
        if column.conversation is None:
            with self._shelf.lend(column.label) as model:
                column.conversation = Conversation(model)
        column.conversation.settings = settings
        if column.conversation.system != system.strip():
            column.conversation.system = system

    def _end(self, session: ChatSession | None) -> None:
        if session is not None:
            session.stop()

    def _undo(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = _open(session, model, other)
        question = session.undo()
        return {**self._show(session), **({self._box: question} if question else {})}

    def _save(self, place: int, session: ChatSession | None) -> tuple[str, str, str]:
        """Return a file's name, its text, and a notice; no text where there is nothing to save."""
        try:
            name, text, said = save_turns(session.columns[place] if session and session.columns else None)
        except InstructError as error:
            return "", "", format_notice(str(error), error=True)
        return name, text, format_notice(said)

    def _clear(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = _open(session, model, other)
        session.clear()
        return self._show(session)

    def _choose(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        """Begin anew with other models."""
        return self._show(_open(session, model, other))

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
            self._saves[1]: update(visible=len(session.columns) > 1),
        }
        for save, column in zip(self._saves, session.columns, strict=False):
            name = f"Save {column.label}" if len(session.columns) > 1 else _SAVE
            shown[save] = update(value=name, visible=True)
        for chat, column in zip(self._chats, session.columns, strict=False):
            shown[chat] = format_chat(column.label, column.list_turns(), aside=_describe_memory(column))
        return shown


def _open(session: ChatSession | None, model: str, other: str) -> ChatSession:
    """Return the browser tab's session, with the models chosen."""
    session = session or ChatSession()
    session.take([model] if other in (_NOBODY, model) else [model, other])
    return session


def _describe_memory(column: Column) -> str:
    """Return whether the model is told what was said before, where that is not to be expected."""
    alone = column.conversation is not None and not column.conversation.model.has_turns
    return "each question stands alone" if alone else ""


def _build_settings(values: dict[str, Any]) -> "ChatSettings":
    """Return the settings in the tab's fields.

    Raises:
        ConfigError: One is none of those allowed.
    """
    from hf_instruct.generation.chat_settings import ChatSettings

    seed = ChatSettings.parse("seed", str(values["seed"] or "").strip() or "none")
    return ChatSettings(**{**values, "seed": seed})


def _describe_end(session: ChatSession) -> str:
    """Return what a reader should know of the latest answers."""
    said = []
    for column in session.columns:
        if column.conversation is None or not column.turns:
            continue
        last = column.turns[-1]
        ended = {"length": "The answer was cut off at the longest allowed.", "user": "Stopped."}.get(last.ended_by, "")
        if text := " ".join(filter(None, (column.conversation.notice, ended))):
            said.append(f"{column.label}: {text}" if len(session.columns) > 1 else text)
    return "\n".join(said)


def save_turns(column: Column | None) -> tuple[str, str, str]:
    """Return the whole answers of a conversation as a file of training examples, as the terminal's `/save` writes it.

    Returns:
        What to call the file, its text, and what to say of it.

    Raises:
        DataError: There is nothing to save.
    """
    from hf_instruct.generation.conversation import build_examples, format_examples

    turns = list(column.turns) if column else []
    if column is None or column.conversation is None or not turns:
        raise DataError("There is nothing to save yet.")
    examples = build_examples(turns)
    text = format_examples(examples)
    num_saved, num_whole = text.count("\n"), len(examples)
    if not text:
        raise DataError("There is nothing to save: no answer is whole. A longer `longest answer` lets them end.")
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', column.label).strip('-.') or 'chat'}.jsonl"
    said = f"Saved {num_saved} training {'example' if num_saved == 1 else 'examples'} into {name}"
    parts = [f"{len(turns) - num_whole:,} left out (empty or cut)"] * (num_whole < len(turns))
    parts += [f"{num_whole - num_saved:,} said twice"] * (num_saved < num_whole)
    said += f": {', '.join(parts)}." if parts else "."
    if column.conversation.system or (column.conversation.model.has_turns and num_saved > 1):
        said += " Each example stands alone: earlier turns and the system text are not in it."
    return name, text, said
