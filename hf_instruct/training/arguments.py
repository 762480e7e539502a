"""Build TRL's and PEFT's configurations from the `train` and `lora` sections, with defaults for this machine."""

import copy
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.console import redact
from hf_instruct.errors import ConfigError, is_bug
from hf_instruct.library_fields import DEFAULTS, LORA_DEFAULTS, SECTIONS, find_refused_training
from hf_instruct.models import best_device, context_length
from hf_instruct.processes import on_main_process
from hf_instruct.records import read_file, write_json
from hf_instruct.run_folder import RunFolder
from hf_instruct.training.checkpoints import PRECISION
from hf_instruct.training.fast.precision import prefers_bf16

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel
    from trl import SFTConfig

logger = logging.getLogger(__name__)


def resolve_arguments(args: Any, model: "PreTrainedModel", run: RunFolder, *, kind: str = "SFTConfig") -> Any:
    """Return a run's `SFTConfig` (or other `kind`), given the user's own, a mapping of its fields, or None.

    Raises:
        ConfigError: `args` has another type, or has problems.
    """
    import trl

    if isinstance(args, getattr(trl, kind)):
        arguments = build_arguments(args, run.checkpoints, kind=kind)
        _log_slow_settings(arguments, model)
    else:
        _check_mapping("args", {} if args is None else args, kind)
        arguments = build_arguments(resolve_precision(args or {}, model, run), run.checkpoints, kind=kind)
    if kind != "GRPOConfig":
        arguments.max_length = _fit_max_length(arguments.max_length, model, section=SECTIONS[kind])
    return arguments


def _fit_max_length(max_length: int | None, model: "PreTrainedModel", *, section: str) -> int | None:
    """Return the maximum number of tokens in a row: `max_length`, limited to the model's positions."""
    limit = context_length(model)
    if limit is None or (max_length is not None and max_length <= limit):
        return max_length
    if max_length is not None:
        message = "`%s.max_length` %d is more than the model's %d positions; using %d."
        logger.info(message, section, max_length, limit, limit)
    return limit


def _check_mapping(name: str, value: Any, owner: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"`{name}` is a `{type(value).__name__}`; pass a `{owner}` or a mapping of its fields.")


def build_arguments(values: Any, output_dir: Path, *, kind: str = "SFTConfig") -> Any:
    """Return the settings of a run: the user's own unchanged, or the course's settings updated with the user's values.

    Args:
        values: An `SFTConfig`, or its fields with `bf16` decided (`resolve_precision`).
        output_dir: Folder of the checkpoints.
        kind: `SFTConfig`, `DPOConfig` or `GRPOConfig`, of TRL.

    Raises:
        ConfigError: TRL refuses the values, or one of them is not supported in a run.
    """
    fields = values if isinstance(values, Mapping) else _list_changed(values)
    if problems := find_refused_training(fields, section=SECTIONS[kind]):
        raise ConfigError(f"These settings of `{kind}` cannot be used in a run:", problems)
    arguments = _build_with_defaults(values, kind) if isinstance(values, Mapping) else copy.copy(values)
    arguments.output_dir = str(output_dir)
    if getattr(arguments, "activation_offloading", False) and arguments.device.type == "cpu":
        raise ConfigError(
            f"`{SECTIONS[kind]}.activation_offloading` moves activations from a GPU into main memory, and this run has "
            "no GPU; leave it out."
        )
    # Counts the examples' tokens for the upper axis of the loss plot, also after resuming; GRPO counts its own.
    arguments.include_num_input_tokens_seen = "no" if kind == "GRPOConfig" else "non_padding"
    if kind != "GRPOConfig":
        arguments.padding_free = False
        # The tokenizer has it already, if the model has an embedding for it.
        arguments.pad_token = None
    if kind == "SFTConfig":
        # Our collators avoid padding if that is exact, and the rows are already prepared.
        arguments.dataset_kwargs = {"skip_prepare_dataset": True}
        # The resolved template is already set on the tokenizer.
        arguments.chat_template_path = None
        if arguments.assistant_only_loss:
            arguments.assistant_only_loss, arguments.completion_only_loss = False, True
    elif kind == "DPOConfig":
        # The reference is the model before training; otherwise TRL would load it from its path again.
        arguments.precompute_ref_log_probs = True
    # Otherwise a diverged loss would be hidden in the mean of the others.
    arguments.logging_nan_inf_filter = False
    if arguments.n_gpu > 1:
        logger.info(
            "Using one of %d GPUs. To use all: accelerate launch --config_file accelerate_configs/multi_gpu.yaml "
            "recipes/sft.py EXPERIMENT.yaml",
            arguments.n_gpu,
        )
        # One process with several GPUs would be `nn.DataParallel`, which TRL refuses.
        arguments._n_gpu = 1
    return arguments


def _list_changed(values: Any) -> dict[str, Any]:
    """Return the fields of a configuration that are not at their defaults, except `output_dir`."""
    fields = [field for field in dataclasses.fields(values) if field.name != "output_dir"]
    return {field.name: value for field in fields if (value := getattr(values, field.name)) != field.default}


def _build_with_defaults(values: Mapping[str, Any], kind: str) -> Any:
    import trl

    # Redacted, because TRL writes them to files and passes them to the trackers in `report_to`.
    settings: dict[str, Any] = redact({**DEFAULTS[kind], **values})
    # TRL would warn about it.
    settings.pop("pad_token", None)
    # The older names of the same settings; TRL turns the first on by default, which costs a second forward pass.
    settings["activation_checkpointing"] = (
        settings.get("gradient_checkpointing") or settings["activation_checkpointing"]
    )
    settings["gradient_checkpointing"] = None
    device = _find_device(values)
    settings["use_cpu"] = settings.get("use_cpu", device == "cpu")
    # TRL would use bf16 by default.
    settings["bf16"] = bool(settings.get("bf16"))
    settings["dataloader_pin_memory"] = settings.get("dataloader_pin_memory", device == "cuda")
    # We show what the workers log. Otherwise, TRL would decide by the level whether there is a progress bar.
    settings = {"log_level": "error", "disable_tqdm": False, **settings}
    if kind == "GRPOConfig":
        # Held-out prompts get one greedy answer each; by default TRL requires complete groups in a batch.
        settings.setdefault("num_generations_eval", 1)
        # Their evaluation has no loss.
        if settings.get("load_best_model_at_end") or settings.get("save_strategy") == "best":
            settings.setdefault("metric_for_best_model", "reward")
    with translated_refusals(f"The `{SECTIONS[kind]}` section is refused by TRL:"):
        return getattr(trl, kind)(**settings)


def _log_slow_settings(arguments: "SFTConfig", model: "PreTrainedModel") -> None:
    """Log which settings of a user's own `SFTConfig` make training slower on this machine."""
    if arguments.activation_checkpointing:
        logger.info(
            "Activation checkpointing is on (TRL's default): it saves memory but computes every forward pass twice. "
            "Turn it off with SFTConfig(activation_checkpointing=False)."
        )
    if arguments.device.type == "cpu" and arguments.bf16 != prefers_bf16(model, "cpu"):
        logger.info("On this machine training is faster with SFTConfig(bf16=%s).", not arguments.bf16)


@contextmanager
def translated_refusals(headline: str) -> Iterator[None]:
    """Turn TRL's and PEFT's errors about settings into a `ConfigError`.

    Both often fail on values of a wrong type instead of refusing them.
    """
    try:
        yield
    except (TypeError, ValueError, ImportError, AttributeError, LookupError, OSError) as error:
        # An unknown name raises a TypeError in our own call, which looks like a bug.
        if is_bug(error) and "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(headline, [str(error)]) from error


def resolve_precision(values: Mapping[str, Any], model: "PreTrainedModel", run: RunFolder) -> dict[str, Any]:
    """Return a `train` section with `bf16` set: as given, as at the start of the run, or by measuring which is faster.

    The main process decides for all, and the decision is saved next to the checkpoints.
    """
    if values.get("bf16") is not None or values.get("fp16"):
        return {**values, "bf16": bool(values.get("bf16"))}
    device = _find_device(values)
    decided = on_main_process(lambda: _decide_bf16(model, device, run), use_cpu=device == "cpu")
    return {**values, "bf16": decided}


def _decide_bf16(model: "PreTrainedModel", device: str, run: RunFolder) -> bool:
    path = run.checkpoints / PRECISION
    earlier = (read_file(path, dict[str, Any]) or {}).get("bf16")
    decided = earlier if isinstance(earlier, bool) else prefers_bf16(model, device)
    write_json(path, {"bf16": decided})
    return decided


def _find_device(values: Mapping[str, Any]) -> str:
    return "cpu" if values.get("use_cpu") else best_device()


def build_lora_config(values: "PeftConfig | Mapping[str, Any]", model: "PreTrainedModel") -> "PeftConfig":
    """Return the `LoraConfig` of a run: the user's own, or the course's settings updated with the user's values.

    All linear layers except the output head are adapted, as in the course. GPT-2's are `Conv1D` layers, which store
    their weight transposed, so PEFT needs `fan_in_fan_out`.

    Raises:
        ConfigError: PEFT refuses the values, or a target is not a layer of this model.
    """
    from peft import LoraConfig, PeftConfig
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    if isinstance(values, PeftConfig):
        return values
    _check_mapping("peft_config", values, "LoraConfig")
    settings: dict[str, Any] = redact({**LORA_DEFAULTS, **values})
    layers = find_linear_layers(model)
    settings.setdefault("target_modules", sorted(layers))
    settings.setdefault("fan_in_fan_out", set(layers.values()) == {"Conv1D"})
    targets = settings["target_modules"]
    if isinstance(targets, list) and (missing := [name for name in targets if not _is_module(model, str(name))]):
        raise ConfigError(
            f"`lora.target_modules` contains layers that {type(model).__name__} does not have:",
            [f"`{name}`; its linear layers are {', '.join(f'`{n}`' for n in sorted(layers))}" for name in missing],
        )
    init = str(settings.get("init_lora_weights"))
    if init.startswith("pissa_niter"):
        raise ConfigError(
            "The `lora` section cannot be used:",
            [
                f"`lora.init_lora_weights` is `{init}`, which changes the base model randomly, so the adapter "
                "could not be loaded correctly; use `pissa`"
            ],
        )
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    if settings.get("ensure_weight_tying") and embedding.rpartition(".")[2] not in EMBEDDING_LAYER_NAMES:
        raise ConfigError(
            "The `lora` section cannot be used:",
            [
                f"`lora.ensure_weight_tying` is on, but PEFT does not recognize `{embedding}` of "
                f"{type(model).__name__} as an embedding and would load a different adapter; leave it out"
            ],
        )
    with translated_refusals("The `lora` section is refused by PEFT:"):
        return LoraConfig(**settings)


def find_linear_layers(model: "PreTrainedModel") -> dict[str, str]:
    """Return the last part of each linear layer's name and its class name, without the output head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        # bitsandbytes replaces layers, and keeps their original class.
        name.rpartition(".")[2]: getattr(module, "source_cls", type(module)).__name__
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def _is_module(model: "PreTrainedModel", name: str) -> bool:
    return any(full == name or full.endswith(f".{name}") for full, _ in model.named_modules())
