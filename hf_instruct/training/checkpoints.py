"""Which checkpoints are whole, and whether there is room for another."""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")


def find_checkpoint(folder: Path) -> Path | None:
    """Return the last whole checkpoint, or None, and delete any newer one that a kill or a full disk left torn.

    The trainer writes `trainer_state.json` last. After a power failure the files before it may be torn all the same.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        if _is_whole(path):
            return path
        logger.warning("The checkpoint %s is torn, and is deleted.", path)
        shutil.rmtree(path, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    # PyTorch's format, whose table of contents is at its end.
    return all(zipfile.is_zipfile(path) for path in checkpoint.glob("*.pt"))


def check_disk_space(model: "PreTrainedModel", folder: Path, *, num_checkpoints: int = 2) -> None:
    """Refuse to start a run whose checkpoints cannot fit.

    While a checkpoint is written its predecessor still stands: twice the trained weights with Adam's two moments
    (fp32), and the model itself once.

    Args:
        model: The model, with what is trained marked so.
        folder: Where they are written.
        num_checkpoints: How many of these two are still to come; 1 where one stands already.

    Raises:
        TrainingError: Less than that is free.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    needed = trained * 4 * (num_checkpoints * 3 + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        checkpoints = "one checkpoint" if num_checkpoints == 1 else "two checkpoints"
        raise TrainingError(
            f"`{folder}` has {free / 1e9:.1f} GB free and this run can need {needed / 1e9:.1f} GB: {checkpoints} of "
            "the trained weights with the optimizer's state, and the model. Free some space, or set `--run-dir` to a "
            "larger disk."
        )
