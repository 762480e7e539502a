"""Run one measurement in a process of its own, and read what it reports.

Every contestant has its own process, because one's allocator and kernel caches would help or hurt the next. A module
that measures takes its job as one JSON argument and prints its report as the last line of its output:

    python -m benchmarks.peak '{"seconds": 0.1}'

This process imports neither torch nor Transformers: a child starts as a copy of its parent, and the parent's memory
would count in the child's peak.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_instruct.memory import resident_bytes

PROJECT = Path(__file__).resolve().parents[1]
_SHOWN_LINES = 12
# Less is not enough to import the libraries and run a step.
_MIN_SECONDS = 20.0


class BenchmarkError(Exception):
    """A measurement failed, so that its number would be wrong or is not there."""


class SkipError(Exception):
    """A measurement is not made; the text says why."""


@dataclasses.dataclass(frozen=True)
class Deadline:
    """When the whole run has to end.

    Attributes:
        seconds: Time given to the run; None for no limit.
        start: Clock reading at its start.
    """

    seconds: float | None = None
    start: float = dataclasses.field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Return the seconds since the run's start."""
        return time.monotonic() - self.start

    def remaining(self) -> float | None:
        """Return the seconds left, or None where there is no limit.

        Raises:
            SkipError: Too few are left to begin anything.
        """
        if self.seconds is None:
            return None
        left = self.seconds - self.elapsed()
        if left < _MIN_SECONDS:
            raise SkipError(f"the quick run's {self.seconds:.0f} s were over before")
        return left


@dataclasses.dataclass(frozen=True)
class Finished:
    """What is known of a process that ended well.

    Attributes:
        output: Its standard output.
        seconds: From its start to its end.
        peak_bytes: Its largest resident memory, or that of its largest child.
    """

    output: str
    seconds: float
    peak_bytes: int


def run_command(command: Sequence[str], *, deadline: Deadline | None = None) -> Finished:
    """Run a command from the project's folder, with the Hub off.

    Raises:
        BenchmarkError: It failed; its last lines are quoted.
        SkipError: There is no time for it, or it was not done in time.
    """
    timeout = (deadline or Deadline()).remaining()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        # A group of its own, so that a timeout ends its children too.
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        late = threading.Event()
        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, _end_group, (process.pid, late))
        timer.daemon = True
        timer.start()
        try:
            # Unlike `getrusage`, it tells the peak of this one child.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _end_group(process.pid, late)
            raise
        finally:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        output, errors = (_read(file) for file in (out, err))
    if late.is_set():
        raise SkipError(f"not done within the quick run's {timeout:.0f} s that were left")
    if process.returncode:
        tail = "\n".join(["", *(errors or output).rstrip().splitlines()[-_SHOWN_LINES:]]).replace("\n", "\n    ")
        raise BenchmarkError(f"`{' '.join(command[1:4])}` ended with status {process.returncode}:{tail}")
    return Finished(output, seconds, resident_bytes(usage))


def run_job(module: str, job: Any, *, deadline: Deadline | None = None) -> dict[str, Any]:
    """Return the report of `python -m benchmarks.MODULE JOB`; a dataclass or a dictionary is the job.

    Raises:
        BenchmarkError: The process failed.
        SkipError: There was no time for it.
    """
    values = dataclasses.asdict(job) if dataclasses.is_dataclass(job) and not isinstance(job, type) else job
    command = [sys.executable, "-m", f"benchmarks.{module}", json.dumps(values)]
    lines = run_command(command, deadline=deadline).output.strip().splitlines()
    try:
        report: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"`benchmarks.{module}` printed no report: {lines[-1:]}") from error
    return report


def answer_job(work: Callable[..., dict[str, Any]]) -> None:
    """Do the job in the command line's argument and print its report: the other side of `run_job`."""
    report = work(**json.loads(sys.argv[1]))
    print(f"\n{json.dumps(report)}", flush=True)


def read_clock() -> float:
    """Return a clock reading in seconds, taken when all work given to this machine's accelerator is done."""
    import torch

    if torch.accelerator.is_available():
        # A GPU is still at work when the call that gave it the work returns.
        torch.accelerator.synchronize()
    return time.perf_counter()


def _end_group(pid: int, late: threading.Event) -> None:
    late.set()
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        # It ended by itself at this very moment.
        late.clear()


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))
