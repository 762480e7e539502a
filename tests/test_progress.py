import logging
import os
import re
import subprocess
import sys
import termios

import pytest

from hf_instruct import progress
from hf_instruct.progress import progress_bar


def test_log_lines_are_rare_and_include_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 21.0, 30.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="hf_instruct"), progress_bar("Training", 10, done=2) as advance:
        advance(1, "loss 3")
        advance(2, "loss 2")
        advance(2, "")
        advance(3, "")
    assert caplog.messages == ["Training: 5/10, loss 2, 40 s left", "Training: 10/10, 0 s left"]
    assert capsys.readouterr().out == ""


def test_the_first_estimate_leaves_out_what_comes_before_the_first_step(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a slow machine: an evaluation and a first step of 52 s, then 5 s a step; 5,546 s were foretold once."""
    times = [0.0, 52.0, *(52.0 + 5.0 * step for step in range(1, 107))]
    clock = iter(times)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="hf_instruct"), progress_bar("Training", 107) as advance:
        for _ in range(107):
            advance(1, "")
    first, second, *_ = caplog.messages
    assert first == "Training: 1/107"
    assert second == "Training: 5/107, 510 s left"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress_bar("Answering", 4, done=1) as advance:
        advance(3, "note")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"Answering .*4/4.* note", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.err))
    # One bar, however many processes work together.
    monkeypatch.setenv("RANK", "1")
    with progress_bar("Answering", 4) as advance:
        advance(4, "note")
    assert capsys.readouterr().err == ""


def test_the_log_stands_above_the_bar() -> None:
    code = """
import logging
from hf_instruct.processes import configure_process
from hf_instruct.progress import progress_bar
configure_process()
with progress_bar("Training", 2) as advance:
    advance(1, "")
    logging.getLogger("hf_instruct").info("A line of the log")
    advance(1, "")
"""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    subprocess.run([sys.executable, "-c", code], stderr=follower, check=True, env={**os.environ, "TERM": "xterm"})
    said = os.read(leader, 100_000).decode()
    os.close(follower)
    os.close(leader)
    # The bar is erased first, and drawn again below.
    assert "\x1b[2KA line of the log\r\n" in said
    assert said.count("2/2") == 1
