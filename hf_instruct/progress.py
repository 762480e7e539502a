"""A progress bar on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Called with the units done since the last call and a short text to show beside the bar."""

_PLAIN_LINE_SECONDS = 20.0


@contextmanager
def progress_bar(description: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show how far a loop of `total` units is, and yield the function that advances it.

    On a terminal this is a rich bar on standard error with elapsed and remaining time; elsewhere a logged line at
    most every 20 seconds and one at the end.
    """
    if sys.stderr.isatty():
        with _rich_bar(description, total, done) as advance:
            yield advance
    else:
        yield from _plain_lines(description, total, done)


@contextmanager
def _rich_bar(description: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield lambda count, note: progress.update(task, advance=count, note=note)


def _plain_lines(description: str, total: int, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    first = done

    def advance(count: int, note: str) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _PLAIN_LINE_SECONDS or done >= total:
            last = now
            left = (now - start) / max(done - first, 1) * (total - done)
            logger.info("%s: %d/%d%s, %.0f s left", description, done, total, f", {note}" if note else "", left)

    yield advance
