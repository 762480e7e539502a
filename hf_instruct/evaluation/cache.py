"""A cache of verdicts, so that judging again needs no calls."""

import contextlib
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.errors import DataError
from hf_instruct.evaluation.rubrics import Question, Rubric
from hf_instruct.models import cache_folder
from hf_instruct.records import parse_json, read_file, write_json
from hf_instruct.schema import CheckOutcome, JudgeIdentity

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0
# Version of the rules of the judge check; results under older rules are ignored.
_RULES = 2


def cache_key(question: Question, identity: JudgeIdentity, *, repeat: int = 1) -> str:
    """Return the hash of a question and its judge, including digest, server version and options.

    Each repeat has its own key, even for a judge without a seed, because a cached verdict says nothing about the
    judge's variation.
    """
    fields: dict[str, Any] = {"question": question.sha256, "judge": identity.to_dict()}
    if repeat > 1:
        fields["repeat"] = repeat
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class VerdictCache:
    """Verdicts by key, in a SQLite file that several processes can use at the same time.

    A cache that cannot be read or written does not change verdicts, so it only causes a warning, logged once.

    Args:
        folder: The folder of the file; None for a cache that is always empty.
    """

    def __init__(self, folder: Path | None) -> None:
        self._database: sqlite3.Connection | None = None
        if folder is None:
            return
        self._path = folder / "verdicts.sqlite"
        with self._warning():
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=_WAIT_SECONDS)
            with self._database as database:
                database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, ValueError) as error:
            logger.warning("The verdict cache `%s` cannot be used (%s); judging without it.", self._path, error)
            self.close()

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the verdict added under a key, or None."""
        with self._warning():
            if self._database:
                row = self._database.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
                return dict(parse_json(row[0])) if row else None
        return None

    def add(self, verdicts: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Save verdicts under their keys, in one transaction, replacing earlier ones."""
        rows = [(key, json.dumps(verdict, ensure_ascii=False)) for key, verdict in verdicts]
        self._change("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the verdicts under these keys."""
        self._change("DELETE FROM verdicts WHERE key = ?", [(key,) for key in keys])

    def _change(self, statement: str, rows: Sequence[tuple[str, ...]]) -> None:
        if self._database and rows:
            with self._warning(), self._database as database:
                database.executemany(statement, rows)

    def close(self) -> None:
        """Close the file."""
        if self._database:
            self._database.close()
            self._database = None


def find_self_check(judge: JudgeIdentity, rubric: Rubric) -> CheckOutcome | None:
    """Return the result of the judge check for a rubric.

    Returns:
        None if the judge was never checked on this machine, or the file cannot be read.
    """
    try:
        return read_file(_self_check_path(judge, rubric), CheckOutcome)
    except DataError:
        return None


def keep_self_check(judge: JudgeIdentity, rubric: Rubric, result: CheckOutcome) -> CheckOutcome:
    """Save the result of the judge check for a rubric, for `find_self_check`.

    Returns:
        The result in effect: this one, or an earlier one over more answers, which is not replaced.
    """
    earlier = find_self_check(judge, rubric)
    if earlier and earlier.probes > result.probes:
        message = "Scores of this judge still show its earlier check, on %d answers; this one is on %d."
        logger.warning(message, earlier.probes, result.probes)
        return earlier
    path = _self_check_path(judge, rubric)
    outcome = CheckOutcome(**result.to_dict())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        inputs = {"judge": judge.to_dict(), "rubric": {"name": rubric.name, "sha256": rubric.sha256}}
        write_json(path, {**outcome.to_dict(), **inputs})
    except OSError as error:
        logger.warning("`%s` cannot be written (%s); later scores will not show this check.", path, error)
    return outcome


def _self_check_path(judge: JudgeIdentity, rubric: Rubric) -> Path:
    # Repeats change the seed, which makes no difference to a self-check.
    options = {name: value for name, value in judge.options.items() if name != "seed"}
    inputs = {"judge": {**judge.to_dict(), "options": options}, "rubric": rubric.sha256, "rules": _RULES}
    text = json.dumps(inputs, sort_keys=True)
    return cache_folder() / "self_checks" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
