import bz2
import csv
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_instruct.data.problems import Problem, RawRow
from hf_instruct.data.readers import read_text_file
from hf_instruct.errors import DataError

ROW = '{"instruction": "a", "input": "", "output": "b"}'
FIELDS = {"instruction": "a", "input": "", "output": "b"}

Read = Callable[..., tuple[list[RawRow], list[str]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a file of this content, and return its rows and problems."""

    def run(content: bytes | str, name: str = "f.json") -> tuple[list[RawRow], list[str]]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        problems: list[Problem] = []
        rows = list(read_text_file(path, file=name, problems=problems))
        return rows, [str(problem) for problem in problems]

    return run


def test_json_rows_are_counted_from_0(read: Read) -> None:
    rows, problems = read(f" [{ROW},\n {ROW} ] \n")
    assert rows == [("row 0", FIELDS), ("row 1", FIELDS)]
    assert problems == []
    assert read("[]") == read("") == read(" \n\t") == ([], [])


@pytest.mark.parametrize("name", ["f.json", "f.jsonl"])
@pytest.mark.parametrize("text", [f"[{ROW}, {ROW}]", f"{ROW}\n\n{ROW}\r\n", f"\n[\n{ROW},\n{ROW}\n]\n"])
def test_json_lists_and_lines_are_recognized_by_content(name: str, text: str, read: Read) -> None:
    rows, problems = read(text, name)
    assert [row.fields for row in rows] == [FIELDS] * 2
    assert problems == []


def test_the_one_list_in_an_object_holds_the_rows(read: Read) -> None:
    rows, problems = read(f'{{"version": 1,\n "data": [{ROW}, {ROW}]}}')
    assert rows == [("`data` row 0", FIELDS), ("`data` row 1", FIELDS)]
    assert problems == []
    # A single row, in JSON and in JSON Lines.
    turns = '{"messages": [{"role": "user", "content": "a"}]}'
    for name in ("f.json", "f.jsonl"):
        assert [list(row.fields) for row in read(turns, name)[0]] == [["messages"]]
    assert read(ROW)[0] == [("row 0", FIELDS)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{bad",
            "line 1 column 2 is not JSON (expecting property name enclosed in double quotes); fix the text at this "
            "position",
        ),
        (f'[{ROW},\n{{"a": "a" "b": "b"}}]', "line 2 column 11 is not JSON (expecting ',' delimiter); fix the"),
        (
            '[{"instruction": "a", "outp',
            "line 1 column 23 is not JSON (unterminated string); the file seems to be truncated",
        ),
        (
            f"[{ROW},",
            "line 1 column 51 is not JSON (expecting value); the file seems to be truncated: copy or download",
        ),
        ("[] x", "line 1 column 4 is not JSON (extra data); fix the text at this position"),
        (f"[{ROW} {ROW}]", "line 1 column 51 is not JSON (expecting ',' delimiter); fix the text at this position"),
        ("[" * 100_000, "is nested too deeply; write each row as an object of plain texts"),
        ("42", "contains a number (42) instead of a list of rows; write [{…}, {…}]"),
        ("null", "contains null instead of a list of rows; write [{…}, {…}]"),
        ('{"train": [], "test": []}', "contains an object instead of a list of rows; save one of its lists as a file:"),
        ("\0\0\0\0", "line 1 column 1 is not JSON (expecting value); fix the text at this position"),
        ('["a\0"]', "line 1 column 4 is not JSON (invalid control character); fix the text at this position"),
    ],
)
def test_a_json_file_that_is_not_a_list_of_rows(text: str, problem: str, read: Read) -> None:
    _, problems = read(text)
    assert [found.partition("`f.json` ")[2][: len(problem)] for found in problems] == [problem]


def test_all_rows_that_are_not_objects_are_named(read: Read) -> None:
    rows, problems = read(f'[{ROW}, [1], "x", null, 3.5, {{"a": 1, "a": 2}}]')
    whats = ["row 1 is a list, not", 'row 2 is text ("x"), not', "row 3 is null, not", "row 4 is a number (3.5), not"]
    assert all(f"`f.json` {what}" in found for what, found in zip(whats, problems, strict=False))
    assert problems[4] == "`f.json` row 5 has a repeated key; keep one value for each key"
    assert [row.where for row in rows] == ["row 0"]


def test_a_number_of_many_digits_and_lone_surrogates_are_read_for_the_checks(read: Read) -> None:
    rows, _ = read('[{"output": ' + "9" * 5000 + ', "input": "\\ud800"}]')
    assert rows[0].fields == {"output": float("inf"), "input": "\ud800"}


@pytest.mark.parametrize("name", ["f.json", "f.jsonl", "f.csv"])
def test_every_line_that_is_not_utf8_is_named_with_its_byte(name: str, read: Read) -> None:
    _, problems = read(b"\xef\xbb\xbf" + "{}\r\nä é\n\nü".encode("latin-1"), name)
    assert f"`{name}` line 2 is not UTF-8 (byte 0xe4 at position 7 of the file); save the file as UTF-8" in problems
    assert f"`{name}` line 4 is not UTF-8 (byte 0xfc at position 12 of the file); save the file as UTF-8" in problems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_byte_order_marks_and_utf16_are_read(encoding: str, read: Read) -> None:
    for name, text in (("f.json", f"[{ROW}]"), ("f.jsonl", f"{ROW}\r\n"), ("f.csv", "instruction,input,output\na,,b")):
        rows, problems = read(text.encode(encoding), name)
        assert [row.fields for row in rows] == [FIELDS]
        assert problems == []
    with pytest.raises(DataError, match=r"`f\.json` looks like UTF-16 but is not"):
        read(b"\xff\xfe[\0]")


def test_jsonl_lines_are_counted_from_1_and_every_problem_is_found(read: Read) -> None:
    rows, problems = read(f"{ROW}\r\n\n{{bad\n{'[' * 100_000}\n42\n{ROW}", "f.jsonl")
    assert [row.where for row in rows] == ["line 1", "line 6"]
    assert problems[0] == (
        "`f.jsonl` line 3 is not JSON (expecting property name enclosed in double quotes, at column 2); each line "
        "must be one complete object; fix the line"
    )
    assert problems[1].startswith("`f.jsonl` line 4 is nested too deeply")
    assert problems[2].startswith("`f.jsonl` line 5 is a number (42), not an object")


def test_line_separators_inside_json_strings_do_not_split_a_line(read: Read) -> None:
    rows, problems = read('{"instruction": "a\u2028b\x85c", "output": "d"}\n', "f.jsonl")
    assert rows[0].fields["instruction"] == "a\u2028b\x85c"
    assert problems == []


def test_csv_rows_are_named_by_their_first_line(read: Read) -> None:
    content = b'instruction, output ,\r\n"x\r\ny","say ""hi""",1\r\n\r\na,b,2\r\n'
    assert read(content, "f.csv") == (
        [
            ("line 2", {"instruction": "x\r\ny", "output": 'say "hi"'}),
            ("line 5", {"instruction": "a", "output": "b"}),
        ],
        [],
    )


def test_all_problems_of_a_csv_are_found(read: Read) -> None:
    content = b'instruction,input,output,output\na,b\n"a"x,b,c\na,b,c,d\n"open,b,c\nd,e,f\n'
    rows, problems = read(content, "f.csv")
    whats = [
        "line 1 has the column `output` more than once; give each column",
        "line 2 has 2 cells, but the first line has 4 columns; put texts with commas",
        "line 3 is not CSV (',' expected after '\"'); close each double quote",
        "line 5 is not CSV (unexpected end of data); close each double quote",
    ]
    assert [found[: len(what) + 8] for what, found in zip(whats, problems, strict=True)] == [
        f"`f.csv` {what}" for what in whats
    ]
    assert [row.where for row in rows] == ["line 4"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("instruction;output\na, b;c\n", 2),
        ("instruction\toutput\na, b\tc\n", 2),
        ("sep=;\ninstruction;output\na, b;c\n", 3),
        ('\ufeff"SEP=;"\r\ninstruction;output\r\na, b;c\r\n', 3),
    ],
)
def test_other_separators_are_read(text: str, line: int, read: Read) -> None:
    assert read(text, "a.csv") == ([(f"line {line}", {"instruction": "a, b", "output": "c"})], [])


def test_long_csv_cells_are_read_and_the_modules_limit_is_put_back(read: Read) -> None:
    before = csv.field_size_limit()
    rows, _ = read(b"instruction,output\na," + b"x" * 200_000 + b"\n", "f.csv")
    assert len(rows[0].fields["output"]) == 200_000
    assert csv.field_size_limit() == before


def test_an_unreadable_file(tmp_path: Path) -> None:
    # A folder with a data file's name stands for any file that the system refuses to open, whoever runs the test.
    (tmp_path / "f.json").mkdir()
    with pytest.raises(DataError, match=r"^`f\.json` cannot be read \(Is a directory\); check its permissions"):
        list(read_text_file(tmp_path / "f.json", file="f.json", problems=[]))


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".BZ2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read(suffix: str, compress: Callable[[bytes], bytes], read: Read) -> None:
    rows, _ = read(compress(f"{ROW}\n{ROW}\n".encode()), f"a.jsonl{suffix}")
    assert [row.where for row in rows] == ["line 1", "line 2"]


def test_zstandard_is_read_where_it_is_installed(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"^`a\.jsonl\.zst` is compressed by Zstandard: run `pip install zstandard`"):
        read(b"", "a.jsonl.zst")
    # Another format with the same interface: frames, one after another.
    module = SimpleNamespace(
        ZstdDecompressor=lambda: SimpleNamespace(decompressobj=zlib.decompressobj), ZstdError=zlib.error
    )
    monkeypatch.setitem(sys.modules, "zstandard", module)
    frames = [zlib.compress(f"{ROW}\n".encode() * 2000), zlib.compress(ROW.encode())]
    assert len(read(b"".join(frames), "a.jsonl.zst")[0]) == 2001
    for torn in (frames[0] + frames[1][:-3], frames[0][:20], b"nonsense"):
        with pytest.raises(DataError, match=r"is not a complete `\.zst` file"):
            read(torn, "a.jsonl.zst")


def test_a_file_too_large_when_decompressed_is_refused(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_instruct.data.readers._MAX_DECOMPRESSED", 1999)
    with pytest.raises(DataError, match="over 1 GiB when decompressed"):
        read(gzip.compress(b"x" * 2000), "a.csv.gz")
