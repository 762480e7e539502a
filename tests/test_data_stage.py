import hashlib
import json
import logging
from pathlib import Path

import pytest
from tiny_models import load_copy

from hf_instruct.config import build_experiment
from hf_instruct.data.sources import load_split
from hf_instruct.data.splits import split_examples
from hf_instruct.data.stage import prepare
from hf_instruct.errors import DataError
from hf_instruct.prompt_tokens import count_labels
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import SPLIT_NAMES, Example, read_rows
from hf_instruct.run_folder import RunFolder
from hf_instruct.training.sft import tokenize_examples


def build_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Task {n}.", "input": "é\u2028" if n % 3 else "", "output": str(n)} for n in range(count)]


def prepare_file(folder: Path, rows: list[dict[str, str]], **data: object) -> RunFolder:
    source = folder / "mine.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    run = RunFolder(folder / "run")
    prepare(run, build_experiment({"data": {"source": str(source), **data}}, where="a test", deep=False))
    return run


def test_the_stage_writes_the_splits_and_what_is_known_of_them(tmp_path: Path) -> None:
    run = prepare_file(tmp_path, build_rows(100))
    splits = [read_rows(run.split(name), Example) for name in SPLIT_NAMES]
    assert [len(split) for split in splits] == [85, 10, 5]
    assert [e.output for split in splits for e in split] == [str(n) for n in range(100)]
    assert splits[0][1].input == "é\u2028"
    preflight = json.loads(run.preflight.read_text(encoding="utf-8"))
    content = b"".join(run.split(name).read_bytes() for name in SPLIT_NAMES)
    assert preflight["data_sha256"] == hashlib.sha256(content).hexdigest()
    assert preflight["source"] == str(tmp_path / "mine.json")
    assert preflight["examples"] == {"train": 85, "test": 10, "validation": 5, "total": 100}
    assert sorted(path.name for path in run.data.iterdir()) == [
        "preflight.json",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]


def test_the_stage_logs_what_it_found_in_few_lines(
    repeating_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        prepare(
            RunFolder(tmp_path / "run"),
            build_experiment({"data": {"source": str(repeating_file)}}, where="a test", deep=False),
        )
    lines = "\n".join(caplog.messages).splitlines()
    assert lines[:2] == [
        "Tokens are not counted, because the tokenizer of `gpt2-medium` cannot be loaded.",
        f"{repeating_file}: 175 train, 20 test, 11 validation",
    ]
    # Only rows in which something was found.
    assert len(lines) == 7
    assert lines[-1] == "What to do: `--data.split grouped` keeps training prompts out of test."


def test_where_nothing_is_found_the_sizes_are_all_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "jay", "kiwi", "lynx", "mole", "newt", "owl"]
    with caplog.at_level(logging.INFO):
        prepare_file(tmp_path, [{"instruction": f"{word} {word}", "output": word} for word in words])
    assert caplog.messages[1:] == [f"{tmp_path / 'mine.json'}: 11 train, 1 test, 2 validation"]


def test_strict_refuses_leaks_before_anything_is_written(repeating_file: Path, tmp_path: Path) -> None:
    data = {"source": str(repeating_file), "strict": True}
    run = RunFolder(tmp_path / "run")
    with pytest.raises(DataError) as caught:
        prepare(run, build_experiment({"data": data}, where="a test", deep=False))
    assert str(caught.value).startswith(f"2 test and 4 validation examples of `{repeating_file}` have the same")
    assert "`data.strict` refuses such data. Split with `--data.split grouped`" in str(caught.value)
    assert "\n  - test, example `e277cb097583` (" in str(caught.value)
    assert not run.data.exists()
    prepare(run, build_experiment({"data": {**data, "split": "grouped"}}, where="a test", deep=False))
    assert run.preflight.exists()


def test_tokens_are_counted_as_training_will(tiny_gpt2: Path, tmp_path: Path) -> None:
    run = prepare_file_for(tmp_path, tiny_gpt2, {"max_length": 1000, "completion_only_loss": False})
    tokens = json.loads(run.preflight.read_text(encoding="utf-8"))["tokens"]
    # The tiny model has 256 positions, and training takes no more.
    assert (tokens["model"], tokens["max_length"]) == (str(tiny_gpt2), 256)
    _, tokenizer = load_copy(tiny_gpt2)
    for name in SPLIT_NAMES:
        rows = tokenize_examples(
            read_rows(run.split(name), Example),
            tokenizer,
            PromptFormat.from_name("alpaca"),
            max_length=256,
            completion_only_loss=False,
        )
        assert tokens["label_tokens"][name] == sum(count_labels(row) for row in rows) > 0
        assert tokens["cut"][name] == 0


def prepare_file_for(folder: Path, model: Path, train: dict[str, object]) -> RunFolder:
    source = folder / "mine.json"
    source.write_text(json.dumps(build_rows(20)), encoding="utf-8")
    run = RunFolder(folder / "run")
    values = {"data": {"source": str(source)}, "model": {"name": str(model)}, "train": train}
    prepare(run, build_experiment(values, where="a test", deep=False))
    return run


def test_settings_reach_the_source_and_the_split(tmp_path: Path) -> None:
    rows = [{"q": row["instruction"], "a": row["output"]} for row in build_rows(100)]
    run = prepare_file(
        tmp_path, rows, map={"instruction": "q", "output": "a"}, limit=20, train_fraction=0.5, test_fraction=0.25
    )
    assert [len(read_rows(run.split(name), Example)) for name in SPLIT_NAMES] == [10, 5, 5]


def test_bad_data_writes_nothing_and_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare_file(tmp_path, [{"instruction": "a"}])
    assert not (tmp_path / "run").exists()
    run = prepare_file(tmp_path, build_rows(100))
    before = {path: path.read_bytes() for path in run.data.iterdir()}
    with pytest.raises(DataError):
        prepare_file(tmp_path, build_rows(3))
    assert {path: path.read_bytes() for path in run.data.iterdir()} == before


def test_a_failed_rewrite_leaves_no_preflight(tmp_path: Path) -> None:
    run = prepare_file(tmp_path, build_rows(100))
    # A folder in the place of a split stands for a disk that fails half-way.
    run.split("test").unlink()
    run.split("test").mkdir()
    with pytest.raises(IsADirectoryError):
        prepare_file(tmp_path, build_rows(100))
    assert not run.preflight.exists()


def test_conversations_and_prompts_pass_through_a_run_unchanged(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    talk = [{"messages": [*messages[:-1], {"role": "assistant", "content": str(n)}]} for n in range(20)]
    own = [{"prompt": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(20)]
    for rows, default in ((talk, "chat"), (own, "alpaca"), (build_rows(20), "alpaca")):
        run = prepare_file(tmp_path, rows)
        assert run.load_prompt_format(None).name == default
        assert ("Prompts use the tokenizer's chat template" in caplog.text) == (rows is talk)
        caplog.clear()
        for name, expected in split_examples(rows).items():
            assert load_split(run, name).to_list() == expected.to_list()


def test_a_split_that_was_changed_is_not_trained_on(tmp_path: Path) -> None:
    run = prepare_file(tmp_path, build_rows(20))
    run.split("train").write_bytes(run.split("train").read_bytes() + b"{}\n")
    with pytest.raises(DataError, match="are not those that this run was prepared with"):
        load_split(run, "train")
