"""Verdicts kept between runs, so that judging again costs no call."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_instruct.judging.rubrics import Question

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0


def cache_key(question: Question, identity: dict[str, Any]) -> str:
    """Return the hash of a question and the judge it is put to: digest, server version and options included."""
    text = json.dumps({"question": question.sha256, "judge": identity}, sort_keys=True)
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
            return dict(json.loads(row[0])) if row else None
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

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: Exception) -> None:
        logger.warning("The cache of verdicts `%s` cannot be used (%s); judging goes on without it.", self._path, error)
        self.close()
