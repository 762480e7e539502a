"""Read verdicts, scores or preferences, from whatever file they are in, for the measures of agreement."""

import csv
import dataclasses
import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from hf_instruct.errors import DataError
from hf_instruct.evaluation.pairing import is_identical
from hf_instruct.records import Judgment, Preference, Response, parse_json, read_rows
from hf_instruct.run_folder import RunFolder

SCORES, PREFERENCES = "scores", "preferences"
# What a verdict belongs to: an example's id, its place in a list, or an id with the names of the two sets compared.
Key = str | int | tuple[str, str, str]
_ALLOWED = (
    "allowed are a run folder, `judgments.jsonl`, a file of preferences or votes, a JSON list of numbers, a JSON "
    "object of ids and numbers, and .jsonl or .csv with `id` and `score`"
)


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What one judge, or people, made of a set of answers.

    Attributes:
        name: The file, or what to call the values.
        kind: `scores` or `preferences`.
        values: Score by example (any finite number), or preference (1 for the first, 0.5 for a tie, 0 for the second)
            by example and pair; None where no verdict could be read.
        keyed: Whether the keys are ids, rather than places in a list.
        judge: Who judged, in words; empty where the file does not say.
        pairs: For preferences: the names of the sets compared, in the order that `values` counts in.
        notices: What a reader should know about how the values came about.
        file: The file of judgments, where they are from one.
    """

    name: str
    kind: str
    values: dict[Key, float | None]
    keyed: bool
    judge: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()
    file: Path | None = None

    @functools.cached_property
    def answers(self) -> dict[str, str] | None:
        """The answers judged, by id; None where they do not lie beside the file."""
        if self.file is None:
            return None
        try:
            return {row.id: row.response for row in read_rows(RunFolder(self.file.parent).responses, Response)}
        except DataError:
            # No responses beside the judgments, or none of ours: then there is nothing to warn about.
            return None


def load_verdicts(path: Path, *, voter: str | None = None) -> Verdicts:
    """Return the verdicts in a file, or in the `judgments.jsonl` of a run folder.

    Args:
        path: A run folder, or a file as the message of the error lists them.
        voter: Of votes by several people, take only those of this one.

    Raises:
        DataError: The file cannot be read, or holds anything else; all faults are listed.
    """
    file = _find_file(path)
    text = _read_text(file)
    if file.suffix == ".csv":
        rows: Any = list(csv.DictReader(io.StringIO(text)))
    elif file.suffix == ".jsonl":
        rows = _parse_lines(text, file)
    else:
        try:
            rows = parse_json(text)
        except ValueError as error:
            raise DataError(f"`{file}` is not JSON ({error}); {_ALLOWED}.") from error
    first = rows[0] if isinstance(rows, list) and rows else None
    name = str(path)
    if isinstance(first, dict) and {"first", "second"} <= set(first):
        return collect_preferences(read_rows(file, Preference), name, voter=voter)
    if voter is not None:
        raise DataError(f"`{path}` holds scores, not votes, so it has no voter `{voter}`; leave that option out.")
    verdicts = collect_scores(rows, name)
    if isinstance(first, dict) and "replies" in first:
        return dataclasses.replace(verdicts, judge=_describe_judges(rows), file=file)
    return verdicts


def build_verdicts(source: Any, name: str) -> Verdicts:
    """Return verdicts from a path, or from numbers, a mapping of ids to numbers, or rows in memory.

    Raises:
        DataError: The values are not verdicts.
    """
    if isinstance(source, str | Path):
        return load_verdicts(Path(source))
    if isinstance(source, Mapping):
        return collect_scores(dict(source), name)
    if not isinstance(source, Iterable):
        raise DataError(f"{name} is {source!r}; give a path, numbers, a mapping of ids to numbers, or rows.")
    rows = list(source)
    if rows and isinstance(rows[0], Preference):
        return collect_preferences(rows, name)
    return collect_scores([dataclasses.asdict(row) if isinstance(row, Judgment) else row for row in rows], name)


def collect_scores(rows: Any, name: str) -> Verdicts:
    """Return scores from a list of numbers, a mapping of ids to numbers, or rows with `score` and perhaps `id`.

    Several scores of one example, as of a judge asked several times, become their mean.

    Raises:
        DataError: Some of it is no score; all faults are listed.
    """
    if isinstance(rows, Mapping):
        entries = [(f"`{key}`", key, value) for key, value in rows.items()]
    elif isinstance(rows, list):
        entries, faults = _list_entries(rows)
        _raise_faults(faults, name)
    else:
        raise DataError(f"`{name}` holds one {type(rows).__name__}; {_ALLOWED}.")
    if not entries:
        raise DataError(f"`{name}` holds no scores; {_ALLOWED}.")
    found: dict[Key, list[float | None]] = {}
    faults = []
    for number, (place, identifier, value) in enumerate(entries):
        try:
            found.setdefault(number if identifier is None else str(identifier), []).append(_parse_score(value))
        except ValueError as error:
            faults.append(f"{place} {error}")
    _raise_faults(faults, name)
    repeated = sum(len(scores) > 1 for scores in found.values())
    notices = (f"{name}: several scores for {repeated} of {len(found)} ids; their mean is used.",) if repeated else ()
    values = {key: _mean([score for score in scores if score is not None]) for key, scores in found.items()}
    return Verdicts(name, SCORES, values, keyed=entries[0][1] is not None, notices=notices)


def _list_entries(rows: list[Any]) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Return place, id (None where there are none) and score of each row, and the rows that have none."""
    entries: list[tuple[str, Any, Any]] = []
    faults = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            entries.append((f"value {number}", None, row))
        elif "score" not in row:
            faults.append(f"row {number} has no `score`; it has {', '.join(f'`{key}`' for key in list(row)[:6])}")
        else:
            entries.append((f"row {number}", row.get("id") or None, row["score"]))
    with_id = sum(identifier is not None for _, identifier, _ in entries)
    if 0 < with_id < len(entries):
        faults.append(f"{with_id} of {len(entries)} rows have an `id`; give all of them one, or none")
    return entries, faults


def _parse_score(value: Any) -> float | None:
    """Return a score; None for a verdict that could not be read.

    Raises:
        ValueError: It is no number.
    """
    if value is None or value == "":
        return None
    # Numbers in a CSV file are text, in JSON they are not.
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value)
        raise ValueError(f"is {shown if len(shown) <= 40 else shown[:40] + '…'}, not a number; a failure is `null`")
    return number


def collect_preferences(rows: Sequence[Preference], name: str, *, voter: str | None = None) -> Verdicts:
    """Return preferences by example and pair; where several people or judges judged one pair, what most prefer.

    Raises:
        DataError: There are none, or none of this voter.
    """
    _raise_faults([f"row {number} {fault}" for number, row in enumerate(rows, 1) if (fault := find_fault(row))], name)
    if voter is not None:
        voters = sorted({str(row.judge.get("model")) for row in rows})
        rows = [row for row in rows if row.judge.get("model") == voter]
        if not rows:
            raise DataError(f"`{name}` has no votes of `{voter}`; it has votes of {', '.join(voters) or 'nobody'}.")
    if not rows:
        raise DataError(f"`{name}` holds no preferences yet.")
    scores: dict[Key, list[float | None]] = {}
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    equal = 0
    for row in rows:
        if is_identical(row):
            # Nobody judged these: that both call equal texts equal would only flatter the agreement.
            equal += 1
            continue
        names = normpath(row.first), normpath(row.second)
        pair = pairs.setdefault(frozenset(names), names)
        score = row.score if row.score is None or names == pair else 1 - row.score
        scores.setdefault((row.id, *pair), []).append(score)
    values = {key: _majority([score for score in found if score is not None]) for key, found in scores.items()}
    several = sum(len(found) > 1 for found in scores.values())
    notices = []
    if several:
        notices.append(f"{name}: several verdicts on {several} of {len(values)} pairs; what most prefer is used.")
    if equal:
        notices.append(f"{name}: {equal} pairs of equal answers, which nobody judged, are left out.")
    judge = _describe_judges([dataclasses.asdict(row) for row in rows])
    return Verdicts(name, PREFERENCES, values, True, judge, tuple(pairs.values()), tuple(notices))


def find_fault(row: Preference) -> str | None:
    """Return what is wrong with a preference that is whole and of the right fields, or None."""
    if not (isinstance(row.first, str) and isinstance(row.second, str) and row.first and row.second):
        return f"compares {row.first!r} with {row.second!r}; both should be names"
    if not isinstance(row.judge, Mapping):
        return f"has {row.judge!r} as `judge`, which should be an object"
    # To Python, True is 1.
    if isinstance(row.score, bool) or row.score not in (None, 0, 0.5, 1):
        return f"has the score {row.score!r}; allowed are 0, 0.5, 1 and null"
    return None


def _mean(scores: list[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None


def _majority(scores: list[float]) -> float | None:
    mean = _mean(scores)
    return None if mean is None else 0.5 if mean == 0.5 else float(mean > 0.5)


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    run = RunFolder(path)
    if run.judgments.is_file():
        return run.judgments
    patterns = ("*judgments*.jsonl", "votes*.jsonl", "pairwise/*.jsonl")
    others = sorted(str(file.relative_to(path)) for pattern in patterns for file in path.glob(pattern))
    hint = f" It has {', '.join(f'`{name}`' for name in others)}." if others else ""
    raise DataError(
        f"`{path}` is a folder without `judgments.jsonl`; judge the run first (`hf-instruct judge {path}`), or name a "
        f"file.{hint}"
    )


def _read_text(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"`{file}` does not exist; {_ALLOWED}.") from error
    except OSError as error:
        raise DataError(f"`{file}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{file}` is not UTF-8 text (byte {error.start}); {_ALLOWED}.") from error
    if not text.strip():
        raise DataError(f"`{file}` is empty; {_ALLOWED}.")
    return text


def _parse_lines(text: str, file: Path) -> list[Any]:
    rows, faults = [], []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.extend([parse_json(line)] if line.strip() else [])
        except ValueError as error:
            # A last line without its newline was torn when its writer was killed.
            if number < len(lines):
                faults.append(f"line {number} is not JSON: {error}")
    _raise_faults(faults, str(file))
    return rows


def _raise_faults(faults: list[str], name: str) -> None:
    if faults:
        raise DataError.listing(faults, f"in `{name}`; {_ALLOWED}")


def _describe_judges(rows: list[dict[str, Any]]) -> str:
    """Return who judged: the model, where it ran, and the rubric; or the names of the voters."""
    models: dict[str, None] = {}
    for row in rows:
        judge = row["judge"] if isinstance(row.get("judge"), dict) else {}
        rubric = "" if judge.get("backend") == "person" else f", rubric {row.get('rubric')}"
        models[f"{judge.get('model')} ({judge.get('backend')}{rubric})"] = None
    text = ", ".join(list(models)[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
    return "".join(character if character.isprintable() else "?" for character in text)
