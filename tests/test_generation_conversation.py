"""Conversations on tiny models: the same answers as everywhere, cut, stopped, asked again, and never mixed."""

import copy
import threading
from pathlib import Path

import pytest
import tiny_models
import torch

from hf_instruct.errors import ConfigError, DataError
from hf_instruct.generation import chat_model
from hf_instruct.generation.answers import answer_examples
from hf_instruct.generation.chat_model import ChatModel, ChatSettings
from hf_instruct.generation.conversation import Conversation, Turn
from hf_instruct.generation.decoding import Completion
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example

QUESTIONS = ["Name a color.", "Übersetze: Straße 🚀", "Write\nthree lines."]
SHORT = ChatSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def alone(tiny_gpt2: Path) -> ChatModel:
    """A model whose format has no turns."""
    return _build(tiny_gpt2, "alpaca")


@pytest.fixture(scope="module")
def chat(tiny_llama: Path) -> ChatModel:
    """A model whose format has turns, and that reads 256 tokens."""
    return _build(tiny_llama, "chat")


def _build(folder: Path, prompt_format: str) -> ChatModel:
    model, tokenizer = tiny_models.load_copy(folder)
    if prompt_format == "chat":
        tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    return ChatModel("tiny", model, tokenizer, prompt_format=PromptFormat.from_name(prompt_format))


def _ask(conversation: Conversation, question: str) -> str:
    return "".join(conversation.stream(question))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", ["alone", "chat"])
def test_pieces_join_to_the_answer_of_generate(name: str, question: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    conversation = Conversation(model, settings=ChatSettings(max_new_tokens=24))
    pieces = list(conversation.stream(question))
    expected = answer_examples(
        model.model,
        model.tokenizer,
        [Example("x", question, "", "")],
        prompt_format=model.prompt_format,
        max_new_tokens=24,
    )[0]
    assert "".join(pieces) == expected.response
    assert len(pieces) > 5
    assert conversation.turns == [Turn(question, expected.response, "model" if expected.stopped else "length")]


def test_characters_come_whole_and_white_space_late(alone: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bytes:
        """A tokenizer that has a token for every byte."""

        eos_token_id = 0

        def decode(self, ids: list[int], **settings: object) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    def generate(*args: object, stopping_criteria: list, **settings: object) -> list[Completion]:
        ids = [7]
        for byte in " é🚀 \n x \ufffd \0".encode():
            ids.append(byte)
            stopping_criteria[0](torch.tensor([ids]), None)
        return [Completion("é🚀 \n x \ufffd", stopped=True, num_tokens=9)]

    monkeypatch.setattr(alone, "tokenizer", Bytes())
    monkeypatch.setattr(chat_model, "generate_completions", generate)
    # What looks like a character that is not whole waits for what comes next.
    grown = alone.stream([7], settings=SHORT, stop=threading.Event())
    assert list(dict.fromkeys(done.text for done in grown)) == ["é", "é🚀", "é🚀 \n x", "é🚀 \n x \ufffd"]


def test_turns_are_in_the_prompt_where_the_format_has_them(chat: ChatModel) -> None:
    conversation = Conversation(chat, system="Be brief.", settings=SHORT)
    conversation.turns = [Turn("One?", "Eins.")]
    _ask(conversation, "Two?")
    history = [("One?", "Eins.")]
    text = chat.tokenizer.decode(chat.encode("Two?", history=history, system="Be brief."))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
        "Eins.<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
    )
    fresh = Conversation(chat, system="Be brief.", settings=SHORT)
    assert _ask(fresh, "Two?") != conversation.turns[-1].assistant
    assert chat.encode("Two?") == chat.prompt_format.encode_prompt(chat.tokenizer, "Two?")


def test_the_oldest_turns_are_cut_and_the_question_never(chat: ChatModel) -> None:
    conversation = Conversation(chat, settings=ChatSettings(max_new_tokens=100))
    turns = [Turn(f"question {number} " + "word " * 20, "answer " * 10) for number in range(5)]
    conversation.turns = list(turns)
    pairs = [(turn.user, turn.assistant) for turn in turns]
    kept = next(n for n in range(5, -1, -1) if len(chat.encode("Why?", history=pairs[5 - n :])) + 100 <= 256)
    assert 0 < kept < 5
    expected = Conversation(chat, settings=conversation.settings)
    expected.turns = turns[5 - kept :]
    assert _ask(conversation, "Why?") == _ask(expected, "Why?")
    assert expected.notice == ""
    assert f"oldest {5 - kept} of 5 turns" in conversation.notice
    # What is cut from the prompt is not forgotten.
    assert conversation.turns[:5] == turns


def test_a_question_that_leaves_little_room_shortens_the_answer(alone: ChatModel) -> None:
    frame = len(alone.encode("word")) - 1
    conversation = Conversation(alone, settings=ChatSettings(max_new_tokens=100))
    question = " ".join(["word"] * (256 - frame - 3))
    list(conversation.stream(question))
    assert "leaves 3 of the model's 256 tokens" in conversation.notice
    assert conversation.turns[0].ended_by == "length"
    with pytest.raises(DataError, match="too long: with the prompt format it has 256 tokens"):
        conversation.stream(question + " word word word")
    assert len(conversation.turns) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n\t", "is empty"),
        ("a\x1b[31m", "the control character U+001B (character 2)"),
        ("a\0", "the control character U+0000 (character 2)"),
        ("caf\udce9", "is not UTF-8 text (character 4)"),
    ],
)
def test_questions_that_cannot_be_asked(alone: ChatModel, text: str, message: str) -> None:
    conversation = Conversation(alone, settings=SHORT)
    with pytest.raises(DataError) as caught:
        conversation.stream(text)
    assert message in str(caught.value)
    assert conversation.turns == []


def test_stop_keeps_what_was_written(alone: ChatModel) -> None:
    whole = answer_examples(alone.model, alone.tokenizer, [Example("x", "Continue.", "", "")], max_new_tokens=100)[0]
    conversation, stop = Conversation(alone, settings=ChatSettings(max_new_tokens=100)), threading.Event()
    stream = conversation.stream("Continue.", stop=stop)
    # What is being written is there for a page to show.
    assert conversation.turns == [Turn("Continue.", "", "user")]
    pieces = [next(stream), next(stream)]
    assert conversation.turns == [Turn("Continue.", "".join(pieces), "user")]
    stop.set()
    pieces += stream
    (turn,) = conversation.turns
    assert turn == Turn("Continue.", "".join(pieces), "user")
    assert whole.response.startswith(turn.assistant)
    assert 0 < len(turn.assistant) < len(whole.response)
    # A reader who leaves stops it too, and the model is free again.
    stream = conversation.stream("Continue.")
    piece = next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert conversation.undo() == Turn("Continue.", piece, "user")
    assert _ask(conversation, "Name a color.")


def test_retry_replaces_the_latest_answer(chat: ChatModel) -> None:
    conversation = Conversation(chat, settings=SHORT)
    with pytest.raises(DataError, match="There is no question to repeat yet"):
        conversation.retry()
    _ask(conversation, "One?")
    second = _ask(conversation, "Two?")
    assert "".join(conversation.retry()) == second
    conversation.settings = SHORT.change(temperature=1.0, seed=4)
    answers = {"".join(conversation.retry()) for _ in range(3)}
    assert len(answers) == 3
    assert [turn.user for turn in conversation.turns] == ["One?", "Two?"]
    assert conversation.undo() == conversation.turns[0] or len(conversation.turns) == 1
    conversation.clear()
    assert (conversation.turns, conversation.undo()) == ([], None)


def test_a_retry_stopped_before_its_first_word_keeps_the_answer(chat: ChatModel) -> None:
    conversation = Conversation(chat, settings=SHORT)
    answer = _ask(conversation, "One?")
    with chat._lock:
        stop = threading.Event()
        stream = conversation.retry(stop=stop)
        stop.set()
        assert list(stream) == []
    assert [turn.assistant for turn in conversation.turns] == [answer]


def test_a_seed_repeats_a_conversation(chat: ChatModel) -> None:
    def talk(seed: int | None) -> list[str]:
        conversation = Conversation(chat, settings=SHORT.change(temperature=1.0, seed=seed))
        return [_ask(conversation, "One?"), _ask(conversation, "One?")]

    assert talk(1) == talk(1)
    assert len({*talk(1), *talk(2), *talk(None), *talk(None)}) == 8
    assert talk(2**32 - 1) == talk(2**32 - 1)


def test_conversations_on_one_model_do_not_mix(chat: ChatModel) -> None:
    settings = ChatSettings(max_new_tokens=6, temperature=0.9, seed=7)
    names = ["ann", "bob", "eve"]

    def talk(name: str) -> list[Turn]:
        conversation = Conversation(chat, system=f"You are {name}.", settings=settings)
        for number in range(3):
            list(conversation.stream(f"{name} asks {number}?"))
        return conversation.turns

    expected = {name: talk(name) for name in names}
    found: dict[str, list[Turn]] = {}
    threads = [threading.Thread(target=lambda name=name: found.update({name: talk(name)})) for name in names]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_errors_are_raised_and_add_no_turn(alone: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(alone, settings=SHORT)

    def fail(*arguments: object, **settings: object) -> None:
        raise ConfigError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(chat_model, "generate_completions", fail)
        with pytest.raises(ConfigError, match="refused"):
            _ask(conversation, "One?")
    assert conversation.turns == []
    assert _ask(conversation, "One?")


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "refuses this: System role not supported"),
        ("", "does not support a system message. Leave it out"),
    ],
)
def test_a_template_without_system_messages(chat: ChatModel, instead: str, message: str) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    turn = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    assert turn in tiny_models.CHAT_TEMPLATE
    condition = f"{{% if message.role == 'system' %}}{instead}{{% else %}}{turn}{{% endif %}}"
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE.replace(turn, condition)
    without = ChatModel("tiny", chat.model, tokenizer, prompt_format=PromptFormat.from_name("chat"))
    with pytest.raises(ConfigError, match=message):
        Conversation(without, system="Be brief.")
    Conversation(without)


def test_a_template_that_writes_the_last_question_only_has_no_turns(chat: ChatModel) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    # As templates of models that were tuned on single questions.
    tokenizer.chat_template = "Q: {{ messages[-1].content }}{% if add_generation_prompt %}\nA: {% endif %}"
    alone = ChatModel("tiny", chat.model, tokenizer, prompt_format=PromptFormat.from_name("chat"))
    assert chat.has_turns
    assert not alone.has_turns
