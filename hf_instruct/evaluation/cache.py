"""Verdicts kept between runs, so that judging again costs no call."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_instruct.evaluation.rubrics import Question, Rubric
from hf_instruct.models import cache_folder
from hf_instruct.records import parse_json, write_json

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0


def cache_key(question: Question, identity: dict[str, Any], *, repeat: int = 1) -> str:
    """Return the hash of a question and the judge it is put to: digest, server version and options included.

    Each further repeat is a question of its own, even to a judge without a seed: a verdict that was copied would show
    nothing of how far the judge agrees with itself.
    """
    asked: dict[str, Any] = {"question": question.sha256, "judge": identity}
    if repeat > 1:
        asked["repeat"] = repeat
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class VerdictCache:
    """Key -> what is known of a verdict, in a SQLite file that several processes may use at once.

    A cache that cannot be read or written costs calls and changes no verdict, so that is a warning, given once.

    Args:
        folder: Where the file lies; None for a cache that is always empty.
    """

    def __init__(self, folder: Path | None) -> None:
        self._database: sqlite3.Connection | None = None
        if folder is None:
            return
        self._path = folder / "verdicts.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Rows are added by a helper thread while the loop waits for it, never by two threads at once.
            self._database = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, check_same_thread=False)
            with self._database as database:
                database.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def find(self, key: str) -> dict[str, Any] | None:
        """Return what was added under a key, or None."""
        if self._database is None:
            return None
        try:
            row = self._database.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,)).fetchone()
            return dict(parse_json(row[0])) if row else None
        except (sqlite3.Error, ValueError) as error:
            self._give_up(error)
            return None

    def add(self, verdicts: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Keep verdicts under their keys, in one transaction; a later one replaces an earlier."""
        if self._database is None:
            return
        rows = [(key, json.dumps(verdict, ensure_ascii=False)) for key, verdict in verdicts]
        try:
            with self._database as database:
                database.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", rows)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            self._give_up(error)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop what is kept under these keys."""
        if self._database is None:
            return
        try:
            with self._database as database:
                database.executemany("DELETE FROM verdicts WHERE key = ?", [(key,) for key in keys])
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: Exception) -> None:
        logger.warning("The cache of verdicts `%s` cannot be used (%s); judging goes on without it.", self._path, error)
        self.close()


def find_self_check(identity: Mapping[str, Any], rubric: Rubric) -> dict[str, Any] | None:
    """Return what is known of how a judge did when it was checked under a rubric: `passed`, `failed`, `n`.

    Returns:
        None where it was never checked on this machine, or the file cannot be read.
    """
    try:
        kept = parse_json(_self_check_path(identity, rubric).read_bytes())
        return {name: kept[name] for name in ("passed", "failed", "n")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_self_check(identity: Mapping[str, Any], rubric: Rubric, result: Mapping[str, Any]) -> dict[str, Any]:
    """Keep how a judge did under a rubric, for `find_self_check`.

    Returns:
        What counts from now on: this result, or an earlier one over more examples, which it does not replace.
    """
    known = find_self_check(identity, rubric)
    if known and known["n"] > result["n"]:
        logger.warning(
            "Scores of this judge go on to show its earlier self-check, over %d examples; this one is over %d.",
            known["n"],
            result["n"],
        )
        return known
    path = _self_check_path(identity, rubric)
    kept = {name: result[name] for name in ("passed", "failed", "n")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**kept, "judge": dict(identity), "rubric": {"name": rubric.name, "sha256": rubric.sha256}})
    except OSError as error:
        logger.warning("`%s` cannot be written (%s); later scores will not show this self-check.", path, error)
    return kept


def _self_check_path(identity: Mapping[str, Any], rubric: Rubric) -> Path:
    options = identity.get("options") or {}
    # Judging several times changes the seed, and with it nothing that a self-check is about.
    judge = {**identity, "options": {name: value for name, value in options.items() if name != "seed"}}
    text = json.dumps({"judge": judge, "rubric": rubric.sha256}, sort_keys=True)
    return cache_folder() / "self_checks" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
