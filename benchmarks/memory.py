"""Peak resident memory of the real command: `hf-instruct train` with a recipe, for three steps, in a fresh process."""

import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.inputs import folder_bytes
from benchmarks.processes import Deadline, SkipError, run_command

STEPS = 3


@dataclasses.dataclass(frozen=True)
class MemoryCase:
    """One recipe.

    Attributes:
        name: As in the results.
        shape: The model's shape.
        recipe: The experiment; its model is replaced by random weights of the same shape.
        least_bytes: Memory a machine should have for this to be worth trying.
    """

    name: str
    shape: str
    recipe: str
    least_bytes: float


MEMORY_CASES = [
    MemoryCase("memory.gpt2-medium_lora_gb", "gpt2-medium", "recipes/gpt2-medium/lora.yaml", 4e9),
    MemoryCase("memory.gpt2-medium_full_gb", "gpt2-medium", "recipes/gpt2-medium/full.yaml", 8e9),
    MemoryCase("memory.gpt2-xl_lora_gb", "gpt2-xl", "recipes/gpt2-xl/lora.yaml", 10e9),
]


def check_room(case: MemoryCase, *, folder: Path) -> None:
    """Refuse a case that this machine has no memory for, or no disk for the model and a checkpoint.

    Raises:
        SkipError: With the numbers.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < case.least_bytes:
        raise SkipError(f"it needs about {case.least_bytes / 1e9:.0f} GB of memory; there are {memory / 1e9:.1f}")
    # Training all weights keeps the model, its optimizer's state and the tuned model.
    needed = folder_bytes(case.shape) * (1.2 if "lora" in case.name else 5)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise SkipError(
            f"it needs {needed / 1e9:.0f} GB of disk under `{folder}`, which has {free / 1e9:.1f}; set TMPDIR"
        )


def measure_memory(case: MemoryCase, *, model: str, data: str, deadline: Deadline) -> dict[str, Any]:
    """Train for three steps and report `peak_memory_bytes` and `seconds`.

    Args:
        case: The recipe.
        model: Folder of random weights of its shape.
        data: The course's data file.
        deadline: When to be done.
    """
    with tempfile.TemporaryDirectory(prefix="hf-instruct-memory-") as folder:
        # fmt: off
        finished = run_command(
            [
                sys.executable, "-m", "hf_instruct", "train", case.recipe,
                "--run-dir", f"{folder}/run",
                "--model.name", model,
                "--data.source", data,
                "--train.max_steps", str(STEPS),
            ],
            deadline=deadline,
        )
        # fmt: on
    return {"peak_memory_bytes": finished.peak_bytes, "seconds": finished.seconds, "steps": STEPS}
