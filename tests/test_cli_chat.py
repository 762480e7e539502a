"""`hf-instruct chat`: what a line does, what is printed where, and Ctrl-C on a real terminal."""

import io
import json
import logging
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import tiny_models
from rich.console import Console

from hf_instruct.cli import chat as cli_chat
from hf_instruct.cli.chat import TerminalChat, append_examples, show_columns
from hf_instruct.cli.main import build_parser
from hf_instruct.console import clean_text
from hf_instruct.data.sources import read_examples
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.generation.chat_model import ChatModel, ChatSettings
from hf_instruct.generation.conversation import Conversation, Turn
from hf_instruct.processes import Terminated
from hf_instruct.prompts import PromptFormat


@pytest.fixture(scope="module")
def model(tiny_gpt2: Path) -> ChatModel:
    loaded, tokenizer = tiny_models.load_copy(tiny_gpt2)
    return ChatModel("tuned", loaded, tokenizer, prompt_format=PromptFormat.from_name("alpaca"))


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> ChatModel:
    loaded, tokenizer = tiny_models.load_copy(tiny_llama)
    return ChatModel("base", loaded, tokenizer, prompt_format=PromptFormat.from_name("alpaca"), role="untuned")


@pytest.fixture
def session(model: ChatModel, base: ChatModel, caplog: pytest.LogCaptureFixture) -> TerminalChat:
    caplog.set_level(logging.INFO, "hf_instruct")
    return TerminalChat(Conversation(model, settings=ChatSettings(max_new_tokens=6)), load_base=lambda: base)


def _run(*arguments: str) -> None:
    options = build_parser(["chat"]).parse_args(["chat", *arguments])
    options.handler(options)


def test_a_question_and_its_retry(session: TerminalChat, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.handle("Name a color.\n")
    answer = session.conversation.turns[0].assistant
    assert capsys.readouterr().out.rstrip("\n") == "".join(c for c in answer if c.isprintable() or c == "\n")
    assert session.handle("/set temperature=1.0")
    assert session.handle("/set seed 5")
    assert session.handle("/retry")
    assert len(session.conversation.turns) == 1
    assert session.conversation.turns[0].assistant != answer
    session.handle("//etc is what?")
    assert session.conversation.turns[1].user == "/etc is what?"
    for command in ("/help", "/set", "/system"):
        session.handle(command)
    assert {"/retry", "/save", "max_new_tokens", "(nothing)"} <= set(capsys.readouterr().out.split())
    assert not session.handle("/quit")


def test_notices_are_not_in_the_answers(
    session: TerminalChat, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    session.handle("Name a color.")
    capsys.readouterr()
    session.handle("/set top_p 0.9")
    session.handle("/undo")
    session.handle("")
    assert capsys.readouterr().out == ""
    said = "\n".join(caplog.messages)
    for part in ("cut off at 6 tokens", "top_p is now 0.9", "no effect at temperature 0", "Removed: Name a color."):
        assert part in said
    with pytest.raises(DataError, match="There is no question to remove"):
        session.handle("/undo")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/retri", "Did you mean `/retry`?"),
        ("/set temperature hot", "`temperature` is 'hot'; it must be a valid number"),
        ("/set temperature", "`temperature` is ''; "),
        ("/set heat 1", "`heat` is unknown. Choose from `max_new_tokens`, "),
        ("/system Be brief.", "`alpaca` does not support a system message"),
        ("/save", "`/save` needs a file name"),
        ("/save x.jsonl", "nothing to save yet"),
        ("/retry", "no question to repeat yet"),
        ("a\x1b", "control character U+001B"),
    ],
)
def test_what_cannot_be_done(session: TerminalChat, line: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        session.handle(line)


def test_compare_once_and_always(
    session: TerminalChat, model: ChatModel, base: ChatModel, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(side: ChatModel) -> str:
        conversation = Conversation(side, settings=session.conversation.settings)
        return "".join(conversation.stream("Name a bird."))

    session.handle("/compare Name a bird.")
    once = capsys.readouterr().out
    assert session.conversation.turns == [Turn("Name a bird.", answer(model), "length")]
    assert clean_text(answer(base)) in once
    assert once.startswith("untuned (base):\n")
    assert "\ntuned (tuned):\n" in once
    session.handle("/compare")
    session.handle("Name a bird.")
    assert capsys.readouterr().out == once
    session.handle("/compare")
    session.handle("Name a bird.")
    assert "untuned" not in capsys.readouterr().out


def test_save_appends_what_data_check_accepts(
    session: TerminalChat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"instruction": "Old?", "output": "Yes."}', encoding="utf-8")
    session.conversation.turns = [Turn("One?", "Eins\n\x1b ü."), Turn("Two?", "Zw", "user"), Turn("Old?", "Yes.")]
    session.handle(f"/save {path}")
    session.conversation.turns.append(Turn("Three?", "Drei."))
    session.handle(f"/save {path}")
    rows = read_examples(str(path))
    assert [(row.instruction, row.input, row.output) for row in rows] == [
        ("Old?", "", "Yes."),
        ("One?", "", "Eins\n\x1b ü."),
        ("Three?", "", "Drei."),
    ]
    assert "Saved 1 of 3 answers (1 empty or cut, 1 already saved)" in caplog.text
    assert "Saved 1 of 4 answers (1 empty or cut, 2 already saved)" in caplog.text
    session.conversation.turns = [Turn("Two?", "Zw", "user"), Turn("Three?", "")]
    with pytest.raises(DataError, match="nothing to save yet"):
        session.handle(f"/save {path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torn.jsonl", "line 1"),
        ("x.json", "should end in `.jsonl`"),
        ("folder.jsonl", "cannot be written: "),
        ("torn.jsonl/x.jsonl", "cannot be written: "),
    ],
)
def test_save_leaves_other_files_alone(tmp_path: Path, name: str, message: str) -> None:
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"instruction": "Old?", "out', encoding="utf-8")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=message):
        append_examples(tmp_path / name, [Turn("One?", "Eins.")])
    assert torn.read_text(encoding="utf-8") == '{"instruction": "Old?", "out'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.jsonl", "torn.jsonl"]


def test_lines_of_a_pipe_and_one_message(
    tiny_gpt2: Path, model: ChatModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "Name a color.\n\n/set max_new_tokens 3\nName a bird.\n/quit\nNever asked.\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    _run(str(tiny_gpt2), "--max-new-tokens", "6")
    expected = ""
    for question, most in (("Name a color.", 6), ("Name a bird.", 3)):
        pieces = Conversation(model, settings=ChatSettings(max_new_tokens=most)).stream(question)
        expected += "".join(c for c in "".join(pieces) if c.isprintable() or c == "\n") + "\n"
    assert capsys.readouterr().out == expected
    _run(str(tiny_gpt2), "--message", "Name a color.", "--max-new-tokens", "6", "--json")
    answer = "".join(Conversation(model, settings=ChatSettings(max_new_tokens=6)).stream("Name a color."))
    assert json.loads(capsys.readouterr().out) == {
        "question": "Name a color.",
        "answer": answer,
        "ended_by": "length",
    }


def test_a_line_that_cannot_be_answered_ends_a_pipe(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nName a color.\n")))
    with pytest.raises(DataError, match="The question is not UTF-8 text"):
        _run(str(tiny_gpt2))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--message", " "], "The question is empty"),
        (["--message", "a\x07"], "The question contains the control character U+0007"),
        (["--json"], "add `--message TEXT`"),
        (["--top-p", "2"], "`top_p` is '2'; it must be less than or equal to 1."),
        (["--compare"], "`--compare` needs a run, without `--base`"),
        (["--prompt-format", "chat", "--message", "x"], "needs a tokenizer with a chat template"),
        (["--system", "Be brief.", "--message", "x"], "does not support a system message"),
        (["--message", "word " * 300], "The question is too long: with the prompt format it has "),
    ],
)
def test_bad_options(tiny_gpt2: Path, arguments: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        _run(str(tiny_gpt2), *arguments)
    assert message in str(caught.value)


def test_ctrl_c_stops_the_answer_even_before_it_begins(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hf_instruct")
    conversation = Conversation(model, settings=ChatSettings(max_new_tokens=150))
    session = TerminalChat(conversation, load_base=None, is_terminal=True)
    encode = model.encode

    def interrupted(*arguments: object, **options: object) -> list[int]:
        os.kill(os.getpid(), signal.SIGINT)
        return encode(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "encode", interrupted)
    before = signal.getsignal(signal.SIGINT)
    session.handle("Go on.")
    assert conversation.turns[0].ended_by == "user"
    assert caplog.messages == ["[stopped]"]
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_the_program_wherever_it_is(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> str:
        raise Terminated

    session = TerminalChat(Conversation(model), load_base=None, is_terminal=True)
    monkeypatch.setattr("builtins.input", end)
    with pytest.raises(Terminated):
        cli_chat._talk(session)
    monkeypatch.setattr("builtins.input", lambda prompt: "Go on.")
    monkeypatch.setattr(session, "handle", end)
    with pytest.raises(Terminated):
        cli_chat._talk(session)


def test_the_prompt_ends_on_ctrl_c_twice_and_joins_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[str | type[BaseException]] = ["a", KeyboardInterrupt, "b\\", "c", KeyboardInterrupt, KeyboardInterrupt]

    def read(prompt: str) -> str:
        word = typed.pop(0)
        if isinstance(word, str):
            return word
        raise word

    monkeypatch.setattr("builtins.input", read)
    assert list(cli_chat._read_lines()) == ["a", "b\nc"]
    assert typed == []


def test_columns_show_all_of_both_texts() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=40, height=5)
    long = [f"line {number}\n" for number in range(9)]
    show_columns(console, ["A", "[b]"], [iter(long), iter(["\x1b[31mred ", "漢字"])])
    shown = screen.getvalue()
    assert shown.rindex("line 8") > shown.rindex("line 0")
    assert "[b]" in shown
    assert "[31mred 漢字" in shown
    assert "\x1b[31m" not in shown


@pytest.mark.slow
# What the suite has loaded has threads; the child only runs another program.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ctrl_c_on_a_terminal(tiny_gpt2: Path) -> None:
    """The answer stops, the program goes on, and Ctrl-D ends it."""
    pexpect = pytest.importorskip("pexpect")
    words = ["-m", "hf_instruct", "chat", str(tiny_gpt2), "--max-new-tokens", "240"]
    with pexpect.spawn(sys.executable, words, encoding="utf-8", codec_errors="replace", timeout=60) as chat:
        chat.logfile_read = io.StringIO()
        chat.expect_exact("> ")
        chat.send("Write for long.\r")
        # The echo of the line, then the first words.
        chat.expect_exact("Write for long.\r\n")
        chat.expect("(?s).{20}")
        chat.sendintr()
        chat.expect_exact("[stopped]")
        chat.send("/set max_new_tokens 2\r")
        chat.expect_exact("max_new_tokens is now 2.")
        chat.send("Name a color.\r")
        chat.expect_exact("[cut off at 2 tokens")
        chat.expect_exact("> ")
        chat.sendeof()
        chat.expect(pexpect.EOF)
    assert chat.exitstatus == 0
    assert "Traceback" not in chat.logfile_read.getvalue()
