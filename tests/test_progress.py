import logging
import re

import pytest

from hf_instruct import progress
from hf_instruct.progress import progress_bar


def test_plain_lines_come_now_and_then_and_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 21.0, 30.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="hf_instruct"), progress_bar("Training", 10, done=2) as advance:
        advance(1, "loss 3")
        advance(2, "loss 2")
        advance(2, "")
        advance(3, "")
    assert caplog.messages == ["Training: 5/10, loss 2, 35 s left", "Training: 10/10, 0 s left"]
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress_bar("Answering", 4, done=1) as advance:
        advance(3, "note")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"Answering .*4/4.* note", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.err))


def test_an_error_inside_comes_through() -> None:
    with pytest.raises(KeyError), progress_bar("x", 3):
        raise KeyError("inside")
