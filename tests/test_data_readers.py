import bz2
import csv
import gzip
import lzma
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_instruct.data.readers import parse_csv, parse_json, parse_jsonl, read_file
from hf_instruct.errors import DataError

ROW = '{"instruction": "a", "input": "", "output": "b"}'


def texts(table: object) -> list[str]:
    return [str(problem) for problem in table.problems]  # type: ignore[attr-defined]


def test_json_rows_are_counted_from_0_and_a_byte_order_mark_is_tolerated() -> None:
    table = parse_json(b"\xef\xbb\xbf" + f"[{ROW}, {ROW}]".encode(), "f.json")
    assert [row.where for row in table.rows] == ["row 0", "row 1"]
    assert table.rows[0].fields == {"instruction": "a", "input": "", "output": "b"}
    assert table.columns == ["instruction", "input", "output"]
    assert table.problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{bad",
            "line 1 column 2 is not JSON (expecting property name enclosed in double quotes); fix the text there",
        ),
        (
            f'[{ROW},\n{{"instruction": "a" "output": "b"}}]',
            "line 2 column 21 is not JSON (expecting ',' delimiter); fix the text there",
        ),
        (
            '[{"instruction": "a", "outp',
            "line 1 column 23 is not JSON (unterminated string); the file seems to be cut off: copy or download it "
            "again",
        ),
        (
            f"[{ROW},",
            "line 1 column 51 is not JSON (expecting value); the file seems to be cut off: copy or download it again",
        ),
        (
            f"{ROW}\n{ROW}\n",
            "line 2 column 1 is not JSON (extra data); it looks like JSON Lines: rename it to end in `.jsonl`",
        ),
        ("[] x", "line 1 column 4 is not JSON (extra data); fix the text there"),
        ("[" * 100_000, "is nested too deeply to be read; a row is an object of plain texts"),
        ("42", "holds a number (42) where a list of rows is due; write the rows as [{…}, {…}]"),
        ('"x"', 'holds text ("x") where a list of rows is due; write the rows as [{…}, {…}]'),
        ("null", "holds null where a list of rows is due; write the rows as [{…}, {…}]"),
        (ROW, "holds an object where a list of rows is due; write the rows as [{…}, {…}]"),
        (
            f'{{"version": 1, "data": [{ROW}]}}',
            "holds an object where a list of rows is due; save the list under its key `data` as a file of its own",
        ),
        ("\0\0\0\0", "line 1 column 1 is not JSON (expecting value); fix the text there"),
        ('["a\0"]', "line 1 column 4 is not JSON (invalid control character); fix the text there"),
    ],
)
def test_a_json_file_that_is_no_list_of_rows(text: str, problem: str) -> None:
    table = parse_json(text.encode(), "f.json")
    assert texts(table) == [f"`f.json` {problem}"]
    assert table.rows == []


def test_all_rows_that_are_no_objects_are_named() -> None:
    table = parse_json(f'[{ROW}, [1], "x", null, 3.5, {{"a": 1, "a": 2}}]'.encode(), "f.json")
    due = 'not an object; a row is {"instruction": …, "input": …, "output": …}'
    assert texts(table) == [
        f"`f.json` row 1 is a list, {due}",
        f'`f.json` row 2 is text ("x"), {due}',
        f"`f.json` row 3 is null, {due}",
        f"`f.json` row 4 is a number (3.5), {due}",
        "`f.json` row 5 names a key more than once; keep one value for each key",
    ]
    assert [row.where for row in table.rows] == ["row 0"]


def test_a_number_of_many_digits_and_lone_surrogates_are_read_for_the_checks() -> None:
    table = parse_json(('[{"output": ' + "9" * 5000 + ', "input": "\\ud800"}]').encode(), "f.json")
    assert table.rows[0].fields == {"output": float("inf"), "input": "\ud800"}


@pytest.mark.parametrize("parse", [parse_json, parse_jsonl, parse_csv])
def test_every_line_that_is_not_utf8_is_named_with_its_byte(parse: object) -> None:
    content = "[]\r\nä é\n\nü".encode("latin-1")
    table = parse(b"\xef\xbb\xbf" + content, "f")  # type: ignore[operator]
    assert texts(table)[:2] == [
        "`f` line 2 is not UTF-8 (byte 0xe4 at position 7 of the file); save the file as UTF-8",
        "`f` line 4 is not UTF-8 (byte 0xfc at position 12 of the file); save the file as UTF-8",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_recognised(encoding: str) -> None:
    with pytest.raises(DataError, match=r"^`f\.json` is not UTF-8 text but looks like UTF-16; save it as UTF-8\.$"):
        parse_json("[{}]".encode(encoding), "f.json")


def test_jsonl_lines_are_counted_from_1_and_every_fault_is_found() -> None:
    content = f"{ROW}\r\n\n{{bad\n{'[' * 100_000}\n42\n{ROW}"
    table = parse_jsonl(content.encode(), "f.jsonl")
    assert [row.where for row in table.rows] == ["line 1", "line 6"]
    assert texts(table) == [
        "`f.jsonl` line 3 is not JSON (expecting property name enclosed in double quotes, at column 2); each line is "
        "one "
        "whole object; fix the line",
        "`f.jsonl` line 4 is nested too deeply to be read; a row is an object of plain texts",
        '`f.jsonl` line 5 is a number (42), not an object; a row is {"instruction": …, "input": …, "output": …}',
    ]


def test_line_separators_inside_json_strings_do_not_split_a_line() -> None:
    table = parse_jsonl('{"instruction": "a\u2028b\x85c", "output": "d"}\n'.encode(), "f.jsonl")
    assert table.rows[0].fields["instruction"] == "a\u2028b\x85c"
    assert table.problems == []


def test_a_json_list_named_jsonl_is_one_fault() -> None:
    table = parse_jsonl(f"[\n{ROW},\n{ROW}\n]\n".encode(), "f.jsonl")
    assert texts(table) == ["`f.jsonl` is one JSON list, not JSON Lines; rename it to end in `.json`"]


def test_csv_rows_are_named_by_their_first_line() -> None:
    content = b'instruction, output ,\r\n"x\r\ny","say ""hi""",1\r\n\r\na,b,2\r\n'
    table = parse_csv(content, "f.csv")
    assert [(row.where, row.fields) for row in table.rows] == [
        ("line 2", {"instruction": "x\r\ny", "output": 'say "hi"', "": "1"}),
        ("line 5", {"instruction": "a", "output": "b", "": "2"}),
    ]
    assert table.columns == ["instruction", "output"]
    assert table.problems == []


def test_all_faults_of_a_csv_are_found() -> None:
    content = b'instruction,input,output\na,b\na,b,c,d\n"a"x,b,c\na,b,c\n"open,b,c\nd,e,f\n'
    table = parse_csv(content, "f.csv")
    quotes = "close each double quote, and double those inside a quoted text"
    assert texts(table) == [
        "`f.csv` line 2 has 2 cells where the first line names 3 columns; put texts with commas or line breaks in "
        "double "
        "quotes",
        "`f.csv` line 3 has 4 cells where the first line names 3 columns; put texts with commas or line breaks in "
        "double "
        "quotes",
        f"`f.csv` line 4 is not CSV (',' expected after '\"'); {quotes}",
        f"`f.csv` line 6 is not CSV (unexpected end of data); {quotes}",
    ]
    assert [row.where for row in table.rows] == ["line 5"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"instruction;output\na;b\n", "line 1 is separated by semicolons; save it with commas"),
        (b"instruction\toutput\na\tb\n", "line 1 is separated by tabs; save it with commas"),
        (b"instruction,output,output\na,b,c\n", "line 1 names `output` more than once; give each column its own name"),
    ],
)
def test_a_csv_with_a_wrong_header(content: bytes, problem: str) -> None:
    assert texts(parse_csv(content, "f.csv")) == [f"`f.csv` {problem}"]


def test_long_csv_cells_are_read_and_the_modules_limit_is_put_back() -> None:
    before = csv.field_size_limit()
    table = parse_csv(b"instruction,output\na," + b"x" * 200_000 + b"\n", "f.csv")
    assert len(table.rows[0].fields["output"]) == 200_000
    assert csv.field_size_limit() == before


def test_parquet_is_read_by_datasets(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    path = tmp_path / "f.parquet"
    datasets.Dataset.from_dict({"q": ["a", None], "image": [b"1", b"2"]}).to_parquet(path)
    capfd.readouterr()
    table = read_file(path, file="f.parquet", columns=["q", "input"])
    assert [(row.where, row.fields) for row in table.rows] == [("row 0", {"q": "a"}), ("row 1", {"q": None})]
    assert table.columns == ["q", "image"]
    assert capfd.readouterr() == ("", "")
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError) as caught:
        read_file(path, file="f.parquet")
    assert str(caught.value).startswith("`f.parquet` is not a readable Parquet file (Parquet ")
    assert str(caught.value).endswith("); write it again, or name another.")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["", " \n\t"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_file(path, file="f.json")
    assert str(caught.value) == (
        "`f.json` is empty; a data file holds one example a row. Write some, or name another file."
    )


def test_a_suffix_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_text("hi")
    with pytest.raises(DataError) as caught:
        read_file(path, file="f.txt")
    assert str(caught.value) == (
        "`f.txt` ends in `.txt`; a data file ends in `.json`, `.jsonl`, `.csv` (each also with `.gz`, `.bz2` or `.xz`) "
        "or `.parquet`. Convert or decompress it, or rename it if it is one of these."
    )


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    # A folder with a data file's name stands for any file that the system refuses to open, whoever runs the test.
    (tmp_path / "f.json").mkdir()
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "f.json", file="f.json")
    assert str(caught.value) == (
        "`f.json` cannot be read (Is a directory); check its permissions, or name another file."
    )


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "F.JSONL"
    path.write_text(ROW)
    assert len(read_file(path, file="F.JSONL").rows) == 1


def test_fifty_thousand_rows_take_seconds() -> None:
    content = "\n".join([ROW] * 50_000).encode()
    start = time.monotonic()
    assert len(parse_jsonl(content, "f.jsonl").rows) == 50_000
    assert time.monotonic() - start < 60  # not a measurement: the machine may be busy


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".BZ2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read(suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(f"{ROW}\n{ROW}\n".encode()))
    assert [row.where for row in read_file(path, file=path.name).rows] == ["line 1", "line 2"]


def test_what_decompresses_to_more_than_memory_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"x" * 2000))
    monkeypatch.setattr("hf_instruct.data.readers._MOST_DECOMPRESSED", 1999)
    with pytest.raises(DataError, match="over 1 GiB when decompressed"):
        read_file(path, file=path.name)


@pytest.mark.parametrize(
    "text", ["sep=;\ninstruction;output\na, b;c\n", '\ufeff"SEP=;"\r\ninstruction;output\r\na, b;c\r\n']
)
def test_excels_separator_line_is_obeyed(text: str) -> None:
    table = parse_csv(text.encode(), "a.csv")
    assert table.problems == []
    assert [(row.where, row.fields) for row in table.rows] == [("line 3", {"instruction": "a, b", "output": "c"})]
