"""A table of the verdicts of judges and people (scores or preferences), for all comparisons."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import DataError, quote_names
from hf_instruct.evaluation.scores import label_judge
from hf_instruct.records import parse_json, read_rows
from hf_instruct.run_folder import RunFolder, choose_judgments, split_model
from hf_instruct.schema import TUNED, JudgeIdentity, Judgment, Preference, RubricName

if TYPE_CHECKING:
    import pandas

SCORES, PREFERENCES = "scores", "preferences"
PERSON = "person"
_MAX_PROBLEMS = 20
_ALLOWED = (
    "allowed are a run folder, `judgments.jsonl`, a file of preferences or votes, a JSON list of numbers, a JSON "
    "object of ids and numbers, and .jsonl or .csv with `id` and `score`"
)
# For each pair of sets of answers, the order in which their preferences count.
Order = dict[frozenset[str], tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The verdicts of judges or people on one or more sets of answers.

    `rows` has one row per verdict: `id` (the index from 0 if the file has no ids), `score` (any number; NaN if no
    reply could be parsed) and `judge` (a label); for preferences it is the table of `tabulate_preferences`.
    """

    name: str  # the file, or a name for values in memory
    kind: str  # `scores` or `preferences`
    rows: "pandas.DataFrame"
    keyed: bool = True  # whether the ids are those of examples, rather than indices
    judgments: Sequence[Judgment] = ()  # the judgments that the scores come from, if any
    file: Path | None = None  # the file of the judgments
    equal: int = 0  # preferences left out because nobody judged them: the two answers are equal

    @property
    def judge(self) -> str:
        """A label of the judges; empty if the file does not say."""
        judges = [judge for judge in self.rows["judge"].unique() if judge]
        return ", ".join(judges[:3]) + (f" and {len(judges) - 3} more" if len(judges) > 3 else "")

    @property
    def keys(self) -> list[str]:
        """The columns that identify what a verdict is about."""
        return ["id"] if self.kind == SCORES else ["id", "first", "second"]

    def by_example(self) -> "pandas.Series[float]":
        """Return one score for each example (and pair): the mean of several scores, or the majority's preference."""
        means = self.rows.groupby(self.keys, sort=False)["score"].mean()
        if self.kind == SCORES:
            return means
        return means.mask(means > 0.5, 1.0).mask(means < 0.5, 0.0)

    def oriented(self, order: Order) -> tuple["Verdicts", bool]:
        """Return the preferences with the sets of each pair in the order of `order`, and whether any were reversed.

        Pairs that are not in `order` yet are added to it in their current order.
        """
        if self.kind == SCORES:
            return self, False
        names = list(zip(self.rows["first"], self.rows["second"], strict=True))
        pairs = [order.setdefault(frozenset(pair), pair) for pair in names]
        turned = [pair != name for pair, name in zip(pairs, names, strict=True)]
        first, second = zip(*pairs, strict=True)
        score = self.rows["score"].mask(turned, 1 - self.rows["score"])
        rows = self.rows.assign(first=first, second=second, score=score)
        return dataclasses.replace(self, rows=rows), any(turned)

    def list_notices(self) -> list[str]:
        """Return notes on how several verdicts became one score for each example."""
        counts = self.rows.groupby(self.keys).size()
        notices = []
        if several := int((counts > 1).sum()):
            what = "ids; their mean" if self.kind == SCORES else "pairs; what most prefer"
            notices.append(f"{self.name}: several verdicts on {several} of {len(counts)} {what} is used.")
        if self.equal:
            notices.append(f"{self.name}: {self.equal} pairs of equal answers, which were not judged, are left out.")
        return notices


def load_verdicts(source: Any, name: str = "the verdicts", *, voter: str | None = None) -> Verdicts:
    """Return the verdicts in a run folder (its `judgments.jsonl`), a file, or in memory.

    Args:
        source: A path, numbers, a mapping of ids to numbers, or rows with `score` and perhaps `id`, or `Judgment` or
            `Preference` rows.
        name: Name of verdicts in memory; others are named by their path.
        voter: Only return the votes of this person.

    Raises:
        DataError: The source cannot be read, or contains something else; all problems are listed.
    """
    import pandas

    file, model = None, TUNED
    if isinstance(source, str | Path):
        folder, model = split_model(Path(source))
        name, file = str(source), _find_file(folder)
        content = _read_content(file)
    else:
        if not isinstance(source, Iterable):
            raise DataError(f"{name} is {source!r}; give a path, numbers, a mapping of ids to numbers, or rows.")
        content = dict(source) if isinstance(source, Mapping) else list(source)
    first = content[0] if isinstance(content, list) and content else None
    fields = first.keys() if isinstance(first, dict) else set()
    if isinstance(first, Preference) or {"first", "second"} <= fields:
        return _collect_preferences(read_rows(file, Preference) if file else content, name, voter)
    if isinstance(first, Judgment) or "replies" in fields:
        judgments = _read_judging(file, model) if file else content
        if voter is not None:
            judgments = [row for row in judgments if (row.judge.backend, row.judge.model) == (PERSON, voter)]
            if not judgments:
                raise DataError(f"`{name}` has no scores of the voter `{voter}`.")
        values = [(row.id, row.score, describe_judge(row.judge, row.rubric)) for row in judgments]
        rows = pandas.DataFrame(values, columns=["id", "score", "judge"]).astype({"score": float})
        return Verdicts(name, SCORES, rows, judgments=judgments, file=file)
    if voter is not None:
        raise DataError(f"`{name}` contains scores, not votes, so it has no voter `{voter}`; leave that option out.")
    return _collect_scores(content, name)


def _read_judging(file: Path, model: str) -> list[Judgment]:
    """Return the newest judgments of a model's responses, from `judgments.jsonl` or a file like it."""
    if file.name == RunFolder(file.parent).judgments.name:
        rows = RunFolder(file.parent).read_judgments(model)
    else:
        rows = [row for row in read_rows(file, Judgment) if row.model == model]
        # Scores of several people are all kept; new judgments of a judge replace its earlier ones.
        rows = rows if rows and rows[-1].judge.backend == PERSON else choose_judgments(rows, None)
    if not rows:
        raise DataError(
            f"`{file}` has no judgments of the {model} model's answers; create them with `hf-instruct judge`."
        )
    return rows


def load_preferences(sources: Iterable[Path | str | Preference]) -> "pandas.DataFrame":
    """Return the preferences in files and run folders (all in `pairwise/` and the votes), each file once, as a table.

    Raises:
        DataError: A file is missing, or contains something else.
    """
    files: dict[Path, Path] = {}
    rows: list[Preference] = []
    for source in sources:
        if isinstance(source, Preference):
            rows.append(source)
            continue
        path = Path(source)
        paths = sorted([*path.glob("pairwise/*.jsonl"), *path.glob("votes*.jsonl")]) if path.is_dir() else [path]
        if not paths:
            raise DataError(
                f"`{path}` is a folder without preferences (`pairwise/*.jsonl`, `votes*.jsonl`); create some with "
                f"`hf-instruct judge pairwise {path} --baseline RUN`, or `hf-instruct vote`."
            )
        files |= {file.resolve(): file for file in paths}
    for file in files.values():
        try:
            read = read_rows(file, Preference)
        except DataError as error:
            raise DataError(
                f"{str(error).partition('; ')[0]}; use a file of preferences, written by `hf-instruct judge "
                "pairwise` or `hf-instruct vote`."
            ) from error
        if not read:
            raise DataError(f"`{file}` contains no preferences.")
        rows += read
    return tabulate_preferences(rows)


def tabulate_preferences(rows: Iterable[Preference]) -> "pandas.DataFrame":
    """Return preferences as a table.

    Its columns: `id`; `score`, 1 for the first, 0.5 for a tie, 0 for the second and NaN if no reply could be parsed;
    `first` and `second`, the sets compared; `judge`, a label; `model`, or the voter; `is_person`; `options` of the
    judge, as JSON; and `is_identical`, whether it is a tie between equal answers that nobody judged.
    """
    import pandas

    columns = ["id", "score", "first", "second", "judge", "model", "is_person", "options", "is_identical"]
    table = []
    for row in rows:
        judge, sets = row.judge, (normpath(row.first), normpath(row.second))
        options = {name: value for name, value in judge.options.items() if name != "equal_answers"}
        who = describe_judge(judge, row.rubric), judge.model, judge.backend == PERSON
        table.append((row.id, row.score, *sets, *who, json.dumps(options, sort_keys=True), row.is_identical))
    return pandas.DataFrame(table, columns=columns).astype({"score": float, "is_person": bool, "is_identical": bool})


def _collect_scores(content: Any, name: str) -> Verdicts:
    import pandas

    if isinstance(content, Mapping):
        content = [{"id": key, "score": value} for key, value in content.items()]
    if not isinstance(content, list) or not content:
        what = "no scores" if isinstance(content, list) else f"one {type(content).__name__}"
        raise DataError(f"`{name}` contains {what}; {_ALLOWED}.")
    rows = [row if isinstance(row, dict) else {"score": row} for row in content]
    keyed = sum(bool(row.get("id")) for row in rows)
    problems, scores = [], []
    if 0 < keyed < len(rows):
        problems.append(f"{keyed} of {len(rows)} rows have an `id`; add ids to all rows, or to none")
    for number, row in enumerate(rows, start=1):
        try:
            scores.append(_parse_score(row))
        except ValueError as error:
            problems.append(f"`{row['id']}` {error}" if row.get("id") else f"row {number} {error}")
    if problems:
        raise DataError.listing(problems, f"in `{name}`; {_ALLOWED}", most=_MAX_PROBLEMS)
    ids = [str(row["id"]) for row in rows] if keyed else range(len(rows))
    frame = pandas.DataFrame({"id": ids, "score": pandas.Series(scores, dtype=float), "judge": ""})
    return Verdicts(name, SCORES, frame, keyed=bool(keyed))


def _parse_score(row: Mapping[str, Any]) -> float | None:
    """Return a row's score; None for a failed judgment.

    Raises:
        ValueError: There is no score, or it is not a number.
    """
    if "score" not in row:
        raise ValueError(f"has no `score`; it has {quote_names(list(row)[:6])}")
    value = row["score"]
    if value is None or value == "":
        return None
    # Numbers in a CSV file are text, in JSON they are not.
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"is {repr(value)[:40]}, not a number; a failure is `null`")
    return number


def _collect_preferences(rows: Sequence[Preference], name: str, voter: str | None) -> Verdicts:
    table = tabulate_preferences(rows)
    if voter is not None:
        voters = sorted(table["model"].unique())
        table = table[table["model"] == voter]
        if table.empty:
            raise DataError(f"`{name}` has no votes of `{voter}`; it has votes of {', '.join(voters)}.")
    judged = table[~table["is_identical"]]
    if judged.empty:
        raise DataError(f"`{name}` contains no preferences yet.")
    # A file may contain a pair in both orders.
    return Verdicts(name, PREFERENCES, judged, equal=len(table) - len(judged)).oriented({})[0]


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    run = RunFolder(path)
    if run.judgments.is_file():
        return run.judgments
    patterns = ("*judgments*.jsonl", "votes*.jsonl", "pairwise/*.jsonl")
    others = sorted(str(file.relative_to(path)) for pattern in patterns for file in path.glob(pattern))
    hint = f" It has {quote_names(others)}." if others else ""
    raise DataError(
        f"`{path}` is a folder without `judgments.jsonl`; judge the run first (`hf-instruct judge {path}`), or use a "
        f"file.{hint}"
    )


def _read_content(file: Path) -> Any:
    """Return the content of a file: rows as dictionaries, or any other JSON value."""
    try:
        if file.suffix == ".jsonl":
            return read_rows(file, dict)
        text = file.read_text(encoding="utf-8-sig")
        return list(csv.DictReader(io.StringIO(text))) if file.suffix == ".csv" else parse_json(text)
    except (DataError, OSError, ValueError) as error:
        raise DataError(
            f"`{file}` cannot be read ({getattr(error, 'strerror', None) or error}); {_ALLOWED}."
        ) from error


def describe_judge(judge: JudgeIdentity, rubric: str, rubric_sha256: str = "") -> str:
    """Return a label of the judge and the rubric, or of the voter, on one line.

    >>> describe_judge(JudgeIdentity(model="llama3", digest="365c0bd3c000", backend="ollama"), "course", "f870155da365")
    'judge llama3@365c0bd (ollama), rubric course@f870155'
    >>> describe_judge(JudgeIdentity(model="Ann", backend="person"), "vote")
    'Ann (person)'
    """
    text = label_judge(judge)
    if judge.backend != PERSON:
        text = f"judge {label_judge(judge, RubricName(name=rubric, sha256=rubric_sha256))}"
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
