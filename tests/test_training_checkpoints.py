import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_instruct.errors import RunError, TrainingError
from hf_instruct.manifests import Origin, begin_manifest, stamp_weights, write_manifest
from hf_instruct.training.checkpoints import check_disk_space, find_checkpoint

ORIGIN = Origin(num_processes=2, sharding=None, examples_sha256="ab", base=None)
# Of the plain format, of several processes, and of weights that are spread over them.
FILES = ["optimizer.pt", "scheduler.pt", "rng_state_1.pth", "pytorch_model_fsdp_0/__1_0.distcp"]


def make(folder: Path, step: int, origin: Origin = ORIGIN) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "pytorch_model_fsdp_0").mkdir(parents=True)
    begin_manifest(path)
    save_file({"weight": torch.zeros(200)}, path / "model.safetensors")
    for name in (*FILES, "trainer_state.json", "training_args.bin"):
        (path / name).write_text("{}" * step)
    write_manifest(path, origin)
    return path


def flip_bit(path: Path) -> None:
    """As a disk or memory does it: no size and no time changes."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_last_whole_checkpoint_is_found(tmp_path: Path) -> None:
    make(tmp_path, 5)
    last = make(tmp_path, 10)
    make(tmp_path, 9)
    # Never read again.
    (last / "training_args.bin").unlink()
    assert find_checkpoint(tmp_path, ORIGIN) == last


@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
def test_a_damaged_checkpoint_is_passed_over_and_deleted(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, lost, flipped, torn = (make(tmp_path, step) for step in (5, 10, 15, 20))
    (lost / name).unlink()
    flip_bit(flipped / name)
    (torn / name).write_bytes((torn / name).read_bytes()[:-1])
    size = (torn / name).stat().st_size
    assert find_checkpoint(tmp_path, ORIGIN) == whole
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]
    reasons = (
        f"`{name}` has {size:,} bytes instead of {size + 1:,}",
        f"the content of `{name}` has changed",
        f"`{name}` is missing",
    )
    assert caplog.messages == [
        f"Deleting {path}, which is damaged ({reason})."
        for path, reason in zip((torn, flipped, lost), reasons, strict=True)
    ]


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Killed after the trainer's last file, and before its first.
    begin_manifest(make(tmp_path, 5))
    (tmp_path / "checkpoint-10").mkdir()
    assert find_checkpoint(tmp_path, ORIGIN) is None
    assert list(tmp_path.iterdir()) == []
    assert [message.count("it was interrupted while it was written") for message in caplog.messages] == [1, 1, 0]
    assert caplog.messages[2] == (
        f"No complete checkpoint is left in {tmp_path}: training starts again from the first step."
    )


def test_a_checkpoint_that_cannot_be_checked_is_refused_and_kept(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    (path / "manifest.json").unlink()
    with pytest.raises(RunError) as caught:
        find_checkpoint(tmp_path, ORIGIN)
    assert str(caught.value).startswith(f"`{path}` has no `manifest.json`: an older version wrote it, or that file was")
    assert (path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_processes": 1}, "was trained by 2 processes, and this is 1 process: the rest of the run would see "),
        ({"sharding": "FSDP"}, "was trained by 2 processes, and this is 2 processes with FSDP: "),
        ({"examples_sha256": "ba"}, "was trained on different examples. "),
    ],
)
def test_a_run_made_from_something_else_does_not_resume(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    path = make(tmp_path, 10)
    with pytest.raises(RunError) as caught:
        find_checkpoint(tmp_path, ORIGIN.model_copy(update=changes))
    assert str(caught.value).startswith(f"`{path}` {text}")
    assert str(caught.value).endswith(", use another `--run-dir`, or start again with `--force`.")
    assert path.exists()


def test_a_run_does_not_resume_from_other_base_weights(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"weight": torch.zeros(200)}, base / "model.safetensors")
    then = ORIGIN.model_copy(update={"base": stamp_weights(str(base))})
    path = make(tmp_path, 10, then)
    os.utime(base / "model.safetensors")
    assert find_checkpoint(tmp_path, ORIGIN.model_copy(update={"base": stamp_weights(str(base))})) == path
    flip_bit(base / "model.safetensors")
    with pytest.raises(RunError, match="was trained from a base model with other weights than it has now"):
        find_checkpoint(tmp_path, ORIGIN.model_copy(update={"base": stamp_weights(str(base))}))


def test_none_is_found_where_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_checkpoint(tmp_path / "missing", ORIGIN) is None
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint(tmp_path, ORIGIN) is None
    assert (tmp_path / "checkpoint-best").exists()
    assert caplog.messages == []


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
        f"`{tmp_path}` has 0.0 GB free, but this run may need 0.0 GB: two checkpoints of "
    )
    model.requires_grad_(False)
    check_disk_space(model, tmp_path)
