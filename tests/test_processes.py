"""Which of several launched processes this is."""

import pytest

from hf_instruct.processes import count_processes, is_main_process, process_rank


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (process_rank(), count_processes(), is_main_process()) == (0, 1, True)


def test_a_launched_process_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (process_rank(), count_processes(), is_main_process()) == (2, 4, False)
