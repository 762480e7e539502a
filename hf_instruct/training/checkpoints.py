"""Checkpoints: check that they are complete and belong to this run, and that there is space for another one."""

import contextlib
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.console import pluralize
from hf_instruct.errors import RunError, TrainingError
from hf_instruct.manifests import MANIFEST, Manifest, Origin, find_change, read_manifest, stamp_weights
from hf_instruct.processes import is_main_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_instruct.training.trainer import RunTrainer

logger = logging.getLogger(__name__)

# File with the precision that was chosen at the start of the run.
PRECISION = "precision.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def build_origin(trainer: "RunTrainer", model: "PreTrainedModel", examples_sha256: str) -> Origin:
    """Return the origin of a run; the main process hashes the base model's weights."""
    sharding = trainer.accelerator.distributed_type.value
    location, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    return Origin(
        num_processes=trainer.args.world_size,
        sharding=sharding if sharding in ("FSDP", "DEEPSPEED") else None,
        examples_sha256=examples_sha256,
        base=stamp_weights(location, commit) if is_main_process() else None,
        quantization=next((f"{bits}bit" for bits in (4, 8) if getattr(model, f"is_loaded_in_{bits}bit", False)), None),
    )


def find_checkpoint(folder: Path, origin: Origin) -> Path | None:
    """Return the last complete checkpoint, or None; newer damaged ones are deleted, with a warning.

    Args:
        folder: Folder of the checkpoints.
        origin: The origin of the resumed run.

    Raises:
        RunError: The checkpoint has a different origin, or cannot be checked.
    """
    checkpoints = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    for _, path in sorted(checkpoints, reverse=True):
        manifest, damage = _inspect(path)
        if manifest is not None and damage is None:
            if manifest.origin is not None:
                _check_origin(path, manifest.origin, origin)
            return path
        logger.warning("Deleting %s, which is damaged (%s).", path, damage)
        shutil.rmtree(path, ignore_errors=True)
    if checkpoints:
        logger.warning("No complete checkpoint is left in %s: training starts again from the first step.", folder)
    return None


def _inspect(checkpoint: Path) -> tuple[Manifest | None, str | None]:
    """Return a checkpoint's manifest, or None, and the problem with its files, or None."""
    if not (checkpoint / MANIFEST).is_file() and (checkpoint / "trainer_state.json").is_file():
        raise RunError(
            f"`{checkpoint}` has no `{MANIFEST}`: an older version wrote it, or that file was deleted, so its other "
            "files cannot be checked. Delete the folder to continue from the previous checkpoint, or resume with "
            "the version that wrote it."
        )
    try:
        manifest = read_manifest(checkpoint)
    except RunError:
        manifest = None
    return manifest, find_change(checkpoint, manifest.files) if manifest else "it was interrupted while it was written"


def _check_origin(checkpoint: Path, then: Origin, now: Origin) -> None:
    otherwise = "use another `--run-dir`, or start again with `--force`."
    before, after = _describe_processes(then), _describe_processes(now)
    if before != after:
        raise RunError(
            f"`{checkpoint}` was trained by {before}, and this is {after}: the rest of the run would see different "
            f"batches. Launch it as before, {otherwise}"
        )
    if then.examples_sha256 != now.examples_sha256:
        raise RunError(
            f"`{checkpoint}` was trained on different examples. Use the same ones in the same order, {otherwise}"
        )
    if then.base is not None and now.base is not None:
        hashes = [{name: stamp.sha256 for name, stamp in base.files.items()} for base in (then.base, now.base)]
        if hashes[0] != hashes[1]:
            raise RunError(
                f"`{checkpoint}` was trained from a base model with other weights than it has now. Restore the old "
                f"ones{f' (commit {then.base.commit})' if then.base.commit else ''}, {otherwise}"
            )


def _describe_processes(origin: Origin) -> str:
    count = pluralize(origin.num_processes, "process", "processes")
    return f"{count} with {origin.sharding}" if origin.sharding else count


def clear_checkpoints(folder: Path, *, keep: bool) -> None:
    """Delete or keep the checkpoints of a run whose model is saved, and log their size."""
    from rich.filesize import decimal

    checkpoints = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    size = decimal(sum(file.stat().st_size for path in checkpoints for file in path.rglob("*") if file.is_file()))
    if keep:
        if checkpoints:
            logger.info("Keeping %s of checkpoints in %s", size, folder)
        return
    for path in checkpoints:
        shutil.rmtree(path, ignore_errors=True)
    (folder / PRECISION).unlink(missing_ok=True)
    # The folder may contain the logs of a tracker, or be a link to another disk.
    with contextlib.suppress(OSError):
        folder.rmdir()
    if checkpoints:
        logger.info("The model is saved; deleted %s of checkpoints (`keep_checkpoints: true` keeps them)", size)


def check_disk_space(model: "PreTrainedModel", folder: Path, *, num_checkpoints: int = 2) -> None:
    """Check that the disk has enough space for the checkpoints of a run.

    While a checkpoint is written, the previous one still exists. A run therefore needs space for the trained weights
    with Adam's two moments (fp32) twice, plus the model.

    Args:
        model: The model; weights that require gradients are trained.
        folder: The run folder.
        num_checkpoints: Number of these two that do not exist yet; 1 if the run is resumed.

    Raises:
        TrainingError: There is not enough free space.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    needed = trained * 4 * (num_checkpoints * 3 + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        checkpoints = "one checkpoint" if num_checkpoints == 1 else "two checkpoints"
        raise TrainingError(
            f"`{folder}` has {free / 1e9:.1f} GB free, but this run may need {needed / 1e9:.1f} GB: {checkpoints} of "
            "the trained weights with the optimizer's state, and the model. Free some space, or set `--run-dir` to a "
            "larger disk."
        )
