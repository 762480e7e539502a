"""Progress bars on a terminal, and occasional log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_instruct.processes import is_main_process

logger = logging.getLogger(__name__)

Advance = Callable[[int, str], None]
"""Called with the units done since the last call and a short text to show next to the bar."""

_PLAIN_LINE_SECONDS = 20.0


@contextmanager
def progress_bar(description: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """Show the progress of a loop of `total` units, and yield the function that advances it.

    On a terminal, in the main process, this is a rich bar on standard error with elapsed and remaining time; otherwise
    lines in the log, at most one every 20 seconds and one at the end.
    """
    if not (sys.stderr.isatty() and is_main_process()):
        yield _log_lines(description, total, done)
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[note]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("of which left:"),
        progress.TimeRemainingColumn(),
    )
    # By default, the speed is estimated from the last 30 seconds, but a single step may take longer.
    with progress.Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")
        yield lambda count, note: bar.update(task, advance=count, note=note)


def _log_lines(description: str, total: int, done: int) -> Advance:
    last = time.monotonic()
    # Time and count when the first units were done: what comes before, such as an evaluation or a step that compiles
    # kernels, says nothing about the speed of the rest.
    start, first = 0.0, 0

    def advance(count: int, note: str) -> None:
        nonlocal done, last, start, first
        done += count
        now = time.monotonic()
        if not first:
            start, first = now, done
        if now - last >= _PLAIN_LINE_SECONDS or done >= total:
            last = now
            left = f"{(now - start) / (done - first) * (total - done):.0f} s left" if done > first else ""
            logger.info("%s: %s", description, ", ".join(filter(None, (f"{done}/{total}", note, left))))

    return advance
