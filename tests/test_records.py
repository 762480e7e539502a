import json
import os
from pathlib import Path

import pytest

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
from hf_instruct.schema import Judgment, Response, TrainingRow

ROWS = [
    Example("a", "Say it.", "", "It."),
    Example("b", "Ünïcode \u2028 and \u2029 and \x85 and \x0b", "line\r\nbreaks\r", '\N{ROCKET} \\ " \0', "facts"),
    Example("c", "Third.", "x", "y"),
]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    append_rows(path, ROWS[:1])
    append_rows(path, ROWS[1:])
    assert read_rows(path, Example) == ROWS
    assert path.read_text(encoding="utf-8").count("\n") == 3
    write_rows(path, ROWS[::-1])
    assert read_rows(path, Example) == ROWS[::-1]


def test_text_is_written_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [Example("a", "é \u2028", "", "o")])
    assert path.read_bytes() == '{"id": "a", "instruction": "é \u2028", "input": "", "output": "o"}\n'.encode()


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [])
    assert not (tmp_path / "rows.jsonl").exists()
    assert recover_rows(tmp_path / "rows.jsonl", Example) == []


def test_a_score_of_none_is_written(tmp_path: Path) -> None:
    judgment = Judgment(
        id="a",
        score=None,
        replies=["well"],
        judge={"model": "m"},
        rubric="course",
        prompt_sha256="0f",
        seconds=1.5,
        failure="no integer",
    )
    append_rows(tmp_path / "judgments.jsonl", [judgment])
    assert json.loads((tmp_path / "judgments.jsonl").read_text())["score"] is None
    assert read_rows(tmp_path / "judgments.jsonl", Judgment) == [judgment]


@pytest.mark.parametrize("torn", ['{"id": "d", "instr', '{"id": "d", "instruction": "i", "input": "", "output": "\xc3'])
def test_a_torn_last_line_is_recovered(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    assert read_rows(path, Example) == ROWS
    assert recover_rows(path, Example) == ROWS
    assert path.read_bytes() == whole
    append_rows(path, ROWS[:1])
    assert read_rows(path, Example) == [*ROWS, ROWS[0]]


def test_a_last_row_without_a_newline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read_rows(path, Example) == ROWS
    assert recover_rows(path, Example) == ROWS
    append_rows(path, ROWS[:1])
    assert read_rows(path, Example) == [*ROWS, ROWS[0]]


def test_a_file_with_only_a_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id"')
    assert recover_rows(path, Example) == []
    assert path.read_bytes() == b""


TYPES = b'{"id": "b", "instruction": 3, "input": "", "output": "o"}'


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"5", b'{"id": "a"}', TYPES, b"\xff\xfe", b""])
@pytest.mark.parametrize("read", [read_rows, recover_rows])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, read: object) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS[:1])
    content = path.read_bytes() + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows.jsonl` line 2 is not a Example row \(") as caught:
        read(path, Example)
    assert str(caught.value).endswith("fix the line, or delete the file and run the stage again.")
    assert path.read_bytes() == content


def test_fields_of_later_versions_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "instruction": "i", "input": "", "output": "o", "new": 1}\n')
    assert read_rows(path, Example) == [Example("a", "i", "", "o")]


@pytest.mark.parametrize("read", [read_rows, recover_rows])
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, read: object) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read(tmp_path, Example)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"responses.jsonl` does not exist; run the stage that writes it first\."):
        read_rows(tmp_path / "responses.jsonl", Response)


def test_a_full_disk_takes_back_half_an_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS[:1])
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
    write_json(path, {"mean": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"mean": 2})
    assert json.loads(path.read_text()) == {"mean": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "scores.json", {"mean": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_text_files_keep_their_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\nb\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\nb\r\n".encode()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_are_as_open_as_the_user_lets_them_be(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "a")
        append_rows(tmp_path / "rows.jsonl", ROWS)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_ids_depend_on_all_three_texts_and_their_borders() -> None:
    ids = {build_example_id(*texts) for texts in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "", "bc")]}
    assert len(ids) == 4
    assert build_example_id("Name a color.", "", "Red.") == "afd331bf07dd"
    assert len(build_example_id("ü \ud83d\ude80".encode("utf-16", "surrogatepass").decode("utf-16"), "", "")) == 12


@pytest.mark.parametrize("score", ["1" + "0" * 400, "101", "-1", "true", "1e400"])
def test_a_judgment_outside_its_scale_is_no_row(tmp_path: Path, score: str) -> None:
    path = tmp_path / "judgments.jsonl"
    write_rows(path, [Judgment(id="a", score=77, replies=[], judge={}, rubric="course", prompt_sha256="", seconds=0.5)])
    path.write_text(path.read_text().replace("77", score))
    with pytest.raises(DataError, match=r"line 1 is not a Judgment row \(`score`: ") as caught:
        read_rows(path, Judgment)
    assert len(str(caught.value)) < 250 + len(str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"epoch": ' + b"1" * 400 + b"}", "finite number"),
        (b'{"epoch": 1e999}', "finite number"),
        (b'{"epoch": NaN}', "finite number"),
        (b'{"seconds": ' + b"1" * 5000 + b"}", "number out of range"),
        (b'{"judge": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"id": "\\ud800"}', "hex escape"),
        ('{"id": "a"}'.encode("utf-16"), "expected value"),
    ],
)
def test_what_python_takes_for_json_and_no_program_can_use_is_refused(text: bytes, reason: str, tmp_path: Path) -> None:
    text = text.replace(b'"epoch"', b'"step": 1, "tokens_seen": 1, "kind": "x", "epoch"')
    (tmp_path / "rows.jsonl").write_bytes(text + b"\n")
    with pytest.raises(DataError, match=f"line 1 is not a TrainingRow row.*{reason}"):
        read_rows(tmp_path / "rows.jsonl", TrainingRow)
