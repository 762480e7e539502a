"""From raw rows to a `Dataset` of examples: which formats there are, and every problem of the rows."""

import hashlib
import itertools
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_instruct.errors import DataError, did_you_mean, quote_names
from hf_instruct.records import build_example_id

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FIELDS = ("instruction", "input", "output", "category", "id", "prompt", "messages")
MOST_PRINTED = 50
# Rows that are converted at once; which columns there are is read off the first so many.
BATCH = 10_000
# Columns that hold a list of turns.
CONVERSATIONS = ("messages", "conversations", "conversation")

_MISSING = object()
_SECONDS_BETWEEN_LINES = 20.0


class Format(NamedTuple):
    """One way to write examples, and how its columns become ours.

    Attributes:
        name: What messages call it.
        fields: Our field = its column.
        optional: Those of our fields that a row may lack.
    """

    name: str
    fields: Mapping[str, str]
    optional: tuple[str, ...] = ("input",)


# The order is that of preference where the columns of the first format are all there: its names are our own.
FORMATS = (
    Format("instruction, input and output", {"instruction": "instruction", "input": "input", "output": "output"}),
    Format("messages", {"messages": "messages"}),
    Format("ShareGPT's conversations", {"messages": "conversations"}),
    Format("prompt and completion", {"prompt": "prompt", "output": "completion"}),
    # Source: https://huggingface.co/datasets/databricks/databricks-dolly-15k
    Format("Dolly's rows", {"instruction": "instruction", "input": "context", "output": "response"}),
    Format("questions and answers", {"instruction": "question", "input": "context", "output": "answer"}),
)
# ShareGPT's roles, and what else they are called.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "model": "assistant"}


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
    """One row as it was read: where it is, as `Problem.row` says it, and its columns."""

    where: str
    fields: Mapping[str, Any]


class CheckedData(NamedTuple):
    """What came of reading a source.

    Attributes:
        examples: The usable examples; beside their own columns `row` says where each is, as `Problem.row` does.
        problems: What is wrong with the other rows, or with the source as a whole.
        notices: What a user may want to know about how it was read.
        num_without_output: Rows that are no example, for want of an output.
    """

    examples: "Dataset"
    problems: list[Problem]
    notices: list[str]
    num_without_output: int = 0


def build_examples(
    rows: Iterable[RawRow],
    *,
    file: str,
    problems: list[Problem] | None = None,
    map: Mapping[str, str] | None = None,
    columns: Iterable[str] | None = None,
    fields: Mapping[str, str] | None = None,
    drop_without_output: bool = False,
) -> CheckedData:
    """Return the examples in raw rows, and every problem of those rows.

    Texts are kept as they are. `input`, `category` and `id` are optional; a null or absent `input` is an empty one.

    Args:
        rows: The rows; those of a large file are never all held.
        file: The source as the user named it.
        problems: What the reader adds to while rows are read.
        map: Our field = the source's column, for columns that have other names.
        columns: All columns of the source, where its rows hold only some of them.
        fields: What `choose_fields` returns, where that is known.
        drop_without_output: Leave rows without an output out, with a notice, for a source that is known to have some.
    """
    problems = [] if problems is None else problems
    chunks = _chunk(iter(rows), file)
    first = next(chunks, [])
    seen = dict.fromkeys(columns or (name for row in first for name in row.fields))
    notices: list[str] = []
    if fields is None:
        fields, notices = choose_fields(list(seen), map or {}, file=file, problems=problems)
    drafts = _Drafts(fields)
    num_without_output = 0
    for chunk in itertools.chain([first], chunks):
        for row in chunk:
            seen.update(dict.fromkeys(row.fields))
            if not fields:
                continue
            if _is_blank(row.fields.get(fields.get("output", ""), "x")):
                num_without_output += 1
                if drop_without_output:
                    continue
            values, found = _convert(row, fields)
            problems += [Problem(file, row.where, shorten(field), what, remedy) for field, what, remedy in found]
            if not found:
                drafts.add(values, row)
        drafts.flush()
    if not problems and not seen:
        what = "names no column in any row" if first else "holds no rows"
        problems.append(Problem(file, None, None, what, "add rows, or name another source"))
    problems.sort(key=_row_number)
    if fields:
        notices += _find_unused(seen, fields, file)
    if drop_without_output and num_without_output:
        notices.append(f"`{file}`: {num_without_output:,} rows without an output are left out.")
    examples, id_problem = drafts.build()
    if id_problem and "id" in (map or {}):
        remedy = "map another column, or leave `id` out of the map: ids are then made from the text"
        problems.append(Problem(file, None, fields["id"], id_problem, remedy))
    elif id_problem:
        notices.append(f"`{file}`: column `{fields['id']}` {id_problem}; ids are made from the text instead.")
    return CheckedData(examples, problems, notices, num_without_output)


def _chunk(rows: Iterator[RawRow], file: str) -> Iterator[list[RawRow]]:
    """Yield rows in lists, with a line in the log now and then where there are very many."""
    done, last = 0, time.monotonic()
    while chunk := list(itertools.islice(rows, BATCH)):
        yield chunk
        done += len(chunk)
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info("%s: %s rows read", file, f"{done:,}")


def choose_fields(
    columns: Sequence[str], map: Mapping[str, str], *, file: str, problems: list[Problem]
) -> tuple[dict[str, str], list[str]]:
    """Return the source's column for each of our fields that has one, and what to tell the user about it.

    Where no format fits, or several do, there are none, and the reason is added to the problems.

    Raises:
        DataError: Two fields are mapped to one column, or a required one to a column that another has.

    >>> choose_fields(["Question", "answer", "id"], {}, file="f.csv", problems=[])[0]
    {'instruction': 'Question', 'output': 'answer', 'id': 'id'}
    """
    formats = [one for one in FORMATS if map.keys() <= {*one.fields, "input", "category", "id"}]
    if not formats:
        raise DataError(
            f"`map` names {quote_names(map)}, and no format of rows has all of these. Map `instruction`, `output` and, "
            "where there is one, `input`; or `prompt` and `output`; or `messages`."
        )
    _refuse_shared_columns(formats[0], map)
    if not columns:
        return {}, []
    if not map and {*FIELDS[:5]} <= {*columns} and {*FIELDS[5:]} & {*columns}:
        # Such a `Dataset` is one of our own.
        return {ours: ours for ours in FIELDS if ours in columns}, []
    found = [(one, _find_fields(one, columns, map)) for one in formats]
    whole = [(one, fields) for one, fields in found if _required(one) <= fields.keys()]
    fitting = {tuple(fields[ours] for ours in _required_in_order(one)): (one, fields) for one, fields in whole[::-1]}
    if not fitting:
        problems += _describe_missing(found, columns, map, file)
        return {}, []
    if len(fitting) > 1 and whole[0][0] is not FORMATS[0]:
        ways = " or ".join(f"`--map {_write_map(fields)}` ({one.name})" for one, fields in reversed(fitting.values()))
        problems.append(Problem(file, None, None, "has the columns of several formats", f"choose one by {ways}"))
        return {}, []
    one, fields = whole[0]
    read = {ours: theirs for ours, theirs in fields.items() if ours not in ("category", "id")}
    if map or (one is FORMATS[0] and all(ours == theirs for ours, theirs in read.items())):
        return fields, []
    parts = ", ".join(f"`{shorten(theirs)}` as {ours}" for ours, theirs in read.items())
    return fields, [f"`{file}` holds {one.name}: {parts}."]


def _required(one: Format) -> set[str]:
    return set(one.fields) - set(one.optional)


def _required_in_order(one: Format) -> list[str]:
    return [ours for ours in one.fields if ours not in one.optional]


def _find_fields(one: Format, columns: Sequence[str], map: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of a format that are there; those that are not mapped may differ in case."""
    fields = {}
    for ours, usual in {**one.fields, "category": "category", "id": "id"}.items():
        theirs = map.get(ours, usual)
        if ours in map or theirs in columns:
            names = [theirs] * (theirs in columns)
        else:
            names = [name for name in columns if name.strip().lower() == theirs]
        if len(names) == 1 and (ours in map or names[0] not in map.values()):
            fields[ours] = names[0]
    return fields


def _refuse_shared_columns(one: Format, map: Mapping[str, str]) -> None:
    for ours, theirs in map.items():
        usual = {other: map.get(other, name) for other, name in one.fields.items()} | dict(map)
        others = [other for other, name in usual.items() if other != ours and name == theirs]
        if taken := [other for other in others if other in map or other in _required(one)]:
            raise DataError(
                f"`map` reads both `{ours}` and `{taken[0]}` from the column `{shorten(theirs)}`; each needs a column "
                f"of its own, as in `{taken[0]}=another column`."
            )


def _write_map(fields: Mapping[str, str]) -> str:
    return ",".join(f"{ours}={theirs}" for ours, theirs in fields.items() if ours not in ("category", "id"))


def _describe_missing(
    found: Sequence[tuple[Format, Mapping[str, str]]], columns: Sequence[str], map: Mapping[str, str], file: str
) -> list[Problem]:
    """Return a problem for each column that the likeliest format lacks."""
    one, fields = max(found, key=lambda pair: len(_required(pair[0]) & pair[1].keys()))
    free = [name for name in columns if name not in fields.values()]
    header = " (a CSV's first line names them)" if ".csv" in file.lower() else ""
    missing = [ours for ours in (*_required_in_order(one), *map) if ours not in fields]
    problems = []
    for ours in dict.fromkeys(missing):
        theirs = map.get(ours, one.fields.get(ours, ours))
        guess = free[0] if len(free) == len(missing) == 1 else "COLUMN"
        near = did_you_mean(theirs, free) and f".{did_you_mean(theirs, free)}"
        problems.append(
            Problem(
                file,
                None,
                shorten(theirs),
                "is not a column",
                f"the columns are {list_names(columns)}{header}: name the right one with `--map {ours}={guess}`{near}",
            )
        )
    return problems


def _find_unused(columns: Iterable[str], fields: Mapping[str, str], file: str) -> list[str]:
    unused = [name for name in columns if name not in fields.values()]
    if not unused:
        return []
    notice = f"`{file}`: columns not used: {list_names(unused)}."
    near = did_you_mean("input", unused, cutoff=0.7) if "instruction" in fields and "input" not in fields else ""
    return [f"{notice} No column is `input`.{near} Add it by `--map input=COLUMN`." if near else notice]


class _Drafts:
    """Rows on their way into a `Dataset`, whose columns are those that a format fills."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.names = ["instruction", "input", "output", "category"]
        # Which of the two a prompt and its completion are, only the rows tell.
        self.names += [name for name in ("prompt", "messages") if "prompt" in fields or name in fields]
        self.has_ids = "id" in fields
        self.id_column = fields.get("id", "")
        self.rows: list[dict[str, Any]] = []
        self.batches: list[Any] = []
        self.own_ids: list[str | None] = []
        self.ids: list[str] = []

    def add(self, values: dict[str, Any], row: RawRow) -> None:
        self.rows.append({**values, "row": row.where})
        self.own_ids.append(_read_id(row.fields.get(self.id_column)) if self.has_ids else None)
        self.ids.append(build_row_id(values))

    def flush(self) -> None:
        import pyarrow

        schema = build_features([*self.names, "row"]).arrow_schema
        columns = {name: [row.get(name) for row in self.rows] for name in schema.names}
        self.batches.append(pyarrow.RecordBatch.from_pydict(columns, schema=schema))
        self.rows = []

    def build(self) -> "tuple[Dataset, str | None]":
        """Return the rows with their ids, and why the rows' own ids do not serve, where they have some that do not."""
        import pyarrow
        from datasets import Dataset

        nameless, distinct = self.own_ids.count(None), len({id for id in self.own_ids if id is not None})
        problem = None
        ids: Sequence[str | None] = self.own_ids
        if nameless or distinct < len(self.own_ids) or not self.own_ids:
            ids = number_repeats(self.ids)
            if self.has_ids and self.own_ids:
                repeats = len(self.own_ids) - nameless - distinct
                problem = f"is no id of its own on every row ({nameless:,} without, {repeats:,} repeated)"
        table = pyarrow.Table.from_batches(self.batches).replace_schema_metadata()
        table = table.drop_columns([name for name in self.names[4:] if table[name].null_count == len(table)])
        table = table.add_column(0, "id", pyarrow.array(ids, pyarrow.string()))
        return Dataset(table, fingerprint=new_fingerprint()), problem


def number_repeats(ids: Iterable[str]) -> list[str]:
    """Return ids that differ: the second of two equal ones ends in `-2`.

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
    """Return a name for a new `Dataset`; what `datasets` computes by itself takes a copy of all of its rows."""
    return secrets.token_hex(8)


def build_row_id(values: Mapping[str, Any]) -> str:
    """Return the id of a row that has none of its own."""
    if turns := values.get("messages"):
        return build_example_id(*(f"{turn['role']}\0{turn['content']}" for turn in turns))
    return build_example_id(values["instruction"], values.get("input") or "", values["output"])


def build_features(names: Iterable[str]) -> Any:
    """Return the types of columns: a list of turns, and texts."""
    from datasets import Features, List, Value

    turns = List({"role": Value("string"), "content": Value("string")})
    return Features({name: turns if name == "messages" else Value("string") for name in names})


def _convert(row: RawRow, fields: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Return what a row holds by our names, and for each column that is wrong its name, what is wrong and a remedy."""
    values: dict[str, Any] = {}
    found: list[tuple[str, str, str]] = []
    for ours, theirs in fields.items():
        if ours == "id":
            continue
        value = row.fields.get(theirs, _MISSING)
        if ours in ("prompt", "messages") and "instruction" in fields and (value is None or value is _MISSING):
            continue
        if ours == "messages" or ("prompt" in fields and ours in ("prompt", "output") and isinstance(value, list)):
            value, problem = _convert_turns(value)
        else:
            problem = _find_text_problem(ours, value)
        values[ours] = None if value is _MISSING else value
        if problem:
            found.append((theirs, *problem))
    if not found and "instruction" not in fields:
        theirs = fields.get("messages") or fields["prompt"]
        values, problem = _complete_turns(values)
        if problem:
            found.append((theirs, *problem))
    if not found:
        values["input"] = values.get("input") or ""
        category = values.get("category")
        values["category"] = None if category is None or category == "" else str(category)
    return values, found


def _convert_turns(value: Any) -> tuple[list[dict[str, str]], tuple[str, str] | None]:
    """Return turns with the keys and the roles of chat templates, and what is wrong with them."""
    if value is _MISSING or value is None:
        return [], ("is missing" if value is _MISSING else "is null", "add it, or delete the row")
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [], (f"is {describe_type(value)}, not a list of turns", 'write [{"role": …, "content": …}, …]')
    turns = []
    for number, turn in enumerate(value):
        keys = ("from", "value") if isinstance(turn, Mapping) and "from" in turn else ("role", "content")
        role, content = (turn.get(key) if isinstance(turn, Mapping) else None for key in keys)
        if not isinstance(role, str) or not isinstance(content, str):
            what = f"turn {number} has no text as `{keys[0]}` or `{keys[1]}`"
            return [], (f"is not a conversation: {what}", "write both as texts, or delete the row")
        if problem := _find_text_problem("content", content):
            return [], (f"turn {number} {problem[0]}", problem[1])
        turns.append({"role": _ROLES.get(role.lower(), role.lower()), "content": content})
    return turns, None


def _complete_turns(values: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """Return values with all turns as `messages`, and the last question and answer as `instruction` and `output`."""
    prompt, output = values.get("prompt"), values.get("output")
    if isinstance(prompt, str) and isinstance(output, str):
        return {**values, "instruction": prompt}, None
    if "messages" in values:
        turns = values["messages"]
    else:
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        turns = asked + (output if isinstance(output, list) else [{"role": "assistant", "content": output}])
    if problem := check_messages(turns):
        return values, problem
    category = {"category": values["category"]} if "category" in values else {}
    return {"messages": turns, "instruction": turns[-2]["content"], "output": turns[-1]["content"], **category}, None


def check_messages(turns: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
    """Return what is wrong with a conversation to learn from, naming the turn, and its remedy; None for nothing."""
    remedy = "write turns of `user` and `assistant` by turns, with the answer to learn last, or delete the row"
    start = 1 if turns and turns[0]["role"] == "system" else 0
    for number, turn in enumerate(turns):
        role, due = turn["role"], "user" if (number - start) % 2 == 0 else "assistant"
        if role not in ("system", "user", "assistant"):
            return f"turn {number} has the role `{shorten(role)}`, which is not learned", remedy
        if number >= start and role != due:
            return f"turn {number} is of `{role}` where one of `{due}` is due", remedy
        if not turn["content"].strip():
            return f"turn {number} is empty", remedy
    if len(turns) - start < 2:
        return "holds no question with an answer", remedy
    return None if turns[-1]["role"] == "assistant" else ("ends without an answer", remedy)


def _find_text_problem(ours: str, value: Any) -> tuple[str, str] | None:
    """Return what is wrong with a value and its remedy, or None."""
    is_required = ours not in ("input", "category", "content")
    if isinstance(value, str):
        if (index := value.find("\0")) >= 0:
            return f"has a NUL character at position {index}", "delete that character"
        if not value.isascii() and not _is_unicode(value):
            return "has half of a surrogate pair, which no UTF-8 file can hold", "replace it by the whole character"
        if is_required and not value.strip():
            return "is empty", f"write the {ours}, or delete the row"
        return None
    if not is_required and (value is None or value is _MISSING):
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


def hash_prompts(examples: "Dataset") -> list[bytes]:
    """Return a hash of what each example asks; equal questions have equal ones."""
    names = [name for name in ("instruction", "input", "messages") if name in examples.column_names]
    hashes = []
    for batch in examples.select_columns(names).iter(BATCH):
        turns = batch.get("messages") or [None] * len(batch["instruction"])
        for instruction, input, messages in zip(batch["instruction"], batch["input"], turns, strict=True):
            parts = [part for turn in messages[:-1] for part in turn.values()] if messages else [instruction, input]
            hashes.append(hashlib.sha256("\0".join(parts).encode("utf-8")).digest()[:16])
    return hashes


def group_by_prompt(examples: "Dataset") -> list[list[int]]:
    """Return the indices of the examples that ask the same, for each question, in order of appearance."""
    groups: dict[bytes, list[int]] = {}
    for index, key in enumerate(hash_prompts(examples)):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one error with all problems of a source, at most 50 of them printed; do nothing where there are none.

    Raises:
        DataError: There are problems.
    """
    if problems:
        raise DataError.listing([str(problem) for problem in problems], f"in `{problems[0].file}`", most=MOST_PRINTED)


def list_names(names: Sequence[str]) -> str:
    """Return column names for a message, a dozen at most."""
    more = f" and {len(names) - 12:,} more" if len(names) > 12 else ""
    return quote_names(map(shorten, names[:12])) + more


def shorten(text: str, length: int = 40) -> str:
    """Return a text fit for one line of a message: control characters and lone surrogates escaped, the rest cut.

    >>> shorten("two\\nlines")
    'two\\\\nlines'
    """
    visible = text if text.isprintable() else repr(text[: length + 1])[1:-1]
    return visible if len(visible) <= length else visible[: length - 1] + "…"


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


def _read_id(value: Any) -> str | None:
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None
