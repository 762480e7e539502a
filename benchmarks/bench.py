"""What all cases of one run share, and what a case returns."""

import dataclasses
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.processes import Deadline, run_job

Mode = Literal["full", "quick", "dry"]


@dataclasses.dataclass
class Bench:
    """One run.

    Attributes:
        mode: `full`, `quick` (ends within ten minutes) or `dry` (tiny models: shows that all works, measures nothing).
        data: The course's data file.
        folder: For models; deleted after the run.
        deadline: When a quick run ends.
        known_peaks: The machine's matrix-product peaks, once they are measured.
    """

    mode: Mode
    data: str
    folder: Path
    deadline: Deadline
    known_peaks: dict[str, Any] | None = None

    def shape(self, shape: str) -> str:
        """Return the shape that stands for another in this run: `tiny` for each in a dry run."""
        return "tiny" if self.mode == "dry" else shape

    def model(self, shape: str) -> str:
        """Return the folder of a model with random weights, built when first asked for."""
        folder = self.folder / self.shape(shape)
        if not folder.exists():
            job = {"shape": folder.name, "folder": str(folder)}
            try:
                run_job("inputs", job, deadline=self.deadline)
            except BaseException:
                # A torn folder would be taken for a whole one by the next case.
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return str(folder)

    def drop_model(self, shape: str) -> None:
        """Delete a model's folder."""
        shutil.rmtree(self.folder / self.shape(shape), ignore_errors=True)

    def peaks(self) -> dict[str, Any]:
        """Return the machine's matrix-product peaks, measured once in every run; see `benchmarks.peak`."""
        if self.known_peaks is None:
            job = {"seconds": 0.01 if self.mode == "dry" else 1.0}
            self.known_peaks = run_job("peak", job, deadline=self.deadline)
        return self.known_peaks


@dataclasses.dataclass
class Outcome:
    """What a case found.

    Attributes:
        values: Numbers of the summary, by their dotted keys.
        contestants: What each contestant took, for the table and the plot.
        skipped: Why a key has no number.
    """

    values: dict[str, float] = dataclasses.field(default_factory=dict)
    contestants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


def add_speedups(outcome: Outcome, prefix: str, field: str) -> None:
    """Add `PREFIX.speedup_vs_CONTESTANT` for each peer: its time over ours.

    Args:
        outcome: Of a case whose contestants include `ours`.
        prefix: First part of the keys.
        field: The contestants' field that holds the time.
    """
    for name, found in outcome.contestants.items():
        if not name.startswith("ours"):
            ratio = found[field] / outcome.contestants["ours"][field]
            outcome.values[f"{prefix}.speedup_vs_{name.replace('-', '_')}"] = ratio


def median_rate(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the median over steps of an amount a second.

    >>> median_rate([10, 20, 30], [1, 1, 1])
    20.0
    """
    return statistics.median(amount / taken for amount, taken in zip(amounts, seconds, strict=True))


def print_status(text: str) -> None:
    """Print a line of progress, beside the table and not in it."""
    print(text, file=sys.stderr, flush=True)
