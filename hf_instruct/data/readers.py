"""Read rows from CSV and JSON, with texts unchanged and the location of every problem.

`datasets` reads Parquet, Arrow and the Hub. Its readers of text formats turn `007` into 7, `NA` into null and dates
into timestamps, and stop at the first bad line without naming it.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hf_instruct.data.formats import CONVERSATIONS
from hf_instruct.data.problems import Problem, RawRow, describe_type, shorten_text
from hf_instruct.errors import DataError, quote_names

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
SUFFIX_LIST = "`.json`, `.jsonl`, `.csv` (each also with `.gz`, `.bz2`, `.xz` or `.zst`), `.parquet` or `.arrow`"

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# A few kilobytes can decompress to more than fits into memory.
_MAX_DECOMPRESSED = 2**30
# Excel reads the separator of a CSV file from such a first line.
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\r?\n?', re.IGNORECASE)
_TOO_DEEP = ("is nested too deeply", "write each row as an object of plain texts")
_ROW = 'a row is {"instruction": …, "input": …, "output": …}'


def find_suffix(path: Path) -> str:
    """Return the suffix of a data file in lower case, without that of its compression.

    >>> find_suffix(Path("a.jsonl.gz")), find_suffix(Path("a.CSV"))
    ('.jsonl', '.csv')
    """
    return Path(path.stem if path.suffix.lower() in _COMPRESSED else path.name).suffix.lower()


def read_text_file(path: Path, *, file: str, problems: list[Problem]) -> Iterator[RawRow]:
    """Yield the rows of a `.json`, `.jsonl` or `.csv` file, and add what cannot be read to the problems.

    Raises:
        DataError: The file cannot be opened or decompressed.
    """
    try:
        with _open(path, file) as stream:
            yield from parse_rows(stream, find_suffix(path), file=file, problems=problems)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"`{file}` cannot be read ({reason}); check its permissions, or use another file.") from error


def parse_rows(stream: BinaryIO, suffix: str, *, file: str, problems: list[Problem]) -> Iterator[RawRow]:
    """Yield the rows of a stream of bytes in UTF-8 or UTF-16."""
    stream = _recode(stream, file)
    if suffix == ".csv":
        return _parse_csv(_decode(stream, file, problems), file, problems)
    start = stream.tell()
    is_lines = suffix == ".jsonl" and not stream.read(4096).lstrip().startswith(b"[")
    stream.seek(start)
    if is_lines:
        return _check_objects(_parse_lines(_decode(stream, file, problems), file, problems), file, problems)
    text = "".join(_decode(stream, file, problems))
    return _check_objects(_parse_json(text, file, problems), file, problems)


def _open(path: Path, file: str) -> BinaryIO:
    """Open a file, and decompress it if necessary.

    Raises:
        DataError: It is not compressed as its name says, or is too large.
    """
    suffix = path.suffix.lower()
    if suffix not in _COMPRESSED:
        return path.open("rb")
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}
    try:
        with openers[suffix](path, "rb") as compressed:
            content = compressed.read(_MAX_DECOMPRESSED + 1)
    except ImportError as error:
        raise DataError(
            f"`{file}` is compressed by Zstandard: run `pip install zstandard`, or decompress it with `unzstd`."
        ) from error
    except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        # gzip and bz2 raise OSError for invalid files; system errors have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"`{file}` is not a complete `{suffix}` file ({error}); copy or download it again.") from error
    if len(content) > _MAX_DECOMPRESSED:
        raise DataError(f"`{file}` is over 1 GiB when decompressed; save the rows as `.parquet`, or as several files.")
    return io.BytesIO(content)


def _open_zst(path: Path, _: str) -> BinaryIO:
    """Decompress a Zstandard file; the library's own reader accepts truncated files."""
    import zstandard

    rest, content = path.read_bytes(), bytearray()
    while rest and len(content) <= _MAX_DECOMPRESSED:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            # In pieces so small that none decompresses to more than fits into memory.
            for start in range(0, len(rest), 4096):
                content += frame.decompress(rest[start : start + 4096])
                if frame.eof or len(content) > _MAX_DECOMPRESSED:
                    rest = frame.unused_data + rest[start + 4096 :]
                    break
            else:
                raise EOFError("it ends early")
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
    return io.BytesIO(content)


def _recode(stream: BinaryIO, file: str) -> BinaryIO:
    """Return a stream of UTF-8 bytes, after the byte order mark if there is one."""
    start = stream.read(3)
    stream.seek(0 if start != b"\xef\xbb\xbf" else 3)
    has_mark = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not has_mark and start[:2].count(0) != 1:
        return stream
    name = "utf-16" if has_mark else "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
    try:
        return io.BytesIO(stream.read().decode(name).encode("utf-8"))
    except UnicodeError as error:
        raise DataError(f"`{file}` looks like UTF-16 but is not ({error}); save it as UTF-8.") from error


def _decode(stream: BinaryIO, file: str, problems: list[Problem]) -> Iterator[str]:
    """Yield the lines of UTF-8 bytes, and add a problem for each that is not UTF-8."""
    start = stream.tell()
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 (byte 0x{line[error.start]:02x} at position {start + error.start:,} of the file)"
            problems.append(Problem(file, f"line {number}", None, what, "save the file as UTF-8"))
            # Only to find the other problems of the line; unlike replacement characters, Latin-1 keeps texts distinct.
            yield line.decode("latin-1")
        start += len(line)


class _RepeatedKeys(dict[str, Any]):
    """An object with a repeated key, for which JSON parsers silently drop a value."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _RepeatedKeys(pairs)


def _parse_integer(digits: str) -> int | float:
    # Python refuses to convert integers of very many digits; none of our fields contains such a number.
    return int(digits) if len(digits) <= 4000 else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object, parse_int=_parse_integer)


def _parse_lines(lines: Iterable[str], file: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """Yield the values of JSON Lines with their location; blank lines are skipped."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", _DECODER.decode(line)
        except json.JSONDecodeError as error:
            what = f"is not JSON ({_reason(error)}, at column {error.colno})"
            remedy = "each line must be one complete object; fix the line"
            problems.append(Problem(file, f"line {number}", None, what, remedy))
        except RecursionError:
            problems.append(Problem(file, f"line {number}", None, *_TOO_DEEP))


def _parse_json(text: str, file: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a JSON list, of an object with one list, of a single row, or of JSON Lines in such a file."""
    if not text.strip():
        return
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not text.lstrip().startswith("["):
            yield from _parse_lines(text.split("\n"), file, problems)
            return
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        remedy = (
            "the file seems to be truncated: copy or download it again" if is_cut else "fix the text at this position"
        )
        where = f"line {error.lineno} column {error.colno}"
        problems.append(Problem(file, where, None, f"is not JSON ({_reason(error)})", remedy))
        return
    except RecursionError:
        problems.append(Problem(file, None, None, *_TOO_DEEP))
        return
    del text  # as large as all rows
    lists = [key for key, part in value.items() if isinstance(part, list)] if isinstance(value, dict) else []
    if isinstance(value, list):
        yield from ((f"row {number}", row) for number, row in enumerate(value))
    elif len(lists) == 1 and lists[0] not in CONVERSATIONS:
        yield from ((f"`{shorten_text(lists[0])}` row {number}", row) for number, row in enumerate(value[lists[0]]))
    elif isinstance(value, dict) and (not lists or lists[0] in CONVERSATIONS):
        yield "row 0", value
    else:
        what = f"contains {describe_type(value)} instead of a list of rows"
        named = quote_names(map(shorten_text, lists))
        remedy = f"save one of its lists as a file: {named}" if lists else "write [{…}, {…}]"
        problems.append(Problem(file, None, None, what, remedy))


def _check_objects(values: Iterable[tuple[str, Any]], file: str, problems: list[Problem]) -> Iterator[RawRow]:
    """Yield the values that are objects as rows, and add the others to the problems."""
    for where, value in values:
        if not isinstance(value, dict):
            problems.append(Problem(file, where, None, f"is {describe_type(value)}, not an object", _ROW))
        elif isinstance(value, _RepeatedKeys):
            problems.append(Problem(file, where, None, "has a repeated key", "keep one value for each key"))
        else:
            yield RawRow(where, value)


def _reason(error: json.JSONDecodeError) -> str:
    # The position follows, so the message must not end in "at".
    return (error.msg[0].lower() + error.msg[1:]).removesuffix(" at").removesuffix(" starting")


def _parse_csv(lines: Iterator[str], file: str, problems: list[Problem]) -> Iterator[RawRow]:
    """Yield the rows of a CSV file, whose first line names the columns."""
    first = next(lines, "")
    separator_line = _SEPARATOR_LINE.fullmatch(first)
    # In languages with a decimal comma, Excel separates values by semicolons.
    guess = next((mark for mark in (",", ";", "\t") if mark in first), ",")

    def iterate() -> Iterator[str]:
        yield "\n" if separator_line else first
        yield from lines

    # Line endings are not translated, so those inside quoted texts are unchanged.
    reader = csv.reader(iterate(), strict=True, delimiter=separator_line[1] if separator_line else guess)
    header: list[str] = []
    for number, cells in _iterate_csv(reader, file, problems):
        where = f"line {number}"
        if not header:
            header = [cell.strip() for cell in cells]
            for name in dict.fromkeys(name for name in header if name and header.count(name) > 1):
                what = f"has the column `{shorten_text(name)}` more than once"
                problems.append(Problem(file, where, None, what, "give each column a unique name"))
        elif len(cells) != len(header):
            what = f"has {len(cells):,} cells, but the first line has {len(header):,} columns"
            problems.append(Problem(file, where, None, what, "put texts with commas or line breaks in double quotes"))
        else:
            yield RawRow(where, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _iterate_csv(reader: Any, file: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its first line; a row that cannot be parsed becomes a problem."""
    # The limit belongs to the module, not to a reader, and its default is too low for long documents.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                remedy = "close each double quote, and double those inside a quoted text"
                problems.append(Problem(file, f"line {number}", None, f"is not CSV ({error})", remedy))
                continue
            if cells:
                yield number, cells
    finally:
        csv.field_size_limit(limit)
