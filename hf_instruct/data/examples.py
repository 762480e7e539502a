"""Convert raw rows to a `Dataset` of examples, list all problems of the rows, and find repeated prompts."""

import hashlib
import itertools
import logging
import re
import secrets
import time
import types
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

from hf_instruct.data.formats import PROMPT_TURNS, choose_fields, convert_row, describe_unused
from hf_instruct.data.problems import Problem, RawRow, raise_problems, shorten_text
from hf_instruct.records import Example, build_example_id

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

# Number of rows that are converted together; the columns are taken from the first batch.
BATCH = 10_000
_SECONDS_BETWEEN_LINES = 20.0


class CheckedData(NamedTuple):
    """The result of reading a source."""

    examples: "Dataset"  # the valid ones, with their location in a column `row`, as in `Problem.row`
    problems: list[Problem]  # of invalid rows, or of the whole source
    notices: list[str]  # how the source was read, for the user
    num_without_output: int = 0  # rows without an output

    def require_valid(self) -> "Dataset":
        """Log the notices and return the examples, without the column `row`.

        Raises:
            DataError: There are problems; all of them are listed.
        """
        raise_problems(self.problems)
        for notice in self.notices:
            logger.info("%s", notice)
        return self.examples.remove_columns("row")


def build_examples(
    rows: Iterable[RawRow],
    *,
    file: str,
    problems: list[Problem] | None = None,
    map: Mapping[str, str] | None = None,
    columns: Iterable[str] = (),
    drop_without_output: bool = False,
) -> CheckedData:
    """Return the examples in raw rows, and all problems of these rows. Texts are unchanged.

    Args:
        rows: The rows, as an iterator, so that large files are never fully in memory.
        file: The source as the user named it.
        problems: List to which the reader adds problems while rows are read.
        map: Our field = the source's column, for columns that have other names.
        columns: All columns of the source, if its rows only contain some of them.
        drop_without_output: Leave out rows without an output and add a notice, for sources known to have such rows.
    """
    problems, map = [] if problems is None else problems, map or {}
    chunks = _chunk(iter(rows), file)
    first = next(chunks, [])
    seen = dict.fromkeys(columns or (name for row in first for name in row.fields))
    fields, notices = choose_fields(list(seen), map, file=file, problems=problems)
    batches, own_ids, num_without_output = [], [], 0
    for chunk in itertools.chain([first], chunks):
        usable = []
        for row in chunk:
            seen.update(dict.fromkeys(row.fields))
            if not fields:
                continue
            output = row.fields.get(fields.get("output", ""), "x")
            if output is None or (isinstance(output, str) and not output.strip()):
                num_without_output += 1
                if drop_without_output:
                    continue
            values, found = convert_row(row.fields, fields)
            problems += [Problem(file, row.where, shorten_text(field), what, remedy) for field, what, remedy in found]
            if not found:
                usable.append({**values, "row": row.where})
                if "id" in fields:
                    own_ids.append(_read_id(row.fields.get(fields["id"])))
        batches.append(_build_batch(usable))
    if not problems and not (first and seen):
        what = "has no column in any row" if first else "contains no rows"
        problems.append(Problem(file, None, None, what, "add rows, or use another source"))
    problems.sort(key=_row_number)
    notices += describe_unused(seen, fields, file) if fields else []
    if drop_without_output and num_without_output:
        notices.append(f"`{file}`: {num_without_output:,} rows without an output are left out.")
    id_problem = _check_ids(own_ids)
    if id_problem and "id" in map:
        remedy = "map another column, or leave `id` out of the map to generate ids from the text"
        problems.append(Problem(file, None, fields["id"], id_problem, remedy))
    elif id_problem:
        notices.append(f"`{file}`: column `{fields['id']}` {id_problem}; using ids generated from the text instead.")
    return CheckedData(
        _concatenate(batches, None if id_problem else own_ids or None), problems, notices, num_without_output
    )


def _chunk(rows: Iterator[RawRow], file: str) -> Iterator[list[RawRow]]:
    """Yield rows in lists, and log the progress at most every 20 seconds."""
    done, last = 0, time.monotonic()
    while chunk := list(itertools.islice(rows, BATCH)):
        yield chunk
        done += len(chunk)
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info("%s: %s rows read", file, f"{done:,}")


def _read_id(value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None


def _check_ids(ids: Sequence[str | None]) -> str | None:
    """Return why the rows' own ids cannot be used, or None if they can."""
    nameless, distinct = ids.count(None), len(set(ids) - {None})
    if distinct == len(ids):
        return None
    return f"is not a unique id ({nameless:,} missing, {len(ids) - nameless - distinct:,} repeated)"


def _build_batch(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return rows as an Arrow batch with ids generated from their texts in the column `id`."""
    import pyarrow
    from datasets import Features, Value

    schema = Features({**build_features(Example), "row": Value("string")}).arrow_schema
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    return pyarrow.RecordBatch.from_pydict({**columns, "id": list(map(_build_id, rows))}, schema=schema)


def build_features(row_type: type) -> "Features":
    """Return the column types of a type of rows; they are needed for columns that are null in every row."""
    from datasets import Features, List, Value

    names = {str: "string", bool: "bool", int: "int64", float: "float64"}

    def convert(hint: Any) -> Any:
        if get_origin(hint) in (types.UnionType, typing.Union):
            return convert(next(part for part in get_args(hint) if part is not type(None)))
        if get_origin(hint) is dict:
            return {"role": Value("string"), "content": Value("string")}
        return List(convert(get_args(hint)[0])) if get_origin(hint) is list else Value(names[hint])

    return Features({name: convert(hint) for name, hint in get_type_hints(row_type).items()})


def _build_id(values: Mapping[str, Any]) -> str:
    if turns := values.get("messages"):
        return build_example_id(*(f"{turn['role']}\0{turn['content']}" for turn in turns))
    return build_example_id(values["instruction"], values["input"], values["output"])


def _concatenate(batches: Sequence[Any], ids: Sequence[str | None] | None) -> "Dataset":
    """Return batches as one `Dataset`."""
    import pyarrow
    from datasets import Dataset

    table = pyarrow.Table.from_batches(batches).replace_schema_metadata()
    chosen = table["id"] if ids is None else pyarrow.array(ids, pyarrow.string())
    if ids is None and len(chosen.unique()) < len(chosen):
        chosen = pyarrow.array(number_repeats(chosen.to_pylist()), pyarrow.string())
    return Dataset(drop_unused(table.set_column(0, "id", chosen)), fingerprint=new_fingerprint())


def drop_unused(table: Any) -> Any:
    """Return an Arrow table of examples without the columns of prompts and conversations if no row has one."""
    empty = [name for name in ("prompt", "messages", PROMPT_TURNS) if table[name].null_count == len(table)]
    return table.drop_columns(empty)


def number_repeats(ids: Iterable[str]) -> list[str]:
    """Make ids unique: the second of two equal ids gets the suffix `-2`.

    >>> number_repeats(["a", "b", "a"])
    ['a', 'b', 'a-2']
    """
    seen: Counter[str] = Counter()
    numbered = []
    for id in ids:
        seen[id] += 1
        numbered.append(id if seen[id] == 1 else f"{id}-{seen[id]}")
    return numbered


def new_fingerprint() -> str:
    """Return a random fingerprint for a new `Dataset`; `datasets` would copy all rows to compute one."""
    return secrets.token_hex(8)


def has_conversations(*datasets: "Dataset") -> bool:
    """Return whether some of the examples are conversations."""
    held = [examples.select_columns("messages") for examples in datasets if "messages" in examples.column_names]
    return any(messages for examples in held for batch in examples.iter(BATCH) for messages in batch["messages"])


def hash_prompts(examples: "Dataset") -> "np.ndarray[Any, Any]":
    """Return a 16-byte hash of each example's prompt."""
    names = [name for name in ("instruction", "input", "messages") if name in examples.column_names]

    def iterate() -> Iterator[bytes]:
        for batch in examples.select_columns(names).iter(BATCH):
            turns = batch.get("messages") or [None] * len(batch["instruction"])
            for instruction, input, messages in zip(batch["instruction"], batch["input"], turns, strict=True):
                asked = [text for turn in messages[:-1] for text in turn.values()] if messages else None
                yield _hash(asked or (instruction, input))

    return _collect(iterate(), len(examples))


def hash_texts(examples: "Dataset", name: str) -> "np.ndarray[Any, Any]":
    """Return a 16-byte hash of each text in a column."""
    batches = examples.select_columns(name).iter(BATCH)
    return _collect((_hash([text]) for batch in batches for text in batch[name]), len(examples))


def _hash(texts: Iterable[str]) -> bytes:
    return hashlib.sha256("\0".join(texts).encode("utf-8")).digest()[:16]


def _collect(hashes: Iterator[bytes], count: int) -> "np.ndarray[Any, Any]":
    import numpy as np

    return np.fromiter(hashes, dtype="S16", count=count)


def find_repeats(examples: "Dataset") -> list[list[int]]:
    """Return, for each repeated prompt, the indices of its examples."""
    import numpy as np

    _, groups, counts = np.unique(hash_prompts(examples), return_inverse=True, return_counts=True)
    found: dict[int, list[int]] = {}
    for index in np.flatnonzero(counts[groups] > 1).tolist():
        found.setdefault(int(groups[index]), []).append(index)
    return list(found.values())


def _row_number(problem: Problem) -> int:
    number = re.search(r"\d+", problem.row or "")
    return int(number.group()) if number else -1
