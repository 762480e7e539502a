"""What can be wrong with rows, found all at once: raw rows in, examples and problems out, no I/O."""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.errors import DataError
from hf_instruct.records import Example, build_example_id

if TYPE_CHECKING:
    from hf_instruct.data.tokens import TokenCounter

FIELDS = ("instruction", "input", "output", "category", "id")
REQUIRED = ("instruction", "output")
MOST_PRINTED = 50

# What other programs call a column of turns, whose values no `map` makes texts of.
_CONVERSATIONS = ("messages", "conversations", "conversation")
_MISSING = object()


class Problem(NamedTuple):
    """One thing wrong with the data, and how to fix it.

    Attributes:
        file: The source as the user named it.
        row: Where in it: `line 4` (counted from 1) of JSON Lines or CSV, `row 3` (counted from 0, as `data show`
            counts) of a list or table; None for the file as a whole.
        field: The column, by the source's name; None for the row as a whole.
        what: What is wrong, with the value seen.
        remedy: What to do.
    """

    file: str
    row: str | None
    field: str | None
    what: str
    remedy: str

    def __str__(self) -> str:
        where = f"`{self.file}`{f' {self.row}' if self.row else ''}{f', `{self.field}`' if self.field else ''}"
        return f"{where} {self.what}; {self.remedy}"


class RawRow(NamedTuple):
    """One row as it was read: where it stands, as `Problem.row` says it, and its columns."""

    where: str
    fields: Mapping[str, Any]


class RawTable(NamedTuple):
    """All rows of a source as they were read, and what could not be read.

    Attributes:
        file: The source as the user named it.
        rows: The rows that could be read, in order.
        columns: Every column name seen, in order of appearance.
        problems: What could not be read.
    """

    file: str
    rows: list[RawRow]
    columns: list[str]
    problems: list[Problem]


class CheckedData(NamedTuple):
    """What came of reading a source.

    Attributes:
        examples: The usable examples.
        rows: Where each of them stands, as `Problem.row` says it.
        problems: What is wrong with the other rows, or with the source as a whole.
        notices: What a user may want to know about how it was read.
        num_without_output: Rows that are no example, for want of an output.
    """

    examples: list[Example]
    rows: list[str]
    problems: list[Problem]
    notices: list[str]
    num_without_output: int = 0


def build_examples(
    table: RawTable, *, map: Mapping[str, str] | None = None, drop_without_output: bool = False
) -> CheckedData:
    """Return the examples in raw rows, and every problem of those rows.

    `input`, `category` and `id` are optional; a null or absent `input` is an empty one. Texts are kept as they are.

    Args:
        table: The rows.
        map: Our field = the source's column, for columns that have other names.
        drop_without_output: Leave rows without an output out, with a notice, for a source that is known to have some.
    """
    map = map or {}
    columns = choose_columns(map)
    column_problems = _find_column_problems(table, columns, required={*REQUIRED, *map})
    problems = [*table.problems, *column_problems]
    if not problems and not (table.rows and table.columns):
        what = "names no column in any row" if table.rows else "holds no rows"
        problems.append(Problem(table.file, None, None, what, "add rows, or name another source"))
    present = {ours: theirs for ours, theirs in columns.items() if theirs in table.columns}
    with_output = [row for row in table.rows if not _is_blank(row.fields.get(columns["output"]))]
    rows = with_output if drop_without_output else table.rows
    drafts: list[dict[str, Any]] = []
    used = []
    for row in rows:
        found = _find_row_problems(table.file, row, present)
        problems += found
        if not found:
            drafts.append({ours: row.fields.get(theirs) for ours, theirs in present.items()})
            used.append(row.where)
    problems.sort(key=_row_number)
    # Where a column is missing, the problems list what columns there are.
    notices = [] if column_problems else _find_notices(table, columns)
    if len(rows) < len(table.rows):
        notices.append(f"`{table.file}`: {len(table.rows) - len(rows):,} rows without an output are left out.")
    if not set(REQUIRED) <= set(present):
        return CheckedData([], [], problems, notices)
    ids, id_problem = _choose_ids(drafts)
    if id_problem and "id" in map:
        remedy = "map another column, or leave `id` out of the map: ids are then made from the text"
        problems.append(Problem(table.file, None, columns["id"], id_problem, remedy))
    elif id_problem:
        notices.append(f"`{table.file}`: column `{columns['id']}` {id_problem}; ids are made from the text instead.")
    examples = [
        Example(id, draft["instruction"], draft.get("input") or "", draft["output"], _read_category(draft))
        for draft, id in zip(drafts, ids, strict=True)
    ]
    return CheckedData(examples, used, problems, notices, len(table.rows) - len(with_output))


def choose_columns(map: Mapping[str, str]) -> dict[str, str]:
    """Return the source's column for each of our fields; an optional field whose column another one takes has none.

    Raises:
        DataError: Two fields would be read from one column, or a required one from none.

    >>> choose_columns({"instruction": "input", "output": "answer"})
    {'instruction': 'input', 'output': 'answer', 'category': 'category', 'id': 'id'}
    """
    for ours, theirs in map.items():
        others = [other for other in FIELDS if other != ours and map.get(other, other) == theirs]
        if taken := [other for other in others if other in map or other in REQUIRED]:
            raise DataError(
                f"`map` reads both `{ours}` and `{taken[0]}` from the column `{shorten(theirs)}`; each needs a column "
                f"of its own, as in `{taken[0]}=another column`."
            )
    return {ours: map.get(ours, ours) for ours in FIELDS if ours in map or ours not in map.values()}


def check_examples(
    examples: Sequence[Example],
    *,
    file: str,
    rows: Sequence[str] | None = None,
    counter: "TokenCounter | None" = None,
) -> list[Problem]:
    """Return warnings about examples that can be used but may not be what the user means.

    They are: equal instruction + input pairs, one warning for each such pair, rows that training would cut off, and
    rows whose text contains a special token.

    Args:
        examples: The examples, in the source's order.
        file: The source as the user named it.
        rows: Where each example stands in it; `row 0` and so on by default.
        counter: Counts tokens as training will; without it there are no warnings about tokens.
    """
    rows = rows or [f"row {number}" for number in range(len(examples))]
    warnings = []
    for numbers in group_by_prompt(examples).values():
        if len(numbers) > 1:
            first, *others = numbers
            equal = "and output" if len({examples[number].output for number in numbers}) == 1 else "but not output"
            what = f"has the same instruction and input ({equal}) as {_enumerate([rows[n] for n in others])}"
            remedy = "keep one, or choose the split `grouped`, which keeps them together"
            warnings.append(Problem(file, rows[first], None, what, remedy))
    if counter is None:
        return warnings
    for row, example in zip(rows, examples, strict=True):
        limit = counter.max_length
        if limit is not None and (length := counter.count(example).length) > limit:
            what = f"has {length:,} tokens, more than `max_length` {limit:,}"
            remedy = "shorten it or raise `max_length`, else training cuts its end off"
            warnings.append(Problem(file, row, None, what, remedy))
        if found := counter.find_special_tokens(example):
            what = f"contains {_list_names(found)}, a special token of `{counter.model}`"
            remedy = "delete it if another program left it there; kept, it is trained on and answered as plain text"
            warnings.append(Problem(file, row, None, what, remedy))
    return warnings


def group_by_prompt(examples: Iterable[Example]) -> dict[tuple[str, str], list[int]]:
    """Return, for each pair of instruction and input, the indices of its examples."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.instruction, example.input].append(index)
    return dict(groups)


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error with all problems of a source, at most 50 of them printed; do nothing where there are none.

    Raises:
        DataError: There are problems.
    """
    if problems:
        raise DataError.listing([str(problem) for problem in problems], f"in `{problems[0].file}`", most=MOST_PRINTED)


def describe_nearest(name: str, names: Iterable[str]) -> str:
    """Return names as a list for a message, those most like `name` first.

    >>> describe_nearest("output", ["question", "outputs"])
    '`outputs`, `question`'
    """

    def unlikeness(other: str) -> float:
        return -difflib.SequenceMatcher(None, other.lower()[:100], name.lower()).ratio()

    return _list_names(sorted(names, key=unlikeness))


def _list_names(names: Sequence[str]) -> str:
    """Return column names for a message, a dozen at most."""
    more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return ", ".join(f"`{shorten(name)}`" for name in names[:12]) + more


def shorten(text: str, length: int = 40) -> str:
    """Return a text fit for one line of a message: control characters and lone surrogates escaped, the rest cut.

    >>> shorten("two\\nlines")
    'two\\\\nlines'
    """
    visible = text if text.isprintable() else repr(text[: length + 1])[1:-1]
    return visible if len(visible) <= length else visible[: length - 1] + "…"


def _find_column_problems(table: RawTable, columns: Mapping[str, str], required: Iterable[str]) -> list[Problem]:
    """Return a problem for each column that has to be there and is on no row, instead of one for each row."""
    missing = [ours for ours in sorted(required, key=FIELDS.index) if columns[ours] not in table.columns]
    if not table.columns or not missing:
        return []
    is_mapped = any(ours != theirs for ours, theirs in columns.items())
    if not is_mapped and (conversations := [name for name in _CONVERSATIONS if name in table.columns]):
        remedy = 'write each question and its answer as a row {"instruction": …, "output": …}, or map columns of texts'
        return [Problem(table.file, None, conversations[0], "holds conversations, which are not read yet", remedy)]
    header = " (a CSV's first line names them)" if table.file.lower().endswith(".csv") else ""
    problems = []
    for ours in missing:
        nearest = describe_nearest(columns[ours], table.columns)
        remedy = f"the columns are {nearest}{header}: name the right one with `--map {ours}=COLUMN`"
        problems.append(Problem(table.file, None, shorten(columns[ours]), "is not a column", remedy))
    return problems


def _find_row_problems(file: str, row: RawRow, present: Mapping[str, str]) -> list[Problem]:
    return [
        Problem(file, row.where, shorten(theirs), *found)
        for ours, theirs in present.items()
        if ours != "id" and (found := _find_value_problem(ours, row.fields.get(theirs, _MISSING)))
    ]


def _find_value_problem(ours: str, value: Any) -> tuple[str, str] | None:
    """Return what is wrong with a value and its remedy, or None."""
    if isinstance(value, str):
        if (index := value.find("\0")) >= 0:
            return f"has a NUL character at position {index}", "delete that character"
        if not _is_unicode(value):
            return "has half of a surrogate pair, which no UTF-8 file can hold", "replace it by the whole character"
        if ours in REQUIRED and not value.strip():
            return "is empty", f"write the {ours}, or delete the row"
        return None
    if ours not in REQUIRED and (value is None or value is _MISSING):
        return None
    if value is _MISSING:
        return "is missing", "add it, or delete the row"
    if value is None:
        return "is null", f"write the {ours}, or delete the row"
    if ours == "category" and type(value) is int:
        return None
    return f"is {describe_type(value)}, not text", "write it as one text"


def describe_type(value: Any) -> str:
    """Return what a value is, in JSON's words, with the value where it is short.

    >>> describe_type(42), describe_type({"a": 1}), describe_type(True)
    ('a number (42)', 'an object', 'a boolean (true)')
    """
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({shorten(str(value))})"
    if isinstance(value, str):
        return f'text ("{shorten(value)}")'
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) and not isinstance(value, bytes) else f"a {type(value).__name__}"


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _row_number(problem: Problem) -> int:
    number = re.search(r"\d+", problem.row or "")
    return int(number.group()) if number else -1


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _find_notices(table: RawTable, columns: Mapping[str, str]) -> list[str]:
    unused = [name for name in table.columns if name not in columns.values()]
    if not unused:
        return []
    notice = f"`{table.file}`: columns not used: {_list_names(unused)}."
    if columns.get("input") not in table.columns and (
        near := difflib.get_close_matches("input", unused, n=1, cutoff=0.7)
    ):
        notice += f" If `{near[0]}` is the input, add `--map input={near[0]}`."
    return [notice]


def _choose_ids(drafts: Sequence[Mapping[str, Any]]) -> tuple[list[str], str | None]:
    """Return an id for every row, and why the rows' own ids do not serve, where they have some that do not."""
    own = [_read_id(draft.get("id")) for draft in drafts]
    nameless, distinct = own.count(None), len({id for id in own if id is not None})
    if drafts and not nameless and distinct == len(own):
        return [id for id in own if id is not None], None
    problem = None
    if any("id" in draft for draft in drafts):
        repeats = len(own) - nameless - distinct
        problem = f"is no id of its own on every row ({nameless:,} without, {repeats:,} repeated)"
    seen: Counter[str] = Counter()
    ids = []
    for draft in drafts:
        id = build_example_id(draft["instruction"], draft.get("input") or "", draft["output"])
        seen[id] += 1
        ids.append(id if seen[id] == 1 else f"{id}-{seen[id]}")
    return ids, problem


def _read_id(value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None


def _read_category(draft: Mapping[str, Any]) -> str | None:
    category = draft.get("category")
    return None if category is None or category == "" else str(category)


def _enumerate(rows: Sequence[str]) -> str:
    if len(rows) > 10:
        return f"{', '.join(rows[:10])} and {len(rows) - 10:,} more"
    return " and ".join(part for part in (", ".join(rows[:-1]), rows[-1]) if part)
