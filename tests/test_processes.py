"""Which of several launched processes this is, and how one is ended."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from hf_instruct.processes import (
    Terminated,
    count_processes,
    is_main_process,
    let_threads_sleep,
    on_main_process,
    process_rank,
    sigterm_interrupts,
)

FORK = """
import os, signal
from hf_instruct.processes import sigterm_interrupts
with sigterm_interrupts():
    if (copy := os.fork()) == 0:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            os._exit(7)
    print(os.WTERMSIG(os.waitpid(copy, 0)[1]))
"""


def _handler() -> object:
    return signal.getsignal(signal.SIGTERM)


def test_sigterm_interrupts() -> None:
    with pytest.raises(Terminated), sigterm_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert _handler() is signal.SIG_DFL


def test_sigterm_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []

    def look() -> None:
        with sigterm_interrupts():
            found.append(_handler())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    monkeypatch.setenv("WORLD_SIZE", "2")
    look()
    monkeypatch.delenv("WORLD_SIZE")
    assert found == [signal.SIG_DFL] * 2
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        look()
        assert (found[2], _handler()) == (signal.SIG_IGN, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_process_ends_immediately() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{int(signal.SIGTERM)}\n"


def test_a_launched_process_knows_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (process_rank(), count_processes(), is_main_process()) == (0, 1, True)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (process_rank(), count_processes(), is_main_process()) == (2, 4, False)


def test_an_error_of_the_first_process_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would otherwise continue with None for its result."""
    sent: list[list[object]] = []
    monkeypatch.setattr("hf_instruct.processes.count_processes", lambda: 2)
    monkeypatch.setattr("hf_instruct.processes._join_processes", lambda use_cpu=None: None)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", sent.append)
    with pytest.raises(ZeroDivisionError):
        on_main_process(lambda: 1 / 0)
    assert isinstance(sent[0][1], RuntimeError)
    # Another process receives what the first one sent.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda outcome: outcome.__setitem__(1, sent[0][1]))
    with pytest.raises(RuntimeError, match="The first process failed: ZeroDivisionError"):
        on_main_process(lambda: 1 / 0)


def test_threads_sleep_unless_the_user_sets_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_torch, given, expected in (
        (False, {}, "3000"),
        (False, {"GOMP_SPINCOUNT": "7"}, "7"),
        (False, {"OMP_WAIT_POLICY": "active"}, None),
        (True, {}, None),
    ):
        with monkeypatch.context() as patch:
            for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
                # Set first, so that it is restored afterwards whatever happens to it.
                patch.setenv(name, given.get(name, ""))
                if name not in given:
                    patch.delenv(name)
            if has_torch:
                patch.setitem(sys.modules, "torch", sys)
            else:
                patch.delitem(sys.modules, "torch", raising=False)
            let_threads_sleep()
            assert os.environ.get("GOMP_SPINCOUNT") == expected
