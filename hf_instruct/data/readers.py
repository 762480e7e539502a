"""Read rows from a file's bytes, and find every problem on the way instead of stopping at the first."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import logging
import lzma
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hf_instruct.data.checks import Problem, RawRow, RawTable, describe_type, shorten
from hf_instruct.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
SUFFIX_LIST = "`.json`, `.jsonl`, `.csv` (each also with `.gz`, `.bz2` or `.xz`) or `.parquet`"

_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
# A few kilobytes can be decompressed to more than any memory holds.
_MOST_DECOMPRESSED = 2**30
# By this first line Excel knows the separator of a CSV file.
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\r?', re.IGNORECASE)

SAVED_DATASET = ("dataset_dict.json", "state.json")
"""What a folder of `DatasetDict.save_to_disk` holds, and one of `Dataset.save_to_disk`."""

_TOO_DEEP = ("is nested too deeply to be read", "a row is an object of plain texts")


def find_suffix(path: Path) -> str:
    """Return by what a file's name says that it holds data, in lower case; how it is compressed does not count.

    >>> find_suffix(Path("a.jsonl.gz")), find_suffix(Path("a.CSV"))
    ('.jsonl', '.csv')
    """
    return Path(path.stem if path.suffix.lower() in _OPENERS else path.name).suffix.lower()


def read_file(path: Path, *, file: str, columns: Iterable[str] = ()) -> RawTable:
    """Return the rows of a `.json`, `.jsonl`, `.csv` or `.parquet` file; the first three may be compressed.

    Args:
        path: The file.
        file: The source as the user named it, for messages.
        columns: What to read of a `.parquet` file, where it has them; everything by default.

    Raises:
        DataError: The file cannot be opened, is empty, or is no such file.
    """
    suffix = find_suffix(path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"`{file}` ends in `{''.join(path.suffixes[-2:])}`; a data file ends in {SUFFIX_LIST}. "
            "Convert or decompress it, or rename it if it is one of these."
        )
    if suffix == ".parquet" and path.suffix.lower() == suffix:
        return read_parquet(path, file=file, columns=columns)
    content = _read_bytes(path, file)
    if suffix == ".parquet":
        raise DataError(f"`{file}` is compressed twice; decompress it, as Parquet is compressed in itself.")
    if not content.strip():
        raise DataError(f"`{file}` is empty; a data file holds one example a row. Write some, or name another file.")
    return {".json": parse_json, ".jsonl": parse_jsonl, ".csv": parse_csv}[suffix](content, file)


def _read_bytes(path: Path, file: str) -> bytes:
    """Return the content of a file, decompressed.

    Raises:
        DataError: It cannot be read, is not compressed as its name says, or is far too large.
    """
    is_compressed = path.suffix.lower() in _OPENERS
    try:
        if not is_compressed:
            return path.read_bytes()
        with _OPENERS[path.suffix.lower()](path) as stream:
            content = stream.read(_MOST_DECOMPRESSED + 1)
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(
            f"`{file}` is not a whole `{path.suffix}` file ({error}); copy or download it again."
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"`{file}` cannot be read ({reason}); check its permissions, or name another file.") from error
    if len(content) > _MOST_DECOMPRESSED:
        raise DataError(f"`{file}` is over 1 GiB when decompressed; save the rows as `.parquet`, or as several files.")
    return content


def parse_json(content: bytes, file: str) -> RawTable:
    """Return the rows of a JSON list of objects."""
    lines, problems = _decode(content, file)
    text = "\n".join(lines)
    try:
        value = _loads(text)
    except json.JSONDecodeError as error:
        remedy = _advise_on_json(text, error)
        where = f"line {error.lineno} column {error.colno}"
        return RawTable(
            file, [], [], [*problems, Problem(file, where, None, f"is not JSON ({_reason(error)})", remedy)]
        )
    except RecursionError:
        return RawTable(file, [], [], [*problems, Problem(file, None, None, *_TOO_DEEP)])
    if not isinstance(value, list):
        remedy = "write the rows as [{…}, {…}]"
        if isinstance(value, dict) and (lists := [key for key, part in value.items() if isinstance(part, list)]):
            remedy = f"save the list under its key `{shorten(lists[0])}` as a file of its own"
        problem = f"holds {describe_type(value)} where a list of rows is due"
        return RawTable(file, [], [], [*problems, Problem(file, None, None, problem, remedy)])
    return collect_rows(file, ((f"row {number}", row) for number, row in enumerate(value)), problems)


def parse_jsonl(content: bytes, file: str) -> RawTable:
    """Return the rows of JSON Lines: an object a line, blank lines left out."""
    lines, problems = _decode(content, file)
    if lines[0].lstrip().startswith("[") and _is_json_list("\n".join(lines)):
        remedy = "rename it to end in `.json`"
        return RawTable(
            file, [], [], [*problems, Problem(file, None, None, "is one JSON list, not JSON Lines", remedy)]
        )
    values: list[tuple[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append((f"line {number}", _loads(line)))
        except json.JSONDecodeError as error:
            problem = f"is not JSON ({_reason(error)}, at column {error.colno})"
            problems.append(
                Problem(file, f"line {number}", None, problem, "each line is one whole object; fix the line")
            )
        except RecursionError:
            problems.append(Problem(file, f"line {number}", None, *_TOO_DEEP))
    return collect_rows(file, values, problems)


def parse_csv(content: bytes, file: str) -> RawTable:
    """Return the rows of comma-separated values, whose first line names the columns."""
    lines, problems = _decode(content, file)
    separator_line = _SEPARATOR_LINE.fullmatch(lines[0])
    if separator_line:
        lines[0] = ""
    # Without translation of line ends, those inside quoted texts stay as they are.
    reader = csv.reader(
        io.StringIO("\n".join(lines), newline=""),
        strict=True,
        delimiter=separator_line[1] if separator_line else ",",
    )
    header: list[str] = []
    rows: list[RawRow] = []
    for number, cells in _iterate_csv(reader, file, problems):
        if not header:
            header = [cell.strip() for cell in cells]
            if separator := _find_other_separator(header):
                problems.append(
                    Problem(file, f"line {number}", None, f"is separated by {separator}", "save it with commas")
                )
                return RawTable(file, [], [], problems)
            problems += _find_header_problems(header, number, file)
        elif len(cells) != len(header):
            problem = f"has {len(cells):,} cells where the first line names {len(header):,} columns"
            remedy = "put texts with commas or line breaks in double quotes"
            problems.append(Problem(file, f"line {number}", None, problem, remedy))
        else:
            rows.append(RawRow(f"line {number}", dict(zip(header, cells, strict=True))))
    return RawTable(file, rows, [name for name in dict.fromkeys(header) if name], problems)


def read_parquet(path: Path, *, file: str, columns: Iterable[str] = ()) -> RawTable:
    """Return the rows of a Parquet file, read by `datasets`.

    Raises:
        DataError: It is not a Parquet file.
    """
    import datasets

    try:
        # `datasets` keeps what it reads in a cache; a user's file is already on disk.
        with _quiet_datasets(), tempfile.TemporaryDirectory() as folder:
            dataset = datasets.Dataset.from_parquet(str(path), cache_dir=folder, keep_in_memory=True)
    except (OSError, ValueError, NotImplementedError, datasets.exceptions.DatasetsError) as error:
        # `datasets` wraps what went wrong in an error that says only that something did.
        reason = str(error.__cause__ or error).splitlines()[0].partition(". ")[0]
        raise DataError(
            f"`{file}` is not a readable Parquet file ({reason}); write it again, or name another."
        ) from error
    return convert_dataset(dataset, file=file, columns=columns)


def load_saved(path: Path, *, file: str, split: str) -> "Dataset":
    """Return the dataset in a folder of `Dataset.save_to_disk`, or this split of a `DatasetDict`'s.

    Raises:
        DataError: The folder is torn, or has no such split.
    """
    import datasets

    try:
        with _quiet_datasets():
            saved = datasets.load_from_disk(path)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        # `datasets` checks nothing of what it finds in the JSON files of such a folder.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"`{file}` cannot be read as a saved dataset ({reason}); save it again.") from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise DataError(
            f"`{file}` has no split `{split}`; it has {', '.join(f'`{name}`' for name in saved)}. "
            "Name one of them as `hub_split`."
        )
    return saved[split]


def convert_dataset(
    dataset: "Dataset", *, file: str, columns: Iterable[str] = (), limit: int | None = None
) -> RawTable:
    """Return the rows of a dataset, only the first `limit`; only these columns, so that no images are decoded."""
    names = list(dataset.column_names)
    used = [name for name in names if name in set(columns)] if columns else names
    shown = dataset.select_columns(used)
    if limit is not None:
        shown = shown.take(min(limit, len(shown)))
    return RawTable(file, [RawRow(f"row {number}", row) for number, row in enumerate(shown.to_list())], names, [])


def _decode(content: bytes, file: str) -> tuple[list[str], list[Problem]]:
    """Return the lines of UTF-8 bytes (a mark at their start is left out) and a problem for each that is not UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or content[:2].count(0) == 1:
        raise DataError(f"`{file}` is not UTF-8 text but looks like UTF-16; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig").split("\n"), []
    except UnicodeDecodeError:
        pass
    mark = b"\xef\xbb\xbf" if content.startswith(b"\xef\xbb\xbf") else b""
    lines, problems, start = [], [], len(mark)
    for number, line in enumerate(content.removeprefix(mark).split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            # Only to find the other problems of the line; unlike replacement characters it keeps texts apart.
            lines.append(line.decode("latin-1"))
            position = start + error.start
            problem = f"is not UTF-8 (byte 0x{content[position]:02x} at position {position:,} of the file)"
            problems.append(Problem(file, f"line {number}", None, problem, "save the file as UTF-8"))
        start += len(line) + 1
    return lines, problems


class _RepeatedKeys(dict[str, Any]):
    """An object that names a key more than once, which JSON would settle by silently dropping a value."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _RepeatedKeys(pairs)


def _parse_integer(digits: str) -> int | float:
    # Python refuses to convert more digits than this in one go; such a number is in no field of ours.
    return int(digits) if len(digits) <= 4000 else float(digits)


_loads = json.JSONDecoder(object_pairs_hook=_build_object, parse_int=_parse_integer).decode


def collect_rows(file: str, values: Iterable[tuple[str, Any]], problems: list[Problem]) -> RawTable:
    """Return the values that are objects as rows, and the others as problems."""
    rows: list[RawRow] = []
    columns: dict[str, None] = {}
    for where, value in values:
        if not isinstance(value, dict):
            problem = f"is {describe_type(value)}, not an object"
            problems.append(Problem(file, where, None, problem, 'a row is {"instruction": …, "input": …, "output": …}'))
        elif isinstance(value, _RepeatedKeys):
            problems.append(Problem(file, where, None, "names a key more than once", "keep one value for each key"))
        else:
            rows.append(RawRow(where, value))
            columns.update(dict.fromkeys(value))
    return RawTable(file, rows, list(columns), problems)


def _is_json_list(text: str) -> bool:
    try:
        return isinstance(_loads(text), list)
    except (json.JSONDecodeError, RecursionError):
        return False


def _reason(error: json.JSONDecodeError) -> str:
    # The position follows, so the message need not end in "at".
    return (error.msg[0].lower() + error.msg[1:]).removesuffix(" at").removesuffix(" starting")


def _advise_on_json(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data":
        with contextlib.suppress(json.JSONDecodeError, RecursionError):
            if isinstance(_loads(text.lstrip().split("\n", 1)[0]), dict):
                return "it looks like JSON Lines: rename it to end in `.jsonl`"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "the file seems to be cut off: copy or download it again"
    return "fix the text there"


def _iterate_csv(reader: Any, file: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its first line; a row that cannot be parsed becomes a problem."""
    # The limit is the module's, not the reader's, and by default below the length of a long document.
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


def _find_other_separator(header: list[str]) -> str | None:
    separators = ((";", "semicolons"), ("\t", "tabs"))
    return next((name for mark, name in separators if len(header) == 1 and mark in header[0]), None)


def _find_header_problems(header: list[str], number: int, file: str) -> list[Problem]:
    repeated = dict.fromkeys(name for name in header if name and header.count(name) > 1)
    remedy = "give each column its own name"
    return [
        Problem(file, f"line {number}", None, f"names `{shorten(name)}` more than once", remedy) for name in repeated
    ]


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep `datasets` from logging an error that we raise, and from showing a bar for a local file."""
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
