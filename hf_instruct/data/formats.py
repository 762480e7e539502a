"""The supported row formats, how their rows are converted, and what can be wrong with them."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from hf_instruct.data.problems import Problem, describe_type, list_names, shorten_text
from hf_instruct.errors import DataError, did_you_mean, quote_names
from hf_instruct.prompts import build_user_message
from hf_instruct.schema import PairRow

FIELDS = ("instruction", "input", "output", "category", "id", "prompt", "messages")
# In our own files with `messages`: how many of the turns were the prompt of a completion.
PROMPT_TURNS = "prompt_turns"
# Further fields of a map. LLaMA-Factory and axolotl have separate columns for the turns before an instruction, and for
# tools.
EARLIER = ("system", "history")
# Keys that exclude a turn from training if they are 0 or false: OpenAI's and axolotl's.
_UNLEARNED = ("weight", "train", "training")
# Columns that contain a list of turns.
CONVERSATIONS = ("messages", "conversations", "conversation")

_MISSING = object()
_SURROGATE = re.compile("[\ud800-\udfff]")


class Format(NamedTuple):
    """A row format: its name in messages, and the column of each of our fields."""

    name: str
    columns: Mapping[str, str]
    input: str | None = None  # the optional column of the input

    @property
    def earlier(self) -> tuple[str, ...]:
        """Further columns of its conversations: earlier turns, and tools, which are refused."""
        return ("system", "tools") if "messages" in self.columns else EARLIER if "instruction" in self.columns else ()

    def find_fields(self, names: Sequence[str], map: Mapping[str, str]) -> dict[str, str]:
        """Return the existing columns of this format by our fields; those that are not mapped may differ in case."""
        usual: dict[str, str | None] = {**self.columns, "input": self.input, "category": "category", "id": "id"}
        usual |= {name: name for name in self.earlier}
        fields = {}
        for ours, theirs in {**usual, **map}.items():
            same = [name for name in names if name == theirs or (ours not in map and name.strip().lower() == theirs)]
            found = theirs if theirs in same else same[0] if len(same) == 1 else None
            if found is not None and (ours in map or found not in map.values()):
                fields[ours] = found
        return fields


# The first format has our own names, and takes precedence if its columns exist.
FORMATS = (
    Format("instructions and outputs", {"instruction": "instruction", "output": "output"}, input="input"),
    Format("messages", {"messages": "messages"}),
    Format("ShareGPT's conversations", {"messages": "conversations"}),
    Format("prompts and completions", {"prompt": "prompt", "output": "completion"}),
    # Source: https://huggingface.co/datasets/databricks/databricks-dolly-15k
    Format("Dolly's rows", {"instruction": "instruction", "output": "response"}, input="context"),
    Format("questions and answers", {"instruction": "question", "output": "answer"}, input="context"),
)
# ShareGPT's roles and variants of them.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "model": "assistant"}
_SIDES = ("user", "assistant")
# Columns of rows that are not examples: what they contain, and what to do.
_OTHER_ROWS = {
    "chosen": (
        "contains preferred answers",
        "train on such pairs with a `dpo` section (`preferences.source`), or, if the question has its own column, "
        "train only on these answers with `--data.map.output=chosen`",
    ),
    "segments": ("contains axolotl's segments", "write what has no label as `prompt` and the rest as `completion`"),
    "text": ("contains texts without a question and an answer", "write these as `prompt` and `completion`"),
    "input_ids": ("contains token ids", "save the texts that they were made from"),
}


def choose_fields(
    names: Sequence[str], map: Mapping[str, str], *, file: str, problems: list[Problem]
) -> tuple[dict[str, str], list[str]]:
    """Return the source's column for each of our fields that has one, and notices for the user.

    If no format fits, or several do, there are none, and the reason is added to the problems.

    Raises:
        DataError: Two fields are mapped to one column, or no format has the fields that are mapped.

    >>> choose_fields(["Question", "answer", "id"], {}, file="f.csv", problems=[])[0]
    {'instruction': 'Question', 'output': 'answer', 'id': 'id'}
    """
    formats = [one for one in FORMATS if map.keys() <= {*one.columns, *one.earlier, "input", "category", "id"}]
    _check_map(map, formats)
    if not names:
        return {}, []
    if not map and {*FIELDS[:5]} <= {*names} and {*FIELDS[5:]} & {*names}:
        # Such a `Dataset` is one of our own.
        return {ours: ours for ours in (*FIELDS, PROMPT_TURNS) if ours in names}, []
    found = [(one, one.find_fields(names, map)) for one in formats]
    fitting: dict[tuple[str, ...], tuple[Format, dict[str, str]]] = {}
    for one, fields in found:
        if one.columns.keys() <= fields.keys():
            fitting.setdefault(tuple(fields[ours] for ours in one.columns), (one, fields))
    if not fitting:
        problems += _describe_missing(found, names, map, file)
        return {}, []
    one, fields = next(iter(fitting.values()))
    if not map and "messages" in one.columns and {"chosen", "rejected"} <= {*names}:
        problems.append(Problem(file, None, "chosen", *_OTHER_ROWS["chosen"]))
        return {}, []
    if len(fitting) > 1 and one is not FORMATS[0]:
        ways = (f"`{_write_map(fields)}` ({one.name})" for one, fields in fitting.values())
        remedy = f"choose one by {' or '.join(ways)}"
        problems.append(Problem(file, None, None, "has the columns of several formats", remedy))
        return {}, []
    earlier = [theirs for ours, theirs in fields.items() if ours in EARLIER]
    notices = [f"`{file}`: texts in {quote_names(earlier)} become turns before the question."] if earlier else []
    read = {ours: theirs for ours, theirs in fields.items() if ours not in ("category", "id", "tools", *EARLIER)}
    if map or (one is FORMATS[0] and all(ours == theirs for ours, theirs in read.items())):
        return fields, notices
    parts = ", ".join(f"`{shorten_text(theirs)}` as {ours}" for ours, theirs in read.items() if ours != theirs)
    return fields, [f"`{file}` contains {one.name}{parts and f': {parts}'}.", *notices]


def _check_map(map: Mapping[str, str], formats: Sequence[Format]) -> None:
    if not formats:
        raise DataError(
            f"`map` names {quote_names(map)}, and no row format has all of these. Map `instruction`, `output` and "
            "optionally `input`; or `prompt` and `output`; or `messages`."
        )
    needed = {**formats[0].columns, **map}
    for ours, theirs in map.items():
        if taken := [other for other, name in needed.items() if other != ours and name == theirs]:
            raise DataError(
                f"`map` reads both `{ours}` and `{taken[0]}` from the column `{shorten_text(theirs)}`; each needs its "
                f"own column, as in `{taken[0]}=another column`."
            )


def _write_map(fields: Mapping[str, str]) -> str:
    """Return the flags that map these columns, in any command that reads data."""
    named = {ours: theirs for ours, theirs in fields.items() if ours not in ("category", "id")}
    return " ".join(f"--data.map.{ours}={shlex.quote(theirs)}" for ours, theirs in named.items())


def _describe_missing(
    found: Sequence[tuple[Format, Mapping[str, str]]], names: Sequence[str], map: Mapping[str, str], file: str
) -> list[Problem]:
    """Return a problem for each missing column of the most likely format."""
    if not map and (other := next((name for name in _OTHER_ROWS if name in names), None)):
        return [Problem(file, None, other, *_OTHER_ROWS[other])]
    if not map and len(names) == 1:
        what = "is the only column, which contains no question next to its answer"
        remedy = f"if it contains conversations, map it with `{_write_map({'messages': names[0]})}`"
        return [Problem(file, None, shorten_text(names[0]), what, remedy)]
    one, fields = max(found, key=lambda pair: len(pair[0].columns.keys() & pair[1].keys()))
    free = [name for name in names if name not in fields.values()]
    header = " (a CSV's first line names them)" if ".csv" in file.lower() else ""
    missing = {ours: theirs for ours, theirs in {**one.columns, **map}.items() if ours not in fields}
    problems = []
    for ours, theirs in missing.items():
        guess = free[0] if len(free) == len(missing) == 1 else "COLUMN"
        remedy = f"the columns are {list_names(names)}{header}: map the right one with `{_write_map({ours: guess})}`"
        if near := did_you_mean(theirs, free):
            remedy += f".{near}"
        problems.append(Problem(file, None, shorten_text(theirs), "is not a column", remedy))
    return problems


def describe_unused(names: Collection[str], fields: Mapping[str, str], file: str) -> list[str]:
    """Return a notice about unused columns, if there are any; columns of our own pairs do not count."""
    known = PairRow.model_fields if {"chosen", "rejected"} <= {*names} else ()
    unused = [name for name in names if name not in fields.values() and name not in known]
    if not unused:
        return []
    notice = f"`{file}`: columns not used: {list_names(unused)}."
    near = did_you_mean("input", unused, cutoff=0.7) if "instruction" in fields and "input" not in fields else ""
    return [f"{notice} No column is `input`.{near} Add it with `--data.map.input=COLUMN`." if near else notice]


def convert_row(row: Mapping[str, Any], fields: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Return a row's values by our names, and column, problem and remedy for each value that is wrong."""
    values: dict[str, Any] = {}
    found: list[tuple[str, str, str]] = []
    for ours, theirs in fields.items():
        value = row.get(theirs, _MISSING)
        if ours == "id" or (
            ours in ("prompt", "messages") and "instruction" in fields and (value is None or value is _MISSING)
        ):
            continue
        if ours == PROMPT_TURNS:
            values[ours] = value if isinstance(value, int) else None
            continue
        if ours == "tools":
            if value not in (_MISSING, None, "", "[]", [], {}):
                found.append((theirs, "names tools, whose use is not learned", "delete the row, or empty the column"))
            continue
        if ours == "history":
            value, problem = _convert_history(value)
            values[ours] = value
            found += [(theirs, *problem)] if problem else []
            continue
        if ours == "messages" or ("prompt" in fields and ours in ("prompt", "output") and isinstance(value, list)):
            value, problem = _convert_turns(value)
        else:
            problem = _find_text_problem(ours, value)
        values[ours] = None if value is _MISSING else value
        if problem:
            found.append((theirs, *problem))
    said = [{"role": "system", "content": text}] if (text := values.pop("system", None)) else []
    said += values.pop("history", [])
    if not found and "instruction" not in fields:
        values, problem = _complete_turns(values, said)
        if problem:
            found.append((fields.get("messages") or fields["prompt"], *problem))
    elif not found and said:
        asked = build_user_message(values["instruction"], values.get("input") or "")
        values["messages"] = [*said, asked, {"role": "assistant", "content": values["output"]}]
    if not found:
        values["input"] = values.get("input") or ""
        category = values.get("category")
        values["category"] = None if category is None or category == "" else str(category)
    return values, found


def _convert_turns(value: Any) -> tuple[list[dict[str, str]], tuple[str, str] | None]:
    """Return turns with the keys and roles of chat templates, and their problem and remedy, or None."""
    if value is _MISSING or value is None:
        return [], ("is missing" if value is _MISSING else "is null", "add it, or delete the row")
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [], (f"is {describe_type(value)}, not a list of turns", 'write [{"role": …, "content": …}, …]')
    turns = []
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping):
            return [], (f"turn {number} is {describe_type(turn)}, not an object", 'write {"role": …, "content": …}')
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list) and all(
            isinstance(part, Mapping) and part.get("type") == "text" for part in content
        ):
            content = "".join(str(part.get("text")) for part in content)
        if turn.get("tool_calls"):
            return [], (f"turn {number} calls tools, which is not learned", "delete the row")
        if not isinstance(role, str) or not isinstance(content, str):
            keys = quote_names(map(shorten_text, turn))
            what = f"turn {number} has no text as `role` or `content` (its keys are {keys})"
            return [], (what, "write both as text, by these names or ShareGPT's `from` and `value`, or delete the row")
        if problem := _find_text_problem("content", content):
            return [], (f"turn {number} {problem[0]}", problem[1])
        role = _ROLES.get(role.lower(), role.lower())
        # Arrow adds a null key to the turns that lack it.
        if role == "assistant" and (key := next((key for key in _UNLEARNED if turn.get(key) in (0, False)), None)):
            what = f"turn {number} has `{key}` {turn[key]!r}, but all answers, or only the last, are learned"
            return [], (what, f"remove the `{key}` (`data.loss_on: last` learns the last answer alone)")
        turns.append({"role": role, "content": content})
    return turns, None


def _convert_history(value: Any) -> tuple[list[dict[str, str]], tuple[str, str] | None]:
    """Return the turns of earlier pairs of question and answer, and their problem and remedy, or None."""
    pairs = [] if value is _MISSING or value is None or value == "" else value
    if not isinstance(pairs, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        return [], ("is not a list of earlier questions and answers", "write [[question, answer], …], or rename it")
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(_SIDES, pair, strict=True)]
    return _convert_turns(turns)


def _complete_turns(
    values: dict[str, Any], said: Sequence[dict[str, str]] = ()
) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """Return values with all turns as `messages`, and the last question and answer as `instruction` and `output`."""
    prompt, output = values.get("prompt"), values.get("output")
    if isinstance(prompt, str) and isinstance(output, str):
        return {**values, "instruction": prompt}, None
    own = {"category": values["category"]} if "category" in values else {}
    if "messages" in values:
        turns = [*said, *values["messages"]]
    else:
        asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        turns = asked + (output if isinstance(output, list) else [{"role": "assistant", "content": output}])
        if any(turn["role"] == "assistant" for turn in asked):
            own[PROMPT_TURNS] = len(asked)
    if problem := check_messages(turns):
        return values, problem
    return {"messages": turns, "instruction": turns[-2]["content"], "output": turns[-1]["content"], **own}, None


def check_messages(turns: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
    """Return the problem of a conversation to train on, with the turn, and its remedy; None if it is valid."""
    remedy = "alternate `user` and `assistant` turns and end with the answer to train on, or delete the row"
    start = 1 if turns and turns[0]["role"] == "system" else 0
    for number, turn in enumerate(turns):
        role, due = turn["role"], "user" if (number - start) % 2 == 0 else "assistant"
        if role not in ("system", "user", "assistant"):
            return f"turn {number} has the role `{shorten_text(role)}`, which is not supported", remedy
        if number >= start and role != due:
            return f"turn {number} is `{role}`'s but should be `{due}`'s", remedy
        if not turn["content"].strip():
            return f"turn {number} is empty", remedy
    if len(turns) - start < 2:
        return "contains no question with an answer", remedy
    return None if turns[-1]["role"] == "assistant" else ("ends without an answer", remedy)


def _find_text_problem(ours: str, value: Any) -> tuple[str, str] | None:
    """Return the problem of a value and its remedy, or None."""
    is_required = ours not in ("input", "category", "content", "system")
    if isinstance(value, str):
        if (index := value.find("\0")) >= 0:
            return f"has a NUL character at position {index}", "delete that character"
        if not value.isascii() and _SURROGATE.search(value):
            return "has a lone surrogate, which is not valid in UTF-8", "replace it with the complete character"
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
