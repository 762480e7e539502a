"""How much memory a model takes: of one that is loaded, and what to expect of one that is not."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hf_instruct.errors import ModelLoadError
from hf_instruct.models import parse_num_parameters, resolve_model
from hf_instruct.records import parse_json

if TYPE_CHECKING:
    from torch import nn

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def measure_bytes(model: "nn.Module") -> int:
    """Return the bytes of a model's weights, those that layers share counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def estimate_bytes(name: str, *, dtype: str, revision: str | None = None) -> int | None:
    """Return the bytes that the weights of a model will take, by its files or else its name; None where neither tells.

    Args:
        name: An alias, a Hub id, a local folder, or the folder of an adapter, whose base model is counted too.
        dtype: `float32`, `bfloat16` or `float16`.
        revision: Commit, tag or branch on the Hub.
    """
    count = _count_parameters(name, revision)
    return None if count is None else int(count * _BYTES[dtype])


def _count_parameters(name: str, revision: str | None) -> float | None:
    from safetensors import SafetensorError

    try:
        folder = _find_folder(name, revision)
        files = sorted(folder.glob("*.safetensors")) if folder else []
        count: float | None = sum(map(_count_in_file, files)) or parse_num_parameters(name)
        adapter = folder / "adapter_config.json" if folder else None
        if adapter is None or not adapter.is_file():
            return count
        base = _count_parameters(str(parse_json(adapter.read_bytes())["base_model_name_or_path"]), None)
        return None if count is None or base is None else count + base
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, ModelLoadError):
        # Loading says what is wrong with it.
        return None


def _find_folder(name: str, revision: str | None) -> Path | None:
    """Return where the files of a model are on this machine; None where they are not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    location = resolve_model(name)
    if Path(location).is_dir():
        return Path(location)
    try:
        return Path(snapshot_download(location, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _count_in_file(file: Path) -> int:
    """Return the parameters in a file of weights; only its head is read."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  # no dict
