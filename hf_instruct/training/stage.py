"""The training stage: from `data/` to `model/`."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import Experiment
from hf_instruct.console import pluralize
from hf_instruct.data.sources import load_split
from hf_instruct.data.splits import CheckedSplits
from hf_instruct.processes import count_processes, is_main_process
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import SFT, TrainingSummary
from hf_instruct.training.sft import train
from hf_instruct.training.tracking import name_tracked_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def run_sft(run: RunFolder, experiment: Experiment, *, resume: bool = False) -> TrainingSummary:
    """Fine-tune the experiment's model on the run's data, and return a summary.

    Raises:
        InstructError: The model cannot be loaded, or `train` raised.
    """
    splits = CheckedSplits({name: load_split(run, name) for name in ("train", "validation")})
    model, tokenizer = load_base(run, experiment)
    options = build_options(run, experiment, model)
    if experiment.data.num_proc:
        options["args"].setdefault("dataset_num_proc", experiment.data.num_proc)
    method = "LoRA" if experiment.lora is not None else "all weights"
    logger.info("Fine-tuning %s (%s) on %s", experiment.model.name, method, pluralize(len(splits["train"]), "example"))
    summary = train(model, tokenizer, splits, loss_on=experiment.data.loss_on, resume=resume, **options)
    log_summary(run, summary)
    return summary


def load_base(run: RunFolder, experiment: Experiment) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the base model of a run, loaded with its `model` section, and its tokenizer.

    Raises:
        ModelLoadError: They cannot be loaded.
    """
    from hf_instruct.models import is_local_model, load_model

    section = experiment.model
    name = run.find_base(section.name)
    model, tokenizer = load_model(
        name,
        revision=section.revision,
        dtype=section.dtype,
        dropout=section.dropout,
        quantization=section.quantization,
        **section.loading,
    )
    if is_main_process():
        # Recorded, because from another working directory a relative path looks like a Hub id.
        is_local, start_run = is_local_model(name), RunFolder(Path(name).parent)
        run.add_provenance(base_model_is_local=is_local)
        if experiment.start == SFT and is_local and start_run.config.is_file():
            run.add_provenance(start=start_run.load_experiment().method)
    return model, tokenizer


def build_options(run: RunFolder, experiment: Experiment, model: "PreTrainedModel") -> dict[str, Any]:
    """Return an experiment's arguments for the training functions; halves frozen weights if that is exact."""
    from hf_instruct.memory import give_back_freed_memory
    from hf_instruct.training.arguments import resolve_precision
    from hf_instruct.training.fast.casts import halve_linear_weights

    settings = resolve_precision(experiment.given, model, run)
    keep_checkpoints = settings.pop("keep_checkpoints", False)
    settings["run_name"] = name_tracked_run(run, settings)
    lora = experiment.lora
    if lora is not None and experiment.model.revision:
        # PEFT stores the revision in the adapter, so that it is never applied to another version of its base.
        lora = {"revision": experiment.model.revision, **lora}
    if lora is not None and _only_multiplies(lora) and settings["bf16"] and count_processes() == 1:
        # Nothing uses this model object after the stage, so its frozen weights may be halved. (FSDP needs one dtype.)
        halve_linear_weights(model)
        give_back_freed_memory()
    return {
        "output_dir": run.path,
        "prompt_format": run.load_prompt_format(experiment.data.prompt_format),
        "args": settings,
        "peft_config": lora,
        "keep_checkpoints": keep_checkpoints,
    }


def log_summary(run: RunFolder, summary: TrainingSummary) -> None:
    """Log time, memory and results of training, and save the id of its wandb run."""
    if (wandb := sys.modules.get("wandb")) and wandb.run and is_main_process():
        run.add_provenance(wandb_run=wandb.run.id)
    measure, before, after = "validation loss", summary.validation_loss_before, summary.validation_loss
    if summary.reward is not None:
        measure, before, after = "mean reward on held-out prompts", summary.reward_before, summary.reward
    change = "" if before is None else f"{before:.3f} -> "
    logger.info(
        "Trained %s in %.0f s (%s on %s);%s peak memory %.1f GB",
        pluralize(summary.steps, "step"),
        summary.seconds,
        summary.precision,
        summary.device,
        "" if after is None else f" {measure} {change}{after:.3f};",
        summary.peak_memory_bytes / 1e9,
    )


def _only_multiplies(lora: Mapping[str, Any]) -> bool:
    """Return whether an adapter only uses the frozen weights in matrix products.

    DoRA needs their norms, some initializations decompose them, and `modules_to_save` trains copies.
    """
    init = lora.get("init_lora_weights")
    is_derived = isinstance(init, str) and init != "gaussian"
    return not (is_derived or lora.get("use_dora") or lora.get("modules_to_save"))
