"""Processes launched together: rank, work on the main process only, setup, and SIGTERM.

Rank and count are read from the environment, where `accelerate launch` and `torchrun` set them.
"""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_instruct.console import MessageFormatter
from hf_instruct.errors import InstructError

if TYPE_CHECKING:
    from accelerate import PartialState

Result = TypeVar("Result")


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, but sent by a program, such as `kill`, `timeout`, a container or a batch system."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, so that work in progress is cleaned up as after Ctrl-C.

    SIGTERM is left unchanged outside the main thread, if a handler is already set, and with several processes launched
    together: these may be inside a collective operation, where no Python code runs, when their launcher ends them.
    """
    is_ours = threading.current_thread() is threading.main_thread() and count_processes() == 1
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def terminate(number: int, frame: object) -> None:
        if os.getpid() != owner:
            # A fork of this process, such as a data loader: it ends immediately.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def process_rank() -> int:
    """Return the rank of this process, from 0; 0 for a single process."""
    return int(os.environ.get("RANK", "0"))


def count_processes() -> int:
    """Return the number of processes launched together, on all machines; 1 for a single process."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first of the processes launched together, or the only one."""
    return process_rank() == 0


def wait_for_all() -> None:
    """Wait until all processes launched together reach this point."""
    if count_processes() > 1:
        _join_processes().wait_for_everyone()


def on_main_process(work: Callable[[], Result], *, use_cpu: bool | None = None) -> Result:
    """Run `work` on the main process and return its result on all processes; the others wait.

    An error on the main process is raised on all of them; otherwise, they would wait or continue without its result.

    Args:
        work: The function to call once.
        use_cpu: Whether to use the CPU; by default if there is no GPU. Only the first call has an effect.

    Raises:
        InstructError: `work` raised it.
        RuntimeError: On the other processes, if it raised anything else.
    """
    if count_processes() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    _join_processes(use_cpu)
    outcome: list[Any] = [None, None]
    try:
        if is_main_process():
            outcome[0] = work()
    except InstructError as error:
        outcome[1] = error
    except BaseException as error:
        # The error itself may not be picklable.
        outcome[1] = RuntimeError(f"The first process failed: {error!r}")
        raise
    finally:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def is_true_on_all(value: bool) -> bool:
    """Return whether a value is true on all processes launched together, all of which must call this."""
    if count_processes() == 1:
        return value
    from accelerate.utils import gather_object

    _join_processes()
    values = gather_object([value])
    # Broadcast by the first, so that no process exits while another still reads from it.
    return on_main_process(lambda: all(values))


def _join_processes(use_cpu: bool | None = None) -> "PartialState":
    """Connect the processes that were launched together."""
    from accelerate import PartialState

    from hf_instruct.models import best_device

    # Without `cpu`, processes on a machine without a GPU would not connect.
    return PartialState(cpu=best_device() == "cpu" if use_cpu is None else use_cpu)


def let_threads_sleep() -> None:
    """Let waiting threads sleep after a short spin, unless the user has configured this.

    By default they spin for milliseconds, which blocks the thread that they wait for if another program needs the
    processor. GNU OpenMP reads the setting once, when torch is imported; after that it has no effect.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


class _StandardErrorHandler(logging.StreamHandler[Any]):
    """Writes to the current `sys.stderr`, and thus above a progress bar while there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def configure_process() -> None:
    """Set up logging and turn off telemetry of other libraries, for our command line; importing does neither."""
    handler = _StandardErrorHandler()
    handler.setFormatter(MessageFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # All processes launched together would log the same lines.
    logging.getLogger("hf_instruct").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    # It logs casts and missing kernels with every matrix product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Libraries read these at import. We report in one sentence what the Hub client would log a dozen times.
    quiet = {"HF_HUB_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    for name, value in {**quiet, "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)
    if sys.stderr is None or not sys.stderr.isatty():
        # Progress bars of other libraries are noise in a log; ours become log lines.
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    if not sys.warnoptions:
        # Warnings are for the libraries' developers; `python -W default -m hf_instruct` shows them.
        warnings.simplefilter("ignore")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Some schedulers start programs with closed streams.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  (open until the process ends)
    for stream in (sys.stdout, sys.stderr):
        # A model may generate characters that the terminal's encoding does not support.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    let_threads_sleep()
