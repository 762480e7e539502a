"""The chat tab: questions and streamed answers of one model, or of two side by side."""

import contextlib
import functools
import html
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import InstructError
from hf_instruct.ui.model_pool import ModelPool
from hf_instruct.ui.pages import QUICK, format_notice

if TYPE_CHECKING:
    from hf_instruct.generation.conversation import Conversation

# A fast model writes more often than a browser needs to draw.
_SECONDS_BETWEEN_UPDATES = 0.05
# A large model on a slow machine may process its prompt for this long before it can stop.
_SECONDS_TO_STOP = 60.0
_NOBODY = "no other model"
_ENDINGS = {"length": "The answer was cut off at the maximum length.", "user": "Stopped."}
# The browser creates the files; the server writes none.
_DOWNLOAD = """
(files) => {
  for (const [name, text] of JSON.parse(files)) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/jsonl"}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
"""


class ChatSession:
    """The state of one browser tab; different tabs only share the models.

    Attributes:
        talks: The conversation with each chosen model, by label; None until the model is loaded.
        stop: Set to stop the current answer; the text so far is kept.
    """

    def __init__(self) -> None:
        self.talks: dict[str, Conversation | None] = {}
        self.stop = threading.Event()
        # Held by a thread while it answers a question.
        self._answering = threading.Lock()

    @contextlib.contextmanager
    def alone(self, *, stop_first: bool = True) -> Iterator[bool]:
        """Keep other threads from answering during the block; yields whether that was possible.

        Args:
            stop_first: Whether to stop the current answer; otherwise it is only waited for if it is being stopped.
        """
        if stop_first:
            self.stop.set()
        has_begun = self._answering.acquire(timeout=_SECONDS_TO_STOP if self.stop.is_set() else 0)
        if has_begun:
            self.stop = threading.Event()
        try:
            yield has_begun
        finally:
            if has_begun:
                self.stop.set()
                self._answering.release()

    def clear(self, labels: list[str]) -> None:
        """Discard the conversations, and start new ones with these models."""
        with self.alone():
            self.talks = dict.fromkeys(labels)

    def latest_question(self) -> str:
        """Return the latest question; empty if there is none."""
        return next((talk.turns[-1].user for talk in self.talks.values() if talk and talk.turns), "")

    def undo(self) -> str:
        """Remove the latest question and return it; empty if there is none."""
        with self.alone():
            question = self.latest_question()
            for talk in filter(None, self.talks.values()):
                # A model that was stopped before its turn was not asked.
                if talk.turns and talk.turns[-1].user == question:
                    talk.undo()
            return question

    def answer(self, label: str, question: str, *, again: bool = False) -> Iterator[None]:
        """Generate a model's answer, and yield whenever there is something new to show.

        Args:
            label: Label of a model with a conversation.
            question: The question.
            again: Whether to replace the latest answer with a new one to the same question.

        Raises:
            InstructError: The question cannot be asked, or generation failed.
        """
        talk = self.talks[label]
        if talk is None or self.stop.is_set():
            return
        # A model that was stopped before its turn is asked now.
        again = again and (not question or bool(talk.turns and talk.turns[-1].user == question))
        pieces = talk.retry(stop=self.stop) if again else talk.stream(question, stop=self.stop)
        # Another conversation may be using the model; the question is shown while this one waits.
        yield
        shown_at = 0.0
        for _ in pieces:
            if time.monotonic() - shown_at >= _SECONDS_BETWEEN_UPDATES:
                shown_at = time.monotonic()
                yield


class ChatTab:
    """The components of the tab and their event handlers.

    Args:
        gradio: The module.
        pool: The models.
    """

    def __init__(self, gradio: Any, pool: ModelPool) -> None:
        self._update, self._pool = gradio.update, pool
        # Stored on the server, one for each tab of each browser.
        self._session = gradio.State(None)
        labels = pool.labels
        wide = {"min_width": 240}
        with gradio.Row():
            model = gradio.Dropdown(labels, value=labels[0], label="Model", elem_id="hi-model", **wide)
            beside = {"value": pool.beside or _NOBODY, "label": "Beside it", "elem_id": "hi-other-model"}
            other = gradio.Dropdown([_NOBODY, *labels], **beside, **wide)
        with gradio.Row():
            # One column each: next to each other on a wide screen, stacked on a narrow one.
            with gradio.Column(min_width=320):
                first = _build_chat(gradio, labels[0], "hi-chat")
            with gradio.Column(min_width=320, visible=bool(pool.beside)) as self._second:
                second = _build_chat(gradio, pool.beside or "", "hi-other")
        self._chats = [first, second]
        self._notice = gradio.HTML(format_notice(""), elem_id="hi-chat-notice")
        with gradio.Row():
            large = {"max_lines": 8, "scale": 8, "min_width": 200, "autofocus": True, "container": False}
            self._box = gradio.Textbox(show_label=False, placeholder="Ask something", elem_id="hi-box", **large)
            size = {"scale": 1, "min_width": 84}
            self._send = gradio.Button("Send", variant="primary", elem_id="hi-send", **size)
            self._stop = gradio.Button("Stop", variant="stop", visible=False, elem_id="hi-stop", **size)
        with gradio.Row():
            names = ("Retry", "Undo", "Clear", "Save as examples")
            retry, undo, clear, save = (
                gradio.Button(name, elem_id=f"hi-{name.split()[0].lower()}", size="sm", min_width=80) for name in names
            )
        gradio.Examples(
            [[text] for text in pool.list_questions()], [self._box], label="Examples", elem_id="hi-examples"
        )
        # Name and text of each file for the browser to save, as JSON.
        files = gradio.Textbox(visible="hidden")
        with gradio.Accordion("Generation settings", open=False, elem_id="hi-settings"):
            self._settings = _build_settings(gradio)

        choice, settings = [self._session, model, other], list(self._settings.values())
        outputs = [self._session, *self._chats, self._second, self._box, self._notice, self._send, self._stop]
        # Any number of events may wait, because each model answers one question at a time anyway. By default Gradio
        # drops a click between the end of an answer and its own record of that; the session ignores surplus clicks.
        slow: dict[str, Any] = {**QUICK, "queue": True, "concurrency_limit": None, "trigger_mode": "multiple"}
        for event in (self._send.click, self._box.submit):
            event(self._ask, [*choice, self._box, *settings], outputs, **slow)
        retry.click(functools.partial(self._ask, again=True), [*choice, self._box, *settings], outputs, **slow)
        self._stop.click(lambda session: session and session.stop.set(), [self._session], None, **QUICK)
        undo.click(self._undo, choice, outputs, **QUICK)
        clear.click(self._clear, choice, outputs, **QUICK)
        made = save.click(_save, [self._session], [files, self._notice], **QUICK)
        made.success(None, [files], None, js=_DOWNLOAD, **QUICK)
        for dropdown in (model, other):
            dropdown.input(lambda *chosen: self._show(_open(*chosen)), choice, outputs, **QUICK)

    def _ask(
        self, session: ChatSession | None, model: str, other: str, text: str, *values: Any, again: bool = False
    ) -> Iterator[dict[Any, Any]]:
        """Yield updates of the page while the models answer a question, or the latest one again."""
        session = _open(session, model, other)
        with session.alone(stop_first=again) as is_free:
            if not is_free:
                return
            try:
                question = session.latest_question() if again else text
                yield from self._answer(session, question, dict(zip(self._settings, values, strict=True)), again=again)
                notice = _describe_end(session)
            except InstructError as error:
                notice = str(error)
            # A question that is sent when the page shows the end then waits for this one, instead of being ignored.
            session.stop.set()
            yield self._show(session, notice)

    def _answer(
        self, session: ChatSession, question: str, values: dict[str, Any], *, again: bool
    ) -> Iterator[dict[Any, Any]]:
        """Let the models answer one after the other; in parallel each would take more than twice as long on a CPU."""
        from hf_instruct.generation.chat_model import ChatSettings
        from hf_instruct.generation.conversation import Conversation

        system = values.pop("system") or ""
        settings = ChatSettings().change(**values)
        # Cleared only once, so that text typed in the meantime stays.
        box: dict[Any, Any] = {} if again else {self._box: ""}
        for prepare in (True, False):
            for label in session.talks:
                if not self._pool.is_loaded(label):
                    yield self._show(session, f"Loading {label} …", busy=True)
                with self._pool.acquire(label) as model:
                    if prepare:
                        talk = session.talks[label] = session.talks[label] or Conversation(model)
                        talk.settings = settings
                        if talk.system != system.strip():
                            talk.system = system
                        continue
                    for _ in session.answer(label, question, again=again):
                        yield {**self._show(session, busy=True), **box}
                        box = {}

    def _undo(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = _open(session, model, other)
        question = session.undo()
        return {**self._show(session), **({self._box: question} if question else {})}

    def _clear(self, session: ChatSession | None, model: str, other: str) -> dict[Any, Any]:
        session = _open(session, model, other)
        session.clear(list(session.talks))
        return self._show(session)

    def _show(self, session: ChatSession, notice: str = "", *, busy: bool = False) -> dict[Any, Any]:
        update = self._update
        shown: dict[Any, Any] = {
            self._session: session,
            self._notice: format_notice(notice),
            self._send: update(visible=not busy),
            self._stop: update(visible=busy),
            self._second: update(visible=len(session.talks) > 1),
        }
        for chat, (label, talk) in zip(self._chats, session.talks.items(), strict=False):
            alone = " (each question is separate)" if talk and not talk.model.has_turns else ""
            shown[chat] = update(value=_list_messages(talk), label=f"{label}{alone}")
        return shown


def _build_chat(gradio: Any, label: str, name: str) -> Any:
    return gradio.Chatbot(
        label=label,
        elem_id=name,
        height="min(52vh, 460px)",
        placeholder="No messages yet.",
        render_markdown=False,
        latex_delimiters=[],
        buttons=[],
        feedback_options=None,
        group_consecutive_messages=False,
    )


def _build_settings(gradio: Any) -> dict[str, Any]:
    """Add the settings, and return their components by name; those of `ChatSettings` have its field names."""
    wide, narrow = {"step": 0.05, "min_width": 220}, {"min_width": 110}
    with gradio.Row():
        info = "0: always the most likely token"
        components = {
            "temperature": gradio.Slider(0, 2, 0, label="temperature", info=info, elem_id="hi-temperature", **wide),
            "top_p": gradio.Slider(0.05, 1, 1, label="top-p", info="1: all tokens", **wide),
            "top_k": gradio.Number(0, precision=0, label="top-k", info="0: all tokens", **narrow),
        }
    with gradio.Row():
        components["max_new_tokens"] = gradio.Number(
            256, precision=0, label="maximum length", info="new tokens", elem_id="hi-longest", **narrow
        )
        components["repetition_penalty"] = gradio.Number(1.0, label="repetition penalty", info="1: none", **narrow)
        # Not a number field: Gradio turns an empty one into 0, which is a seed like any other.
        components["seed"] = gradio.Textbox(label="seed", info="same seed, same answer", max_lines=1, **narrow)
    info = "Only for models with a chat template."
    components["system"] = gradio.Textbox(label="System message", info=info, max_lines=6)
    return components


def _list_messages(talk: "Conversation | None") -> list[dict[str, str]]:
    """Return a conversation as messages of `gradio.Chatbot`."""
    # Gradio renders HTML in messages even if Markdown is turned off.
    return [
        {"role": role, "content": html.escape(text, quote=False)}
        for turn in (talk.turns if talk else [])
        for role, text in (("user", turn.user), ("assistant", turn.assistant or "…"))
    ]


def _open(session: ChatSession | None, model: str, other: str) -> ChatSession:
    """Return the browser tab's session, with the chosen models."""
    session = session or ChatSession()
    labels = [model] if other in (_NOBODY, model) else [model, other]
    if list(session.talks) != labels:
        # Answers depend on the earlier turns, so a conversation with other models starts over.
        session.clear(labels)
    return session


def _describe_end(session: ChatSession) -> str:
    """Return notices about the latest answers."""
    notices = []
    for label, talk in session.talks.items():
        if talk and talk.turns:
            text = " ".join(filter(None, (talk.notice, _ENDINGS.get(talk.turns[-1].ended_by))))
            if text:
                notices.append(f"{label}: {text}" if len(session.talks) > 1 else text)
    return "\n".join(notices)


def _save(session: ChatSession | None) -> tuple[str, str]:
    """Return a file of examples for each model, as names and texts in JSON, and a notice."""
    from hf_instruct.generation.conversation import format_examples

    files, notices = [], []
    for label, talk in (session.talks if session else {"": None}).items():
        name = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', label).strip('-.') or 'chat'}.jsonl"
        try:
            text, summary = format_examples(talk.turns if talk else [])
            files.append((name, text))
            notices.append(f"{summary} into {name}. The examples do not contain earlier turns.")
        except InstructError as error:
            notices.append(str(error))
    return json.dumps(files), format_notice("\n".join(dict.fromkeys(notices)))
