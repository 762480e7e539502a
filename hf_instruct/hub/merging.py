"""Merge the adapter of a run into its base model, and save the model for other programs."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_instruct.config import Experiment
from hf_instruct.errors import ModelLoadError, PublishError
from hf_instruct.hub.fidelity import Fidelity, Reference, check_fidelity, compare_models, take_reference
from hf_instruct.hub.templates import build_chat_template, shape_prompt
from hf_instruct.manifests import find_quantization, verify_model
from hf_instruct.models import configure_stop, list_ends, load_model, load_tokenizer, no_shard_bars, resolve_model
from hf_instruct.prompt_checks import resolve_format
from hf_instruct.prompts import CHAT, PromptFormat
from hf_instruct.records import read_file, write_json
from hf_instruct.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# The files of the model in a run's `model` folder; not `training_args.bin`, which contains paths.
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "*.py")
# Training turns it off; without it, other programs would take quadratic time for each answer.
_USABLE = {"use_cache": True}


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A run's trained model, ready to be exported.

    Attributes:
        model: The tuned model in float32, in evaluation mode; an adapter is merged into its base model.
        tokenizer: Its tokenizer, whose chat template renders the prompts the model was trained on.
        prompt_format: The format of these prompts.
        reference: Its output with the adapter not merged; written models are compared with it.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    prompt_format: PromptFormat
    reference: Reference


def check_run(run: RunFolder) -> None:
    """Refuse a run without a model, or one whose weights, or whose base model's weights, have changed.

    Raises:
        RunError: The folder does not exist or contains no run, or its model is missing or damaged.
    """
    run.load_experiment()
    run.check_trained()
    verify_model(run.model, full=True)


def check_links(run: RunFolder) -> None:
    """Refuse links that lead out of a run folder, because in a run from others they may point to private files.

    Args:
        run: The run. Only files to publish or export are checked; its data and checkpoints may be on another disk.

    Raises:
        PublishError: There is such a link, or in the model's folder a link to a folder, which may contain some.
    """
    home = os.path.realpath(run.path)
    for path in (run.config, run.prompt, run.loss_plot, run.model, *run.model.rglob("*")):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and (not target.is_relative_to(home) or (target.is_dir() and path != run.model)):
            raise PublishError(
                f"`{path}` is a link to `{path.readlink()}`, which may contain private files from outside the run "
                "folder. To publish it, replace the link with a copy."
            )


def name_run(run: RunFolder) -> str:
    """Return the name of a run's model for servers: its folder's name, in letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", run.path.resolve().name).strip("-.") or "model"


def load_run_model(run: RunFolder) -> RunModel:
    """Return a run's tuned model, with its adapter merged if it has one.

    The caller has checked the run by `check_run`, which reads all weights.

    Raises:
        PublishError: The weights are not finite numbers, or the merged model differs from adapter and base model.
        ModelLoadError: The model, or the base model of the adapter, cannot be loaded.
    """
    experiment = run.load_experiment()
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    trained_on = find_quantization(run.model) or experiment.model.quantization
    if trained_on:
        logger.info(
            "The adapter was trained on a base model in %s and is merged into the full-precision weights, so the "
            "merged model's answers may differ slightly from the run's.",
            trained_on,
        )
    trusted = experiment.model.trust_remote_code
    model, tokenizer = load_model(str(run.model), quantization="none", trust_remote_code=trusted)
    reference = take_reference(run, model, tokenizer, prompt_format)
    if run.has_adapter:
        model = merge_adapter(model, reference)
    configure_stop(model, tokenizer, prompt_format.end_token_id(tokenizer))
    model.config.update(_USABLE)
    use_training_prompt(tokenizer, prompt_format)
    return RunModel(model, tokenizer, prompt_format, reference)


def merge_adapter(model: Any, reference: Reference) -> "PreTrainedModel":
    """Return the base model of a PEFT model with the adapter added to its weights, also to GPT-2's transposed ones.

    Input and output embedding are untied first, because PEFT would add an adapter's change of either to both.

    Args:
        model: A PEFT model, which cannot be used afterwards.
        reference: Its output.

    Raises:
        PublishError: The adapter changes nothing or contains numbers that are not finite, or the merged model differs.
    """
    with model.disable_adapter():
        if compare_models(model, reference).logit_error == 0:
            raise PublishError(
                "The adapter changes nothing: the merged model would be its base model. Train it for at least one step."
            )
    _untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            # They say that an adapter of a tied layer may be merged wrongly, and that the layers are no longer tied.
            warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings|Input and output embeddings are")
            merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise PublishError(f"The adapter cannot be merged into its base model: {error}") from error
    merged.eval()
    _tie_again(merged)
    check_fidelity(merged, reference, "The merged model")
    return merged


def _untie(model: "PreTrainedModel") -> None:
    """Give every layer its own weights."""
    from torch import nn

    seen = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
            seen.add(parameter)


def _tie_again(model: "PreTrainedModel") -> None:
    """Tie the output embedding to the input embedding if both are equal, which they are if neither was adapted."""
    import torch

    # `Any`, because PyTorch's types allow a module as a layer's weight.
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is not None and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        model.config.tie_word_embeddings = True


def use_training_prompt(tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat) -> None:
    """Give a tokenizer, in place, the chat template that renders a model's training prompt.

    If no chat template can render it, the tokenizer has none afterwards, because the base model's template would render
    another prompt.
    """
    if prompt_format.name == CHAT:
        tokenizer.chat_template = resolve_format(prompt_format, tokenizer, for_training=False).template
        return
    try:
        tokenizer.chat_template = build_chat_template(shape_prompt(prompt_format, tokenizer))
    except PublishError:
        logger.warning(
            "The prompt format `%s` cannot be written as a chat template, so the tokenizer has none; programs that "
            "use the model have to build the prompt themselves.",
            prompt_format.name,
        )
        tokenizer.chat_template = None


def save_run_model(source: RunModel, folder: Path) -> Fidelity:
    """Write weights, configs and tokenizer into a folder for `from_pretrained`, and read the model back.

    Returns:
        The difference of the written model from the run's model.

    Raises:
        PublishError: The difference is more than rounding.
        OSError: The disk is full, or the folder cannot be written.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with no_shard_bars():
        source.model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        # Weights are written so that only their owner can read them, but a server may run as another user.
        path.chmod(0o644)
    with no_shard_bars():
        # Its weights stay in the file until they are needed, so there are not two models in memory.
        written = type(source.model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return check_fidelity(written.eval(), source.reference, "The model that was written")


def write_model(
    run: RunFolder, folder: Path, *, merge: bool = True, link: bool = False, source: RunModel | None = None
) -> "PreTrainedTokenizerBase":
    """Write a run's model, tokenizer and configs for other programs; weights are only loaded if an adapter is merged.

    The tokenizer renders the training prompt, and the generation config contains the tokens that end an answer, in
    addition to those it already has, so that `generate()` stops in any program.

    Args:
        run: A run with a tuned model, which `check_run` has accepted.
        folder: Created if it is missing.
        merge: Merge an adapter into its base model.
        link: Link to weights instead of copying them, if possible.
        source: The run's model, if it is already loaded.

    Returns:
        The tokenizer that was written.

    Raises:
        InstructError: See `load_run_model`.
        OSError: The folder cannot be written.
    """
    from transformers import GenerationConfig

    if run.has_adapter and merge:
        source = source or load_run_model(run)
        save_run_model(source, folder)
        return source.tokenizer
    _copy_files(run.model, folder, link=link)
    if not run.has_adapter:
        change_json(folder / "config.json", **_USABLE)
    experiment = run.load_experiment()
    prompt_format = run.load_prompt_format(experiment.data.prompt_format)
    tokenizer = load_tokenizer(str(run.model), trust_remote_code=experiment.model.trust_remote_code)
    use_training_prompt(tokenizer, prompt_format)
    tokenizer.save_pretrained(folder)
    try:
        settings = _find_generation_config(run, experiment)
    except (OSError, ModelLoadError):
        settings = GenerationConfig()
    ends = list_ends(settings, tokenizer, prompt_format.end_token_id(tokenizer))
    settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    settings.pad_token_id = tokenizer.pad_token_id
    settings.save_pretrained(folder)
    return tokenizer


def _find_generation_config(run: RunFolder, experiment: Experiment) -> "GenerationConfig":
    """Return the model's generation config; an adapter has none, but its base model may be on this disk."""
    from transformers import GenerationConfig

    if not run.has_adapter:
        return GenerationConfig.from_pretrained(run.model)
    section = experiment.model
    location, revision = resolve_model(run.find_base(section.name)), section.revision or "main"
    return GenerationConfig.from_pretrained(location, revision=revision, local_files_only=True)


def _copy_files(source: Path, folder: Path, *, link: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for pattern in _MODEL_FILES for path in source.glob(pattern) if path.is_file()):
        if link and path.suffix == ".safetensors":
            # Windows only allows links for some users.
            with contextlib.suppress(OSError):
                (folder / path.name).symlink_to(path.resolve())
                continue
        shutil.copyfile(path, folder / path.name)


def change_json(path: Path, **changes: Any) -> None:
    """Set values of a JSON object in a file."""
    write_json(path, {**(read_file(path, dict[str, Any]) or {}), **changes})
