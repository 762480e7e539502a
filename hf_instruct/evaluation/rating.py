"""Read files of preferences, by judges and by people, and rate the sets of answers in them."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from hf_instruct.errors import DataError
from hf_instruct.evaluation.ratings import Rating, bradley_terry
from hf_instruct.evaluation.verdict_files import find_fault
from hf_instruct.records import Preference, read_rows

_SHOWN_DIGEST_CHARACTERS = 7
_PERSON = "person"


@dataclasses.dataclass(frozen=True)
class RatingTable:
    """The ratings of several sets of answers.

    Attributes:
        ratings: Best first.
        judges: Who preferred, in words; more than one only where that was forced.
        verdicts: Preferences that the ratings are by.
        failures: Preferences without a verdict, which are left out.
        examples: Different examples among the verdicts.
        notices: What a reader should know.
    """

    ratings: list[Rating]
    judges: list[str]
    verdicts: int
    failures: int
    examples: int
    notices: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values, for JSON."""
        rows = [{**row._asdict(), "interval": list(row.interval) if row.interval else None} for row in self.ratings]
        return {**dataclasses.asdict(self), "ratings": rows}

    def __str__(self) -> str:
        return "\n".join(_format_lines(self))


def rate_preferences(
    sources: Iterable[Path | str | Preference], *, force: bool = False, resamples: int = 1000
) -> RatingTable:
    """Return the Bradley–Terry ratings of all sets of answers that preferences compare.

    Args:
        sources: Run folders, files of preferences or votes, and `Preference` rows.
        force: Put together the preferences of different judges, or of judges and people; the table then says so.
        resamples: Bootstrap draws for the intervals.

    Raises:
        DataError: A file cannot be read or holds faults, judges differ, or the sets are not all joined by comparisons.
    """
    rows = [row for source in _find_files(sources) for row in _load(source)]
    judges = _list_judges(rows)
    if len(judges) > 1 and not force:
        raise DataError(
            f"The preferences are by {len(judges)} different judges, whose tastes may differ. Name the files of one of "
            "them, or put them together with `--force`:",
            judges,
        )
    itself = sum(row.first == row.second for row in rows)
    kept = [row for row in rows if row.score is not None and row.first != row.second]
    ratings = bradley_terry(kept, resamples=resamples)
    notices = [f"{itself} preferences compare a set with itself and are left out."] if itself else []
    if len(judges) > 1:
        notices.append(f"{len(judges)} different judges are put together (`--force`): " + "; ".join(judges) + ".")
    notices += _find_notices(ratings)
    failures = sum(row.score is None for row in rows)
    return RatingTable(ratings, judges, len(kept), failures, len({row.id for row in kept}), notices)


def _find_files(sources: Iterable[Path | str | Preference]) -> list[Path | Preference]:
    """Return rows as they are, and each file named, or found in a folder named, once."""
    found: dict[Any, Path | Preference] = {}
    for source in sources:
        if isinstance(source, Preference):
            found[id(source)] = source
            continue
        path = Path(source)
        files = sorted([*path.glob("pairwise/*.jsonl"), *path.glob("votes*.jsonl")]) if path.is_dir() else [path]
        if not files:
            raise DataError(
                f"`{path}` is a folder without preferences (`pairwise/*.jsonl`, `votes*.jsonl`); make some with "
                f"`hf-instruct judge pairwise {path} --baseline RUN`, or `hf-instruct vote`."
            )
        found |= {file.resolve(): file for file in files}
    return list(found.values())


def _load(source: Path | Preference) -> list[Preference]:
    where = "the preferences" if isinstance(source, Preference) else f"`{source}`"
    rows = [source] if isinstance(source, Preference) else _read(source)
    faults = [f"row {number} {fault}" for number, row in enumerate(rows, start=1) if (fault := find_fault(row))]
    if faults:
        raise DataError.listing(faults, f"in {where}")
    return [dataclasses.replace(row, first=normpath(row.first), second=normpath(row.second)) for row in rows]


def _read(path: Path) -> list[Preference]:
    """Return the rows of a file of preferences.

    Raises:
        DataError: It cannot be read, or holds none.
    """
    if not path.exists():
        raise DataError(f"`{path}` does not exist; name a run folder, or a file of preferences or votes.")
    try:
        rows = read_rows(path, Preference)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error
    except DataError as error:
        raise DataError(
            f"{str(error).partition('; ')[0]}; name a file of preferences, as `hf-instruct judge pairwise` and "
            "`hf-instruct vote` write them."
        ) from error
    if not rows:
        raise DataError(f"`{path}` holds no preferences.")
    return rows


def _list_judges(rows: Sequence[Preference]) -> list[str]:
    """Return those who preferred, in words; all people are one."""
    people = sorted({str(row.judge.get("model")) for row in rows if row.judge.get("backend") == _PERSON})
    more = f" and {len(people) - 3} more" if len(people) > 3 else ""
    # By what tells two judges apart: in words, and its options.
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in rows:
        judge = row.judge
        if judge.get("backend") == _PERSON:
            found[_PERSON] = f"people ({', '.join(people[:3])}{more})", {}
            continue
        options = {name: value for name, value in (judge.get("options") or {}).items() if name != "equal_answers"}
        backend, model, digest = (judge.get(name) for name in ("backend", "model", "digest"))
        mark = f"@{str(digest)[:_SHOWN_DIGEST_CHARACTERS]}" if digest else ""
        key = json.dumps([backend, model, digest, options, row.rubric], sort_keys=True)
        found[key] = f"judge {model}{mark} ({backend}), rubric {row.rubric}", options
    texts = [text for text, _ in found.values()]
    # Two that read alike differ in their options.
    return [
        text if texts.count(text) == 1 else f"{text}, options {json.dumps(options, sort_keys=True)}"
        for text, options in found.values()
    ]


def _find_notices(ratings: Sequence[Rating]) -> list[str]:
    notices = []
    for row in ratings:
        if row.comparisons in (row.wins, row.losses):
            what, side = ("won", "high") if row.wins else ("lost", "low")
            notices.append(
                f"{row.name} {what} every comparison: its rating could be any further that way, and how {side} it "
                "stands is the doing of the prior."
            )
    return notices


def _format_lines(table: RatingTable) -> list[str]:
    width = max(len("answers"), *(len(row.name) for row in table.ratings))
    by = table.judges[0] if len(table.judges) == 1 else f"{len(table.judges)} judges"
    counts = f"{table.verdicts} verdicts on {table.examples} examples, {table.failures} failed"
    lines = [f"{counts}; {by}", ""]
    titles = f"{'verdicts':>10}{'wins':>7}{'ties':>7}{'losses':>8}"
    lines.append(f"{'answers':<{width}}{'rating':>8}   {'95 % interval':<16}{titles}")
    for row in table.ratings:
        interval = f"{row.interval.low:.0f} to {row.interval.high:.0f}" if row.interval else "none"
        numbers = f"{row.comparisons:>10}{row.wins:>7}{row.ties:>7}{row.losses:>8}"
        lines.append(f"{row.name:<{width}}{row.rating:>8.0f}   {interval:<16}{numbers}")
    lines += ["", "Mean 1000; 100 points more are preferred 64 % of the time, 200 points more 76 %."]
    return [*lines, *(f"! {notice}" for notice in table.notices)]
