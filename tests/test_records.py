import json
import os
from pathlib import Path

import pytest
from rows import judgment

from hf_instruct.errors import DataError
from hf_instruct.records import (
    Example,
    append_rows,
    build_example_id,
    read_rows,
    recover_rows,
    write_json,
    write_rows,
    write_text,
)
from hf_instruct.schema import Judgment, Scores, TrainingRow

ROWS = [
    Example("a", "Say it.", "", "It."),
    Example("b", "Ünïcode \u2028 and \u2029 and \x85 and \x0b", "line\r\nbreaks\r", '\N{ROCKET} \\ " \0', "facts"),
    Example("c", "Third.", "x", "y"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of these rows."""
    append_rows(tmp_path / "rows.jsonl", ROWS[:1])
    append_rows(tmp_path / "rows.jsonl", ROWS[1:])
    return tmp_path / "rows.jsonl"


def test_rows_come_back_as_written(path: Path) -> None:
    assert read_rows(path, Example) == ROWS
    assert path.read_text(encoding="utf-8").count("\n") == 3
    write_rows(path, ROWS[::-1])
    assert read_rows(path, Example) == ROWS[::-1]
    write_rows(path, [Example("a", "é \u2028", "", "o")])
    assert path.read_bytes() == '{"id": "a", "instruction": "é \u2028", "input": "", "output": "o"}\n'.encode()


def test_appending_no_rows_creates_no_file(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [])
    assert recover_rows(tmp_path / "rows.jsonl", Example) == list(tmp_path.iterdir()) == []


def test_a_score_of_none_is_written(tmp_path: Path) -> None:
    row = judgment("a", None, failure="no integer")
    append_rows(tmp_path / "judgments.jsonl", [row])
    assert json.loads((tmp_path / "judgments.jsonl").read_text())["score"] is None
    assert read_rows(tmp_path / "judgments.jsonl", Judgment) == [row]


@pytest.mark.parametrize("torn", ['{"id": "d", "instr', '{"id": "d", "instruction": "i", "input": "", "output": "\xc3'])
def test_a_torn_last_line_is_recovered(path: Path, torn: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    assert read_rows(path, Example) == ROWS
    assert recover_rows(path, Example) == ROWS
    assert path.read_bytes() == whole
    path.write_bytes(torn.encode("latin-1"))
    assert (recover_rows(path, Example), path.read_bytes()) == ([], b"")


def test_a_last_row_without_a_newline_is_read(path: Path) -> None:
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read_rows(path, Example) == ROWS
    assert recover_rows(path, Example) == ROWS
    append_rows(path, ROWS[:1])
    assert read_rows(path, Example) == [*ROWS, ROWS[0]]


TYPES = b'{"id": "b", "instruction": 3, "input": "", "output": "o"}'


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"5", b'{"id": "a"}', TYPES, b"\xff\xfe", b""])
@pytest.mark.parametrize("read", [read_rows, recover_rows])
def test_a_bad_line_is_named(path: Path, line: bytes, read: object) -> None:
    content = path.read_bytes() + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows.jsonl` line 4 is not a Example row \(.*or delete the file"):
        read(path, Example)
    assert path.read_bytes() == content


def test_fields_of_later_versions_are_left_out(path: Path) -> None:
    path.write_text('{"id": "a", "instruction": "i", "input": "", "output": "o", "new": 1}\n')
    assert read_rows(path, Example) == [Example("a", "i", "", "o")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for read in (read_rows, recover_rows):
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            read(tmp_path, Example)
    with pytest.raises(DataError, match=r"none.jsonl` does not exist; run the stage that writes it first\."):
        read_rows(tmp_path / "none.jsonl", Example)


def test_a_partial_append_on_a_full_disk_is_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 40:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:40])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        append_rows(path, ROWS)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"tuned": Scores(mean=1.0)})
    assert json.loads(path.read_text())["tuned"]["mean"] == 1
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"mean": float("nan")})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"mean": 2})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_keep_their_line_ends_and_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "é\nb\r\n")
        append_rows(tmp_path / "rows.jsonl", ROWS)
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_bytes() == "é\nb\r\n".encode()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_ids_depend_on_all_three_texts_and_their_boundaries() -> None:
    ids = {build_example_id(*texts) for texts in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "", "bc")]}
    assert len(ids) == 4


@pytest.mark.parametrize("score", ["1" + "0" * 400, "101", "-1", "true", "1e400"])
def test_a_judgment_outside_its_scale_is_refused(tmp_path: Path, score: str) -> None:
    path = tmp_path / "judgments.jsonl"
    write_rows(path, [judgment("a", 77)])
    path.write_text(path.read_text().replace("77", score))
    with pytest.raises(DataError, match=r"line 1 is not a Judgment row \(`score`: ") as caught:
        read_rows(path, Judgment)
    assert len(str(caught.value)) < 250 + len(str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"epoch": ' + b"1" * 400 + b"}", "number"),
        (b'{"epoch": 1e999}', "number"),
        (b'{"epoch": NaN}', "number"),
        (b'{"seconds": ' + b"1" * 5000 + b"}", "number out of range"),
        (b'{"judge": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"id": "\\ud800"}', "hex escape"),
        ('{"id": "a"}'.encode("utf-16"), "expected value"),
    ],
)
def test_json_that_only_python_accepts_is_refused(text: bytes, reason: str, tmp_path: Path) -> None:
    text = text.replace(b'"epoch"', b'"step": 1, "tokens_seen": 1, "kind": "x", "epoch"')
    (tmp_path / "rows.jsonl").write_bytes(text + b"\n")
    with pytest.raises(DataError, match=f"line 1 is not a TrainingRow row.*{reason}"):
        read_rows(tmp_path / "rows.jsonl", TrainingRow)


def test_the_turns_before_a_question_are_part_of_the_task() -> None:
    turns = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "Plus one?"), ("assistant", "5")]
    messages = [{"role": role, "content": content} for role, content in turns]
    example = Example("a", "Plus one?", "", "5", messages=messages)
    assert example.format_task() == "System: Be brief.\n\nUser: 2 + 2?\n\nAssistant: 4\n\nUser: Plus one?"
    for alone in (None, messages[-2:]):
        assert Example("a", "Plus one?", "", "5", messages=alone).format_task() == "Plus one?"
