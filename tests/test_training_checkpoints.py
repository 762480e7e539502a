import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_instruct.errors import TrainingError
from hf_instruct.training.checkpoints import check_disk_space, find_checkpoint


def make(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"weight": torch.zeros(2)}, path / "model.safetensors")
    torch.save({}, path / "optimizer.pt")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_last_whole_checkpoint_is_found(tmp_path: Path) -> None:
    make(tmp_path, 5)
    last = make(tmp_path, 10)
    make(tmp_path, 9)
    assert find_checkpoint(tmp_path) == last


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1'])
def test_a_torn_checkpoint_is_ignored_and_deleted(tmp_path: Path, state: str | None) -> None:
    whole = make(tmp_path, 5)
    torn = make(tmp_path, 10, state)
    assert find_checkpoint(tmp_path) == whole
    assert not torn.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_that_a_power_failure_tore_is_no_better(tmp_path: Path, name: str) -> None:
    whole, torn = make(tmp_path, 5), make(tmp_path, 10)
    (torn / name).write_bytes((torn / name).read_bytes()[:-10])
    assert find_checkpoint(tmp_path) == whole
    assert not torn.exists()


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(tmp_path) is None
    assert (tmp_path / "checkpoint-best").exists()


def test_a_disk_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1000, 1000, bias=False)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 28_000_000))
    check_disk_space(model, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 27_999_999))
    check_disk_space(model, tmp_path, num_checkpoints=1)  # one stands already: a resumed run needs less
    with pytest.raises(TrainingError) as caught:
        check_disk_space(model, tmp_path)
    assert str(caught.value).startswith(
        f"`{tmp_path}` has 0.0 GB free and this run can need 0.0 GB: two checkpoints of "
    )
    model.requires_grad_(False)
    check_disk_space(model, tmp_path)
