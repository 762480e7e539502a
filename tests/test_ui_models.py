"""What the page is about, the models behind it, and what one browser tab does with them."""

import contextlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_models
from reporting_run import write_run

from hf_instruct.errors import DataError, RunError
from hf_instruct.generation.chat_model import ChatModel, ChatSettings
from hf_instruct.generation.conversation import Conversation, Turn
from hf_instruct.prompts import PromptFormat
from hf_instruct.run_folder import RunFolder
from hf_instruct.ui import model_pool
from hf_instruct.ui.app import render_report
from hf_instruct.ui.chat_tab import ChatSession, _save
from hf_instruct.ui.model_pool import ModelPool, Source, count_parameters, find_sources
from hf_instruct.ui.vote_tab import VoteTab


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "mine")


def test_sources_are_runs_or_models_each_once_and_called_differently(run: RunFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "elsewhere" / "mine", stages=("data",))
    (run.path / "model").mkdir()
    sources = find_sources([str(run.path), f"{run.path}/", str(other.path), "smollm2-135m", "some-org/some-model"])
    labels = [f"{run.path}/", str(other.path), "smollm2-135m", "some-org/some-model"]
    assert [source.label for source in sources] == labels
    # Of a run that is not trained yet, the untuned model only.
    expected = [labels[0], f"{labels[0]}, untuned", f"{labels[1]}, untuned", *labels[2:]]
    assert ModelPool(sources).labels == expected
    # Beside the first run stands the model that it began as, and the examples are of its test split.
    assert ModelPool(sources).beside == expected[1]
    assert ModelPool(sources).list_questions() == ["Name the author.", "Name a cloud."]
    assert ModelPool(sources[1:]).beside is None
    assert len(ModelPool(sources[2:]).list_questions()) == 3
    # Asked by its model's folder, a run keeps its prompt format and its untuned model.
    assert find_sources([str(run.path / "model")])[0].run == run
    for nothing in (f"{run.path}x", str(run.path / "untuned"), "demmo"):
        with pytest.raises(RunError, match="Use a model's alias"):
            find_sources([nothing])


def test_a_base_model_is_loaded_once_for_all_runs_that_began_with_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        prompts = {"data": {"source": "everyday", "prompt_format": "phi3" if name == "c" else "alpaca"}}
        (write_run(tmp_path / name, stages=("data",), **prompts).path / "model").mkdir()
    pool = ModelPool(find_sources([str(tmp_path / name) for name in "abc"]))
    keys = {label: pool._key(label) for label in pool.labels}
    assert keys["a, untuned"] == keys["b, untuned"]
    assert (len(keys), len(set(keys.values()))) == (6, 5)


@pytest.fixture
def pool(tiny_gpt2: Path, tmp_path: Path) -> ModelPool:
    names = [tmp_path / name for name in ("a", "b", "c")]
    for name in names:
        name.symlink_to(tiny_gpt2)
    return ModelPool([Source(str(name), name.name) for name in names])


def test_the_size_of_a_model_is_told_by_its_files_or_its_name(tiny_gpt2: Path, tmp_path: Path) -> None:
    assert count_parameters(str(tiny_gpt2)) == tiny_models.load_copy(tiny_gpt2)[0].num_parameters()
    assert count_parameters("some-org/some-model-1.5B") == 1_500_000_000
    assert count_parameters("some-org/some-model") is None
    assert count_parameters(str(tmp_path / "missing")) is None


def test_models_stay_while_there_is_room(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_pool, "free_bytes", lambda device: 2**40)
    with pool.acquire("a") as first, pool.acquire("b") as second:
        assert first is not second
    with pool.acquire("a") as again:
        assert again is first
    assert [pool.is_loaded(label) for label in "abc"] == [True, True, False]


def test_a_model_that_is_there_does_not_wait_for_another(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pool.acquire("a") as first:
        pass
    began, may_end = threading.Event(), threading.Event()

    def load(*arguments: object, **options: object) -> ChatModel:
        began.set()
        assert may_end.wait(30)
        return first

    monkeypatch.setattr(ChatModel, "load", load)
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(lambda: pool.acquire("b").__enter__())
        assert began.wait(30)
        with pool.acquire("a") as again:
            assert again is first
        assert not pool.is_loaded("b")
        may_end.set()
        loading.result()
    assert pool.is_loaded("b")


def test_the_model_unused_for_longest_makes_room_and_comes_back(
    pool: ModelPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hf_instruct")
    with pool.acquire("a") as model:
        first = Conversation(model, settings=ChatSettings(max_new_tokens=4))
        "".join(first.stream("Name a color."))
    with pool.acquire("b"):
        pass
    # Full, until one is dropped.
    monkeypatch.setattr(model_pool, "free_bytes", lambda device: 2**40 * (not all(map(pool.is_loaded, "ab"))))
    with pool.acquire("c"):
        pass
    assert [pool.is_loaded(label) for label in "abc"] == [False, True, True]
    assert f"Unloaded {first.model.name} to load" in caplog.text
    assert not hasattr(first.model, "model")
    # A conversation from before continues.
    with pool.acquire("a") as model:
        assert model is first.model
        assert "".join(first.stream("Name a color.")) == first.turns[0].assistant


def test_a_model_in_use_is_not_dropped(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_pool, "free_bytes", lambda device: 0)
    with pool.acquire("a"), pool.acquire("b"):
        assert [pool.is_loaded(label) for label in "ab"] == [True, True]
    with pool.acquire("c"):
        assert [pool.is_loaded(label) for label in "abc"] == [False, False, True]


@pytest.fixture
def model(tiny_gpt2: Path) -> ChatModel:
    return ChatModel("tiny", *tiny_models.load_copy(tiny_gpt2), prompt_format=PromptFormat.from_name("alpaca"))


def _build_session(model: ChatModel, *columns: list[Turn]) -> ChatSession:
    session = ChatSession()
    for label, turns in zip("ab", columns, strict=False):
        talk = session.talks[label] = Conversation(model, settings=ChatSettings(max_new_tokens=4))
        talk.turns = turns
    return session


def _list_turns(session: ChatSession) -> list[list[Turn]]:
    return [talk.turns for talk in session.talks.values() if talk]


def test_a_second_question_waits_for_an_end_but_interrupts_nothing() -> None:
    session = ChatSession()
    with session.alone(stop_first=False) as first, session.alone(stop_first=False) as second:
        assert (first, second) == (True, False)
    with session.alone() as again:
        assert again


def test_stop_before_the_first_word_leaves_the_question_unasked(model: ChatModel) -> None:
    session = _build_session(model, [])
    with session.alone():
        # While the model is being loaded, say.
        session.stop.set()
        assert list(session.answer("a", "Q")) == []
    assert _list_turns(session) == [[]]


def test_undo_takes_back_the_latest_question_of_those_who_were_asked(model: ChatModel) -> None:
    session = _build_session(model, [Turn("Q1", "A"), Turn("Q2", "A", "user")], [Turn("Q1", "B")])
    for question, left in (("Q2", [1, 1]), ("Q1", [0, 0]), ("", [0, 0])):
        assert session.undo() == question
        assert list(map(len, _list_turns(session))) == left


def test_a_retry_asks_a_model_that_was_not_asked_before(model: ChatModel) -> None:
    session = _build_session(model, [Turn("Q", "old")], [])
    with session.alone():
        for label in session.talks:
            list(session.answer(label, session.latest_question(), again=True))
    (first,), (second,) = _list_turns(session)
    assert first == second
    assert (first.user, first.assistant != "old") == ("Q", True)


def test_a_report_is_of_the_folder_as_it_is_now(run: RunFolder) -> None:
    (source,) = find_sources([str(run.path)])
    assert "Jane Austen" in render_report(source)
    run.responses.write_text('{"id": "<b>"}\n')
    shown = render_report(source)
    assert "The run cannot be read" in shown
    assert "<b>" not in shown


def test_any_two_sets_of_answers_can_be_voted_on(run: RunFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    third = write_run(tmp_path / "third", stages=("data", "train"))
    sources = find_sources([str(folder.path) for folder in (run, third, other)])
    with contextlib.ExitStack() as stack:
        votes = VoteTab(sources, stack)
        assert list(votes.sides) == ["mine", "other", "mine, untuned", "other, untuned"]
        book = votes.open("mine", "mine, untuned")
        assert (book.path, book.total) == (run.path / "votes.untuned.jsonl", 4)
        assert votes.open("mine", "mine, untuned") is book
        assert votes.open("other", "mine, untuned").path == other.path / "votes.untuned.jsonl"
        scores = votes.open("mine", "nothing: score each answer")
        assert (scores.path, scores.total) == (run.people, 8)
        for pair, message in (
            (("mine", "mine"), "Choose two different sets of answers"),
            (("mine", "other"), "All 4 pairs of answers"),
            # The one file would be rewritten by two books.
            (("mine", "other, untuned"), "in use for another pair"),
        ):
            with pytest.raises(DataError, match=message):
                votes.open(*pair)
        # Another page at the same time goes without.
        with contextlib.ExitStack() as others, pytest.raises(RunError, match="Another vote page"):
            VoteTab(sources, others).open("mine", "mine, untuned")
    with contextlib.ExitStack() as stack:
        VoteTab(sources, stack).open("mine", "mine, untuned")


def test_each_models_whole_answers_are_saved(model: ChatModel) -> None:
    session = _build_session(model, [Turn("Q", "A"), Turn("Q2", "cut", "length")], [])
    files, notice = _save(session)
    assert json.loads(files) == [["a.jsonl", '{"instruction": "Q", "input": "", "output": "A"}\n']]
    assert "Saved 1 of 2 answers (1 empty or cut) into a.jsonl." in notice
    assert "There is nothing to save yet" in notice
    assert json.loads(_save(None)[0]) == []
