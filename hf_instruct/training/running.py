"""Code shared by SFT, DPO and GRPO: set up a trainer in a run folder, resume, train, save, and summarize."""

import hashlib
import itertools
import logging
import shutil
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.data.examples import has_conversations
from hf_instruct.data.sources import iterate_examples
from hf_instruct.data.splits import CheckedSplits, load_splits
from hf_instruct.errors import DISK_ERRORS, ConfigError, DataError, RunError, TrainingError, disk_remedy
from hf_instruct.library_fields import SECTIONS, find_section
from hf_instruct.manifests import write_manifest
from hf_instruct.memory import is_out_of_memory, peak_memory_bytes
from hf_instruct.models import configure_stop, fuse_activations, no_shard_bars
from hf_instruct.plots import draw_loss_plot, write_figure
from hf_instruct.processes import is_main_process, on_main_process
from hf_instruct.prompt_checks import adjust_tokenizer, choose_format, resolve_format
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.quantization import is_quantized, multiplying_in_bf16, prepare_training, restore_float32
from hf_instruct.records import read_rows, write_json, write_text
from hf_instruct.run_folder import RunFolder
from hf_instruct.schema import TrainingRow, TrainingSummary
from hf_instruct.training.tracking import place_tensorboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_instruct.training.callbacks import RunLog
    from hf_instruct.training.trainer import RunTrainer

logger = logging.getLogger(__name__)

_SAMPLE_ROWS = 3


def load_training_splits(data: Any) -> CheckedSplits:
    """Return the splits of the data, with at least one training and one validation example.

    Raises:
        DataError: The data has problems, or the training or the validation split is empty.
    """
    splits = load_splits(data)
    if empty := [name for name in ("train", "validation") if not len(splits[name])]:
        raise DataError(
            f"There is nothing to train on: the split(s) {' and '.join(empty)} contain no examples. Change the "
            "fractions of the splits, or add examples."
        )
    return splits


def run_training(  # noqa: PLR0913 - as `train`
    build: "Callable[..., RunTrainer]",
    prepare: "Callable[[PromptFormat, Any], tuple[dict[str, Any], Iterable[str]]]",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: "Mapping[str, Dataset]",
    *,
    kind: str,
    output_dir: str | Path,
    prompt_format: PromptFormat | str | None,
    args: Any,
    peft_config: Any,
    callbacks: "Sequence[Any]",
    samples: "Dataset | None" = None,
    resume: bool,
    keep_checkpoints: bool,
) -> TrainingSummary:
    """Train a model with one of TRL's trainers in a run folder, save the model, and return a summary.

    Args:
        build: The trainer's class, called with the arguments common to all trainers and those from `prepare`.
        prepare: Called with the resolved prompt format and TRL's configuration; returns the trainer's arguments with
            the rows, and texts that identify the rows when the run is resumed.
        model: The model, which is trained in place; its end token is set to that of the prompt format.
        tokenizer: Its tokenizer, which is saved with the model; the format `chat` sets its chat template.
        data: The training data by split; conversations use the prompt format `chat`.
        kind: TRL's configuration: `SFTConfig`, `DPOConfig` or `GRPOConfig`.
        output_dir: The run folder; this and all below are as for `train`.
        samples: Examples; the first few are answered before training and after each epoch.

    Raises:
        ConfigError: The settings are refused, or the model or its prompts cannot be trained on.
        RunError: The run has finished and its checkpoints are deleted; or there is a model or a checkpoint and `resume`
            is off; or a checkpoint has a different origin.
        TrainingError: The disk is too small or full, or memory runs out.
    """
    from hf_instruct.training.arguments import build_lora_config, resolve_arguments, translated_refusals
    from hf_instruct.training.callbacks import RunLog, build_sampler
    from hf_instruct.training.fast.optimizer import build_optimizer

    run, section = RunFolder(Path(output_dir)), SECTIONS[kind]
    _check_trainable(model, peft_config)
    prompt_format = choose_format(prompt_format, has_conversations=has_conversations(*data.values()), args=args)
    _check_unfinished(run, resume=resume)
    adjust_tokenizer(tokenizer, args)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    fuse_activations(model)
    prompt_format = _resolve_prompts(run, model, tokenizer, prompt_format, resume=resume)
    # Building the trainer also needs memory, because it adds the adapter and moves the model to the GPU.
    with translated_errors(run, section):
        arguments = resolve_arguments(args, model, run, kind=kind)
        adapter = build_lora_config(peft_config, model) if peft_config is not None else None
        if is_quantized(model):
            prepare_training(model)
        keywords, texts = prepare(prompt_format, arguments)
        sample_examples = [] if samples is None else list(itertools.islice(iterate_examples(samples), _SAMPLE_ROWS))
        sampler = build_sampler(model, tokenizer, sample_examples, prompt_format) if sample_examples else None
        log = RunLog(run.training_log, arguments, args, sampler)
        keywords |= {"model": model, "args": arguments, "processing_class": tokenizer, "peft_config": adapter}
        # Problems with the model, such as a layer that cannot be adapted, are only found here.
        with translated_refusals(f"The `{section}` or the `lora` section is refused by TRL or PEFT:"):
            trainer = build(callbacks=[log, *callbacks], **keywords)
        # Not tested with GRPO, which clips gradients by default.
        if kind != "GRPOConfig":
            trainer.optimizer_cls_and_kwargs = build_optimizer(arguments)
    log.can_save = trainer.can_save
    return _run_trainer(
        trainer,
        model,
        run=run,
        template=prompt_format.template,
        log=log,
        texts=texts,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
    )


def _check_trainable(model: "PreTrainedModel", peft_config: Any) -> None:
    """Refuse models without trainable weights: a loaded adapter, or a quantized model without an adapter."""
    if hasattr(model, "peft_config") and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "The model to train is an adapter:",
            ["training needs full weights; merge them with `hf-instruct export RUN --format merged` first"],
        )
    if is_quantized(model) and peft_config is None and not hasattr(model, "peft_config"):
        raise ConfigError(
            "The model to train is quantized:",
            ["its weights cannot be trained; pass a `peft_config` to train an adapter"],
        )


def _check_unfinished(run: RunFolder, *, resume: bool) -> None:
    """Raise RunError if the run has finished, or if it has begun and `resume` is off."""
    has_checkpoints = any(run.checkpoints.glob("checkpoint-*"))
    if run.training_summary.exists() and run.model.exists() and not has_checkpoints:
        raise RunError(
            f"`{run.path}` contains a finished model. Load it with `load_model`, or use another `output_dir`."
        )
    if not resume and (run.model.exists() or has_checkpoints):
        raise RunError(
            f"`{run.path}` already contains a model or checkpoints. Continue with `resume=True`, or use another "
            "`output_dir`."
        )


def _resolve_prompts(
    run: RunFolder,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt_format: PromptFormat,
    *,
    resume: bool,
) -> PromptFormat:
    """Return the prompt format, for a resumed run the original one, and set it on model and tokenizer."""
    if resume and prompt_format == PromptFormat.from_name(CHAT) and run.prompt.is_file():
        prompt_format = run.load_prompt_format(CHAT)
    prompt_format = resolve_format(prompt_format, tokenizer)
    if prompt_format.name == CHAT:
        # Saved with the model, so that any program uses these prompts.
        tokenizer.chat_template = prompt_format.template
    configure_stop(model, tokenizer, prompt_format.end_token_id(tokenizer))
    return prompt_format


def _run_trainer(
    trainer: Any,
    model: "PreTrainedModel",
    *,
    run: RunFolder,
    template: str,
    log: "RunLog",
    texts: "Iterable[str]",
    resume: bool,
    keep_checkpoints: bool,
) -> TrainingSummary:
    """Train, from the last complete checkpoint if there is one, save the model, and return a summary."""
    from transformers import PrinterCallback

    from hf_instruct.training.checkpoints import build_origin, check_disk_space, clear_checkpoints, find_checkpoint
    from hf_instruct.training.fast.casts import casting_linear_layers

    # Prints a dict for each log; the progress bar replaces it.
    trainer.remove_callback(PrinterCallback)
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8"))
    if is_quantized(model):
        restore_float32(trainer.model)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        # A single process cannot generate with weights that are sharded over all processes.
        log.sampler = None
    origin = trainer.origin = build_origin(trainer, model, digest.hexdigest())
    checkpoint = on_main_process(lambda: find_checkpoint(run.checkpoints, origin)) if resume else None
    check_disk_space(trainer.model, run.path, num_checkpoints=1 if checkpoint else 2)
    if checkpoint:
        logger.info("Continuing from %s", checkpoint)
        # The log already contains the losses at this step.
        trainer.args.eval_on_start = False
    place_tensorboard(trainer, run.path)
    casts = not hasattr(trainer.model, "peft_config") and trainer.args.bf16 and trainer.args.device.type == "cpu"
    with (
        translated_errors(run, find_section(trainer.args)),
        closing(log),
        _plain_model_afterwards(model, trainer),
        casting_linear_layers(model, enabled=casts),
        multiplying_in_bf16(model, enabled=trainer.args.bf16),
        no_shard_bars(),
    ):
        if is_main_process():
            write_text(run.prompt, template)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _save_model(trainer, run)
    summary = _summarize(trainer, run, log.seconds)
    if trainer.is_world_process_zero():
        write_figure(draw_loss_plot(read_rows(run.training_log, TrainingRow)), run.loss_plot)
        write_json(run.training_summary, summary)
        # Last, so that a run that is killed earlier can resume from them.
        clear_checkpoints(run.checkpoints, keep=keep_checkpoints)
    trainer.accelerator.wait_for_everyone()
    return summary


def _save_model(trainer: Any, run: RunFolder) -> None:
    """Save the tuned model under a temporary name and rename it when complete; called by all processes."""
    partial = run.path / "model.partial"
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        trainer.processing_class.save_pretrained(partial)
        # A pickle with local paths that nothing reads.
        (partial / "training_args.bin").unlink(missing_ok=True)
        write_manifest(partial, trainer.origin)
        shutil.rmtree(run.model, ignore_errors=True)
        partial.rename(run.model)


@contextmanager
def _plain_model_afterwards(model: "PreTrainedModel", trainer: Any) -> "Iterator[None]":
    """Undo the changes to a model by Accelerate (autocast) and `BackwardAdamW` (hooks)."""
    from hf_instruct.training.fast.optimizer import BackwardAdamW

    try:
        yield
    finally:
        for name in ("forward", "_original_forward"):
            model.__dict__.pop(name, None)
        # Wrapped by Accelerate; None if training never began.
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        if isinstance(optimizer, BackwardAdamW):
            optimizer.detach()


@contextmanager
def translated_errors(run: RunFolder, section: str) -> "Iterator[None]":
    """Turn a full disk, exhausted memory or a missing package into an error that names the settings to change."""
    from safetensors import SafetensorError

    resume = f"`--resume` continues from the last complete checkpoint in `{run.checkpoints}`."
    try:
        yield
    except ImportError as error:
        # Optimizers and kernels are imported when they are needed.
        raise ConfigError(f"The `{section}` section needs a package that is missing:", [str(error)]) from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
            raise
        raise TrainingError(f"Writing to `{run.path}` failed: {error}. {disk_remedy(error)}, then {resume}") from error
    except RuntimeError as error:
        # PyTorch's file writer and its CPU allocator both raise a plain RuntimeError with "enforce fail".
        text = str(error)
        if is_out_of_memory(error):
            raise TrainingError(
                f"The machine ran out of memory. Lower `{section}.per_device_train_batch_size` (and raise "
                f"`{section}.gradient_accumulation_steps` in proportion), set `{section}.activation_checkpointing: "
                "true`, or add a `lora:` section."
            ) from error
        if "enforce fail" in text or "No space left" in text or "unexpected pos" in text:
            raise TrainingError(f"Writing to `{run.path}` failed: {text.splitlines()[0]}. {resume}") from error
        raise


def _summarize(trainer: Any, run: RunFolder, seconds: float) -> TrainingSummary:
    from transformers.trainer_pt_utils import get_model_param_count

    rows = {row.step: row for row in read_rows(run.training_log, TrainingRow) if row.kind == "evaluation"}
    state, model = trainer.state, trainer.model
    # The step of the saved model.
    last = state.best_global_step if trainer.args.load_best_model_at_end else max(rows, default=0)
    # An evaluation before the first step is not the result; with `eval_strategy: no` it is the only one.
    before, after = rows.get(0), rows.get(last) if last else None
    num_trainable, num_parameters = (get_model_param_count(model, trainable_only=only) for only in (True, False))
    if is_quantized(model):
        # Several quantized weights are stored in one number.
        num_trainable, num_parameters = model.get_nb_trainable_parameters()
    return TrainingSummary(
        seconds=round(seconds, 1),
        steps=state.global_step,
        epochs=round(state.epoch or 0.0, 4),
        tokens_seen=int(state.num_input_tokens_seen),
        tokens_per_second=round(state.num_input_tokens_seen / max(seconds, 1e-9), 1),
        peak_memory_bytes=peak_memory_bytes(),
        device=trainer.args.device.type,
        precision="bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32",
        num_processes=trainer.accelerator.num_processes,
        num_parameters=num_parameters,
        num_trainable_parameters=num_trainable,
        train_loss=after.train_loss if after else None,
        validation_loss=after.validation_loss if after else None,
        validation_loss_before=before.validation_loss if before else None,
        reward=after.reward if after else None,
        reward_before=before.reward if before else None,
        log_history=state.log_history,
    )
