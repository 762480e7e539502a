import hashlib
import json
from pathlib import Path

import pytest

from hf_instruct.config import build_experiment
from hf_instruct.data.preflight import build_preflight
from hf_instruct.data.stage import prepare
from hf_instruct.errors import DataError, RunError
from hf_instruct.records import SPLIT_NAMES, Example, Splits, read_rows
from hf_instruct.run_folder import RunFolder


def build_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Task {n}.", "input": "é\u2028" if n % 3 else "", "output": str(n)} for n in range(count)]


def prepare_file(folder: Path, rows: list[dict[str, str]], **data: object) -> RunFolder:
    source = folder / "mine.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    run = RunFolder(folder / "run")
    prepare(run, build_experiment({"data": {"source": str(source), **data}}, where="a test", deep=False))
    return run


def test_preflight_counts_exactly() -> None:
    train = [Example("1", "a", "", "x"), Example("2", "a", "", "y"), Example("3", "b", "i", "z")]
    test = [Example("4", "a", "", "w"), Example("5", "b", "", "z")]
    validation = [Example("6", "b", "i", "v")]
    assert build_preflight(Splits(train, test, validation), source="mine", data_sha256="abc") == {
        "source": "mine",
        "data_sha256": "abc",
        "examples": {"train": 3, "test": 2, "validation": 1, "total": 6},
        "empty_inputs": {"train": 2, "test": 2, "validation": 0, "total": 4},
        "repeated_prompts": 2,
        "repeated_rows": 3,
        "seen_in_train": {
            "test": [{"id": "4", "train_ids": ["1", "2"]}],
            "validation": [{"id": "6", "train_ids": ["3"]}],
        },
    }


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


def test_the_courses_data_in_the_courses_split(course_file: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    prepare(run, build_experiment({"data": {"source": str(course_file)}}, where="a test", deep=False))
    preflight = json.loads(run.preflight.read_text(encoding="utf-8"))
    assert preflight["examples"] == {"train": 935, "test": 110, "validation": 55, "total": 1100}
    assert preflight["empty_inputs"]["total"] == 775
    assert (preflight["repeated_prompts"], preflight["repeated_rows"]) == (20, 25)
    rows = json.loads(course_file.read_text(encoding="utf-8"))
    pairs = [(row["instruction"], row["input"]) for row in rows]
    seen = {"test": pairs[935:1045], "validation": pairs[1045:]}
    for name, of_split in seen.items():
        assert len(preflight["seen_in_train"][name]) == sum(pair in pairs[:935] for pair in of_split)
    assert preflight["seen_in_train"]["test"]


def test_grouped_leaves_nothing_seen_in_train(course_file: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    prepare(run, build_experiment({"data": {"source": str(course_file), "split": "grouped"}}, where="t", deep=False))
    preflight = json.loads(run.preflight.read_text(encoding="utf-8"))
    assert preflight["examples"] == {"train": 935, "test": 110, "validation": 55, "total": 1100}
    assert preflight["seen_in_train"] == {"test": [], "validation": []}


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


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(RunError) as caught:
        prepare_file(tmp_path, build_rows(100))
    assert str(caught.value) == (
        f"The data cannot be written to `{tmp_path / 'run' / 'data'}` (Not a directory). Make room or choose another "
        "folder with `--run-dir`, and start again."
    )


def test_a_failed_second_writing_leaves_no_preflight(tmp_path: Path) -> None:
    run = prepare_file(tmp_path, build_rows(100))
    # A folder in the place of a split stands for a disk that fails half-way.
    run.split("test").unlink()
    run.split("test").mkdir()
    with pytest.raises(RunError):
        prepare_file(tmp_path, build_rows(100))
    assert not run.preflight.exists()
