"""The models behind the page: shared, dropped when the memory would not do, and asked by one question a tab."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_models
from peft import LoraConfig, get_peft_model

from hf_instruct.errors import DataError
from hf_instruct.generation.chat_model import ChatModel
from hf_instruct.generation.chat_settings import ChatSettings
from hf_instruct.generation.conversation import Conversation, Turn
from hf_instruct.memory import free_bytes, mapped_bytes
from hf_instruct.prompts import PromptFormat
from hf_instruct.ui import model_pool as shelf_module
from hf_instruct.ui.chat_session import ChatSession, Column
from hf_instruct.ui.chat_tab import save_turns
from hf_instruct.ui.model_pool import ModelShelf
from hf_instruct.ui.sources import Source
from hf_instruct.ui.weights import estimate_bytes, measure_bytes


@pytest.fixture
def shelf(tiny_gpt2: Path, tmp_path: Path) -> ModelShelf:
    names = [tmp_path / name for name in ("a", "b", "c")]
    for name in names:
        name.symlink_to(tiny_gpt2)
    return ModelShelf([Source(str(name), name.name) for name in names])


def test_the_size_of_a_model_is_told_by_its_files_or_its_name(tiny_gpt2: Path, tmp_path: Path) -> None:
    model, _ = tiny_models.load_copy(tiny_gpt2)
    size = measure_bytes(model)
    assert estimate_bytes(str(tiny_gpt2), dtype="float32") == size
    assert estimate_bytes(str(tiny_gpt2), dtype="bfloat16") == size // 2
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_gpt2)
    adapted.save_pretrained(tmp_path / "adapter")
    # Two layers of c_attn, from 32 to 96, by two ranks.
    assert estimate_bytes(str(tmp_path / "adapter"), dtype="float32") == size + 4 * 2 * 2 * (32 + 96)
    assert estimate_bytes("some-org/some-model-1.5B", dtype="bfloat16") == 3_000_000_000
    assert estimate_bytes("some-org/some-model", dtype="float32") is None
    assert estimate_bytes(str(tmp_path / "missing"), dtype="float32") is None


def test_free_and_mapped_memory_are_told() -> None:
    assert free_bytes("cpu") > 2**20
    assert mapped_bytes() >= 0


def test_models_stay_while_there_is_room(shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "free_bytes", lambda device: 2**40)
    with shelf.lend("a") as first, shelf.lend("b") as second:
        assert first is not second
    with shelf.lend("a") as again:
        assert again is first
    assert [shelf.is_loaded(label) for label in "abc"] == [True, True, False]


def test_a_model_that_is_there_does_not_wait_for_another(shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    with shelf.lend("a") as first:
        pass
    began, may_end = threading.Event(), threading.Event()

    def load(*arguments: object, **options: object) -> ChatModel:
        began.set()
        assert may_end.wait(30)
        return first

    monkeypatch.setattr(ChatModel, "load", load)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: shelf.lend("b").__enter__())
        assert began.wait(30)
        with shelf.lend("a") as again:
            assert again is first
        assert not shelf.is_loaded("b")
        may_end.set()
        loading.result()
    assert shelf.is_loaded("b")


def test_the_model_unused_for_longest_makes_room_and_comes_back(
    shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hf_instruct")
    with shelf.lend("a") as model:
        first = Conversation(model, settings=ChatSettings(max_new_tokens=4))
        "".join(first.stream("Name a color."))
    with shelf.lend("b"):
        pass
    # Full, until one is dropped.
    monkeypatch.setattr(shelf_module, "free_bytes", lambda device: 2**40 * (not all(map(shelf.is_loaded, "ab"))))
    with shelf.lend("c"):
        pass
    assert [shelf.is_loaded(label) for label in "abc"] == [False, True, True]
    assert caplog.messages == ["Dropped a (0.0 GB) from memory, to load c (0.0 GB)."]
    assert not hasattr(first.model, "model")
    # A conversation from before goes on.
    with shelf.lend("a") as model:
        assert model is first.model
        assert "".join(first.stream("Name a color.")) == first.turns[0].assistant


def test_a_model_in_use_is_not_dropped(shelf: ModelShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "free_bytes", lambda device: 0)
    with shelf.lend("a"), shelf.lend("b"):
        assert [shelf.is_loaded(label) for label in "ab"] == [True, True]
    with shelf.lend("c"):
        assert [shelf.is_loaded(label) for label in "abc"] == [False, False, True]


@pytest.fixture
def model(tiny_gpt2: Path) -> ChatModel:
    return ChatModel("tiny", *tiny_models.load_copy(tiny_gpt2), prompt_format=PromptFormat.from_name("alpaca"))


def _column(label: str, model: ChatModel, *turns: Turn) -> Column:
    talk = Conversation(model, settings=ChatSettings(max_new_tokens=4))
    talk.turns = list(turns)
    return Column(label, talk)


def test_whole_answers_are_saved_as_the_terminal_does(model: ChatModel) -> None:
    turns = [Turn("Q\n1", "Ä1"), Turn("Q2", "cut", "length"), Turn("Q\n1", "Ä1"), Turn("Q3", "", "model")]
    name, text, said = save_turns(_column("runs/my run, untuned", model, *turns))
    assert name == "runs-my-run-untuned.jsonl"
    assert [json.loads(line) for line in text.splitlines()] == [{"instruction": "Q\n1", "input": "", "output": "Ä1"}]
    assert said == f"Saved 1 training example into {name}: 2 left out (empty or cut), 1 said twice."
    for nothing in (None, Column("x"), _column("x", model)):
        with pytest.raises(DataError, match="There is nothing to save yet"):
            save_turns(nothing)
    with pytest.raises(DataError, match="no answer is whole"):
        save_turns(_column("x", model, turns[1]))


def test_a_second_question_waits_for_an_end_but_interrupts_nothing() -> None:
    session = ChatSession()
    assert session.begin()
    assert not session.begin()
    session.end()
    assert session.begin(instead=True)
    session.end()


def test_stop_before_the_first_word_leaves_the_question_unasked(model: ChatModel) -> None:
    session = ChatSession()
    session.columns = [_column("a", model)]
    assert session.begin()
    # While the model is being loaded, say.
    session.stop()
    assert list(session.answer(session.columns[0], "Q")) == []
    assert session.columns[0].turns == []
    session.end()


def test_undo_takes_back_the_latest_question_of_those_who_were_asked(model: ChatModel) -> None:
    session = ChatSession()
    session.columns = [
        _column("a", model, Turn("Q1", "A"), Turn("Q2", "A", "user")),
        _column("b", model, Turn("Q1", "B")),
    ]
    assert session.undo() == "Q2"
    assert [len(column.turns) for column in session.columns] == [1, 1]
    assert session.undo() == "Q1"
    assert [len(column.turns) for column in session.columns] == [0, 0]
    assert session.undo() == ""


def test_a_retry_asks_a_model_that_was_not_asked_before(model: ChatModel) -> None:
    session = ChatSession()
    session.columns = [_column("a", model, Turn("Q", "old")), _column("b", model)]
    assert session.begin()
    for column in session.columns:
        list(session.answer(column, session.latest_question(), again=True))
    assert [[turn.user for turn in column.turns] for column in session.columns] == [["Q"], ["Q"]]
    assert session.columns[0].turns[0].assistant == session.columns[1].turns[0].assistant != "old"
    session.end()
