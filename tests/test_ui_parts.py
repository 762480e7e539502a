import contextlib
import json
from pathlib import Path

import pytest
from reporting_run import JUDGE, write_run

from hf_instruct.errors import ConfigError, DataError, RunError
from hf_instruct.generation.chat_settings import ChatSettings
from hf_instruct.run_folder import RunFolder
from hf_instruct.ui.chat_tab import _build_settings
from hf_instruct.ui.html import escape, format_card, format_chat, format_notice, format_table
from hf_instruct.ui.model_pool import ModelShelf
from hf_instruct.ui.runs import read_runs
from hf_instruct.ui.runs_html import describe_comparability, format_answers, format_losses, format_runs_tables
from hf_instruct.ui.runs_tab import list_choices
from hf_instruct.ui.sources import Speaker, find_sources, list_speakers
from hf_instruct.ui.vote_tab import VoteShelf, choose_second

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> **bold** ${1+1} {{7*7}} & 'it'"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "mine")


def test_sources_are_runs_or_models_each_once_and_called_differently(run: RunFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "elsewhere" / "mine", stages=("data",))
    (run.path / "model").mkdir()
    names = [str(run.path), f"{run.path}/", str(other.path), "smollm2-135m", "some-org/some-model"]
    sources = find_sources(names)
    assert [source.label for source in sources] == [
        f"{run.path}/",
        str(other.path),
        "smollm2-135m",
        "some-org/some-model",
    ]
    assert [source.is_trained for source in sources] == [True, False, True, True]
    assert list_speakers(sources)[:3] == [
        Speaker(f"{run.path}/", f"{run.path}/"),
        Speaker(f"{run.path}/, untuned", f"{run.path}/", base=True),
        Speaker(f"{other.path}, untuned", str(other.path), base=True),
    ]
    assert find_sources([str(run.path)])[0].label == "mine"
    # Asked by its model's folder, a run keeps its prompt format and its untuned model.
    (source,) = find_sources([str(run.path / "model")])
    assert source.folder == run


def test_a_name_that_is_nothing_is_an_error(run: RunFolder) -> None:
    with pytest.raises(RunError) as caught:
        find_sources([f"{run.path}x"])
    assert str(caught.value) == (
        f"`{run.path}x` does not exist. Did you mean `{run.path}`? `hf-instruct run EXPERIMENT.yaml` makes one. "
        "A model is named by its alias, its Hub id or its folder."
    )
    with pytest.raises(RunError, match=r"is not a run folder \(no `run\.yaml` in it\)"):
        find_sources([str(run.base.path)])
    with pytest.raises(RunError, match="`demmo` does not exist"):
        find_sources(["demmo"])


def test_a_base_model_is_loaded_once_for_all_runs_that_began_with_it(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    for name in names:
        prompts = {"data": {"source": "everyday", "prompt_format": "phi3" if name == "c" else "alpaca"}}
        (write_run(tmp_path / name, stages=("data",), **prompts).path / "model").mkdir()
    shelf = ModelShelf(find_sources([str(tmp_path / name) for name in names]))
    assert shelf.labels == ["a", "a, untuned", "b", "b, untuned", "c", "c, untuned"]
    keys = {label: shelf._key(shelf._speakers[label]) for label in shelf.labels}
    assert keys["a, untuned"] == keys["b, untuned"] == ("gpt2-small", None, "float32", "alpaca", None)
    assert len(set(keys.values())) == 5
    assert not shelf.is_loaded("a")


def test_what_is_shown_of_a_run(run: RunFolder) -> None:
    view = read_runs(find_sources([str(run.path)]))
    untuned, tuned = view.sets
    assert (untuned.label, tuned.label) == ("mine, untuned", "mine")
    assert (untuned.validation_loss, tuned.validation_loss) == (1.193, 0.722)
    assert (untuned.mean, tuned.mean, tuned.num_failures) == (26.25, 205 / 3, 1)
    assert tuned.known == {"a": 85, "b": 100, "c": 20}
    assert view.difference(untuned) is None
    found = view.difference(tuned)
    assert found is not None
    # 85 - 10, 100 - 0, 20 - 90; the failure is left out of both sides.
    assert found.mean == 35
    table = format_runs_tables(view)
    assert "<td>+35.0 <small>(-70.0 to +100.0)</small></td><td>0.722</td>" in table
    assert "<td>3 <small>(1 failed)</small></td>" in table
    assert "reference metrics" not in table
    assert describe_comparability(view) == (
        f"Judge llama3@{JUDGE['digest'].removeprefix('sha256:')[:7]} (ollama), rubric course@7777777."
    )
    svg = format_losses(view.logs)
    assert "mine, validation" in svg
    assert "var(--plot-text" in svg


def test_metrics_have_a_table_of_their_own(run: RunFolder) -> None:
    values = {"metrics": {"token_f1": {"mean": 0.5, "n": 4}, "stopped": {"mean": 1.0, "n": 4}, "chrf": {"mean": None}}}
    run.metrics.write_text(json.dumps(values))
    table = format_runs_tables(read_runs(find_sources([str(run.path)])))
    assert "<th>token F1</th><th>ended by itself</th></tr>" in table
    assert "mine</td><td>0.50</td><td>100 %</td></tr>" in table
    assert table.count("mine, untuned</td>") == 1


def test_examples_can_be_ordered_and_chosen_by_category(run: RunFolder) -> None:
    view = read_runs(find_sources([str(run.path)]))
    names = ["1. Use a simile.", "2. Name the author.", "3. Name a cloud.", "4. Spell it."]
    assert list_choices(view, "all categories", "as in the test split") == list(zip(names, "abcd", strict=True))
    assert [id for _, id in list_choices(view, "facts", "as in the test split")] == ["b", "c"]
    assert [id for _, id in list_choices(view, "", "largest difference first")] == ["b", "a", "c", "d"]
    assert [id for _, id in list_choices(view, "", "lowest first")] == ["b", "d", "a", "c"]
    shown = format_answers(view, "d")
    assert "score 5</span>" in shown
    assert "score unreadable</span>" in shown
    assert "cut off, score 5" in shown
    assert format_answers(view, "none such") == ""


def test_runs_judged_differently_or_of_other_data_are_not_compared(run: RunFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    other.config.write_text(other.config.read_text().replace("d" * 64, "e" * 64))
    summary = json.loads(other.scores.read_text())
    other.scores.write_text(json.dumps({**summary, "judge": {"model": "another"}}))
    view = read_runs(find_sources([str(run.path), str(other.path)]))
    assert view.difference(view.sets[3]) is None
    said = describe_comparability(view)
    assert said.startswith("Judged differently, so these scores cannot be compared: judge llama3@365c0bd (ollama)")
    assert "judge another, rubric course@7777777 (other)." in said
    assert said.endswith(
        "The runs are of different data (mine | other): compare scores and losses within a group only."
    )


def test_a_broken_or_unfinished_run_leaves_the_others_shown(run: RunFolder, tmp_path: Path) -> None:
    broken = write_run(tmp_path / "broken")
    broken.responses.write_text('{"id": 3}\n')
    fresh = write_run(tmp_path / "fresh", stages=("data",))
    view = read_runs(find_sources([str(broken.path), str(fresh.path), str(run.path), "smollm2-135m"]))
    assert [answers.label for answers in view.sets] == ["mine, untuned", "mine"]
    assert len(view.faults) == 1
    assert view.faults[0].startswith(f"broken: `{broken.responses}` line 1 is not a Response row")
    assert format_runs_tables(read_runs(find_sources([str(fresh.path)]))) == ""
    assert format_losses({}) == ""


def test_any_two_sets_of_answers_can_be_voted_on(run: RunFolder, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    third = write_run(tmp_path / "third", stages=("data", "train"))
    sources = find_sources([str(folder.path) for folder in (run, third, other)])
    with contextlib.ExitStack() as stack:
        shelf = VoteShelf(sources, stack)
        assert [side.label for side in shelf.sides] == ["mine", "mine, untuned", "other", "other, untuned"]
        assert choose_second(shelf.sides) == "other"
        assert choose_second(shelf.sides[:2]) == "mine, untuned"
        book = shelf.open("mine", "mine, untuned")
        assert (book.path, book.num_different) == (run.path / "votes.base.jsonl", 4)
        assert shelf.open("mine", "mine, untuned") is book
        assert shelf.open("other", "mine, untuned").path == other.path / "votes.base.jsonl"
        with pytest.raises(DataError, match="Choose two different ones to compare"):
            shelf.open("mine", "mine")
        with pytest.raises(DataError, match="All 4 pairs of answers"):
            shelf.open("mine", "other")
        # The one file would be rewritten by two books.
        with pytest.raises(DataError, match="keeps those on another pair now"):
            shelf.open("mine", "other, untuned")
        # Another page at the same time goes without.
        with (
            contextlib.ExitStack() as others,
            pytest.raises(RunError, match="Another vote page keeps its votes in `"),
        ):
            VoteShelf(sources, others).open("mine", "mine, untuned")
    with contextlib.ExitStack() as stack:
        VoteShelf(sources, stack).open("mine", "mine, untuned")


@pytest.mark.parametrize(
    "shown",
    [
        format_notice(HOSTILE),
        format_card(HOSTILE, HOSTILE, aside=HOSTILE, foot=HOSTILE),
        format_chat(HOSTILE, [(HOSTILE, HOSTILE)], aside=HOSTILE),
        format_table([HOSTILE], [[escape(HOSTILE)]]),
    ],
)
def test_texts_stay_texts(shown: str) -> None:
    assert "<img" not in shown
    assert (
        "&lt;img src=x onerror=&quot;document.title=&#x27;owned&#x27;&quot;&gt; **bold** ${1+1} {{7*7}} &amp;" in shown
    )


def test_an_empty_seed_draws_anew_each_time() -> None:
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": 0, "max_new_tokens": 9, "repetition_penalty": 1.0}
    assert _build_settings({**values, "seed": ""}) == ChatSettings(0.5, 0.9, 0, 9, 1.0, None)
    assert _build_settings({**values, "seed": " 7 "}).seed == 7
    with pytest.raises(ConfigError, match="`seed` cannot be `x`; allowed is a whole number from 0 to"):
        _build_settings({**values, "seed": "x"})
